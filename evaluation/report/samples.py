"""Responses side by side: rows spread evenly over a benchmark, not chosen by their responses."""

from collections.abc import Sequence

import pandas as pd

from evaluation.generations import Response, generations_file, read_generations
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
        text="Rows spread evenly over those that all models have; the responses of one seed, each with its ROUGE-L.",
        tables=[table for table in tables if not table.frame.empty],
    )


def _benchmark_table(findings: Findings, benchmark: str) -> Table:
    models = [model for model in findings.models if benchmark in model.benchmarks]
    found = {model.name: _first_seed(model, benchmark) for model in models}
    first = found[models[0].name]
    # Models with other tokenizers may have dropped other rows, and another file has other rows.
    shared = [
        row
        for row, generation in sorted(first.items())
        if all(row in rows and rows[row].references == generation.references for rows in found.values())
    ]
    samples = [
        {
            "row": str(row),
            "prompt": instruction_of(first[row].prompt),
            "reference": "\n\n".join(first[row].references),
            **{name: f"[{rows[row].scores['rougeL']:.0f}] {rows[row].response}" for name, rows in found.items()},
        }
        for row in spread(shared, findings.num_samples)
    ]
    return Table(key=f"samples-{benchmark}", title=benchmark, frame=pd.DataFrame(samples), content="texts")


def _first_seed(model: Model, benchmark: str) -> dict[int, Response]:
    seed = next(seed for metric in metrics_of(model.benchmarks[benchmark]).values() for seed in metric["per_seed"])
    generations = read_generations(generations_file(model.directory(benchmark), benchmark=benchmark, seed=int(seed)))
    return {generation.row: generation for generation in generations}


def spread(rows: Sequence[int], number: int) -> list[int]:
    """`number` rows at equal distances, the first and the last among them; all rows if there are fewer."""
    if number >= len(rows):
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / max(1, number - 1))] for place in range(number)]


def instruction_of(prompt: str) -> str:
    """The instruction in a prompt of the template alpaca; any other prompt as it is."""
    return prompt.partition(_ALPACA_START)[2].removesuffix(_ALPACA_END) or prompt
