"""What kd/zero/residency.py needs of DeepSpeed beyond its public API, and that no other file needs it.

A failure names what a new version of DeepSpeed (or of transformers, below) has changed.
"""

import re
from collections.abc import Callable
from pathlib import Path

import deepspeed
import pytest
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import nn
from torch.nn import functional

from kd.config.schema import EngineConfig
from kd.distributed import World
from kd.zero.engine import Engine
from kd.zero.residency import (
    ResidentParameters,
    choose_gathering,
    full_shape,
    gathered,
    is_gathered,
    is_zero3,
    records_grad_norm,
    release_gathered,
)
from tests.run_on_ranks import Ranks

ROOT = Path(__file__).parents[3]
SETTINGS = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "memory_efficient_linear": False},
}
PARAMETER = ("ds_id", "ds_status", "ds_tensor", "ds_numel", "ds_shape", "ds_persist", "ds_active_sub_modules")
PARAMETER_METHODS = ("all_gather", "all_gather_coalesced", "partition")
OFFLOAD = ("persistent_parameters", "empty_partition_cache")
"""Of the ZeRO-3 optimizer, and of the object that an engine without an optimizer has instead."""
ENGINE = ("coalesce_grad_reduction", "set_gradient_accumulation_boundary", "get_global_grad_norm")
PRIVATE = {
    "kd/zero/residency.py": (
        *PARAMETER, *PARAMETER_METHODS, *OFFLOAD, "ZeroParamStatus", "parameter_offload", "_global_grad_norm",
        "__compatible_ops__", "zero3_linear_wrap",
    ),
    "kd/rollout/kv_cache.py": ("DynamicLayer",),
    "kd/rollout/tensor_parallel.py": ("base_model_tp_plan",),
}  # fmt: skip


