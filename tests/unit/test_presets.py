"""Presets load, stay short, fit together, and ablations change only the prompt."""

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd.config.schema import Config
from kd.methods import METHODS, find_method, load_config
from kd.methods.promptkd import PromptSettings

DOLLY_ROWS = 11_435
"""For training, in the split of MiniLLM and PromptKD."""
EXPERIMENTS = Path(__file__).parents[2] / "launch" / "experiments"
# Files beside the folders are extended by others and no runs of their own.
SHARED = sorted(EXPERIMENTS.glob("*.yaml"))
PRESETS = sorted(EXPERIMENTS.glob("*/**/*.yaml"))
PAPER = [path for path in PRESETS if path.parent.name in ("gpt2", "opt", "llama")]
ABLATIONS = [path for path in PRESETS if path.parent.name == "ablations"]
STUDENTS = ("gpt2/base", "gpt2/medium", "gpt2/large", "opt/1.3b", "opt/2.7b", "opt/6.7b", "llama/7b")


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


load = cache(load_config)


def extended_by(path: Path) -> Path | None:
    parent = yaml.safe_load(path.read_text(encoding="utf-8")).get("extends")
    return None if parent is None else (path.parent / parent).resolve()


def needs_rollouts(config: Config) -> bool:
    return find_method(config.method).needs(config).rollouts


@pytest.mark.parametrize("path", PRESETS, ids=name_of)
def test_every_preset_loads_and_is_short(path: Path) -> None:
    assert load(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 25
    assert max(len(line) for line in lines) <= 120
    assert lines[0].startswith("# ")


def test_every_preset_has_a_run_directory_of_its_own() -> None:
    directories = [load(path).run.dir for path in PRESETS]
    assert len(set(directories)) == len(directories)


def test_what_presets_share_is_extended_by_some() -> None:
    assert set(SHARED) <= {extended_by(path) for path in (*PRESETS, *SHARED)}


@pytest.mark.parametrize("student", STUDENTS)
def test_every_student_of_the_paper_has_presets_of_its_methods(student: str) -> None:
    family, size = student.split("/")
    methods = {load(path).method for path in PAPER if path.parent.name == family and path.stem.endswith(f"_{size}")}
    # The paper does not compare with DistiLLM.
    assert methods == set(METHODS) - {"distillm"}


@pytest.mark.parametrize("path", PAPER, ids=name_of)
def test_models_of_a_preset_are_published_or_made_by_other_presets(path: Path) -> None:
    config = load(path)
    assert config.method == path.stem.split("_")[0]
    made = {load(other).run.dir: load(other) for other in PAPER if other.parent == path.parent}
    for model, folder in ((config.model.student, "final"), (config.model.teacher, "best")):
        if model is not None and model.startswith("runs/"):
            run_dir, _, used = model.rpartition("/")
            assert (made[run_dir].method, used) == ("sft", folder)
    # MiniLLM, GKD and PromptKD start from three epochs of fine-tuning (paper, §4.1).
    starts_tuned = config.model.student.startswith("runs/")
    assert starts_tuned == needs_rollouts(config)
    if starts_tuned:
        assert made[config.model.student.rpartition("/")[0]].schedule.epochs == 3


def test_the_paper_is_validated_once_in_an_epoch() -> None:
    for path in PAPER:
        config = load(path)
        if config.schedule.epochs is not None:
            assert config.validation.every == DOLLY_ROWS // config.schedule.global_batch, path


def test_batches_of_the_paper_divide_over_one_host() -> None:
    """With one, two or four GPUs the global batch is the paper's; more need a smaller schedule.micro_batch."""
    for path in (*PAPER, *ABLATIONS):
        schedule = load(path).schedule
        for num_ranks in (1, 2, 4):
            assert schedule.global_batch % (schedule.micro_batch * num_ranks) == 0, path


def test_the_prompt_learns_at_the_students_rate() -> None:
    """The paper has one learning rate for both."""
    for path in PAPER:
        config = load(path)
        if config.method == "promptkd":
            assert config.section(PromptSettings).learning_rate == config.optimizer.learning_rate


def test_seqkd_learns_from_one_file_for_all_students_of_a_teacher() -> None:
    files: dict[str | None, set[tuple[Any, Any]]] = {}
    for path in PAPER:
        config = load(path)
        if config.method == "seqkd":
            files.setdefault(config.model.teacher, set()).add((config.data.train, config.data.responses))
    assert len(files) == 3 and all(len(found) == 1 for found in files.values())


def differences(path: Path) -> dict[str, Any]:
    """Fields in which an ablation differs from the preset that it extends."""
    base = extended_by(path)
    assert base is not None and base in PAPER
    config, other = asdict(load(path)), asdict(load(base))
    flat = {(section, name) for section, values in config.items() if isinstance(values, dict) for name in values}
    assert config["method"] == other["method"] == "promptkd"
    return {f"{s}.{name}": config[s][name] for s, name in flat if config[s][name] != other[s][name]}


def test_ablations_change_the_prompt_and_nothing_else() -> None:
    found = {}
    for path in ABLATIONS:
        found[path.stem] = differences(path) | {"base": extended_by(path)}
        changed = found[path.stem].keys() - {"run.dir", "base"}
        assert changed and {name.split(".")[0] for name in changed} <= {"prompt", "teacher_lora"}, path
    # Some by their names: Table 9 and Figure 4.
    lora, prompt = found["lora_8_16"], found["prompt_random_5"]
    assert (lora["teacher_lora.rank"], lora["teacher_lora.alpha"]) == (8, 16)
    assert (prompt["prompt.init"], prompt["prompt.length"]) == ("random", 5)
    assert found["forward_reverse"]["prompt.kd_divergence"] == "forward_kl"
    assert found["reverse_forward"]["prompt.regularization_divergence"] == "forward_kl"
