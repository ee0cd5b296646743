"""A DeepSpeed engine that trains on one global batch at a time, or only runs inference."""

import warnings
from contextlib import ExitStack, nullcontext
from pathlib import Path

import deepspeed
import torch
from torch import Tensor, nn

from kd.distributed import on_gpu
from kd.errors import UserError
from kd.zero import residency
from kd.zero.config import Json, zero_stage
from kd.zero.optimizer import pending_bytes

CHECKPOINT_TAG = "state"


def start_deepspeed() -> None:
    """Hand the process group to DeepSpeed; call it before any model is loaded under ZeRO-3."""
    if not on_gpu():
        residency.disable_shared_memory_extension()
    # DeepSpeed calls collectives by names that newer torch renames, hundreds of times in a step.
    warnings.filterwarnings(
        "ignore", message=".*is deprecated. Please use.*", category=FutureWarning, module="torch.distributed"
    )
    # DeepSpeed's own discovery would overwrite MASTER_ADDR with the first address of this host.
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


class Engine:
    """A module in a DeepSpeed engine; frozen if it has no optimizer."""

    def __init__(self, module: nn.Module, *, optimizer: torch.optim.Optimizer | None, settings: Json) -> None:
        self.deepspeed, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self.is_partitioned = zero_stage(settings) == 3
        self.offloads_parameters = "offload_param" in settings.get("zero_optimization", {})
        self.pending_bytes = pending_bytes(
            optimizer, module=module, settings=settings, num_ranks=torch.distributed.get_world_size()
        )
        """Memory of this rank's device that the first optimizer step will allocate."""
        self.resident = residency.ResidentParameters(module)
        self.gathers_once = False
        """Whether a partitioned model is gathered once for a global batch, until it is released."""
        self._accumulation: ExitStack | None = None

    @property
    def reserved_bytes(self) -> int:
        """Memory of this rank's device that global batches will take beside activations, and that looks free before.

        It is what the first optimizer step allocates, and the model if it is gathered once.
        """
        return self.pending_bytes + (self.resident.num_bytes if self.gathers_once else 0)

    @property
    def skipped_updates(self) -> int:
        """Updates skipped so far because the gradient overflowed with fp16's loss scale, which decreases then."""
        return int(self.deepspeed.skipped_steps)

    @property
    def is_collective(self) -> bool:
        """Whether a forward pass is a collective operation that all ranks must run together."""
        return self.is_partitioned and not self.gathers_once

    def gather_once(self) -> None:
        """Gather the partitioned model once for a global batch from now on, instead of layer by layer."""
        self.gathers_once = True
        residency.remove_hooks(self.deepspeed)

    def gather(self) -> None:
        """Gather a model that is gathered once for a global batch; does nothing for others."""
        if self.gathers_once:
            self.resident.gather()

    def pause(self) -> None:
        """Release what forward passes have gathered, except for a model that stays gathered for the global batch."""
        if not self.gathers_once:
            self.release()

    def release(self) -> None:
        """Partition all parameters."""
        self.resident.partition()
        if self.is_partitioned:
            residency.release_gathered(self.deepspeed)

    def infer(self, *inputs: object) -> Tensor:
        """The module's output for `inputs`, without gradient and without dropout."""
        self.gather()
        # Without gradient there is nothing to checkpoint, so eval() has no cost and disables the student's dropout.
        self.deepspeed.module.eval()
        try:
            with torch.no_grad():
                return self.deepspeed(*inputs)  # type: ignore[no-any-return]
        finally:
            self.deepspeed.module.train()

    def backward(self, *inputs: object, is_last: bool) -> Tensor:
        """Forward and backward of one micro-batch: adds to the global batch's gradient, which `discard` removes.

        The module returns (loss, sums of the loss terms); this method returns the sums [terms]. `is_last` tells that
        `step` follows.
        """
        if self._accumulation is None:
            self._accumulation = ExitStack()
            if self.gathers_once and self.resident.keeps_gradient:
                # A gathered model keeps its gradient in full; the ranks reduce it once, in `step`.
                self._accumulation.enter_context(self.deepspeed.coalesce_grad_reduction())
        self.gather()
        # Before forward: ZeRO-1 and 2 look at the boundary while backward runs.
        self.deepspeed.set_gradient_accumulation_boundary(is_last)
        with residency.linear_that_gathers() if self.is_collective else nullcontext():
            loss, term_sums = self.deepspeed(*inputs)
            self.deepspeed.backward(loss)
        return term_sums  # type: ignore[no-any-return]

    def step(self, *, learning_rate: float) -> Tensor | float:
        """One optimizer step with the accumulated gradient; returns the gradient's norm before clipping."""
        self._reduce()
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        norm: Tensor | float | None = None
        if not residency.records_grad_norm(self.deepspeed):
            gradients = [p.grad for p in self.deepspeed.module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        self.resident.partition(trained_only=True)
        with self.resident.kept():
            self.deepspeed.step()
        return self.deepspeed.get_global_grad_norm() if norm is None else norm

    def discard(self) -> None:
        """Forget the gradient of a global batch that failed."""
        # DeepSpeed reduces whatever gradient there is, and would wait for ranks that do something else.
        self.deepspeed.module.zero_grad()
        self._reduce()

    def _reduce(self) -> None:
        if self._accumulation is not None:
            accumulation, self._accumulation = self._accumulation, None
            accumulation.close()

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
                f"{directory}: not a complete DeepSpeed checkpoint; remove its step to resume from an older one"
            )
