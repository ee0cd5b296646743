"""What the ranks do in the sampling tests."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from kd.config_file import read_config
from kd.data.encoding import Example
from kd.distributed import World
from kd.engines.student import Student
from kd.engines.vocabulary import share_vocabulary
from kd.generation.pseudo_targets import Sampler
from kd.generation.weights import choose_weights


def make_examples(prompts: list[list[int]]) -> list[Example]:
    return [
        Example(
            row_id=index,
            prompt="",
            prompt_ids=np.array(ids, dtype=np.int32),
            response_ids=None,
            references=(),
            source="",
        )
        for index, ids in enumerate(prompts)
    ]


def sample(
    world: World, *, config_file: Path, overrides: list[str], prompts: list[list[int]], steps: list[int]
) -> dict[int, dict[int, list[int]]]:
    """Responses by step and row id of this rank's share of the prompts."""
    config = read_config(config_file, overrides=overrides)
    vocabulary = share_vocabulary(config)
    student = Student(config)
    weights, _ = choose_weights(student, settings=config.generation, world=world)
    sampler = Sampler(weights, settings=config.generation, vocabulary=vocabulary, world=world)
    mine = make_examples(prompts)[world.rank :: world.size]
    results = {}
    for step in steps:
        sequences = sampler.sample(mine, seed=7, step=step)
        assert student.model.training
        results[step] = {sequence.row_id: sequence.response_ids.tolist() for sequence in sequences}
    return results


def fail_while_sampling(world: World, *, config_file: Path, overrides: list[str]) -> dict[str, Any]:
    """Raise inside a decoding context; report what the student and the copy look like afterwards."""
    config = read_config(config_file, overrides=overrides)
    student = Student(config)
    weights, _ = choose_weights(student, settings=config.generation, world=world)
    raised = False
    try:
        with weights.ready() as view:
            decoding = view.model
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        raised = True
    return {
        "raised": raised,
        "training": student.model.training,
        "same_module": decoding is student.model,
        "decoding_bytes": sum(p.numel() * p.element_size() for p in decoding.parameters()),
        "gradients_on": torch.is_grad_enabled(),
    }
