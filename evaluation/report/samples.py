"""Responses side by side: rows spread evenly over a benchmark, not chosen by their responses."""

from functools import reduce

import numpy as np
import pandas as pd

from evaluation.generations import generations_file, read_generations
from evaluation.report.findings import Findings
from evaluation.report.models import Model, metrics_of
from evaluation.report.page import Section, Table

_ALPACA_START, _ALPACA_END = "### Instruction:\n", "\n\n### Response:\n"


def samples_section(findings: Findings) -> Section:
    """Rows of every benchmark with all models' responses of the first seed; empty without an evaluation.

    Raises:
        UserError: a file of generations is broken.
    """
    tables = [_benchmark_table(findings, name) for name in findings.benchmarks] if findings.num_samples else []
    return Section(
        key="samples",
        title="Responses",
        text="Rows spread evenly over those that all models have; responses of one seed, each with its first metric.",
        tables=[table for table in tables if not table.frame.empty],
    )


def _benchmark_table(findings: Findings, benchmark: str) -> Table:
    responses = [_responses(model, benchmark) for model in findings.models if benchmark in model.benchmarks]
    # Models with other tokenizers may have dropped other rows, and another file has other rows.
    shared = reduce(lambda one, other: one.merge(other.drop(columns="prompt"), on=["row", "reference"]), responses)
    chosen = np.linspace(0, len(shared) - 1, num=min(findings.num_samples, len(shared))).round().astype(int)
    frame = shared.sort_values("row").iloc[chosen].astype({"row": str})
    return Table(key=f"samples-{benchmark}", title=benchmark, frame=frame, content="texts")


def _responses(model: Model, benchmark: str) -> pd.DataFrame:
    """The rows of a benchmark with the model's responses of the first seed."""
    metric, scores = next(iter(metrics_of(model.benchmarks[benchmark]).items()))
    seed = next(iter(scores["per_seed"]))
    generations = read_generations(generations_file(model.directory(benchmark), benchmark=benchmark, seed=int(seed)))
    return pd.DataFrame(
        {
            "row": one.row,
            "prompt": instruction_of(one.prompt),
            "reference": "\n\n".join(one.references),
            model.name: f"[{one.scores[metric]:.0f}] {one.response}",
        }
        for one in generations
    )


def instruction_of(prompt: str) -> str:
    """The instruction in a prompt of the template alpaca; any other prompt as it is."""
    return prompt.partition(_ALPACA_START)[2].removesuffix(_ALPACA_END) or prompt
