"""The files and the table of a judged evaluation."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from evaluation.judge.comparisons import Comparison, Order
from evaluation.judge.estimate import Prices
from evaluation.judge.scores import FeedbackScore, Judged, feedback_score
from evaluation.judge.session import Judge, Verdict
from evaluation.results import write_atomically
from evaluation.terminal import results_console

RESULTS = "judge.json"


def write_report(
    judged: Judged,
    *,
    judge: Judge,
    orders: Sequence[Order],
    sources: Mapping[str, str],
    prices: Prices | None,
    num_asked: int,
    out: Path,
) -> None:
    """Write judge.json and the verdicts of each model and benchmark, and print the scores and what has none.

    Raises:
        UserError: `out` cannot be written.
    """
    scores: dict[str, dict[str, FeedbackScore]] = {}
    for model in dict.fromkeys(comparison.model for comparison, _ in judged):
        for benchmark in sources:
            own = [pair for pair in judged if (pair[0].model, pair[0].benchmark) == (model, benchmark)]
            scores.setdefault(model, {})[benchmark] = feedback_score(own)
            lines = [json.dumps(_verdict_line(*pair), ensure_ascii=False) for pair in own]
            write_atomically(out / "verdicts" / model / f"{benchmark}.jsonl", "\n".join(lines) + "\n")
    results = {
        "format": "judge",
        "version": 1,
        "judge": asdict(judge),
        "orders": list(orders),
        "sources": dict(sources),
        "scores": {
            model: {benchmark: asdict(score) for benchmark, score in of_model.items()}
            for model, of_model in scores.items()
        },
        "usage": _usage(judged, prices) | {"num_asked": num_asked},
    }
    write_atomically(out / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    results_console().print(_table(scores, sources))
    for status in ("rejected", "unanswered"):
        lost = [verdict for _, verdict in judged if verdict.status == status]
        if lost:
            print(f"{len(lost)} of {len(judged)} comparisons are {status}, such as: {lost[0].reason}", file=sys.stderr)


def _verdict_line(comparison: Comparison, verdict: Verdict) -> dict[str, Any]:
    return {
        "seed": comparison.seed,
        "row": comparison.row,
        "order": comparison.order,
        "status": verdict.status,
        "scores": None if verdict.scores is None else asdict(verdict.scores),
        "replies": [reply.text for reply in verdict.replies],
        "reason": verdict.reason,
    }


def _usage(judged: Judged, prices: Prices | None) -> dict[str, Any]:
    replies = [reply for verdict in {pair[0].prompt: pair[1] for pair in judged}.values() for reply in verdict.replies]
    input_tokens = sum(reply.input_tokens or 0 for reply in replies)
    output_tokens = sum(reply.output_tokens or 0 for reply in replies)
    cost = None if prices is None else prices.cost(input_tokens=input_tokens, output_tokens=output_tokens)
    return {"num_replies": len(replies), "input_tokens": input_tokens, "output_tokens": output_tokens, "cost": cost}


def _table(scores: Mapping[str, Mapping[str, FeedbackScore]], benchmarks: Mapping[str, str]) -> Table:
    table = Table("model", *benchmarks, title="Feedback score, references = 100 (± standard error over seeds)")
    for model, of_model in scores.items():
        cells = []
        for score in of_model.values():
            error = "" if score.standard_error is None else f" ± {score.standard_error:.2f}"
            cells.append("–" if score.score is None else f"{score.score:.2f}{error}")
        table.add_row(model, *cells)
    return table
