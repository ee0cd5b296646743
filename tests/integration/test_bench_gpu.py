"""evaluation.bench gpu without a GPU: all parts in tiny sizes, the time limit, failures, and the tables."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.bench import gpu
from evaluation.bench.__main__ import main
from evaluation.bench.gpu_table import BEGIN, END, write_tables
from kd.methods import METHODS


def parts(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "gpu_cpu.json").read_text(encoding="utf-8"))["parts"]
    return found


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a dry run with one case more, which fails."""
    out = tmp_path_factory.mktemp("dry")
    (out / "gpu.md").write_text(f"# GPUs\n\n{BEGIN}\nold\n{END}\n\n## More\n", encoding="utf-8")
    [group] = gpu.dry_groups()
    broken = ("loss", "broken", "fused", {"kind": "fused", "shape": "--vocabulary 0"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "dry_groups", lambda: [gpu.Group(cases=[*group.cases, broken], variables=group.variables)])
        assert main(["gpu", "--dry-run", "--out", str(out)]) == 0
    return out


def test_every_part_has_its_results(dry: Path) -> None:
    found = {
        part: {name: {variant: entry.get("result") for variant, entry in names[name].items()} for name in names}
        for part, names in parts(dry).items()
    }
    assert found["two steps"].keys() == {f"{name}, ZeRO-{zero}" for name in ("promptkd", "gkd") for zero in (0, 3)}
    for name, variants in found["two steps"].items():
        result = variants["bf16"]
        assert result["passed"], name
        assert {"student_kd", "grad_norm"} <= result["differences"].keys()
        # In bf16, and not the reference itself.
        assert 1e-4 < max(result["differences"].values()) <= result["tolerance"] < 0.1
    assert {"prompt_kd", "prompt_regularization", "prompt_grad_norm"} <= (
        found["two steps"]["promptkd, ZeRO-3"]["bf16"]["differences"].keys()
    )
    assert found["training"].keys() == METHODS.keys()
    for result in (variants["bf16"] for variants in found["training"].values()):
        assert result["passed"] and len(result["losses"]) == 3 and result["losses"][2] < result["losses"][0]
    assert found["resume"]["promptkd"]["bf16"] == {"largest_difference": 0}
    assert found["graphs"]["tiny"]["fp32"] == {"passed": True, "responses": 16, "different": 0}
    [step] = found["step"].values()
    assert (
        step["fp32"]["seconds"]["prompt"] > 0 and step["fp32"]["peak"]["allocated"] > step["fp32"]["planned_bytes"] > 0
    )
    [decoding] = found["decoding"].values()
    assert decoding["fp32"]["bandwidth"] > 0
    assert decoding["fp32"]["roofline_tokens_per_second"] > decoding["fp32"]["tokens_per_second"]["kd.rollout.decode"]
    losses, _ = found["loss"].values()
    assert losses["fused"]["value"] == pytest.approx(losses["plain"]["value"], rel=1e-2)
    assert losses["gemms"]["seconds"] > 0


def test_a_failing_case_is_recorded_with_its_message(dry: Path) -> None:
    state = parts(dry)["loss"]["broken"]["fused"]["state"]
    assert state == "failed: command line: vocabulary is 0; input should be greater than or equal to 2"


def test_the_page_has_the_table_between_its_markers(dry: Path) -> None:
    page = (dry / "gpu.md").read_text(encoding="utf-8")
    assert page.startswith(f"# GPUs\n\n{BEGIN}\n") and page.endswith(f"\n{END}\n\n## More\n")
    assert "old" not in page
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + sum(map(len, parts(dry).values()))
    assert sum("bf16: pass" in row for row in rows) == 4 + len(METHODS)
    assert any(row.startswith("| loss | broken | fused: failed: command line: vocabulary is 0") for row in rows)


def test_a_check_that_does_not_pass_is_marked(dry: Path, tmp_path: Path) -> None:
    values = json.loads((dry / "gpu_cpu.json").read_text(encoding="utf-8"))
    values["parts"]["training"]["sft"]["bf16"]["result"] |= {"passed": False, "skipped_updates": 2}
    (tmp_path / "gpu_cpu.json").write_text(json.dumps(values), encoding="utf-8")
    assert "| training | sft | bf16: **FAIL** with 2 updates skipped, loss" in write_tables(tmp_path)


def test_what_the_time_limit_cuts_off_is_listed_and_resume_runs_the_rest(
    dry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_run", lambda *_, **__: pytest.fail("a process was started"))
    assert main(["gpu", "--dry-run", "--minutes", "0.1", "--out", str(tmp_path)]) == 0
    states = [entry["state"] for part in parts(tmp_path).values() for name in part.values() for entry in name.values()]
    assert states == ["not run: no time left"] * sum(len(group.cases) for group in gpu.dry_groups())
    (tmp_path / "gpu_cpu.json").write_bytes((dry / "gpu_cpu.json").read_bytes())
    # Everything of an unchanged dry run is there.
    assert main(["gpu", "--dry-run", "--resume", "--out", str(tmp_path)]) == 0
    assert parts(tmp_path) == parts(dry)
