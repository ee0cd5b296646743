"""The number of tokens decoded together, which is halved once when memory runs out."""

from collections.abc import Callable
from enum import IntEnum
from typing import TypeVar

import torch

from kd.distributed import World
from kd.errors import UserError

T = TypeVar("T")

# torch has an exception of its own for GPUs only.
_CPU_MESSAGE = "DefaultCPUAllocator: can't allocate memory"


class DecodingMemoryError(Exception):
    """Memory ran out; the tensors of the failed computation are released."""


def within_memory(work: Callable[[], T]) -> T:
    """What `work` returns.

    Raises:
        DecodingMemoryError: instead of every kind of out-of-memory error.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or _CPU_MESSAGE in str(error)):
            raise
        message = str(error).strip().splitlines()[0]
    # Outside the except clause: as its context, the first error would keep the tensors of its frames alive.
    raise DecodingMemoryError(message)


class _Status(IntEnum):
    """Out-of-memory status of a rank; the maximum over the ranks counts."""

    NONE = 0
    HALVED = 1
    EXHAUSTED = 2


class TokenBudget:
    """generation.max_batch_tokens, halved at most once in a run, on the ranks where that is needed."""

    def __init__(self, num_tokens: int, *, world: World, say: Callable[[str], None] | None) -> None:
        """`say` receives one line when the budget of some rank is halved."""
        self.num_tokens = num_tokens
        self._configured = num_tokens
        self._world = world
        self._say = say
        self._status = _Status.NONE
        self._is_halved = False

    def halve(self) -> bool:
        """Halve the budget; False if it has been halved before."""
        # The next attempt may need larger blocks than those that torch has kept of the failed one.
        torch.cuda.empty_cache()
        self._status = _Status.EXHAUSTED if self._is_halved else _Status.HALVED
        self._is_halved = True
        self.num_tokens = max(1, self._configured // 2)
        return self._status == _Status.HALVED

    def agree(self) -> None:
        """Report that some rank has halved its budget since the last call; all ranks call it together.

        Raises:
            UserError: on all ranks, when half was too much on some rank.
        """
        worst = self._world.max_across_ranks(torch.tensor(int(self._status), device=self._world.device)).item()
        self._status = _Status.NONE
        half = max(1, self._configured // 2)
        if worst == _Status.EXHAUSTED:
            raise UserError(
                f"out of memory while decoding {half} tokens together, half of generation.max_batch_tokens="
                f"{self._configured}; lower it, or divide the weights over ranks (generation.layout)"
            )
        if worst == _Status.HALVED and self._say is not None:
            self._say(
                f"out of memory while decoding: ranks with this error decode {half} tokens together from now on,"
                f" half of generation.max_batch_tokens={self._configured}"
            )
