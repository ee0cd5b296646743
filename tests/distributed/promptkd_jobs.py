"""Jobs of the PromptKD tests that need more than `harness.train`."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor
from torch.nn import functional

from evaluation.bench.communication import CollectiveBytes
from kd.distributed import World
from kd.errors import LoneUserError
from kd.methods import load_config
from kd.methods.promptkd import PromptKD
from kd.models.handle import ModelContext
from kd.models.vocabulary import share_vocabulary
from kd.rollout.decode import decode
from kd.rollout.placement import choose_placement
from kd.zero.recorder import Recorder
from tests.distributed.harness import FIXED_RESPONSES, Harness, Pair, full_weights, train


def count_bytes(
    world: World, *, config_file: Path, overrides: list[str], batches: list[list[Pair]], rolls_out: bool = False
) -> dict[str, int]:
    """Bytes that collectives gather and reduce in the second of two steps."""
    fixed = [] if rolls_out else FIXED_RESPONSES
    harness = Harness(world, config_file, [*fixed, *overrides], batches=batches)
    harness.step(1)
    with CollectiveBytes() as counted:
        harness.step(2)
    return counted.num_bytes


def linear_while_decoding(world: World, *, config_file: Path, batches: list[list[Pair]]) -> list[bool]:
    """Whether torch's own `linear` decodes the rollouts of a step."""
    found = []

    def watched(*arguments: Any, **options: Any) -> Any:
        found.append(functional.linear is torch._C._nn.linear)
        return decode(*arguments, **options)

    harness = Harness(world, config_file, batches=batches)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd.rollout.sampler.decode", watched)
        harness.step(1)
    return found


def optimizer_state_bytes(world: World, *, config_file: Path, batches: list[list[Pair]]) -> tuple[int, int]:
    """What AdamW's first step is expected to allocate for the student on this rank, and what it has allocated."""
    harness = Harness(world, config_file, [*FIXED_RESPONSES, "optimizer.name=adamw"], batches=batches)
    engine = harness.student.engine
    harness.step(1)
    states = engine.deepspeed.basic_optimizer.state.values()
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor) and value.dim()]
    return engine.pending_bytes, sum(tensor.nbytes for tensor in tensors)


def reserved_bytes(world: World, *, config_file: Path, gather: str) -> tuple[int, int]:
    """What the choice of the rollouts' layout leaves free on this rank, and the size of both gathered models."""
    reserved = []

    def watched(*arguments: Any, reserved_bytes: int, **options: Any) -> Any:
        reserved.append(reserved_bytes)
        return choose_placement(*arguments, reserved_bytes=reserved_bytes, **options)

    with pytest.MonkeyPatch.context() as patch:
        # kd.train is also the name of a function.
        patch.setattr(sys.modules["kd.train.assemble"], "choose_placement", watched)
        harness = Harness(world, config_file, ["optimizer.name=adamw", f"engine.gather={gather}"])
    models: list[Any] = [harness.student, harness.teacher]
    return reserved[0], sum(model.engine.resident.num_bytes for model in models)


def train_in_half(
    world: World,
    *,
    config_file: Path,
    overrides: list[str],
    batches: list[list[Pair]],
    loss_scale_power: int = 12,
) -> dict[str, Any]:
    """As `train`, on a CPU that DeepSpeed is told to support fp16, with the numbers of skipped updates.

    The loss scale starts at 2^12: from DeepSpeed's 2^16, the first gradients of the prompt overflow.
    """
    skipped: dict[str, object] = {}

    def precision(dtype: str) -> dict[str, Any]:
        return {} if dtype == "fp32" else {dtype: {"enabled": True, "initial_scale_power": loss_scale_power}}

    class ReportingHarness(Harness):
        def step(self, number: int, rows: Any = None) -> Any:
            metrics = super().step(number, rows)
            skipped.update({name: value for name, value in metrics.values.items() if "skipped" in name})
            return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
        patch.setattr("kd.models.vocabulary.check_dtype", lambda _: None)
        patch.setattr("kd.zero.config._precision", precision)
        patch.setattr("tests.distributed.harness.Harness", ReportingHarness)
        result = train(world, config_file=config_file, overrides=overrides, batches=batches)
    return result | {"skipped": skipped}


