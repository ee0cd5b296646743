"""The one loss of every method: hidden states and output heads in, a scalar and its gradients out.

The [N, V] logits of a 50,000-word vocabulary outweigh the model's activations. Here they exist for one chunk
of rows at a time: `linear_divergence` computes the loss *and* the gradients of a chunk before it goes on to
the next, so that nothing of size [N, V] is kept for backward and no projection is computed twice.

N response positions, n rows of one chunk, H hidden size, V shared vocabulary, V_padded rows of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kd.losses.divergences import Divergence

CHUNK_BYTES = 64 * 2**20
"""Default size of one [chunk, V] float32 tensor; a little over five of them live at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """Hidden states [N, H] and the output head (weight [V_padded, H], bias [V_padded]) that reads them.

    Under ZeRO-3 the head must be gathered while `linear_divergence` runs; at backward it need not be.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None

    @property
    def loss_dtype(self) -> torch.dtype:
        """float64 for a float64 head, float32 for any other."""
        return torch.float64 if self.weight.dtype == torch.float64 else torch.float32

    def log_probs(self, rows: slice, *, vocabulary_size: int) -> Float[Tensor, "n V"]:
        """Log-probabilities of `rows`, normalised over the first `vocabulary_size` rows of the head."""
        weight = self.weight[:vocabulary_size]
        bias = None if self.bias is None else self.bias[:vocabulary_size]
        logits = functional.linear(self.hidden[rows].to(weight.dtype), weight, bias)
        return functional.log_softmax(logits, dim=-1, dtype=self.loss_dtype)

    def validate(self, *, role: str, vocabulary_size: int) -> None:
        """Raise ValueError, naming `role`, unless the shapes agree and the head covers the vocabulary."""
        hidden, weight = self.hidden.shape, self.weight.shape
        if len(hidden) != 2 or len(weight) != 2 or hidden[1] != weight[1]:
            raise ValueError(
                f"{role}: hidden states {list(hidden)} and head {list(weight)}, expected [N, H] and [V, H] "
                "(a head of no or one dimension is a ZeRO-3 shard that was not gathered)"
            )
        if self.bias is not None and self.bias.shape != weight[:1]:
            raise ValueError(f"{role}: bias {list(self.bias.shape)}, expected [{weight[0]}] like the head's rows")
        if not 1 <= vocabulary_size <= weight[0]:
            raise ValueError(
                f"{role}: a shared vocabulary of {vocabulary_size} entries, but the head has {weight[0]} rows"
            )


@runtime_checkable  # for beartype
class Term(Protocol):
    """One summand of the per-token loss."""

    @property
    def weight(self) -> float:
        """Factor of this summand; a summand of weight 0 is measured but has no part in loss and gradient."""
        ...

    def validate(self, *, num_rows: int, vocabulary_size: int) -> None:
        """Raise ValueError unless this summand covers exactly `num_rows` positions of that vocabulary."""
        ...

    def per_token(self, log_probs: Tensor, rows: slice) -> Tensor:
        """Nats [n] for the positions `rows`, differentiable in their log-probabilities [n, V]."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class DivergenceTerm:
    """`divergence(trained, target)` in nats, a summand of Eq. 3 or 4; the target never gets a gradient."""

    divergence: Divergence
    target: Projection
    weight: float = 1.0

    def validate(self, *, num_rows: int, vocabulary_size: int) -> None:
        """Raise ValueError unless the target has `num_rows` positions and `vocabulary_size` head rows."""
        self.target.validate(role="target", vocabulary_size=vocabulary_size)
        if len(self.target.hidden) != num_rows:
            raise ValueError(f"target has {len(self.target.hidden)} positions, the trained model {num_rows}")

    def per_token(self, log_probs: Float[Tensor, "n V"], rows: slice) -> Float[Tensor, " n"]:
        """Divergence in nats for the positions `rows`, given their log-probabilities [n, V]."""
        with torch.no_grad():
            target = self.target.log_probs(rows, vocabulary_size=log_probs.shape[-1])
        return self.divergence(log_probs, target)


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearDivergence:
    """Result: `loss` (differentiable scalar, scaled) and `term_sums` [terms] (detached; see below).

    `term_sums` are the sums over the N positions in nats, without weight and scale, for metrics. Both are
    float32, or float64 for a float64 head, and on the device of the hidden states.
    """

    loss: Tensor
    term_sums: Tensor


