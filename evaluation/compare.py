"""Whether one model answers better than another: differences of ROUGE-L, row by row.

`python -m evaluation.compare --a DIR --b DIR --benchmark NAME` compares two --out directories of evaluate.py.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from evaluation.results import read_generations
from kd.errors import EXIT_CODE, UserError


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean over rows of a - b, in points of ROUGE-L (×100)."""

    mean: float
    standard_error: float
    """Over rows."""
    z: float
    """`mean` in standard errors; infinite where all rows differ by the same amount, 0 where none differs."""
    num_rows: int
    num_seeds: int

    def __str__(self) -> str:
        return (
            f"{self.mean:+.1f} ± {self.standard_error:.1f} ROUGE-L"
            f" ({self.z:.1f} standard errors, {self.num_rows} rows, {self.num_seeds} seeds)"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class RowScores:
    """ROUGE-L of one model on one benchmark."""

    rouge_l: Float[np.ndarray, "S B"]
    """×100, for each seed (S) and row (B)."""
    seeds: tuple[int, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    """Index and references of each row: what two models must share to be compared."""


def paired_difference(a: Float[np.ndarray, "S B"], b: Float[np.ndarray, "S B"]) -> PairedDifference:
    """Compare two models' scores of the same rows; each row counts once, with its mean over the seeds.

    Raises:
        ValueError: arrays of different shapes, or fewer than two rows.
    """
    if a.shape != b.shape or a.shape[1] < 2:
        raise ValueError(f"expected the scores of two or more rows in equal shapes, got {a.shape} and {b.shape}")
    num_seeds, num_rows = a.shape
    differences = a.mean(axis=0) - b.mean(axis=0)
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(num_rows)
    alike = 0.0 if mean == 0 else math.copysign(math.inf, mean)
    return PairedDifference(
        mean=mean,
        standard_error=error,
        z=mean / error if error > 0 else alike,
        num_rows=num_rows,
        num_seeds=num_seeds,
    )


def read_row_scores(directory: Path, *, benchmark: str) -> RowScores:
    """Read the generations of all seeds of a benchmark from an --out directory of evaluate.py.

    Raises:
        UserError: there are none, or a file is broken.
    """
    place = directory / "generations" / benchmark
    files = {int(path.stem.removeprefix("seed-")): path for path in place.glob("seed-*.jsonl")}
    if not files:
        raise UserError(f"{place}: holds no seed-<s>.jsonl; give an --out directory of evaluate.py with that benchmark")
    generations = [read_generations(files[seed]) for seed in sorted(files)]
    return RowScores(
        rouge_l=np.array([[generation.rougeL for generation in rows] for rows in generations]),
        seeds=tuple(sorted(files)),
        rows=tuple((generation.row, generation.references) for generation in generations[0]),
    )


def compare_directories(a: Path, b: Path, *, benchmark: str) -> PairedDifference:
    """Compare the generations in two --out directories.

    Raises:
        UserError: other rows or seeds in one of them, or fewer than two rows.
    """
    of_a, of_b = read_row_scores(a, benchmark=benchmark), read_row_scores(b, benchmark=benchmark)
    if of_a.seeds != of_b.seeds:
        raise UserError(
            f"{benchmark}: {a} has the seeds {_listing(of_a.seeds)}, {b} has {_listing(of_b.seeds)};"
            " evaluate both with the same --seeds"
        )
    if of_a.rows != of_b.rows:
        raise UserError(f"{benchmark}: {a} and {b} answer different rows; evaluate both on the same file and limits")
    if len(of_a.rows) < 2:
        raise UserError(f"{benchmark}: has one row; a comparison needs two or more")
    return paired_difference(of_a.rouge_l, of_b.rouge_l)


def _listing(seeds: Sequence[int]) -> str:
    return ",".join(map(str, seeds))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison that the command line asks for, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.compare", description="Compare two evaluations.")
    parser.add_argument("--a", type=Path, required=True, metavar="DIR", help="--out directory of the first model")
    parser.add_argument("--b", type=Path, required=True, metavar="DIR", help="--out directory of the second model")
    parser.add_argument("--benchmark", required=True, metavar="NAME", help="name that evaluate.py was given")
    arguments = parser.parse_args(argv)
    try:
        difference = compare_directories(arguments.a, arguments.b, benchmark=arguments.benchmark)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE
    print(f"{arguments.a.name} - {arguments.b.name} on {arguments.benchmark}: {difference}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
