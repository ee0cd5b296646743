"""Whole steps of every method on the pretend device: nothing mixes with the host, and the host hardly waits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd.distributed import World
from kd.methods import METHODS, load_config
from kd.models.vocabulary import share_vocabulary
from kd.train.assemble import build_method
from tests.distributed.harness import FixedLoader, make_batches, write_config
from tests.pretend_device import DEVICE, PretendTensor, pretend_device
from tests.tiny_models import save_tiny_model

FIELDS = {
    "sft": ["model.teacher=null"],
    "minillm": ["minillm.corpus=none", "minillm.rollouts=4"],
    "distillm": ["distillm.initial_threshold=1", "data.validation=unused"],
    "seqkd": ["data.train=null", "data.responses=unused"],
}
WAITS = {
    # The number of response tokens of the global batch.
    "sft": 1,
    "kd": 1,
    "seqkd": 1,
    # And rollouts of 16 tokens: two looks at ended rows, the tokens, and whether memory ran out.
    "promptkd": 5,
    "gkd": 5,
    "distillm": 5,
    # And both models' log-probabilities of a collection's tokens.
    "minillm": 8,
}
"""Reads by the host in a step."""


class PlainEngine:
    """What `kd.zero.Engine` does without ZeRO, without DeepSpeed, which knows no pretend device."""

    is_partitioned = is_collective = gathers_once = offloads_parameters = False
    reserved_bytes = pending_bytes = skipped_updates = 0

    def __init__(self, module: nn.Module, *, optimizer: torch.optim.Optimizer | None, settings: Any) -> None:
        # The optimizer and the views of the model keep their parameters.
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            self.module = module.to(DEVICE)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
        self._optimizer = optimizer

    def gather(self) -> None: ...

    def pause(self) -> None: ...

    def release(self) -> None: ...

    def infer(self, *inputs: object) -> Tensor:
        with torch.no_grad():
            return self.module.eval()(*inputs)  # type: ignore[no-any-return]

    def backward(self, *inputs: object, is_last: bool) -> Tensor:
        loss, term_sums = self.module.train()(*inputs)
        loss.backward()
        return term_sums  # type: ignore[no-any-return]

    def step(self, *, learning_rate: float) -> Tensor:
        assert self._optimizer is not None
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        self._optimizer.step()
        self._optimizer.zero_grad()
        return torch.nn.utils.get_total_norm(gradients)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("device")
    save_tiny_model(directory / "teacher", "llama", seed=1, width=16, layers=1)
    save_tiny_model(directory / "student", "llama", seed=2, width=16, layers=1)
    return directory


@pytest.mark.parametrize("method", METHODS)
def test_a_step_stays_on_its_device(pair: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd.models.handle.Engine", PlainEngine)
    monkeypatch.setattr("kd.rollout.decode.NOTICE_EVERY", 8)
    overrides = [f"method={method}", *FIELDS.get(method, [])]
    config = load_config(write_config(pair, stage=0, teacher_stage=0, micro_batch=2), overrides=overrides)
    world = World(rank=0, size=1, local_rank=0, device=DEVICE)
    batches = make_batches(vocabulary=400, seed=3)
    with pretend_device() as device:
        built, _ = build_method(
            config,
            vocabulary=share_vocabulary(config),
            loader=FixedLoader(batches, world),  # type: ignore[arg-type]
            run_dir=pair,
            world=world,
            say=lambda _: None,
        )
        before = [parameter.detach().cpu() for parameter in built.student.model.parameters()]
        launches, waits = device.num_launches, device.num_waits
        metrics = built.run(FixedLoader(batches, world).batch(1))
        launches, waits = device.num_launches - launches, device.num_waits - waits
        after = list(built.student.model.parameters())
        changed = [not torch.equal(old, new.detach().cpu()) for old, new in zip(before, after, strict=True)]
    assert all(isinstance(parameter, PretendTensor) for parameter in after)
    assert any(changed)
    assert all(isinstance(value, PretendTensor) for value in metrics.token_means.values())
    assert waits == WAITS[method]
    assert launches <= 4500
