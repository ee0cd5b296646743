"""What the student's and the teacher's engine have in common: windows, steps, the head's loss."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import deepspeed
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kd.errors import UserError
from kd.losses.terms import Head
from kd.models.causal_lm import CausalLM
from kd.zero.config import Json, zero_stage
from kd.zero.residency import ResidentParameters, is_whole


def gathered(parameters: Sequence[nn.Parameter]) -> deepspeed.zero.GatheredParameters:
    """Whole parameters inside the context, shards outside; for reading only."""
    sharded = [parameter for parameter in parameters if not is_whole(parameter)]
    return deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded))


@contextmanager
def whole_head(view: CausalLM) -> Iterator[Head]:
    """A model's head of this moment, gathered once for everything that is done inside the context.

    A copy where ZeRO-3 shards the model: its hooks would release a gathered parameter that is also the
    embedding as soon as a forward pass has used it.
    """
    if all(is_whole(parameter) for parameter in view.head_parameters):
        # Still whole in these tensors when a sharded model is sharded again.
        yield Head(weight=view.head_weight.detach(), bias=None if view.head_bias is None else view.head_bias.detach())
        return
    with gathered(view.head_parameters):
        weight, *bias = [parameter.detach().clone() for parameter in view.head_parameters]
    yield Head(weight=weight, bias=bias[0] if bias else None)


class Engine:
    """One DeepSpeed engine, trained window by window, or never where it has no optimizer."""

    def __init__(self, module: nn.Module, *, optimizer: torch.optim.Optimizer | None, settings: Json) -> None:
        self.deepspeed, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self.is_sharded = zero_stage(settings) == 3
        self.offloads_shards = "offload_param" in settings.get("zero_optimization", {})
        self.shards = ResidentParameters(module)
        self.is_gathered_once = False
        """Whether a sharded model is gathered once for the passes of a window, until it is released."""

    @property
    def runs_hooks(self) -> bool:
        """Whether a forward pass is a collective operation that all ranks must run together."""
        return self.is_sharded and not self.is_gathered_once

    def gather_once(self) -> None:
        """Gather the sharded model once for a window from now on, instead of layer by layer in DeepSpeed's hooks."""
        self.is_gathered_once = True
        optimizer = self.deepspeed.optimizer
        # Without an optimizer the engine has what gathers in its place.
        getattr(optimizer, "parameter_offload", optimizer).destroy()
        # After an update DeepSpeed gathers small parameters again, the frozen ones too.
        optimizer.persistent_parameters = [p for p in optimizer.persistent_parameters if p.requires_grad]

    def gather(self) -> None:
        """Make a model whole that is gathered once for a window; nothing to do for others."""
        if self.is_gathered_once:
            self.shards.gather()

    def hidden(self, *inputs: object) -> Tensor:
        """Hidden states [N, H] that predict the response tokens, without gradient."""
        self.gather()
        with self._measuring():
            hidden: Tensor = self.deepspeed(*inputs)
        return hidden

    def pause(self) -> None:
        """Release what passes have gathered, but for a model that is whole for the rest of the window."""
        if not self.is_gathered_once:
            self.release()

    def release(self) -> None:
        """Leave nothing but shards on the device.

        ZeRO-3 keeps what a forward pass has gathered where it expects a backward pass, which a pass without
        gradient does not have.
        """
        self.shards.shard()
        if self.is_sharded:
            # The engine's own method of this name also collects garbage, which takes longer than a small model's pass.
            self.deepspeed.optimizer.empty_partition_cache()

    def measure(self, *inputs: object) -> Tensor:
        """Sums of the loss terms over the tokens of a micro-batch [terms], without gradient."""
        self.gather()
        with self._measuring():
            _, term_sums = self.deepspeed(*inputs)
        measured: Tensor = term_sums
        return measured

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        # Without gradient there is nothing to checkpoint, so eval() costs nothing and keeps a
        # student's dropout out of what it guides and what it is measured by.
        self.deepspeed.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.deepspeed.module.train()

    @contextmanager
    def window(self) -> Iterator[None]:
        """Accumulate a window's gradient inside.

        A model that is whole for the window keeps its gradient whole too, and the ranks reduce it once, at the end,
        instead of after each micro-batch.
        """
        if not (self.is_gathered_once and self.shards.keeps_gradient):
            yield
            return
        with self.deepspeed.coalesce_grad_reduction():
            is_complete = False
            try:
                yield
                is_complete = True
            finally:
                if not is_complete:
                    # DeepSpeed reduces what there is even now, and would wait for ranks that do something else.
                    self.deepspeed.module.zero_grad()

    def accumulate(self, *inputs: object, is_last: bool) -> Tensor:
        """Forward and backward of one micro-batch; `is_last` ends the window. Returns the terms' sums [terms]."""
        self.gather()
        # Before forward: ZeRO-1 and 2 look at the boundary while backward runs.
        self.deepspeed.set_gradient_accumulation_boundary(is_last)
        value, term_sums = self.deepspeed(*inputs)
        self.deepspeed.backward(value)
        measured: Tensor = term_sums
        return measured

    def step(self, *, learning_rate: float) -> None:
        """One optimizer step with the accumulated gradient."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        if not hasattr(self.deepspeed.optimizer, "_global_grad_norm"):
            # ZeRO-0 in fp32 runs the plain optimizer, for which DeepSpeed keeps no norm.
            gradients = [p.grad for p in self.deepspeed.module.parameters() if p.grad is not None]
            self._plain_grad_norm = torch.nn.utils.get_total_norm(gradients)
        self.shards.shard(trained_only=True)
        with self.shards.kept():
            self.deepspeed.step()

    @property
    def grad_norm(self) -> Tensor | float:
        """Norm of the last step's gradient before clipping."""
        norm = self.deepspeed.get_global_grad_norm()
        return self._plain_grad_norm if norm is None else norm

    def save(self, directory: Path, *, with_frozen: bool) -> None:
        """Write weights and optimizer state of all ranks into `directory`."""
        self.deepspeed.save_checkpoint(
            str(directory), tag=CHECKPOINT_TAG, save_latest=False, exclude_frozen_parameters=not with_frozen
        )

    def load(self, directory: Path, *, with_frozen: bool) -> None:
        """Read what `save` wrote, on the same number of ranks.

        Raises:
            UserError: DeepSpeed finds no complete state there.
        """
        found, _ = self.deepspeed.load_checkpoint(str(directory), tag=CHECKPOINT_TAG, load_module_strict=with_frozen)
        if found is None:
            raise UserError(
                f"{directory}: is no complete DeepSpeed checkpoint; remove its step to go on from an older one"
            )


