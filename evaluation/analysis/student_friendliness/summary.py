"""Means and intervals of the student-friendliness analysis, as student_friendliness.json holds them.

B rows; conditions are: without prompt, with prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evaluation.analysis.tokens import SampleSet
from evaluation.models import EvaluatedModel
from evaluation.statistics import Estimate, ratio, resample
from kd.data.encoding import Encoded
from kd.text_metrics import rouge_l


@dataclass(frozen=True, kw_only=True)
class Distance:
    """From the teacher p to a student q, in nats per token."""

    forward_kl: Estimate
    """KL(p‖q)."""
    reverse_kl: Estimate
    """KL(q‖p)."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """The teacher under one condition, or the difference between two."""

    initial: Distance
    final: Distance
    rougeL: Estimate
    """×100, of its own responses."""
    response_tokens: Estimate


@dataclass(frozen=True, kw_only=True)
class RowSet:
    """Measurements on one file of rows."""

    data: str
    num_rows: int
    num_tokens: int
    dropped_rows: int
    without_prompt: Column
    with_prompt: Column
    difference: Column


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """Raw measurements on one set of rows; conditions are: without prompt, with prompt."""

    rows: Encoded
    nats: dict[str, Float[np.ndarray, "B 2 2"]]
    """For initial and final student: KL(p‖q) and KL(q‖p) under both conditions, summed over each row's tokens."""
    samples: Sequence[SampleSet]
    """The teacher's responses, under both conditions."""
    model: EvaluatedModel


def summarise(data: str, measured: Measured, *, num_resamples: int) -> RowSet:
    """Means with intervals; the conditions are compared row by row."""
    examples = measured.rows.examples
    num_tokens = np.array([len(example.with_response().response_ids) for example in examples], dtype=np.float64)
    draws = resample(len(examples), num_resamples=num_resamples)
    ones = np.ones(len(examples))
    rouge = np.stack([_rouge(samples, measured) for samples in measured.samples], axis=1)
    lengths = np.stack([_mean_lengths(samples) for samples in measured.samples], axis=1)

    def column(pick: Callable[[Float[np.ndarray, "B 2"]], Float[np.ndarray, " B"]]) -> Column:
        distances = {
            role: Distance(
                forward_kl=ratio(pick(nats[:, :, 0]), num_tokens, draws=draws),
                reverse_kl=ratio(pick(nats[:, :, 1]), num_tokens, draws=draws),
            )
            for role, nats in measured.nats.items()
        }
        return Column(
            **distances,
            rougeL=ratio(pick(rouge), ones, draws=draws),
            response_tokens=ratio(pick(lengths), ones, draws=draws),
        )

    return RowSet(
        data=data,
        num_rows=len(examples),
        num_tokens=int(num_tokens.sum()),
        dropped_rows=len(measured.rows.report.dropped),
        without_prompt=column(lambda values: values[:, 0]),
        with_prompt=column(lambda values: values[:, 1]),
        difference=column(lambda values: values[:, 1] - values[:, 0]),
    )


def _rouge(samples: SampleSet, measured: Measured) -> Float[np.ndarray, " B"]:
    """ROUGE-L ×100 of each row, its mean over the seeds."""
    return np.array(
        [
            100 * np.mean([rouge_l(measured.model.text(one.response_ids), example.references) for one in of_row])
            for of_row, example in zip(samples, measured.rows.examples, strict=True)
        ]
    )


def _mean_lengths(samples: SampleSet) -> Float[np.ndarray, " B"]:
    return np.array([np.mean([len(one.response_ids) for one in of_row]) for of_row in samples])
