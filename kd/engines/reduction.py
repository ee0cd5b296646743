"""The global token mean: the one place that knows about ranks and micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass

from kd.data.batch import SequenceBatch
from kd.distributed import World


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


def count_response_tokens(batches: Sequence[SequenceBatch], *, world: World) -> int:
    """Response tokens of a window on all ranks, the terminating EOS included."""
    return world.count(sum(batch.num_response_tokens for batch in batches))
