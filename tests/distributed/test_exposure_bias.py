"""Exposure bias of models whose R, E and ExAccErr have closed forms, from the command line to the files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.analysis.exposure_bias.__main__ import COMMAND, measure
from kd.distributed import World
from tests.reference.markov_chain import (
    WORDS,
    accumulated_error,
    excess_accumulated_error,
    random_chain,
    save_markov_model,
)
from tests.run_on_ranks import Ranks
from tests.tiny_models import save_tiny_model

pytest.importorskip("matplotlib")

NUM_STEPS = 12
NUM_ROWS = 250
TEACHER = random_chain(seed=1, end=0.08)
STUDENT = random_chain(seed=4, end=0.12)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models, a template, and prompts of unequal lengths that end in each word equally often."""
    directory = tmp_path_factory.mktemp("markov")
    save_markov_model(directory / "teacher", TEACHER)
    save_markov_model(directory / "student", STUDENT)
    (directory / "template.jinja").write_text("{{ instruction }}")
    rows = [{"instruction": "a b " * (row % 3) + WORDS[row % len(WORDS)]} for row in range(NUM_ROWS)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def measure_on_ranks(world: World, *, argv: list[str]) -> None:
    measure(COMMAND.read(argv), world=world)


def arguments(inputs: Path, out: Path, *extra: str) -> list[str]:
    fixed = ["--teacher", inputs / "teacher", "--data", inputs / "rows.jsonl", "--out", out]
    settings = ["--template", inputs / "template.jinja", "--seeds", "11,12,13,14", "--max-new-tokens", NUM_STEPS]
    return [str(word) for word in [*fixed, *settings, "--max-batch-tokens", 600, *extra]]


def read(out: Path) -> Any:
    return json.loads((out / "exposure_bias.json").read_text())


@pytest.fixture(scope="module")
def measured(inputs: Path, tmp_path_factory: pytest.TempPathFactory, ranks: Callable[[int], Ranks]) -> Path:
    """Results of one rank: both panels, the student also under the teacher's name."""
    out = tmp_path_factory.mktemp("one")
    extra = [f"--student=other={inputs / 'student'}", f"--student=itself={inputs / 'teacher'}"]
    extra += [f"--checkpoint=other:{step}={inputs / name}" for step, name in ((7, "student"), (3, "teacher"))]
    ranks(1).run(measure_on_ranks, argv=arguments(inputs, out, *extra, "--progress-steps", "5"))
    return out


def test_the_closed_forms_lie_in_the_intervals(measured: Path) -> None:
    curve = read(measured)["students"]["other"]["curve"]
    expected = {
        "R": accumulated_error(TEACHER, STUDENT, STUDENT, num_steps=NUM_STEPS),
        "E": accumulated_error(TEACHER, STUDENT, TEACHER, num_steps=NUM_STEPS),
        "ExAccErr": excess_accumulated_error(TEACHER, STUDENT, num_steps=NUM_STEPS),
    }
    for name, values in expected.items():
        low, high = (np.array(curve[name][end]) for end in ("low", "high"))
        # All prompts are complete at l = 1, where only the draw of the prompts is random.
        assert np.all((low - 1e-5 <= values) & (values <= high + 1e-5)), name
        assert np.all(low <= curve[name]["value"]) and np.all(curve[name]["value"] <= high)
    # An interval that holds anything would prove nothing: this one excludes 0, R = E, and E instead of R.
    assert expected["ExAccErr"][-1] > 20
    width = np.array(curve["ExAccErr"]["high"]) - np.array(curve["ExAccErr"]["low"])
    assert width.max() < 10


def test_samples_are_counted_while_they_last(measured: Path) -> None:
    curve = read(measured)["students"]["other"]["curve"]
    for name, chain in (("num_student_samples", STUDENT), ("num_teacher_samples", TEACHER)):
        assert curve[name][0] == 4 * NUM_ROWS
        alive = np.append(np.full(len(WORDS), 1 / len(WORDS)), 0.0)
        for reached in curve[name]:
            assert reached / (4 * NUM_ROWS) == pytest.approx(alive.sum(), abs=0.05)
            alive = alive @ chain
            alive[-1] = 0.0


def test_a_student_that_is_the_teacher_has_no_bias(measured: Path) -> None:
    curve = read(measured)["students"]["itself"]["curve"]
    for name in ("R", "E"):
        # Not the largest alone: rounding could have either sign.
        assert {*curve[name]["value"], *curve[name]["low"], *curve[name]["high"]} == {0}, name
        assert len(curve[name]["value"]) == NUM_STEPS
    assert curve["num_student_samples"] == curve["num_teacher_samples"]
    assert set(curve["ExAccErr"]["value"]) == set(curve["ExAccErr"]["low"]) == {None}


def test_one_and_two_ranks_write_the_same(
    inputs: Path, measured: Path, tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    extra = f"--student=other={inputs / 'student'}"
    ranks(2).run(measure_on_ranks, argv=arguments(inputs, tmp_path, extra))
    one, two = read(measured), read(tmp_path)
    assert (one["num_ranks"], two["num_ranks"]) == (1, 2)
    assert one["students"]["other"] == two["students"]["other"]


def test_progress_is_the_curve_at_one_length(
    inputs: Path, measured: Path, tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    """Also where nothing longer is sampled."""
    progress = read(measured)["progress"]["other"]
    assert (progress["generation_steps"], progress["best_step"]) == (5, None)
    assert [point["training_step"] for point in progress["points"]] == [3, 7]
    curve = read(measured)["students"]["other"]["curve"]
    for name in ("R", "E", "ExAccErr"):
        for key in ("value", "low", "high"):
            assert progress["points"][1][name][key] == pytest.approx(curve[name][key][4], rel=1e-5)
    argv = arguments(inputs, tmp_path, f"--checkpoint=other:7={inputs / 'student'}", "--progress-steps", "5")
    ranks(1).run(measure_on_ranks, argv=argv)
    assert read(tmp_path)["progress"]["other"]["points"] == progress["points"][1:]


def test_pictures_are_written(measured: Path) -> None:
    assert (measured / "exposure_bias.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (measured / "exposure_bias.svg").read_text()


def test_a_student_of_another_tokenizer_is_refused(inputs: Path, tmp_path: Path, ranks: Callable[[int], Ranks]) -> None:
    other = save_tiny_model(tmp_path / "other", "gpt2", seed=1)
    argv = arguments(inputs, tmp_path / "out", f"--student=other={other}")
    assert "tokenizers of teacher and student differ" in ranks(1).run(refusal, argv=argv)[0]
    assert not (tmp_path / "out").exists()


def test_too_few_rows_are_refused_before_anything_is_sampled(
    inputs: Path, tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    argv = arguments(inputs, tmp_path / "out", f"--student=other={inputs / 'student'}", "--rows=9")
    messages = ranks(2).run(refusal, argv=argv)
    assert messages[0] == messages[1]
    assert "9 rows have a prompt that is short enough, a curve needs 10 or more" in messages[0]
    assert not (tmp_path / "out").exists()


def refusal(world: World, *, argv: list[str]) -> str:
    from kd.errors import UserError

    try:
        measure(COMMAND.read(argv), world=world)
    except UserError as error:
        return str(error)
    return "nothing was refused"


def test_a_killed_measurement_resumes_after_the_students_it_completed(
    inputs: Path, tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    incomplete = save_markov_model(tmp_path / "incomplete", STUDENT)
    weights = incomplete / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    out = tmp_path / "out"
    argv = arguments(inputs, out, f"--student=other={inputs / 'student'}", f"--student=late={incomplete}", "--rows=20")
    assert str(incomplete) in ranks(2).run(refusal, argv=argv)[0]
    kept = json.loads((out / "unfinished.json").read_text())
    # A number that no measurement gives shows what is taken from the file.
    [curve] = kept.values()
    curve["R"]["value"][0] = -1.0
    (out / "unfinished.json").write_text(json.dumps(kept))
    weights.write_bytes(content)
    for command, is_taken in ((argv, True), ([*argv, "--seeds", "5,6"], False)):
        (out / "unfinished.json").write_text(json.dumps(kept))
        ranks(2).run(measure_on_ranks, argv=command)
        students = read(out)["students"]
        assert (students["other"]["curve"]["R"]["value"][0] == -1.0) == is_taken
        assert students["late"]["curve"]["R"]["value"][0] > 0
        assert not (out / "unfinished.json").exists()


def test_a_broken_file_of_finished_students_is_refused(
    inputs: Path, tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    (tmp_path / "unfinished.json").write_text('{"a": 1')
    argv = arguments(inputs, tmp_path, f"--student=other={inputs / 'student'}")
    messages = ranks(2).run(refusal, argv=argv)
    assert messages[0] == messages[1]
    assert "unfinished.json: cannot be read" in messages[0] and "delete it" in messages[0]
