"""Learning rates by step, and which parameters decay."""

import math

import pytest
import torch
from torch import nn

from kd.config.schema import OptimizerConfig, ScheduleConfig
from kd.zero.optimizer import learning_rate_factor, make_optimizer, parameter_groups


def factors(**settings: object) -> list[float]:
    schedule = ScheduleConfig(steps=6, warmup_steps=2, **settings)  # type: ignore[arg-type]
    return [learning_rate_factor(step, schedule=schedule) for step in range(1, 7)]


def test_warm_up_and_decay_by_hand() -> None:
    assert factors(decay="constant") == [0.5, 1, 1, 1, 1, 1]
    assert factors(decay="linear") == [0.5, 1, 0.75, 0.5, 0.25, 0]
    cosine = [0.5, 1, *((1 + math.cos(math.pi * part)) / 2 for part in (0.25, 0.5, 0.75, 1))]
    assert factors(decay="cosine") == pytest.approx(cosine)


def test_matrices_decay_and_vectors_do_not() -> None:
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    module[1].weight.requires_grad_(False)
    groups = parameter_groups(module, weight_decay=0.1)
    assert [len(group["params"]) for group in groups] == [1, 3]  # type: ignore[arg-type]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_a_partitioned_matrix_decays_by_its_full_shape() -> None:
    """Under ZeRO-3 a partitioned parameter is an empty vector that has its full shape as an attribute."""
    module = nn.Linear(4, 3)
    for parameter in module.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    decayed, kept = (group["params"] for group in parameter_groups(module, weight_decay=0.1))
    assert decayed == [module.weight] and kept == [module.bias]  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_group_without_its_own_decay_has_none(name: str) -> None:
    """The soft prompt is given as a bare tensor."""
    prompt = nn.Parameter(torch.ones(2, 3))
    settings = OptimizerConfig(name=name, weight_decay=0.5)  # type: ignore[arg-type]
    optimizer = make_optimizer([prompt], settings=settings, learning_rate=0.1)
    prompt.grad = torch.zeros_like(prompt)
    optimizer.step()
    assert torch.equal(prompt, torch.ones(2, 3))