def train_after_a_failure(
    world: World, *, config_file: Path, overrides: list[str], batches: list[list[Pair]]
) -> dict[str, Any]:
    """As `train`, after a first step that failed in the last backward pass of the prompt's loss."""
    reduced = {}

    class FailingHarness(Harness):
        def step(self, number: int, rows: Any = None) -> Any:
            if not reduced:
                engine = self.teacher.engine  # type: ignore[union-attr]
                backward = engine.backward

                def failing(*inputs: object, is_last: bool) -> Tensor:
                    if is_last:
                        raise MemoryError("no memory for the last micro-batch")
                    return backward(*inputs, is_last=is_last)

                with pytest.MonkeyPatch.context() as patch, CollectiveBytes() as counted:
                    patch.setattr(engine, "backward", failing)
                    with pytest.raises(LoneUserError, match="is out of memory in step 1, prompt"):
                        self.method.run(self.loader.batch(number))
                reduced["bytes"] = counted.num_bytes["reduced"]
            return super().step(number, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.distributed.harness.Harness", FailingHarness)
        result = train(world, config_file=config_file, overrides=overrides, batches=batches)
    return result | {"reduced_in_vain": reduced["bytes"]}


def train_counting_layers(
    world: World, *, config_file: Path, overrides: list[str], batches: list[list[Pair]]
) -> dict[str, Any]:
    """Weights before and after, and how often the first layer of each model ran."""
    harness = Harness(world, config_file, [*FIXED_RESPONSES, *overrides], batches=batches)
    calls = {"student": 0, "teacher": 0}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    models: dict[str, Any] = {"student": harness.student.model, "teacher": harness.teacher.view.model}  # type: ignore[union-attr]
    for name, model in models.items():
        model.model.layers[0].mlp.register_forward_hook(count(name))
    before, prompt_before = full_weights(models["student"]), harness.prompt()
    for step in range(1, len(batches) + 1):
        harness.step(step)
    return {
        "before": {"student": before},
        "after": {"student": full_weights(models["student"])},
        "prompt_before": prompt_before,
        "prompt_after": harness.prompt(),
        "layer_calls": calls,
    }


def hidden_twice(world: World, *, config_file: Path, rows: list[Pair]) -> dict[str, bool]:
    """Whether two forward passes agree: of inference, without dropout, and of training, with it."""
    overrides = [*FIXED_RESPONSES, "model.student_dropout=true"]
    harness = Harness(world, config_file, overrides, batches=[rows])
    batch = harness.global_batch()
    engine = harness.student.engine
    training = [engine.deepspeed(batch.micro_batches[0].batch).detach() for _ in range(2)]
    inference = [harness.student.outputs(batch).hidden for _ in range(2)]
    return {"inference": torch.equal(*inference), "training": torch.equal(*training)}


def what_moves(world: World, *, config_file: Path, rows: list[Pair]) -> dict[str, set[str]]:
    """Which of prompt, teacher and student change in each of the two optimizer steps."""
    harness = Harness(world, config_file, FIXED_RESPONSES, batches=[rows])
    method, batch = harness.method, harness.global_batch()
    method.recorder.start(step=1)

    def state() -> dict[str, list[Tensor]]:
        return {
            "prompt": [harness.prompt()],  # type: ignore[list-item]
            "teacher": list(full_weights(harness.teacher.view.model).values()),  # type: ignore[union-attr]
            "student": list(full_weights(harness.student.model).values()),
        }

    def moved(before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]) -> set[str]:
        return {
            name
            for name, tensors in before.items()
            if any(not torch.equal(old, new) for old, new in zip(tensors, after[name], strict=True))
        }

    start = state()
    method.tune_prompt(batch, weight=1.0)
    middle = state()
    method.train_student(batch)
    return {"prompt step": moved(start, middle), "student step": moved(middle, state())}


def initial_prompts(world: World, *, config_file: Path, length: int) -> dict[str, Tensor]:
    """The soft prompt [M, H] of each initialisation before any step."""
    values = {}
    for init in ("text", "padding", "random"):
        config = load_config(config_file, overrides=[f"prompt.init={init}", f"prompt.length={length}"])
        vocabulary = share_vocabulary(config)
        context = ModelContext(config=config, vocabulary=vocabulary, recorder=Recorder(world.device))
        teacher: Any = PromptKD.load_teacher(context)
        values[init] = teacher.values()
    return values


def regularization_weights(world: World, *, config_file: Path, overrides: list[str]) -> list[float]:
    """The weight of L_reg in each step of the run."""
    harness = Harness(world, config_file, [*FIXED_RESPONSES, *overrides])
    return [harness.method.regularization_weight(k) for k in range(1, harness.config.schedule.steps + 1)]
