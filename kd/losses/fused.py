"""The fused loss of every method: outputs and loss terms in, a scalar and its gradients out.

The [N, V] logits of a 50,000-word vocabulary take more memory than the model's activations. Here they exist for one
chunk of positions at a time: `fused_loss` computes the loss *and* the gradients of a chunk before the next one, so
that no [N, V] tensor is kept for backward and no logits are computed twice. A chunk is as large as memory allows,
because its matrix multiplications read and write the whole head; the element-wise work between them is done in place
on smaller blocks.

N response positions, n of them in a chunk, H hidden size, V shared vocabulary, V_padded rows of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kd.losses.outputs import UNCHANGED, LogitMap, Outputs, chunk_rows, chunks
from kd.losses.terms import Term


def block_bytes(device_type: str) -> int:
    """Size of one [block, V] float32 tensor, of which five to eight are alive at once.

    A CPU keeps such blocks in its cache. A GPU works on half a chunk of the default size, and a row, at a time: that
    takes few kernel launches, and less than 1 GiB for two terms of any divergence.
    """
    return 2**20 if device_type == "cpu" else 68 * 2**20


class FusedLoss(NamedTuple):
    """The loss and the sums of its terms; a tuple, because DeepSpeed's hooks look for tensors in what a module returns.

    Both tensors are float32, or float64 for a float64 head, and on the device of the hidden states.
    """

    loss: Tensor
    """A scaled scalar, differentiable."""
    term_sums: Tensor
    """[terms], sums over the N positions in nats, detached, without weight and scale: for metrics."""


def fused_loss(trained: Outputs, terms: Sequence[Term], *, scale: float, chunk_size: int) -> FusedLoss:
    """scale · Σ over positions and terms of weight · term: Eq. 3 of the paper with two terms, Eq. 4 with one.

    Gradients go to those of `trained`'s tensors that require them, and to nothing else. `chunk_size` positions are
    worked on at a time. Without a position (N = 0) the loss is 0 and has zero gradients, so that every rank can run
    the same backward pass. Raises ValueError where shapes or sizes do not fit.
    """
    trained.validate(role="trained")
    for term in terms:
        term.validate(num_rows=len(trained), vocabulary_size=trained.head.vocabulary_size)
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}, expected at least 1 row")
    if not terms:
        raise ValueError("a loss without a term")
    inputs = [trained.hidden, trained.head.weight, trained.head.bias]
    if not torch.is_grad_enabled():
        # The gradients are computed in forward, where autograd would ask for them in this mode too.
        inputs = [None if tensor is None else tensor.detach() for tensor in inputs]
    # Autocast would choose another dtype for some of the GEMMs than for the buffers they are added to.
    with torch.autocast(trained.hidden.device.type, enabled=False):
        loss, sums = _WithGradients.apply(trained, terms, scale, chunk_size, *inputs)  # type: ignore[no-untyped-call]
    return FusedLoss(loss, sums)


@dataclass(kw_only=True)
class _Gradients:
    """Unscaled gradients summed over the chunks so far, float32 for narrower inputs too; None where not needed."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @property
    def needed(self) -> bool:
        return any(gradient is not None for gradient in (self.hidden, self.weight, self.bias))

    def clear(self, num_written: int) -> None:
        """Zero what `add` does not overwrite; it overwrites the first `num_written` rows of a head."""
        if self.weight is not None:
            self.weight[num_written:].zero_()
        if self.bias is not None:
            self.bias.zero_()

    def add(self, trained: Outputs, rows: slice, grad_values: Tensor) -> None:
        """Propagate the gradient of one chunk's head values [n, V] to the head and to the hidden states."""
        vocabulary_size = grad_values.shape[-1]
        if self.bias is not None:
            self.bias[:vocabulary_size] += grad_values.sum(0)
        if self.weight is not None:
            # The first GEMM overwrites the uninitialised buffer, which saves zeroing it.
            hidden = trained.hidden[rows]
            with _tf32() if hidden.dtype.itemsize < 4 else nullcontext():
                self.weight[:vocabulary_size].addmm_(
                    grad_values.t(), hidden.to(grad_values.dtype), beta=0 if rows.start == 0 else 1
                )
        if self.hidden is not None:
            # The values' gradient is narrowed, never the head widened: the head is the larger of the two.
            self.hidden[rows] = functional.linear(
                grad_values.to(trained.head.weight.dtype), trained.head.weight[:vocabulary_size].t()
            )


@contextmanager
def _tf32() -> Iterator[None]:
    """Let CUDA's float32 GEMMs round their operands to TF32; they still accumulate in float32.

    TF32 represents operands that were bf16 or fp16 exactly, and rounds others no more coarsely than the result is
    rounded to bf16 or fp16 in the end. Unlike fp16, it has float32's range.
    """
    matmul = torch.backends.cuda.matmul
    # The older of torch's two settings can always be written; it raises when read after the newer one was written.
    before = matmul.fp32_precision == "tf32"
    matmul.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32 = before