class EngineModel:
    """A model in an engine, one of several on the same devices: when it is whole, and when it makes room."""

    view: CausalLM
    engine: Engine
    zero_stage: int

    @property
    def runs_hooks(self) -> bool:
        """Whether a forward pass is a collective operation that all ranks must run together."""
        return self.engine.runs_hooks

    def gather(self) -> None:
        """Make the model whole for a window where that is done once; its step or `release` ends it."""
        self.engine.gather()

    def pause(self) -> None:
        """Free what forward passes have gathered, before another model works in the same window."""
        self.engine.pause()

    def release(self) -> None:
        """Free whatever has been gathered."""
        self.engine.release()

    def head(self) -> AbstractContextManager[Head]:
        """The head of this moment, whole inside the context and without gradient."""
        return whole_head(self.view)


class TrainedModel(EngineModel):
    """One of which at least a part is trained."""

    def window(self) -> AbstractContextManager[None]:
        """Everything that adds to a window's gradient happens inside, its step after."""
        return self.engine.window()

    def step(self, *, learning_rate: float) -> None:
        """One optimizer step with the window's gradient."""
        self.engine.step(learning_rate=learning_rate)


CHECKPOINT_TAG = "state"


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in backward."""
    # The non-reentrant kind compares tensors between forward and recomputation and takes ZeRO-3's
    # empty shards for a mismatch.
    with warnings.catch_warnings():
        # Its new name does not exist in all versions that this project runs with.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing_enable.*", category=FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
