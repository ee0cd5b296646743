"""From a training to its page, with what the toolkit's commands really write."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from evaluation.exposure_bias import __main__ as exposure_bias
from evaluation.report.__main__ import main as report
from evaluation.report.outputs import find_outputs
from evaluation.scoring import main as evaluate
from evaluation.student_friendliness import __main__ as student_friendliness
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
    page = tmp_path / "report.html"
    assert report(["--runs", str(measured), "--out", str(page)]) == 0
    said = capsys.readouterr().out
    assert "Scores, Training, Exposure bias, What the prompt does to the teacher, Costs, Responses;" in said
    assert [line.split(": ")[1].split(",")[0] for line in said.splitlines()[1:]] == [
        "Table 6", "Figure 4", "Table 9", "Table 11", "Table 12"
    ]  # fmt: skip
    text = page.read_text()
    for name in ("teacher", "teacher with the prompt of run", "run"):
        assert f"<th scope=row>{name}</th>" in text
    table = (tmp_path / "report_files" / "table1.csv").read_text().splitlines()
    score = json.loads((measured / "scores" / "student" / "results.json").read_text())["benchmarks"]["mine"]["rougeL"]
    assert table[-1].split(",")[1:6] == [
        "run", table[-1].split(",")[2], "PromptKD", f"{score['mean']:.6g}", f"{score['standard_error']:.6g}"
    ]  # fmt: skip


def test_numbers_are_read_as_they_were_written(measured: Path) -> None:
    found = find_outputs([measured])
    (run,) = found.trainings
    assert run.num_steps == 2 and run.best is not None
    assert run.peak_bytes == max(record["peak_memory_bytes"] for record in run.records)
    (bias,) = found.exposure_biases
    assert bias.results.num_requests == NUM_ROWS
    written = json.loads((measured / "exposure_bias" / "exposure_bias.json").read_text())
    values = bias.results.students["kd"].curve.ExAccErr.value
    assert list(values) == written["students"]["kd"]["curve"]["ExAccErr"]["value"] and values[0] is not None
    assert [point.training_step for point in bias.results.progress["kd"].points] == [0, 2]
    (friendliness,) = found.friendliness
    assert friendliness.results.sets["unseen"].num_rows == NUM_ROWS
