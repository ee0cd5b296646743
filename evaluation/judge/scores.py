"""Feedback scores from judgements (Appendix C of the paper): Σ model scores / Σ reference scores × 100."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from evaluation.judge.comparisons import Comparison
from evaluation.judge.config import Order
from evaluation.judge.session import Judgement
from evaluation.statistics import Estimate, ratio, resample, standard_error

Judged = Sequence[tuple[Comparison, Judgement]]


@dataclass(frozen=True, kw_only=True)
class FeedbackScore:
    """One model on one benchmark; None where nothing was judged."""

    score: float | None
    """Mean over the seeds, as in Table 6."""
    standard_error: float | None
    """Over the seeds; None with one."""
    pooled: Estimate
    """The same of all seeds together, with its 95 % interval over rows."""
    per_seed: dict[int, float]
    by_order: dict[Order, float]
    """Of all seeds together; their difference is the judge's preference for a position."""
    mean_model_score: float | None
    mean_reference_score: float | None
    num_judged: int
    num_rejected: int
    num_unanswered: int


Pair = tuple[Comparison, float, float]
"""A comparison with the scores of the model and of the reference."""
Group = TypeVar("Group", int, Order)


def feedback_score(judged: Judged, *, num_resamples: int = 1000) -> FeedbackScore:
    """Aggregate the judgements on one model's responses to one benchmark; those without scores are only counted."""
    pairs = list(_pairs(judged))
    per_seed = _scores_by(pairs, lambda comparison: comparison.seed)
    values = list(per_seed.values())
    statuses = [judgement.status for _, judgement in judged]
    return FeedbackScore(
        score=statistics.fmean(values) if values else None,
        standard_error=standard_error(np.array(values)),
        pooled=_pooled(pairs, num_resamples=num_resamples),
        per_seed=per_seed,
        by_order=_scores_by(pairs, lambda comparison: comparison.order),
        mean_model_score=statistics.fmean(model for _, model, _ in pairs) if pairs else None,
        mean_reference_score=statistics.fmean(reference for _, _, reference in pairs) if pairs else None,
        num_judged=statuses.count("judged"),
        num_rejected=statuses.count("rejected"),
        num_unanswered=statuses.count("unanswered"),
    )


def _pairs(judged: Judged) -> Iterator[Pair]:
    for comparison, judgement in judged:
        if judgement.scores is not None:
            first, second = judgement.scores.first, judgement.scores.second
            model_is_first = comparison.order == "model_first"
            yield (comparison, first, second) if model_is_first else (comparison, second, first)


def _scores_by(pairs: Sequence[Pair], key: Callable[[Comparison], Group]) -> dict[Group, float]:
    sums: dict[Group, list[float]] = {}
    for comparison, model, reference in pairs:
        total = sums.setdefault(key(comparison), [0.0, 0.0])
        total[0] += model
        total[1] += reference
    return {group: 100 * model / reference for group, (model, reference) in sorted(sums.items())}


def _pooled(pairs: Sequence[Pair], *, num_resamples: int) -> Estimate:
    """A resample draws all judgements on a row together: those of several seeds are not independent."""
    index = {row: number for number, row in enumerate(sorted({comparison.row for comparison, _, _ in pairs}))}
    if not index:
        return Estimate(value=None, low=None, high=None)
    sums = np.zeros((2, len(index)))
    for comparison, model, reference in pairs:
        sums[:, index[comparison.row]] += model, reference
    return ratio(100 * sums[0], sums[1], draws=resample(len(index), num_resamples=num_resamples))
