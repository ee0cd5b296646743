"""What the ranks do in the tests of all methods but PromptKD: build one, run steps, bring back what moved."""

from pathlib import Path
from typing import Any

from kd.config_file import read_config
from kd.data.loader import Window
from kd.distributed import World
from kd.engines.deepspeed_config import teacher_deepspeed_config, zero_stage
from kd.engines.student import Student
from kd.engines.vocabulary import share_vocabulary
from kd.generation.pseudo_targets import PseudoTargets, Sampler
from kd.generation.weights import choose_weights
from kd.methods.choice import load_teacher, make_method
from kd.methods.method import Groundwork
from tests.distributed.promptkd_jobs import Pair, whole_weights, window_of

Sequence = tuple[int, list[int], list[int]]
"""Row id, prompt and response."""


def train(world: World, *, config_file: Path, overrides: list[str], windows: list[list[Pair]]) -> dict[str, Any]:
    """Run one step per window.

    Returns weights before and after, the logged means, and the sequences that each step learned from.
    """
    config = read_config(config_file, overrides=overrides)
    vocabulary = share_vocabulary(config)
    student = Student(config)
    teacher = load_teacher(config, vocabulary=vocabulary)
    shards_teacher = teacher is not None and zero_stage(teacher_deepspeed_config(config)) == 3
    groundwork = Groundwork(config, vocabulary=vocabulary, world=world, shards_teacher=shards_teacher)
    sampler = None
    if config.samples_responses:
        weights, _ = choose_weights(student, settings=config.generation, world=world)
        sampler = Sampler(weights, settings=config.generation, vocabulary=vocabulary, world=world)

    def window(step: int) -> Window:
        return window_of(windows[step - 1], step=step, world=world)

    method: Any = make_method(
        config,
        student=student,
        teacher=teacher,
        sampler=sampler,
        windows=window,
        corpus=None,
        groundwork=groundwork,
    )
    steps: list[list[Sequence]] = []
    make_targets = method._targets

    def recorded(window: Window) -> PseudoTargets:
        targets = make_targets(window)
        own = [(row.row_id, row.prompt_ids.tolist(), row.response_ids.tolist()) for row in targets.sequences]
        steps.append(sorted(row for share in world.gather_objects(own) for row in share))
        return targets

    method._targets = recorded
    before = whole_weights(student.model)
    means: dict[str, list[float]] = {}
    for step in range(1, len(windows) + 1):
        metrics = method.step(window(step))
        for name, value in metrics.token_sums.items():
            means.setdefault(name, []).append(world.sum_across_ranks(value.clone()).item() / metrics.num_tokens)
    return {"before": before, "after": whole_weights(student.model), "means": means, "sequences": steps}
