"""What the ranks do in the tests of decoding copies."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import deepspeed
import pytest
import torch
from torch import nn

from kd.distributed import World
from kd.models.causal_lm import load_causal_lm, read_model_config
from kd.rollout import inference_copy
from kd.rollout.inference_copy import InferenceCopy
from kd.rollout.tensor_parallel import split_dimensions
from kd.zero.residency import gathered
from tests.distributed.generation_jobs import Sampling
from tests.peak_memory import watched


def refresh_after_an_interruption(world: World, *, config_file: Path, overrides: list[str]) -> dict[str, bool]:
    """Change the student, break the copy's refresh off half way, then refresh again."""
    sampling = Sampling.prepare(world, config_file=config_file, overrides=overrides)
    weights, source = sampling.weights, sampling.student.model
    assert isinstance(weights, InferenceCopy)
    with weights.ready():
        pass
    with deepspeed.zero.GatheredParameters(list(source.parameters()), modifier_rank=0):
        for parameter in source.parameters():
            parameter.data.mul_(2)
    num_gathered = 0

    @contextmanager
    def interrupted(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        nonlocal num_gathered
        num_gathered += 1
        with gathered(parameters):
            if num_gathered == 5:
                raise KeyboardInterrupt
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference_copy, "gathered", interrupted)
        patch.setattr(inference_copy, "GATHER_BYTES", 1)
        with pytest.raises(KeyboardInterrupt), weights.ready():
            pass
    statuses = [parameter.ds_status for parameter in source.parameters()]
    between = _is_copied(weights)
    with weights.ready():
        after = _is_copied(weights)
    return {
        "half_done": any(between) and not all(between),
        "sharded_again": all(status.name == "NOT_AVAILABLE" for status in statuses),
        "right_after": all(after),
    }


def _is_copied(weights: InferenceCopy) -> list[bool]:
    """For each parameter, whether the copy has this rank's part of the student's value."""
    source, group = weights.source, weights.group
    dimensions = {} if group is None else split_dimensions(source, num_ranks=group.size)
    copied = dict(weights.view.model.named_parameters())
    same = []
    with gathered(list(source.parameters())):
        for name, parameter in source.named_parameters():
            part = parameter.data
            if group is not None and name in dimensions:
                part = part.chunk(group.size, dim=dimensions[name])[group.group_rank]
            same.append(torch.equal(part, copied[name]))
    return same


def peak_bytes_while_refreshing(
    world: World, *, model: Path, deepspeed_config: dict[str, object], divided: bool
) -> dict[str, int]:
    """Largest growth of this rank's anonymous memory while a copy that exists is refreshed in place."""
    source = load_causal_lm(
        str(model),
        config=read_model_config(str(model), trust_remote_code=False),
        dtype="fp32",
        deepspeed_config=deepspeed_config,
        keep_dropout=False,
        trust_remote_code=False,
    )
    group = world.new_process_group([range(world.size)]) if divided else None
    weights = InferenceCopy(source, keep=True, device=world.device, group=group)
    with weights.ready():
        pass
    with watched() as growth, weights.ready():
        pass
    sizes = [parameter.ds_numel * parameter.element_size() for parameter in source.parameters()]
    return {"peak": growth.peak, "largest": max(sizes), "whole": sum(sizes), "held": weights.held_bytes}