def chunk_rows(vocabulary_size: int, *, byte_budget: int = CHUNK_BYTES) -> int:
    """Rows, at least 1, for which one [rows, vocabulary_size] float32 tensor fits into `byte_budget`."""
    return max(1, byte_budget // (4 * vocabulary_size))


def linear_divergence(
    trained: Projection, terms: Sequence[Term], *, vocabulary_size: int, scale: float, chunk_size: int
) -> LinearDivergence:
    """scale · Σ over positions and terms of weight · term: with two terms Eq. 3, with one Eq. 4 of the paper.

    Gradients go to those of `trained`'s tensors that require them, and to nothing else. Log-probabilities are
    taken over the first `vocabulary_size` rows of each head, which removes the padding columns; `chunk_size`
    rows are in work at a time. Without a position (N = 0) the loss is 0 and still has zero gradients, so that
    every rank can run the same backward. Raises ValueError where shapes or sizes do not fit.
    """
    trained.validate(role="trained", vocabulary_size=vocabulary_size)
    for term in terms:
        term.validate(num_rows=len(trained.hidden), vocabulary_size=vocabulary_size)
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}, expected at least 1 row")
    if not terms:
        raise ValueError("a loss without a term")
    inputs = (trained.hidden, trained.weight, trained.bias)
    # Autocast would choose another dtype for some of the products than for the buffers they are added to.
    with torch.autocast(trained.hidden.device.type, enabled=False):
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
            settings = (terms, vocabulary_size, scale, chunk_size)
            loss, sums = _WithGradients.apply(*inputs, *settings)  # type: ignore[no-untyped-call]
        else:
            sums = _walk(trained, terms, _Gradients(), vocabulary_size=vocabulary_size, chunk_size=chunk_size)
            loss = scale * _total(terms, sums)
    return LinearDivergence(loss=loss, term_sums=sums)


@dataclass(kw_only=True)
class _Gradients:
    """Unscaled sums over the chunks done so far, float32 also for narrower inputs; None where not wanted."""

    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def wanted(self) -> bool:
        return any(gradient is not None for gradient in (self.hidden, self.weight, self.bias))

    def add(self, trained: Projection, rows: slice, logits: Tensor) -> None:
        """Carry the gradient of one chunk's logits [n, V] on to the head and to the hidden states."""
        vocabulary_size = logits.shape[-1]
        if self.bias is not None:
            self.bias[:vocabulary_size] += logits.sum(0)
        if self.weight is not None:
            self.weight[:vocabulary_size].addmm_(logits.t(), trained.hidden[rows].to(logits.dtype))
        if self.hidden is not None:
            # The logits' gradient is narrowed, never the head widened: the head is the larger of the two.
            self.hidden[rows] = logits.to(trained.weight.dtype) @ trained.weight[:vocabulary_size]


class _WithGradients(torch.autograd.Function):
    """Computes the gradients in forward, where the heads are at hand, and only scales them in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        terms: Sequence[Term],
        vocabulary_size: int,
        scale: float,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        trained = Projection(hidden=hidden, weight=weight, bias=bias)
        buffers = [
            torch.zeros_like(tensor, dtype=trained.loss_dtype) if tensor is not None and needed else None
            for tensor, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        ]
        gradients = _Gradients(hidden=buffers[0], weight=buffers[1], bias=buffers[2])
        sums = _walk(trained, terms, gradients, vocabulary_size=vocabulary_size, chunk_size=chunk_size)
        ctx.save_for_backward(*buffers)
        ctx.mark_non_differentiable(sums)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        ctx.scale = scale
        return scale * _total(terms, sums), sums

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        # One factor, one pass, rounded once at the end: scale alone (1 / tokens) would underflow in float16,
        # where the loss scale in grad_output makes up for it.
        factor = grad_outputs[0] * ctx.scale
        inputs = [
            None if buffer is None else torch.mul(buffer, factor, out=torch.empty_like(buffer, dtype=dtype))
            for buffer, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*inputs, None, None, None, None)


def _walk(
    trained: Projection,
    terms: Sequence[Term],
    gradients: _Gradients,
    *,
    vocabulary_size: int,
    chunk_size: int,
) -> Tensor:
    """Sum each term over all positions, chunk by chunk, and add to `gradients` what is wanted there."""
    sums = torch.zeros(len(terms), dtype=trained.loss_dtype, device=trained.hidden.device)
    for start in range(0, len(trained.hidden), chunk_size):
        rows = slice(start, start + chunk_size)
        _work_on_chunk(trained, terms, gradients, sums, rows, vocabulary_size)
    return sums


def _work_on_chunk(
    trained: Projection,
    terms: Sequence[Term],
    gradients: _Gradients,
    sums: Tensor,
    rows: slice,
    vocabulary_size: int,
) -> None:
    # A function of its own, so that its [n, V] tensors are gone before the next chunk makes new ones. Each
    # term is differentiated on its own for the same reason: only one target is alive at a time.
    log_probs = trained.log_probs(rows, vocabulary_size=vocabulary_size)
    gradient: Tensor | None = None
    for term, term_sum in zip(terms, sums, strict=True):
        differentiate = gradients.wanted and term.weight != 0
        leaf = log_probs.detach().requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate):
            values = term.per_token(leaf, rows)
        if values.shape != log_probs.shape[:1]:
            raise ValueError(f"a term gave {list(values.shape)} for {len(log_probs)} positions, expected one each")
        term_sum += values.detach().sum()
        if differentiate:
            (part,) = torch.autograd.grad(values, leaf, torch.full_like(values, term.weight))
            gradient = part if gradient is None else gradient + part
            del part  # it would stay beside the next term's tensors
    if gradient is not None:
        # The gradient of log_softmax. The logits themselves were dropped as soon as they were normalised.
        total = gradient.sum(-1, keepdim=True)
        gradients.add(trained, rows, torch.addcmul(gradient, log_probs.exp(), total, value=-1))


def _total(terms: Sequence[Term], sums: Tensor) -> Tensor:
    weighted = (term.weight * term_sum for term, term_sum in zip(terms, sums, strict=True) if term.weight != 0)
    return sum(weighted, start=sums.new_zeros(()))
