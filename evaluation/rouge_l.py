"""Scores of a file of responses: ROUGE-L and exact match against the best reference.

python -m evaluation.rouge_l --generations FILE
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.command import Command
from evaluation.display import metric_label
from kd.config.fields import Section, required
from kd.data.rows import read_json_lines
from kd.errors import UserError
from kd.text_metrics import METRICS


@dataclass(frozen=True, kw_only=True)
class RougeConfig(Section):
    generations: Path = required(help="JSON lines with response and references, such as seed-10.jsonl")


COMMAND = Command(config=RougeConfig, program="python -m evaluation.rouge_l", description=__doc__)


def mean_scores(path: Path) -> tuple[dict[str, float], int]:
    """Mean scores ×100 by metric, and the number of responses, of a file with one JSON object per line.

    Raises:
        UserError: no such file, or a line without `response` and at least one of `references`.
    """
    rows = []
    for row in read_json_lines(path):
        references = row.texts("references")
        if "response" not in row.fields or not references:
            raise UserError(f"{row.source}: expected `response` and `references`; give a file of evaluate.py")
        rows.append((row.text_or_empty("response"), references))
    means = {name: 100 * sum(metric(*row) for row in rows) / len(rows) for name, metric in METRICS.items()}
    return means, len(rows)


def _print_scores(config: RougeConfig) -> None:
    means, num_responses = mean_scores(config.generations)
    scores = [f"{metric_label(name)} {mean:.2f}" for name, mean in means.items()]
    print("   ".join([*scores, f"{num_responses} responses"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the scores of the file that the command line names, and return the exit code."""
    return COMMAND.run(_print_scores, argv)


if __name__ == "__main__":
    sys.exit(main())