class Scaled(nn.Module):
    """A large and a small parameter: ZeRO-3 gathers them in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Linear(512, 512, bias=False)
        self.small = nn.Linear(512, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        loss = self.small(self.large(inputs)).square().mean()
        return (loss, loss.detach()[None]) if self.training else loss


def make_engine(*, trains: bool) -> Engine:
    with deepspeed.zero.Init(config_dict_or_path=SETTINGS):
        torch.manual_seed(0)
        module = Scaled()
    module.requires_grad_(trains)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1) if trains else None
    return Engine(module, optimizer=optimizer, settings=SETTINGS | {"zero_allow_untested_optimizer": True})


def missing_names(world: World) -> list[str]:
    """Names that this version of DeepSpeed does not have."""
    trained, frozen = make_engine(trains=True), make_engine(trains=False)
    parameter = next(trained.deepspeed.module.parameters())
    required = {
        "a partitioned parameter": (parameter, (*PARAMETER, *PARAMETER_METHODS)),
        "ZeroParamStatus": (ZeroParamStatus, ("AVAILABLE",)),
        "an engine": (trained.deepspeed, ENGINE),
        "the ZeRO-3 optimizer": (trained.deepspeed.optimizer, (*OFFLOAD, "parameter_offload")),
        "parameter_offload": (trained.deepspeed.optimizer.parameter_offload, ("destroy",)),
        "the optimizer of a frozen engine": (frozen.deepspeed.optimizer, (*OFFLOAD, "destroy")),
        "deepspeed.ops": (deepspeed.ops, ("__compatible_ops__",)),
    }
    missing = [
        f"{name} of {what}" for what, (owner, names) in required.items() for name in names if not hasattr(owner, name)
    ]
    if "deepspeed_shm_comm" not in deepspeed.ops.__compatible_ops__:
        missing.append("deepspeed_shm_comm in __compatible_ops__")
    trained.backward(torch.ones(1, 512), is_last=True)
    trained.step(learning_rate=0.1)
    if not records_grad_norm(trained.deepspeed):
        missing.append("_global_grad_norm of the ZeRO-3 optimizer")
    return missing


def test_deepspeed_has_every_private_name(ranks: Callable[[int], Ranks]) -> None:
    assert ranks(2).run(missing_names) == [[], []]


def gather_and_partition(world: World) -> None:
    engine = make_engine(trains=True)
    parameters = dict(engine.deepspeed.module.named_parameters())
    assert all(is_zero3(parameter) for parameter in parameters.values())
    assert [tuple(full_shape(p)) for p in parameters.values()] == [(512, 512), (2, 512), (2,)]
    assert not any(is_gathered(parameter) for parameter in parameters.values())
    with gathered(list(parameters.values())):
        expected = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    resident = ResidentParameters(engine.deepspeed.module)
    assert resident.keeps_gradient and resident.num_bytes == 2 * 4 * (512 * 512 + 2 * 512 + 2)
    resident.gather()
    resident.gather()
    for name, parameter in parameters.items():
        assert torch.equal(parameter, expected[name]), name
    resident.partition()
    assert not any(is_gathered(parameter) for parameter in parameters.values())
    # What the hooks of an inference batch have gathered.
    engine.infer(torch.ones(1, 512))
    release_gathered(engine.deepspeed)
    assert not any(is_gathered(parameter) for parameter in parameters.values())


def test_resident_parameters_are_gathered_until_they_are_partitioned(ranks: Callable[[int], Ranks]) -> None:
    ranks(2).run(gather_and_partition)


def gathered_once(world: World, *, free_bytes: int, pending_bytes: int) -> list[str]:
    """Of a frozen model of 1 MiB, and then a trained one, which takes 2 with its gradient; sentences about both."""
    engines = {"teacher": make_engine(trains=False), "student": make_engine(trains=True)}
    engines["student"].pending_bytes = pending_bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd.zero.residency.scarcest_bytes", lambda *_, **__: free_bytes)
        sentences = choose_gathering(engines, settings=EngineConfig(gather="auto"), world=world)
    for (role, engine), sentence in zip(engines.items(), sentences, strict=True):
        assert f"gathers the {role} {'once' if engine.gathers_once else 'layer by layer'}" in sentence
    return [role for role, engine in engines.items() if engine.gathers_once]


@pytest.mark.parametrize(
    ("free", "pending", "expected"),
    [(1.9, 0, []), (2.1, 0, ["teacher"]), (4.9, 0, ["teacher"]), (5.2, 0, ["teacher", "student"]), (5.2, 4, [])],
)
def test_auto_gathers_once_what_takes_half_of_the_memory_that_is_left(
    ranks: Callable[[int], Ranks], free: float, pending: int, expected: list[str]
) -> None:
    """Beside what the first optimizer step allocates; the teacher goes first."""
    arguments = {"free_bytes": int(free * 2**20), "pending_bytes": pending * 2**20}
    assert ranks(2).run(gathered_once, **arguments) == [expected] * 2


def linear_in_each_pass(world: World) -> dict[str, bool]:
    """Whether torch's own `linear` is in place: in a forward pass of inference and of training, and after both."""
    engine = make_engine(trains=True)
    used = {}

    def note(module: nn.Module, *_: object) -> None:
        used["training" if module.training else "inference"] = functional.linear is torch._C._nn.linear

    engine.deepspeed.module.large.register_forward_hook(note)
    engine.infer(torch.ones(1, 512))
    engine.backward(torch.ones(1, 512), is_last=True)
    return used | {"after": functional.linear is torch._C._nn.linear}


def test_only_training_layer_by_layer_pays_for_deepspeeds_linear(ranks: Callable[[int], Ranks]) -> None:
    assert ranks(2).run(linear_in_each_pass) == [{"inference": True, "training": False, "after": True}] * 2


def test_private_names_are_used_in_one_file_each() -> None:
    homes = {name: home for home, names in PRIVATE.items() for name in names}
    # Strings and torch.distributed have methods of these names.
    del homes["partition"], homes["all_gather"]
    private = re.compile(rf"\b({'|'.join(homes)}|ds_(?!config)\w+)\b")
    elsewhere, unused = [], set(homes)
    for path in (path for top in ("kd", "evaluation", "launch", "demo") for path in (ROOT / top).rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        for name in private.findall(path.read_text(encoding="utf-8")):
            home = homes.get(name, "kd/zero/residency.py and in the contract above")
            if file == home:
                unused.discard(name)
            elif not file.startswith("demo/runs/"):
                elsewhere.append(f"{file} uses {name}, which belongs in {home}")
    assert elsewhere == []
    assert unused == set(), "nothing needs these names any more"
