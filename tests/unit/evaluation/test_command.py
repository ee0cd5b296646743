"""Command lines: flags, overrides, files, values of a run, and one line for each mistake."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from evaluation.analysis.divergence import COMMAND as DIVERGENCE
from evaluation.analysis.exposure_bias.__main__ import COMMAND as EXPOSURE_BIAS
from evaluation.analysis.student_friendliness.__main__ import COMMAND as FRIENDLINESS
from evaluation.benchmarks.__main__ import PREPARE
from evaluation.compare import COMMAND as COMPARE
from evaluation.display import results_console, short_names
from evaluation.judge.__main__ import COMMAND as JUDGE
from evaluation.rouge_l import COMMAND as ROUGE_L
from evaluation.scoring import COMMAND as EVALUATE
from kd.errors import UserError
from kd.methods.kd import KD

GOOD = ["--model", "m", "--benchmark", "a=x.jsonl", "--out", "o"]
COMMANDS = [EVALUATE, COMPARE, ROUGE_L, PREPARE, DIVERGENCE, EXPOSURE_BIAS, FRIENDLINESS, JUDGE]


def test_defaults_are_the_papers() -> None:
    config = EVALUATE.read(GOOD)
    assert (config.model.path, config.data.benchmarks, config.out) == ("m", {"a": "x.jsonl"}, Path("o"))
    assert config.generation.seeds == (10, 20, 30, 40, 50)
    assert config.metrics == ("rougeL", "exact_match")
    assert config.data.rows is config.model.soft_prompt is None
    assert config.decoding == {
        "max_new_tokens": 256,
        "max_prompt_tokens": 256,
        "template": "alpaca",
        "overlong": "drop",
        "greedy": False,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
    }


def test_flags_and_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.yaml"
    content = {
        "model": {"path": "m", "dtype": "bf16"},
        "data": {"benchmarks": {"a": "x"}, "rows": 7},
        "generation": {"seeds": [1, 2], "temperature": 0.5, "max_new_tokens": 9},
        "out": "o",
    }
    file.write_text(yaml.safe_dump(content))
    argv = ["--config", str(file), "generation.temperature=0.7", "--seeds", "3,4", "--benchmark", "b=data/n=5.jsonl"]
    config = EVALUATE.read([*argv, "--greedy", "--local_rank=1"])
    assert config.data.benchmarks == {"a": "x", "b": "data/n=5.jsonl"}
    assert (config.generation.seeds, config.generation.temperature) == ((3, 4), 0.7)
    assert (config.model.dtype, config.data.rows, config.generation.max_new_tokens) == ("bf16", 7, 9)
    assert config.generation.greedy


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--benchmark", "self_inst"], "'self_inst' is not NAME=PATH"),
        (["--benchmark", "=x.jsonl"], "is not NAME=PATH"),
        (["--benchmark", "../b=x.jsonl"], "is not NAME=PATH"),
        (["--benchmark", "a=y.jsonl"], "--benchmark: the name a is given twice"),
        (["--seeds", "10,10"], "generation.seeds is [10, 10]"),
        (["--seeds", "10,-1"], "generation.seeds.1 is -1; input should be greater than or equal to 0"),
        (["--max-new-tokens", "0"], "generation.max_new_tokens is 0; input should be greater than or equal to 1"),
        (["--temperature", "0"], "generation.temperature is 0; input should be greater than 0"),
        (["--top-p", "1.5"], "generation.top_p is 1.5; input should be less than or equal to 1"),
        (["--top-k", "x"], "generation.top_k is 'x'; input should be a valid integer"),
        (["--overlong", "keep"], "data.overlong is 'keep'; input should be 'drop' or 'truncate'"),
        (["generation.max_token=3"], "unknown key generation.max_token; did you mean generation.max_new_tokens?"),
        (["--metrics", "rouge", "rougeL"], "metrics: 'rouge' is none of rougeL, rougeL_unicode, exact_match, accuracy"),
        (["--metrics", "accuracy"], "the metric accuracy needs an answer pattern"),
        (["--metrics", "accuracy", "--answer-pattern", "("], "answer pattern '(': not a regular expression"),
        (["--run", "nowhere"], "nowhere: has no config.yaml"),
        (["--nonsense"], "unrecognized arguments: --nonsense; see --help"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_a_mistake_is_named_in_one_line(extra: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        EVALUATE.read([*GOOD, *extra])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_first_missing_field_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert COMPARE.run(lambda _: None, ["--a", "x"]) == 2
    assert capsys.readouterr().err == (
        "error: command line: b is missing; set it in the file or as b=VALUE (--help describes it)\n"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.program)
def test_help_lists_every_field_with_flag_and_default(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.read(["--help"])  # type: ignore[attr-defined]
    shown = capsys.readouterr().out
    assert command.description.splitlines()[0] in shown  # type: ignore[attr-defined]
    assert "out, --out" in shown or "generations, --generations" in shown


class Outside(KD):
    """A method from outside the package."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory whose method is outside the package."""
    module = ModuleType("my_methods")
    module.Outside = Outside  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_methods", module)
    config = {
        "method": "my_methods:Outside",
        "model": {"student": "start", "teacher": "t"},
        "data": {"train": "seen.jsonl", "template": "chat", "max_prompt_tokens": 40, "max_sequence_tokens": 90},
        "generation": {"max_new_tokens": 12},
        "validation": {"metric": "accuracy", "answer_pattern": "#### (.+)"},
        "run": {"dir": str(tmp_path)},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_a_run_gives_model_template_limits_and_metrics(run: Path) -> None:
    argv = ["--run", str(run), "--benchmark", "a=x", "--out", "o"]
    config = EVALUATE.read(argv)
    assert config.model.path == str(run / "final")
    assert (config.data.template, config.data.max_prompt_tokens, config.generation.max_new_tokens) == ("chat", 40, 12)
    assert config.metrics == ("rougeL", "exact_match", "accuracy")
    assert config.find_metrics()["accuracy"]("so #### 4", ("#### 4",)) == 1
    (run / "best").mkdir()
    assert EVALUATE.read(argv).model.path == str(run / "best")
    config = EVALUATE.read([*argv, "--model", "mine", "--max-new-tokens", "7", "--metrics", "rougeL"])
    assert (config.model.path, config.generation.max_new_tokens, config.metrics) == ("mine", 7, ("rougeL",))
    assert config.data.max_prompt_tokens == 40


def test_a_run_serves_the_analyses_too(run: Path) -> None:
    divergence = DIVERGENCE.read(["--run", str(run), "--data", "d"])
    assert (divergence.model.teacher, divergence.model.soft_prompt) == ("t", None)
    assert divergence.data.max_sequence_tokens == 90
    bias = EXPOSURE_BIAS.read(["--run", f"mine={run}", "--data", "d", "--out", "o"])
    assert (bias.model.teacher, bias.data.template, bias.generation.max_new_tokens) == ("t", "chat", 12)
    friendly = FRIENDLINESS.read(["--run", str(run), "--unseen", "u", "--out", "o", "--final", "elsewhere"])
    assert (friendly.model.initial, friendly.model.final) == ("start", "elsewhere")
    assert friendly.model.trained_prompt == str(run / "final" / "soft_prompt.safetensors")
    with pytest.raises(UserError, match="data.unseen is missing"):
        FRIENDLINESS.read(["--run", str(run), "--out", "o"])


def test_tables_in_a_log_are_wide_and_names_short(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    results_console().print("x" * 150)
    assert capsys.readouterr().out == "x" * 150 + "\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert results_console().width == 60
    places = [Path("/x/opt/promptkd"), Path("/x/gpt2/promptkd"), Path("/x/gpt2/sft"), Path("/y/gpt2/promptkd")]
    assert short_names(places) == ["opt/promptkd", "x/gpt2/promptkd", "sft", "y/gpt2/promptkd"]
