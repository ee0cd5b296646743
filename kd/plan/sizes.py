"""Bytes on one rank of a model in its engine, besides activations: from numbers of elements and ZeRO's settings."""

from dataclasses import dataclass

from kd.plan.passes import FakeModel, Reduction
from kd.zero.config import Json, zero_stage

FP32 = 4
MOMENTS = 2 * FP32
"""AdamW's, per trained element."""
_ALL_REDUCED_ELEMENTS = 500_000_000
"""Elements that DeepSpeed reduces together without ZeRO."""


@dataclass(frozen=True, kw_only=True)
class EngineBytes:
    """One model under one DeepSpeed configuration. All sizes are bytes on one rank's device."""

    num_elements: int
    num_trained: int
    largest_trained: int
    """Elements of the largest trained parameter."""
    itemsize: int
    """Bytes of a weight."""
    settings: Json
    num_ranks: int
    dtype: str
    has_optimizer: bool
    on_gpu: bool
    """Whether AdamW works on all tensors together, as it does on a GPU."""

    @classmethod
    def of(
        cls, fake: FakeModel, *, settings: Json, num_ranks: int, dtype: str, has_optimizer: bool, on_gpu: bool
    ) -> "EngineBytes":
        """The bytes of a model whose parameters that require a gradient are trained.

        An engine with an optimizer and a frozen model trains a soft prompt or adapters, whose size does not matter.
        """
        parameters = list(fake.model.parameters())
        trained = [parameter.numel() for parameter in parameters if parameter.requires_grad]
        return cls(
            num_elements=sum(parameter.numel() for parameter in parameters),
            num_trained=sum(trained),
            largest_trained=max(trained, default=0),
            itemsize=parameters[0].element_size(),
            settings=settings,
            num_ranks=num_ranks,
            dtype=dtype,
            has_optimizer=has_optimizer,
            on_gpu=on_gpu,
        )

    @property
    def stage(self) -> int:
        return zero_stage(self.settings)

    @property
    def _section(self) -> Json:
        section: Json = self.settings.get("zero_optimization", {})
        return section

    @property
    def offloads_parameters(self) -> bool:
        return "offload_param" in self._section

    @property
    def offloads_optimizer(self) -> bool:
        return "offload_optimizer" in self._section

    @property
    def full(self) -> int:
        """All weights."""
        return self.num_elements * self.itemsize

    @property
    def held(self) -> int:
        """What exists in every phase."""
        return self.weights + self.master + self.moments + self.held_gradient

    @property
    def resident(self) -> int:
        """A partitioned model that is gathered once for a global batch, and the gradient that it keeps."""
        return self.full + (self.gradient(gathered_once=True) if self.has_optimizer and self.stage == 3 else 0)

    @property
    def weights(self) -> int:
        if self.stage < 3:
            return self.full
        return 0 if self.offloads_parameters else self.full // self.num_ranks

    @property
    def master(self) -> int:
        """fp32 weights that the optimizer updates."""
        if self.offloads_optimizer or (self.stage == 0 and self.dtype == "fp32"):
            return 0
        return FP32 * self._own_trained

    @property
    def moments(self) -> int:
        return 0 if self.offloads_optimizer else MOMENTS * self._own_trained

    @property
    def held_gradient(self) -> int:
        """Gradient buffers that exist between steps, and the bucket of a partitioned model's reduction."""
        if self.stage == 1 and self.dtype == "bf16":
            return FP32 * self.num_trained
        if self.stage < 3 or not self.has_optimizer:
            return 0
        bucket = FP32 * int(self._section.get("reduce_bucket_size", 5e8))
        return bucket + (0 if self.offloads_optimizer else FP32 * self._own_trained)

    def gradient(self, *, gathered_once: bool) -> int:
        """Gradient between the first backward pass of a step and its update, beside `held_gradient`."""
        if self.stage == 0 or (self.stage == 1 and self.dtype == "bf16"):
            return self.num_trained * self.itemsize
        if self.stage == 1:
            return self.num_trained * FP32
        if self.stage == 2:
            buckets = 2 if self._section.get("overlap_comm") else 1
            bucket = min(int(self._section.get("reduce_bucket_size", 5e8)), self.num_trained)
            return FP32 * self._own_trained + buckets * self.itemsize * bucket
        # A gathered fp32 model keeps its gradient in full until one reduction.
        return self.num_trained * FP32 if gathered_once and self.dtype == "fp32" else 0

    def reduction(self, *, gathered_once: bool) -> Reduction:
        """What the reduction of gradients takes in a backward pass, beside the gradients."""
        if self.stage == 3:
            # A bucket is cast to fp32, and rearranged by ranks.
            itemsize = 0 if gathered_once and self.dtype == "fp32" else 2 * FP32
        else:
            itemsize = FP32 if self.stage == 2 else 0
        return Reduction(itemsize=itemsize, bucket_elements=int(self._section.get("reduce_bucket_size", 5e8)))

    @property
    def all_reduction(self) -> int:
        """Flat copies of gradients that are not partitioned, after the last backward pass of a step."""
        if self.stage > 0:
            return 0
        return min(self.num_trained, _ALL_REDUCED_ELEMENTS) * (self.itemsize + (0 if self.dtype == "fp32" else FP32))

    def final_reduction(self, *, gathered_once: bool) -> int:
        """Temporary tensors of the reduction of a gradient that a gathered model has kept in full."""
        return 3 * FP32 * self.largest_trained if gathered_once and self.dtype == "fp32" else 0

    @property
    def update(self) -> int:
        """Temporary tensors of an update: the flat fp32 gradient of narrower weights, and AdamW's own."""
        if self.offloads_optimizer:
            return 0
        if self.stage == 0:
            # A GPU works on all tensors together, a CPU on one after the other.
            temporary = FP32 * self.num_trained if self.on_gpu else 2 * FP32 * self.largest_trained
            return temporary + (0 if self.dtype == "fp32" else FP32 * self.num_trained)
        temporary = (FP32 if self.on_gpu else 2 * FP32) * self._own_trained
        if self.stage == 1 and self.dtype == "bf16":
            # Its fp32 gradient exists already.
            return temporary
        flat = FP32 * self._own_trained
        if self.stage == 3:
            # A sub-group of parameters is updated at a time.
            size = int(self._section.get("sub_group_size", 1e9))
            return (temporary + flat) * min(self._own_trained, size) // self._own_trained
        return temporary + flat

    @property
    def largest_bytes(self) -> int:
        """Weights of the largest trained parameter."""
        return self.largest_trained * self.itemsize

    @property
    def gathered_by_layer(self) -> int:
        """What DeepSpeed's hooks keep gathered of a partitioned model at a time."""
        if self.stage < 3:
            return 0
        live = int(self._section.get("stage3_max_live_parameters", 1e9))
        # Parameters are copied out of the buffer in which they arrive.
        buffer = int(self._section.get("stage3_prefetch_bucket_size", 5e7))
        return (min(self.num_elements, live) + min(self.num_elements, buffer)) * self.itemsize

    @property
    def checkpoint(self) -> int:
        """Bytes of all ranks' files in a checkpoint."""
        return self.num_trained * (self.itemsize + MOMENTS + (FP32 if self.stage or self.dtype != "fp32" else 0))

    @property
    def _own_trained(self) -> int:
        """Trained elements that this rank updates."""
        return -(-self.num_trained // (self.num_ranks if self.stage else 1))
