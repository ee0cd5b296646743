"""What the ranks do in the tests of PromptKD's ablations."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from kd.config.load import read_config
from kd.data.groups import RowGroups
from kd.data.loader import ExampleBatch
from kd.distributed import World
from kd.methods.method import Groundwork
from kd.methods.promptkd import PromptKD
from kd.models.student import Student
from kd.models.teacher import PromptedTeacher
from kd.models.vocabulary import share_vocabulary
from kd.rollout.sampler import PseudoTargets
from tests.distributed.promptkd_jobs import Pair, whole_weights, window_of


def initial_prompts(world: World, *, config_file: Path, length: int) -> dict[str, Tensor]:
    """The soft prompts [M, H] of each initialisation before any step."""
    values = {}
    for init in ("text", "padding", "random"):
        config = read_config(config_file, overrides=[f"prompt.init={init}", f"prompt.length={length}"])
        teacher = PromptedTeacher(config, tokenizer=share_vocabulary(config).tokenizer)
        values[init] = teacher.values()[0]
    return values


def train(
    world: World,
    *,
    config_file: Path,
    overrides: list[str],
    windows: list[list[Pair]],
    sampled: list[list[list[int]]],
    groups: RowGroups | None,
) -> dict[str, Any]:
    """One step per window; `sampled` has what the student would answer to each of its rows."""
    config = read_config(config_file, overrides=overrides)
    vocabulary = share_vocabulary(config)
    student = Student(config)
    teacher = PromptedTeacher(config, tokenizer=vocabulary.tokenizer, groups=groups)

    def targets(window: ExampleBatch) -> PseudoTargets:
        answers = sampled[window.step - 1]
        return PseudoTargets(
            sequences=[row.with_response(np.array(answers[row.row_id], dtype=np.int32)) for row in window.examples]
        )

    groundwork = Groundwork(config, vocabulary=vocabulary, world=world, shards_teacher=True)
    method = PromptKD(config, student=student, teacher=teacher, targets=targets, groundwork=groundwork)
    before, prompts_before = whole_weights(student.model), teacher.values()
    means: dict[str, list[float]] = {}
    for step, rows in enumerate(windows, start=1):
        metrics = method.step(window_of(rows, step=step, world=world))
        for name, value in metrics.token_sums.items():
            means.setdefault(name, []).append(world.sum_across_ranks(value.clone()).item() / metrics.num_tokens)
    return {
        "before": {"student": before},
        "after": {"student": whole_weights(student.model)},
        "prompt_before": prompts_before,
        "prompt_after": teacher.values(),
        "means": means,
    }
