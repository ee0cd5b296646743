"""The global token mean: the one place that knows about ranks and micro-batches."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TokenMean:
    """Turns sums over some response tokens of a window into parts of the mean over all of them.

    Every micro-batch on every rank scales its sum by `scale`; DeepSpeed averages gradients over the
    ranks, so the result is Σ loss / tokens whatever the split into ranks and micro-batches.
    """

    num_tokens: int
    num_ranks: int

    @property
    def scale(self) -> float:
        return self.num_ranks / self.num_tokens
