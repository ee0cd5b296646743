"""Sequences that are sampled for a window, all of them or some."""

import numpy as np

from kd.data.loader import ExampleBatch
from kd.methods.method import Targets
from kd.rollout.sampler import PseudoTargets, Sampler

# Streams beside those that responses are drawn from, which have no spawn key.
_CHOICE_OF_ROWS = 1


def sampled_responses(sampler: Sampler, *, seed: int, keeps_hidden: bool = False) -> Targets:
    """The student's own responses to every row; with the hidden states that predicted them where asked for."""

    def sample(window: ExampleBatch) -> PseudoTargets:
        return sampler.sample(window.examples, seed=seed, step=window.step, keeps_hidden=keeps_hidden)

    return sample


def mixed_responses(sampler: Sampler, *, seed: int, student_fraction: float) -> Targets:
    """The student's own responses to some rows, the data's to the others."""

    def mix(window: ExampleBatch) -> PseudoTargets:
        chosen = {
            row.row_id
            for row in window.examples
            if is_answered_by_student(row.row_id, seed=seed, step=window.step, student_fraction=student_fraction)
        }
        rows = [row for row in window.examples if row.row_id in chosen]
        # All ranks must sample together: one that has chosen no row samples one for show.
        sampled = sampler.sample(rows or window.examples[:1], seed=seed, step=window.step).sequences
        own = {sequence.row_id: sequence for sequence in sampled if sequence.row_id in chosen}
        return PseudoTargets(sequences=[own.get(row.row_id) or row.with_response() for row in window.examples])

    return mix


def is_answered_by_student(row_id: int, *, seed: int, step: int, student_fraction: float) -> bool:
    """Whether a row of optimizer step `step` gets a sampled response: the same on any rank and in any split."""
    return chance(seed, step, row_id, stream=_CHOICE_OF_ROWS) < student_fraction


def chance(*entropy: int, stream: int) -> float:
    """A number in [0, 1) that depends on all of `entropy` and on the stream's number, and on nothing else."""
    return float(np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(stream,))).random())