class _WithGradients(torch.autograd.Function):
    """Computes the gradients in forward, where the heads are gathered, and only scales them in backward."""

    @staticmethod
    def forward(
        ctx: Any, trained: Outputs, terms: Sequence[Term], scale: float, chunk_size: int, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # `inputs` are the tensors of `trained`: hidden states, head weight and bias.
        dtype = trained.head.loss_dtype
        buffers = [
            torch.empty_like(tensor, dtype=dtype) if tensor is not None and needed else None
            for tensor, needed in zip(inputs, ctx.needs_input_grad[-len(inputs) :], strict=True)
        ]
        gradients = _Gradients(hidden=buffers[0], weight=buffers[1], bias=buffers[2])
        gradients.clear(trained.head.vocabulary_size if len(trained) else 0)
        sums = torch.zeros(len(terms), dtype=dtype, device=trained.hidden.device)
        for rows in chunks(len(trained), size=chunk_size):
            _add_chunk(trained, terms, sums, gradients, rows=rows)
        weighted = (term.weight * term_sum for term, term_sum in zip(terms, sums, strict=True) if term.weight != 0)
        ctx.save_for_backward(*buffers)
        ctx.mark_non_differentiable(sums)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
        ctx.scale = scale
        return scale * sum(weighted, start=sums.new_zeros(())), sums

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        # One factor, one pass, rounded once at the end: scale alone (1 / tokens) would underflow in float16,
        # where the loss scale in grad_output makes up for it.
        factor = grad_outputs[0] * ctx.scale
        gradients = [
            None if buffer is None else _scaled(buffer, factor, dtype=dtype)
            for buffer, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (None, None, None, None, *gradients)


def _scaled(buffer: Tensor, factor: Tensor, *, dtype: torch.dtype) -> Tensor:
    # In place, for a head's gradient is as large as the head; autograd refuses a second backward by itself.
    result = buffer if buffer.dtype == dtype else torch.empty_like(buffer, dtype=dtype)
    return torch.mul(buffer, factor, out=result)


def _add_chunk(trained: Outputs, terms: Sequence[Term], sums: Tensor, gradients: _Gradients, *, rows: slice) -> None:
    """Add each term's sum over the positions `rows` to `sums`, and to the needed `gradients` what they contribute.

    A function of its own, because its tensors of size [n, V] are freed on return.
    """
    values = trained.head_values(rows)
    targets = [None if term.target is None else term.target.head_values(rows) for term in terms]
    gradient = values if values.dtype == sums.dtype else torch.empty_like(values, dtype=sums.dtype)
    num_rows = chunk_rows(values.shape[1], byte_budget=block_bytes(values.device.type))
    for block in chunks(len(values), size=num_rows):
        _add_block(
            trained.head.logits(values[block]),
            [None if target is None else target[block] for target in targets],
            trained.head.logit_map,
            terms,
            sums,
            rows=slice(rows.start + block.start, rows.start + block.stop),
            gradient=gradient[block] if gradients.needed else None,
        )
    if gradients.needed:
        gradients.add(trained, rows, gradient)


def _add_block(
    logits: Tensor,
    targets: Sequence[Tensor | None],
    logit_map: LogitMap,
    terms: Sequence[Term],
    sums: Tensor,
    *,
    rows: slice,
    gradient: Tensor | None,
) -> None:
    """Add each term's sum over `rows` to `sums`, and write the gradient of the head's values [n, V] if it is needed.

    `gradient` may be the memory of those values, and of `logits` where `logit_map` changes nothing. Each term is
    differentiated on its own, so that one target's log-probabilities are alive at a time.
    """
    log_probs = functional.log_softmax(logits, dim=-1, dtype=sums.dtype)
    if gradient is not None:
        gradient.zero_()
    for term, target, term_sum in zip(terms, targets, sums, strict=True):
        differentiates = gradient is not None and term.weight != 0
        leaf = log_probs.detach().requires_grad_(differentiates)
        with torch.set_grad_enabled(differentiates):
            normalised = None
            if target is not None and term.target is not None:
                normalised = functional.log_softmax(term.target.head.logits(target), dim=-1, dtype=sums.dtype)
            values = term.per_token(leaf, normalised, rows)
        if values.shape != log_probs.shape[:1]:
            raise ValueError(f"a term gave {list(values.shape)} for {len(log_probs)} positions, expected one each")
        term_sum += values.detach().sum()
        if gradient is not None and differentiates:
            gradient += torch.autograd.grad(values, leaf, torch.full_like(values, term.weight))[0]
    if gradient is not None:
        # The gradient of log_softmax.
        gradient.addcmul_(log_probs.exp_(), gradient.sum(-1, keepdim=True), value=-1)
        if logit_map != UNCHANGED:
            gradient *= logit_map.derivative(logits)
