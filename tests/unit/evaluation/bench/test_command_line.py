"""The command lines of evaluation.bench, and what can be wrong with them."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluation.bench.__main__ import main
from evaluation.bench.options import DecodingOptions, LossOptions, ScalingOptions, StepOptions, parse_options
from kd.distributed import end_world, free_port


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as the only rank of a run."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    yield
    end_world()


def test_every_command_has_defaults() -> None:
    step = parse_options(["--local_rank=1"])
    assert isinstance(step, StepOptions)
    assert (step.preset, step.methods, step.zero, step.steps, step.peer) == (
        "cpu-small",
        ("sft", "gkd", "promptkd"),
        (3,),
        3,
        None,
    )
    assert step.out.name.startswith("cost-step-")
    # As deepspeed's launcher passes it.
    assert isinstance(parse_options(["--local_rank=0", "decoding"]), DecodingOptions)
    assert isinstance(parse_options(["scaling"]), ScalingOptions)
    loss = parse_options(["loss", "--positions", "8", "--out", "here"])
    assert isinstance(loss, LossOptions)
    assert (loss.positions, loss.vocabulary, loss.out) == (8, 151936, Path("here"))


@pytest.mark.parametrize("command", [[], ["scaling"], ["decoding"], ["loss"]])
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "--out DIR" in capsys.readouterr().out


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["memory"], "no command memory; there are scaling, decoding, loss"),
        (["--preset", "huge"], "invalid choice: 'huge'"),
        (["--methods", "sft,ppo"], "'ppo' is none of sft, kd, gkd, promptkd"),
        (["--zero", "1"], "'1' is none of 0, 3"),
        (["--steps", "0"], "'0' is not a whole number of at least 1"),
        (["--peer", "verl"], "invalid choice: 'verl'"),
        (["--out", "{used}"], "cannot be made (File exists); choose a new directory"),
        (["decoding", "--out", "{used}"], "cannot be made (File exists); choose a new directory"),
        (["loss", "--vocabulary", "1"], "'1' is not a whole number of at least 2"),
        (["loss", "--positions", "100000000"], "or fewer"),
        (["scaling", "--memory-ranks", "1,x"], "'x' is none of 1 to 64"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(used=tmp_path) for word in argv]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1


@pytest.mark.usefixtures("alone")
def test_a_missing_peer_is_named_with_its_extra_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trl" else find(name))
    assert main(["--peer", "trl", "--out", str(tmp_path / "out")]) == 2
    assert 'pip install -e ".[bench]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["scaling", "loss"])
def test_commands_that_start_their_own_processes_refuse_several_ranks(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert main([command]) == 2
    assert f"start it with python -m evaluation.bench {command}" in capsys.readouterr().err
