"""`make compare` runs what its protocol says, repeats nothing that is done, and adds up its scores correctly."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from demo import compare, comparison_results, contestants, tuning
from demo.contestants import CONTESTANTS, Folder, Training
from demo.spread import Spread
from demo.tuning import CANDIDATES, TunedRates, read_rates
from kd.config import Config
from kd.config_fields import MethodName
from kd.config_file import read_config, to_yaml
from kd.errors import EXIT_CODE, UserError

ROOT = Path(__file__).resolve().parents[2]
ALL = list(CONTESTANTS)
RATES = TunedRates(steps=300, scores={method: {1e-3: 1.0, 3e-3: 2.0, 1e-2: 1.5} for method in ALL})


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def plan(folder: str = "out", *, methods: list[MethodName] = ALL, seeds: tuple[int, ...] = (1, 2, 3)) -> list[Training]:
    return compare.planned_trainings(methods, seeds=seeds, steps=300, folder=Folder(path=folder), rates=RATES)


def config_of(training: Training) -> Config:
    """The configuration that the printed command reads."""
    words = training.command()
    return read_config(words[words.index("--config") + 1], overrides=[word for word in words if "=" in word])


def pretend(training: Training, *, rouge_l: float, seconds: float = 1.0) -> None:
    """Leave what a finished training leaves."""
    directory = Path(training.directory)
    (directory / "final").mkdir(parents=True)
    (directory / "config.yaml").write_text(to_yaml(training.config()))
    records = [
        {"step": training.steps // 2, "step_seconds": seconds, "validation/rougeL": rouge_l / 2},
        {"step": training.steps, "step_seconds": 3 * seconds, "validation/rougeL": rouge_l},
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def pretend_scores(directory: str, *, rouge_l: float) -> None:
    """Leave what an evaluation leaves."""
    Path(directory).mkdir(parents=True)
    scores = {"rougeL": {"mean": rouge_l}, "exact_match": {"mean": rouge_l / 2}}
    (Path(directory) / "results.json").write_text(json.dumps({"benchmarks": {"test": scores}}))


def test_every_method_gets_the_same_steps_batches_and_seeds() -> None:
    trainings = plan()
    assert Counter(training.method for training in trainings) == dict.fromkeys(ALL, 3)
    assert len({training.directory for training in trainings}) == 21
    for training in trainings:
        config = config_of(training)
        assert training.command()[1:3] == ["--num_gpus", "2"]
        assert config.method == training.method
        assert config.run.seed == training.seed
        assert config.optimizer.learning_rate == 3e-3
    shared = ("schedule", "generation", "engine", "validation", "checkpoints")
    assert len({str([asdict(getattr(config_of(training), name)) for name in shared]) for training in trainings}) == 1
    schedule = config_of(trainings[0]).schedule
    assert (schedule.steps, schedule.global_batch, schedule.micro_batch) == (300, 32, 16)


def test_students_start_and_learn_as_in_the_paper() -> None:
    configs = {training.method: config_of(training) for training in plan(seeds=(2,))}
    raw, fine_tuned = "out/raw-2", configs["sft"].run.dir + "/final"
    starts = {method: config.model.student for method, config in configs.items()}
    assert starts == dict.fromkeys(("sft", "kd", "seqkd"), raw) | dict.fromkeys(
        ("gkd", "minillm", "distillm", "promptkd"), fine_tuned
    )
    assert {method: config.data.train for method, config in configs.items()} == {
        "sft": "demo/data/labelled.jsonl",
        "kd": "demo/data/labelled.jsonl",
        "seqkd": "demo/data/prompts.jsonl",
        "gkd": "demo/data/prompts.jsonl",
        "minillm": "demo/data/prompts.jsonl",
        "distillm": "out/answered.jsonl",
        "promptkd": "demo/data/prompts.jsonl",
    }
    assert configs["seqkd"].data.responses == "out/teacher_responses.jsonl"
    assert {config.model.teacher for method, config in configs.items() if method != "sft"} == {"demo/teacher"}
    assert (configs["gkd"].gkd.student_fraction, configs["gkd"].gkd.divergence) == (1, "reverse_kl")


def test_sft_is_trained_where_a_method_only_starts_from_it() -> None:
    assert [training.method for training in plan(methods=["gkd"], seeds=(1,))] == ["sft", "gkd"]
    assert [training.method for training in plan(methods=["kd"], seeds=(1,))] == ["kd"]


def test_finished_trainings_are_not_repeated_and_others_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(title: str, *commands: list[str]) -> None:
        ran.extend(commands)

    monkeypatch.setattr(compare, "run", run)
    done, killed = plan(str(tmp_path), methods=["kd", "seqkd"], seeds=(1,))
    pretend(done, rouge_l=50.0)
    (Path(killed.directory) / "checkpoints" / "step-100").mkdir(parents=True)
    for training in (done, killed):
        compare.finish(training, "1 of 2")
    assert [f"run.dir={killed.directory}" in command for command in ran] == [True]


def test_a_finished_run_of_other_settings_is_no_result(tmp_path: Path) -> None:
    old = plan(str(tmp_path), methods=["kd"], seeds=(1,))[0]
    pretend(old, rouge_l=50.0)
    new = Training(**{**vars(old), "learning_rate": 0.01})
    with pytest.raises(UserError, match="was trained with other settings, this call has learning_rate: 0.01; delete"):
        new.is_finished()


def test_tuning_chooses_by_the_last_validation_and_keeps_what_it_has_measured(tmp_path: Path) -> None:
    scores = {"sft": (30.0, 40.0, 60.0, 50.0), "gkd": (60.0, 70.0, 65.0, 70.0)}
    asked: list[Training] = []

    def finish(training: Training, place: str) -> None:
        asked.append(training)
        if not training.is_finished():
            pretend(training, rouge_l=scores[training.method][CANDIDATES.index(training.learning_rate)])

    file, folder = tmp_path / "rates.yaml", Folder(path=str(tmp_path))
    for method in ("sft", "gkd"):
        tuning.tune([method], steps=300, folder=folder, rates_file=file, finish=finish)
    rates = read_rates(file)
    # Of two that are as good, the lower one.
    assert (rates.best("sft"), rates.best("gkd")) == (3e-3, 1e-3)
    assert rates.scores["gkd"] == dict(zip(CANDIDATES, scores["gkd"], strict=True))
    of_gkd = [training for training in asked if training.method == "gkd"]
    assert [training.learning_rate for training in of_gkd] == list(CANDIDATES)
    assert {config_of(training).model.student for training in of_gkd} == {f"{tmp_path}/tuning/sft-0.003/final"}
    assert {training.seed for training in asked} == {tuning.SEED} and tuning.SEED not in (1, 2, 3)
    assert {config_of(training).schedule.steps for training in asked} == {300}
    with pytest.raises(UserError, match="was tuned with 300 steps, this call has 6"):
        tuning.tune(["sft"], steps=6, folder=folder, rates_file=file, finish=finish)


def test_a_start_from_sft_needs_its_rate(tmp_path: Path) -> None:
    def finish(training: Training, place: str) -> None:
        pytest.fail(f"{training.name} was trained")

    with pytest.raises(UserError, match="sft has no tuned learning rate"):
        tuning.tune(
            ["gkd"],
            steps=300,
            folder=Folder(path=str(tmp_path)),
            rates_file=tmp_path / "rates.yaml",
            finish=finish,
        )


@pytest.mark.parametrize("text", ["", "steps: 3", "[1]"])
def test_a_file_that_tuning_did_not_write_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "rates.yaml").write_text(text)
    with pytest.raises(UserError, match="is not a file of learning rates"):
        read_rates(tmp_path / "rates.yaml")


def test_only_whole_responses_become_rows_with_an_answer(tmp_path: Path) -> None:
    folder = Folder(path=str(tmp_path))
    answers = [
        {"prompt": "…", "response": "It is a tool", "ended": True, "source": "demo/data/prompts.jsonl:3"},
        {"prompt": "…", "response": "It is a", "ended": False, "source": "demo/data/prompts.jsonl:4"},
    ]
    Path(folder.responses).write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    contestants.write_answered(folder)
    third = json.loads(Path("demo/data/prompts.jsonl").read_text().splitlines()[2])
    assert [json.loads(line) for line in Path(folder.answered).read_text().splitlines()] == [
        third | {"output": "It is a tool"}
    ]


def test_standard_errors_are_those_over_training_seeds() -> None:
    spread = Spread.of([1.0, 2.0, 6.0])
    assert spread.mean == 3
    # Sample variance (4 + 1 + 9) / 2 = 7, over 3 seeds.
    assert spread.standard_error == pytest.approx((7 / 3) ** 0.5)
    assert spread.text(sign="+") == "+3.00 ± 1.53"
    assert Spread.of([2.0]).text() == "2.00"


def test_the_report_has_scores_times_leads_and_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(path=str(tmp_path))
    methods: list[MethodName] = ["gkd", "promptkd"]
    trainings = plan(folder.path, methods=methods, seeds=(1, 2))
    scores = {"sft-1": 40.0, "sft-2": 44.0, "gkd-1": 50.0, "gkd-2": 52.0, "promptkd-1": 53.0, "promptkd-2": 57.0}
    for training in trainings:
        pretend(training, rouge_l=scores[training.name] + 1, seconds=0.1 * training.seed)
        pretend_scores(training.scores, rouge_l=scores[training.name])
    pretend_scores(folder.teacher_scores, rouge_l=91.0)
    comparison_results.report(trainings, methods=methods, folder=folder)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["seeds"], results["steps"], results["teacher"]["rougeL"]) == ([1, 2], 300, 91)
    assert list(results["methods"]) == methods
    gkd = results["methods"]["gkd"]
    assert (gkd["rougeL"]["mean"], gkd["rougeL"]["standard_error"]) == (51, pytest.approx(1))
    # 150 steps of 0.1 s and 150 of 0.3 s with seed 1; twice that with seed 2.
    assert gkd["training_seconds"]["per_seed"] == pytest.approx([60, 120])
    assert gkd["step_seconds"]["mean"] == pytest.approx(0.3)
    # Seconds and validation ROUGE-L; the first is of the student that SFT made.
    assert results["validation_curves"]["gkd"][0] == [[0, 41], [pytest.approx(15), 25.5], [pytest.approx(60), 51]]
    rows = (tmp_path / "comparison.md").read_text().splitlines()
    assert len(rows) == 5
    assert [cell.strip() for cell in rows[3].strip("|").split("|")] == [
        *("GKD", "sft", "0.003", "51.00 ± 1.00", "25.5 ± 0.5", "+4.0 ± 1.0", "0.300", "90")
    ]
    assert "51.00 ± 1.00" in capsys.readouterr().out
    assert all((tmp_path / f"comparison.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "gkd,magic"], "--methods: 'magic' is no contestant"),
        (["--seeds", "1,1"], "--seeds is '1,1'"),
        (["--seeds", "one"], "--seeds is 'one'"),
        (["--rates", "nowhere.yaml"], "--rates nowhere.yaml: cannot be read"),
    ],
)
def test_a_bad_call_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(arguments) == EXIT_CODE
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_missing_teacher_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contestants, "NEEDED", ("demo/nobody/model.safetensors",))
    rates = tmp_path / "rates.yaml"
    RATES.write(rates)
    assert yaml.safe_load(rates.read_text())["seed"] == tuning.SEED
    for task in ([], ["tune"]):
        assert compare.main([*task, "--rates", str(rates), "--out", str(tmp_path)]) == EXIT_CODE
        error = capsys.readouterr().err
        assert error.startswith("error: demo/nobody/model.safetensors does not exist") and error.count("\n") == 1


def test_the_shipped_rates_are_of_all_methods_and_candidates() -> None:
    rates = read_rates(tuning.RATES)
    assert rates.steps == contestants.STEPS
    assert set(rates.scores) == set(CONTESTANTS)
    assert all(set(scores) == set(CANDIDATES) for scores in rates.scores.values())
