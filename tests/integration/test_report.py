"""From a training to its page, with what the toolkit's commands really write."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("matplotlib")

from evaluation.analysis.exposure_bias import __main__ as exposure_bias
from evaluation.analysis.student_friendliness import __main__ as student_friendliness
from evaluation.paper.__main__ import main as reproduce
from evaluation.report.__main__ import main as report
from evaluation.scoring import main as evaluate
from tests.distributed import run_jobs
from tests.integration.tiny_run import write_tiny_config, write_tiny_pair
from tests.run_on_ranks import Ranks

NUM_ROWS = 12


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, ranks: Callable[[int], Ranks]) -> Path:
    """A run of two steps, its evaluation, its teacher's with the prompt, and both analyses, all below run/."""
    directory = tmp_path_factory.mktemp("measured")
    write_tiny_pair(directory)
    rows = [{"instruction": f"Name {number}.", "output": f"the {number}"} for number in range(NUM_ROWS)]
    data = directory / "validation.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = write_tiny_config(directory, data={"validation": str(data)}, validation={"every": 1})
    assert ranks(1).run(run_jobs.run, config_file=config, overrides=[]) == [None]
    run, teacher = directory / "run", str(directory / "teacher")
    limits = ["--max-prompt-tokens", "100", "--max-new-tokens", "8"]
    prompt = str(run / "final" / "soft_prompt.safetensors")
    benchmark = ["--benchmark", f"mine={data}", "--seeds", "10,20", *limits]
    for name, model in (
        ("student", ["--model", str(run / "final")]),
        ("teacher", ["--model", teacher]),
        ("prompted", ["--model", teacher, "--soft-prompt", prompt]),
    ):
        assert evaluate([*model, *benchmark, "--out", str(run / "scores" / name)]) == 0
    analysis = ["--seeds", "1", *limits]
    student = ["--student", f"kd={run / 'final'}", "--checkpoint", f"kd:0={directory / 'student'}"]
    course = ["--checkpoint", f"kd:2={run / 'final'}", "--progress-steps", "3"]
    curves = ["--teacher", teacher, "--data", str(data), *student, *course, "--out", str(run / "exposure_bias")]
    assert exposure_bias.main([*curves, *analysis]) == 0
    assert student_friendliness.main(["--run", str(run), "--out", str(run / "friendliness"), *analysis]) == 0
    return run


def test_the_page_of_a_run_shows_everything_that_was_measured(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(["--runs", str(measured), "--out", str(tmp_path / "report.html")]) == 0
    titles = "Scores, Training, Exposure bias, Effect of the prompt on the teacher, Responses;"
    assert titles in capsys.readouterr().out
    files = tmp_path / "report_files"
    scores = pd.read_csv(files / "scores.csv").set_index("model")
    assert list(scores.index) == ["teacher", "teacher with the prompt of run", "run"]
    written = json.loads((measured / "scores" / "student" / "results.json").read_text())["benchmarks"]["mine"]["rougeL"]
    assert list(scores.loc["run"][["mine", "mine ±"]]) == pytest.approx(
        [written["mean"], written["standard_error"]], rel=1e-5
    )
    training = pd.read_csv(files / "trainings.csv").iloc[0]
    records = [json.loads(line) for line in (measured / "metrics.jsonl").read_text().splitlines()]
    assert (training["method"], training["steps"]) == ("promptkd", 2)
    assert training["minutes"] * 60 == pytest.approx(sum(record["step_seconds"] for record in records), rel=1e-4)
    friendliness = json.loads((measured / "friendliness" / "student_friendliness.json").read_text())
    expected = friendliness["sets"]["unseen"]["difference"]["final"]["forward_kl"]["value"]
    assert pd.read_csv(files / "student-friendliness.csv")["KL(p‖q), final student"].iloc[-1] == pytest.approx(
        expected, rel=1e-5
    )
    assert ">kd</text>" in (files / "exposure-bias-1.svg").read_text()


def test_the_papers_page_has_the_run_in_its_tables(measured: Path, tmp_path: Path) -> None:
    assert reproduce(["--runs", str(measured), "--out", str(tmp_path / "paper.html")]) == 0
    sources = {path.name: pd.read_csv(path).iloc[0, 0] for path in (tmp_path / "paper_files").glob("*.csv")}
    assert sources == {"table1.csv": "these runs", "table3.csv": "run", "table4.csv": "friendliness, KL(p‖q)"}
