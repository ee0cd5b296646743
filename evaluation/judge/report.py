"""The files and the table of a judged evaluation."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.table import Table

from evaluation.display import results_console, with_error
from evaluation.judge.comparisons import Comparison
from evaluation.judge.config import JudgeConfig, PriceSection
from evaluation.judge.scores import FeedbackScore, Judged, feedback_score
from evaluation.judge.session import Judgement
from evaluation.results import write_json
from kd.files import write_atomically

RESULTS = "judge.json"


def write_report(judged: Judged, *, config: JudgeConfig, sources: Mapping[str, str], num_asked: int) -> None:
    """Write judge.json and the judgements of each model and benchmark, and print the scores and what has none.

    Raises:
        UserError: config.out cannot be written.
    """
    scores: dict[str, dict[str, FeedbackScore]] = {}
    for model in dict.fromkeys(comparison.model for comparison, _ in judged):
        for benchmark in sources:
            own = [pair for pair in judged if (pair[0].model, pair[0].benchmark) == (model, benchmark)]
            scores.setdefault(model, {})[benchmark] = feedback_score(own)
            lines = [json.dumps(_judgement_line(*pair), ensure_ascii=False) for pair in own]
            write_atomically(config.out / "judgements" / model / f"{benchmark}.jsonl", "\n".join(lines) + "\n")
    results = {
        "format": "judge",
        "version": 1,
        "judge": asdict(config.judge),
        "orders": list(config.orders),
        "sources": dict(sources),
        "scores": {
            model: {benchmark: asdict(score) for benchmark, score in of_model.items()}
            for model, of_model in scores.items()
        },
        "usage": _usage(judged, config.price) | {"num_asked": num_asked},
    }
    write_json(config.out / RESULTS, results)
    results_console().print(_table(scores, sources))
    for status in ("rejected", "unanswered"):
        lost = [judgement for _, judgement in judged if judgement.status == status]
        if lost:
            print(f"{len(lost)} of {len(judged)} comparisons are {status}, such as: {lost[0].reason}", file=sys.stderr)


def _judgement_line(comparison: Comparison, judgement: Judgement) -> dict[str, Any]:
    return {
        "seed": comparison.seed,
        "row": comparison.row,
        "order": comparison.order,
        "status": judgement.status,
        "scores": None if judgement.scores is None else asdict(judgement.scores),
        "responses": [response.text for response in judgement.responses],
        "reason": judgement.reason,
    }


def _usage(judged: Judged, price: PriceSection) -> dict[str, Any]:
    responses = [
        response
        for judgement in {pair[0].prompt: pair[1] for pair in judged}.values()
        for response in judgement.responses
    ]
    input_tokens = sum(response.input_tokens or 0 for response in responses)
    output_tokens = sum(response.output_tokens or 0 for response in responses)
    cost = price.cost(input_tokens=input_tokens, output_tokens=output_tokens)
    return {"num_responses": len(responses), "input_tokens": input_tokens, "output_tokens": output_tokens, "cost": cost}


def _table(scores: Mapping[str, Mapping[str, FeedbackScore]], benchmarks: Mapping[str, str]) -> Table:
    table = Table("model", *benchmarks, title="Feedback score, references = 100 (± standard error over seeds)")
    for model, of_model in scores.items():
        table.add_row(model, *(with_error(score.score, score.standard_error) for score in of_model.values()))
    return table
