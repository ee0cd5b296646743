"""The number of tokens decoded together, which is halved once when memory runs out."""

from collections.abc import Callable
from typing import TypeVar

import torch

from kd.distributed import World
from kd.errors import UserError
from kd.zero.memory import is_out_of_memory

T = TypeVar("T")


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
        if not is_out_of_memory(error):
            raise
        message = str(error).strip().splitlines()[0]
    # Outside the except clause: as its context, the first error would keep the tensors of its frames alive.
    raise DecodingMemoryError(message)


class TokenBudget:
    """generation.max_batch_tokens, halved at most once in a run, on the ranks where that is needed."""

    def __init__(self, num_tokens: int, *, world: World, say: Callable[[str], None] | None) -> None:
        """`say` receives one line when the budget of some rank is halved."""
        self.num_tokens = num_tokens
        self._configured = num_tokens
        self._world = world
        self._say = say
        self._half = max(1, num_tokens // 2)
        self._failures = 0
        """Number of times that memory has run out on this rank."""
        self._agreed_failures = 0

    def halve(self) -> bool:
        """Halve the budget; False if it has been halved before."""
        # The next attempt may need larger blocks than those that torch has kept of the failed one.
        torch.cuda.empty_cache()
        self._failures += 1
        self.num_tokens = self._half
        return self._failures == 1

    def agree(self) -> None:
        """Report that some rank has halved its budget since the last call; all ranks call it together.

        Raises:
            UserError: on all ranks, when half was too much on some rank.
        """
        failures = self._failures if self._failures > self._agreed_failures else 0
        self._agreed_failures = self._failures
        most = self._world.max_across_ranks(torch.tensor(failures, device=self._world.device)).item()
        if most > 1:
            raise UserError(
                f"out of memory while decoding {self._half} tokens together, half of generation.max_batch_tokens="
                f"{self._configured}; lower it, or divide the weights over ranks (generation.layout)"
            )
        if most == 1 and self._say is not None:
            self._say(
                f"out of memory while decoding: ranks with this error decode {self._half} tokens together from now on,"
                f" half of generation.max_batch_tokens={self._configured}"
            )
