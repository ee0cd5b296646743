"""Means and intervals of the student-friendliness analysis, as student_friendliness.json holds them.

B rows; conditions are: without prompt, with prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evaluation.analysis.tokens import SampleSet
from evaluation.statistics import Estimate, ratio, resample
from kd.data.batch import TokenIds
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


def summarise(
    data: str,
    rows: Encoded,
    *,
    nats: Mapping[str, Float[np.ndarray, "B 2 2"]],
    samples: Sequence[SampleSet],
    text: Callable[[TokenIds], str],
    num_resamples: int,
) -> RowSet:
    """Means with intervals on the rows of the file `data`; the conditions are compared row by row.

    `nats` has for initial and final student the sums over each row's tokens of KL(p‖q) and KL(q‖p), under both
    conditions; `samples` has the teacher's responses under both, which `text` decodes.
    """
    examples = rows.examples
    num_tokens = np.array([len(example.with_response().response_ids) for example in examples], dtype=np.float64)
    draws = resample(len(examples), num_resamples=num_resamples)
    ones = np.ones(len(examples))
    scores = [
        [
            100 * np.mean([rouge_l(text(one.response_ids), example.references) for one in of_row])
            for of_row, example in zip(of_condition, examples, strict=True)
        ]
        for of_condition in samples
    ]
    lengths = [
        [np.mean([len(one.response_ids) for one in of_row]) for of_row in of_condition] for of_condition in samples
    ]

    def column(pick: Callable[[Float[np.ndarray, "B 2"]], Float[np.ndarray, " B"]]) -> Column:
        distances = {
            role: Distance(
                forward_kl=ratio(pick(of_role[:, :, 0]), num_tokens, draws=draws),
                reverse_kl=ratio(pick(of_role[:, :, 1]), num_tokens, draws=draws),
            )
            for role, of_role in nats.items()
        }
        return Column(
            **distances,
            rougeL=ratio(pick(np.array(scores).T), ones, draws=draws),
            response_tokens=ratio(pick(np.array(lengths).T), ones, draws=draws),
        )

    return RowSet(
        data=data,
        num_rows=len(examples),
        num_tokens=int(num_tokens.sum()),
        dropped_rows=len(rows.report.dropped),
        without_prompt=column(lambda values: values[:, 0]),
        with_prompt=column(lambda values: values[:, 1]),
        difference=column(lambda values: values[:, 1] - values[:, 0]),
    )
