"""What the ranks do in the tests of methods as runs make them: build one, run steps, bring back what moved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd.config.load import read_config
from kd.config.schema import Config
from kd.data.loader import ExampleBatch
from kd.distributed import World
from kd.methods.choice import load_teacher, make_method
from kd.methods.method import Groundwork
from kd.models.student import Student
from kd.models.teacher import PromptedTeacher
from kd.models.vocabulary import share_vocabulary
from kd.rollout.placement import choose_placement
from kd.rollout.sampler import PseudoTargets, Sampler
from kd.zero.residency import choose_gathering
from tests.distributed.promptkd_jobs import Pair, whole_weights, window_of

Sequence = tuple[int, list[int], list[int]]
"""Row id, prompt and response."""


def build(
    world: World, config: Config, *, windows: Callable[[int], ExampleBatch]
) -> tuple[Any, Student, PromptedTeacher | None]:
    """The method, the student, and the teacher where it has a soft prompt."""
    vocabulary = share_vocabulary(config)
    student = Student(config)
    teacher = load_teacher(config, vocabulary=vocabulary)
    engines = {"student": student.engine} | ({} if teacher is None else {"teacher": teacher.engine})
    choose_gathering(engines, settings=config.engine, world=world)
    shards_teacher = teacher is not None and teacher.runs_hooks
    groundwork = Groundwork(config, vocabulary=vocabulary, world=world, shards_teacher=shards_teacher)
    sampler = None
    if config.samples_responses:
        weights, _ = choose_placement(student, settings=config.generation, world=world)
        sampler = Sampler(weights, settings=config.generation, vocabulary=vocabulary, world=world)
    method = make_method(
        config,
        student=student,
        teacher=teacher,
        sampler=sampler,
        windows=windows,
        corpus=None,
        groundwork=groundwork,
    )
    return method, student, teacher if isinstance(teacher, PromptedTeacher) else None


def train(world: World, *, config_file: Path, overrides: list[str], windows: list[list[Pair]]) -> dict[str, Any]:
    """Run one step per window.

    Returns weights before and after, the soft prompt too if there is one, the logged means, the sequences that each
    step learned from, and whether the student's hidden states came with them.
    """

    def window(step: int) -> ExampleBatch:
        return window_of(windows[step - 1], step=step, world=world)

    method, student, teacher = build(world, read_config(config_file, overrides=overrides), windows=window)
    steps: list[list[Sequence]] = []
    kept_hidden: list[bool] = []
    make_targets = method._targets

    def recorded(window: ExampleBatch) -> PseudoTargets:
        targets = make_targets(window)
        own = [(row.row_id, row.prompt_ids.tolist(), row.response_ids.tolist()) for row in targets.sequences]
        steps.append(sorted(row for share in world.gather_objects(own) for row in share))
        kept_hidden.append(targets.hidden is not None)
        return targets

    method._targets = recorded
    before, prompt_before = whole_weights(student.model), None if teacher is None else teacher.values()[0]
    means: dict[str, list[float]] = {}
    for step in range(1, len(windows) + 1):
        metrics = method.step(window(step))
        for name, value in metrics.token_sums.items():
            means.setdefault(name, []).append(world.sum_across_ranks(value.clone()).item() / metrics.num_tokens)
    return {
        "before": before,
        "after": whole_weights(student.model),
        "prompt_before": prompt_before,
        "prompt_after": None if teacher is None else teacher.values()[0],
        "means": means,
        "sequences": steps,
        "kept_hidden": kept_hidden,
    }
