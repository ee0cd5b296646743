"""Mistakes on the command lines of evaluation.bench."""

from pathlib import Path

import pytest

from evaluation.bench.__main__ import main

pytestmark = pytest.mark.usefixtures("alone")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["scaling"], "'scaling': expected section.field=value"),
        (["--preset", "huge"], "preset is 'huge'; expected one of tiny, cpu-small"),
        (["--methods", "sft,ppo"], "ppo"),
        (["--zero", "0,4"], "zero.1 is 4; input should be 0, 1, 2 or 3"),
        (["--gather", "shard"], "gather.0 is 'shard'; input should be 'auto', 'layer' or 'model'"),
        (["--steps", "0"], "steps is 0; input should be greater than or equal to 1"),
        (["--local_rank=0", "prompt.length=0"], "prompt.length"),
        (["schedule.steps=3"], "schedule.steps=3: the bench sets it; use --steps"),
        (["--peer", "verl"], "peer is 'verl'; input should be 'trl'"),
        (["--out", "{used}"], "cannot be made (File exists); choose a new directory"),
        (["decoding", "--preset", "huge"], "preset is 'huge'"),
        (["decoding", "--out", "{used}"], "cannot be made (File exists); choose a new directory"),
        (["loss", "--vocabulary", "1"], "vocabulary is 1; input should be greater than or equal to 2"),
        (["gpu"], "no GPU found (or DS_ACCELERATOR=cpu is set); --dry-run tries everything on the CPU"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "used").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main([word.format(used="used") for word in argv]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    # Nothing was measured.
    assert not list(tmp_path.rglob("cost.json"))


@pytest.mark.parametrize("command", [[], ["decoding"], ["loss"], ["gpu"]])
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "out, --out" in capsys.readouterr().out
