"""The order of the training rows: seeded, split into global batches and over ranks, resumable at any step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kd.data.encoding import Example
from kd.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class ExampleBatch:
    """One rank's rows of a global batch, shortest first."""

    step: int
    examples: tuple[Example, ...]


class BatchLoader:
    """Global batches of `global_batch` rows from an endless stream of seeded permutations.

    A global batch is a function of (seed, step): nothing has to be saved to resume, and the number of ranks only
    decides how it is distributed. Each row occurs once in an epoch.
    """

    def __init__(self, examples: Sequence[Example], *, global_batch: int, rank: int, num_ranks: int, seed: int) -> None:
        """Load the global batches of `examples` for one rank; raises a UserError if there are none."""
        if not examples:
            raise UserError("no training rows are left; expected at least one")
        self._examples = examples
        self._global_batch = global_batch
        self._rank = rank
        self._num_ranks = num_ranks
        self._seed = seed

    def batch(self, step: int) -> ExampleBatch:
        """This rank's rows of optimizer step `step`, which counts from 1."""
        start = (step - 1) * self._global_batch
        rows = [self._example_at(index) for index in range(start, start + self._global_batch)]
        # Distributing sorted rows in turn gives every rank about the same number of tokens.
        rows.sort(key=lambda row: row.num_tokens)
        return ExampleBatch(step=step, examples=tuple(rows[self._rank :: self._num_ranks]))

    def epoch_at(self, step: int) -> float:
        """Epochs over the data that are complete after `step`."""
        return step * self._global_batch / len(self._examples)

    def steps_in(self, epochs: float) -> int:
        """Smallest number of steps that covers `epochs` epochs over the data."""
        # An exact fraction of the number as written: 0.1 epochs of 640 rows are one global batch of 64.
        return math.ceil(Fraction(str(epochs)) * len(self._examples) / self._global_batch)

    def _example_at(self, index: int) -> Example:
        epoch, offset = divmod(index, len(self._examples))
        return self._examples[int(_permutation(len(self._examples), seed=self._seed, epoch=epoch)[offset])]


# A global batch spans at most two epochs where it is smaller than the data; training may read a corpus beside its rows.
@lru_cache(maxsize=4)
def _permutation(num_rows: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)
