"""evaluation.bench families: a verdict for each family, also for one that cannot be made."""

import json
from pathlib import Path

import pytest

from evaluation.bench.__main__ import main


def test_verdicts_of_families(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["families", "--families", "gpt2", "opt", "xlstm", "mamba", "--out", str(out)]) == 0
    found = json.loads((out / "families.json").read_text())
    assert found["gpt2"] == {"trained": "yes", "rolled out": "yes", "packed": "yes"}
    assert found["opt"]["rolled out"] == "yes" and "set schedule.packing=false" in found["opt"]["packed"]
    assert found["xlstm"]["trained"] == "yes" and "rollouts would be wrong" in found["xlstm"]["rolled out"]
    assert found["mamba"]["rolled out"] == "yes" and "its layers keep states" in found["mamba"]["packed"]
    rows = (out / "families.md").read_text().splitlines()
    assert rows[:3] == [
        "| family | trained | rolled out | packed |",
        "|---|---|---|---|",
        "| `gpt2` | yes | yes | yes |",
    ]
    assert main(["families", "--families", "gpt3"]) == 2
    assert "families: gpt3 is no causal language model of transformers" in capsys.readouterr().err
