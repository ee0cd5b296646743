"""Feedback scores from judgements (Appendix C of the paper): Σ model scores / Σ reference scores × 100."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evaluation.judge.comparisons import Comparison
from evaluation.judge.config import Order
from evaluation.judge.session import Judgement
from evaluation.statistics import Estimate, finite, ratio, resample, standard_error

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


def feedback_score(judged: Judged) -> FeedbackScore:
    """Aggregate the judgements on one model's responses to one benchmark; those without scores are only counted."""
    scores = _scores(judged)
    per_seed = _ratios(scores, "seed")
    # A resample draws all judgements on a row together: those of several seeds are not independent.
    by_row = scores.groupby("row")[["model", "reference"]].sum()
    statuses = [judgement.status for _, judgement in judged]
    return FeedbackScore(
        score=finite(pd.Series(per_seed, dtype=float).mean()),
        standard_error=standard_error(np.array([*per_seed.values()])),
        pooled=ratio(
            100 * by_row["model"].to_numpy(),
            by_row["reference"].to_numpy(),
            draws=resample(len(by_row), num_resamples=1000),
        ),
        per_seed=per_seed,
        by_order=_ratios(scores, "order"),
        mean_model_score=finite(scores["model"].mean()),
        mean_reference_score=finite(scores["reference"].mean()),
        num_judged=statuses.count("judged"),
        num_rejected=statuses.count("rejected"),
        num_unanswered=statuses.count("unanswered"),
    )


def _scores(judged: Judged) -> pd.DataFrame:
    """A row for each comparison with scores: its seed, row and order, and the scores of model and reference."""
    rows = []
    for comparison, judgement in judged:
        if judgement.scores is not None:
            scores = [judgement.scores.first, judgement.scores.second]
            if comparison.order == "reference_first":
                scores.reverse()
            rows.append((comparison.seed, comparison.row, comparison.order, *scores))
    frame = pd.DataFrame(rows, columns=["seed", "row", "order", "model", "reference"])
    return frame.astype({"model": float, "reference": float})


def _ratios(scores: pd.DataFrame, key: str) -> dict[Any, float]:
    """100 · Σ model / Σ reference by the values of a column."""
    sums = scores.groupby(key)[["model", "reference"]].sum()
    return dict((100 * sums["model"] / sums["reference"]).items())
