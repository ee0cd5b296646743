"""Whether one model answers better than another: differences of its scores, row by row.

python -m evaluation.compare --a DIR --b DIR [DIR …] [--benchmark NAME …] [--metric rougeL]

The directories are the --out of evaluate.py. A row counts once, with its mean over the seeds; the interval and p come
from a paired bootstrap over the rows, the same rows for both models.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from evaluation.command_options import CommandParser, file_path, run_command
from evaluation.intervals import defined
from evaluation.results import evaluated_seeds, generations_file, read_generations, write_results
from evaluation.short_names import short_names
from kd.errors import UserError

Metric = Literal["rougeL", "exact_match"]

METRICS: dict[Metric, str] = {"rougeL": "ROUGE-L", "exact_match": "exact match"}
NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95

# Rows that are drawn at a time.
_DRAWN_ROWS = 2**22


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean over rows of a - b, in points of the metric (×100)."""

    metric: Metric
    mean: float
    standard_error: float
    """Over rows."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    p_value: float
    """Two-sided: how often the mean of as many rows, drawn with replacement, has the other sign or is 0.

    As the interval, it is too certain of itself where there are only a few dozen rows.
    """
    z: float
    """`mean` in standard errors; infinite (null in a file) where all rows differ by one amount, 0 if none differs."""
    num_rows: int
    num_seeds: int

    def __str__(self) -> str:
        return (
            f"{self.mean:+.2f} ± {self.standard_error:.2f} {METRICS[self.metric]},"
            f" 95 % interval {self.low:+.2f} to {self.high:+.2f}, p = {self.p_value:.2g}"
            f" ({self.num_rows} rows, {self.num_seeds} seeds)"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class RowScores:
    """Scores of one model on one benchmark."""

    values: Float[np.ndarray, "S B"]
    """×100, for each seed (S) and row (B)."""
    seeds: tuple[int, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    """Index and references of each row: what two models must share to be compared."""


def paired_difference(
    a: Float[np.ndarray, "S B"],
    b: Float[np.ndarray, "S B"],
    *,
    metric: Metric = "rougeL",
    num_resamples: int = NUM_RESAMPLES,
) -> PairedDifference:
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
    drawn = bootstrap_means(differences, num_resamples=num_resamples)
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [outside, 1 - outside]).tolist()
    # One more in both: the rows as they are belong to what could have been drawn.
    rarer_sign = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    return PairedDifference(
        metric=metric,
        mean=mean,
        standard_error=error,
        low=low,
        high=high,
        p_value=min(1.0, 2 * (rarer_sign + 1) / (num_resamples + 1)),
        z=mean / error if error > 0 else alike,
        num_rows=num_rows,
        num_seeds=num_seeds,
    )


def bootstrap_means(values: Float[np.ndarray, " B"], *, num_resamples: int, seed: int = 0) -> Float[np.ndarray, " R"]:
    """Means of as many values, drawn from them with replacement (R: resamples)."""
    generator = np.random.default_rng(seed)
    size = max(1, _DRAWN_ROWS // len(values))
    parts = [
        values[generator.integers(len(values), size=(min(size, num_resamples - start), len(values)))].mean(axis=1)
        for start in range(0, num_resamples, size)
    ]
    return np.concatenate(parts)


def read_row_scores(directory: Path, *, benchmark: str, metric: Metric) -> RowScores:
    """Read the generations of all seeds of a benchmark from an --out directory of evaluate.py.

    Raises:
        UserError: there are none, or a file is broken.
    """
    place = directory / "generations" / benchmark
    seeds = evaluated_seeds(place)
    if not seeds:
        raise UserError(f"{place}: holds no seed-<s>.jsonl; give an --out directory of evaluate.py with that benchmark")
    generations = [read_generations(generations_file(place, seed)) for seed in seeds]
    # Of unequal seeds no array could be made.
    if len({len(rows) for rows in generations}) > 1:
        raise UserError(f"{place}: its seeds have different numbers of rows; evaluate again into another --out")
    values = [
        [generation.rougeL if metric == "rougeL" else 100.0 * generation.exact_match for generation in rows]
        for rows in generations
    ]
    return RowScores(
        values=np.array(values),
        seeds=tuple(seeds),
        rows=tuple((generation.row, generation.references) for generation in generations[0]),
    )


def compare_directories(a: Path, b: Path, *, benchmark: str, metric: Metric = "rougeL") -> PairedDifference:
    """Compare the generations in two --out directories.

    Raises:
        UserError: other rows or seeds in one of them, or fewer than two rows.
    """
    of_a, of_b = (read_row_scores(directory, benchmark=benchmark, metric=metric) for directory in (a, b))
    if of_a.seeds != of_b.seeds:
        raise UserError(
            f"{benchmark}: {a} has the seeds {_listing(of_a.seeds)}, {b} has {_listing(of_b.seeds)};"
            " evaluate both with the same --seeds"
        )
    if of_a.rows != of_b.rows:
        raise UserError(f"{benchmark}: {a} and {b} answer different rows; evaluate both on the same file and limits")
    if len(of_a.rows) < 2:
        raise UserError(f"{benchmark}: has one row; a comparison needs two or more")
    return paired_difference(of_a.values, of_b.values, metric=metric)


def shared_benchmarks(directories: Sequence[Path]) -> list[str]:
    """Names of the benchmarks that all of the --out directories have.

    Raises:
        UserError: they share none.
    """
    of_each = [{path.name for path in (directory / "generations").glob("*")} for directory in directories]
    shared = sorted(set.intersection(*of_each))
    if not shared:
        names = ", ".join(map(str, directories))
        raise UserError(f"{names}: have no benchmark in common; give --out directories of evaluate.py")
    return shared


def _listing(seeds: Sequence[int]) -> str:
    return ",".join(map(str, seeds))


def _compare(argv: Sequence[str] | None) -> None:
    parser = CommandParser(
        prog="python -m evaluation.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--a", type=Path, required=True, metavar="DIR", help="--out directory of the first model")
    add("--b", type=Path, required=True, nargs="+", metavar="DIR", help="those of the models it is compared with")
    add("--benchmark", nargs="+", metavar="NAME", help="names that evaluate.py was given [all that are shared]")
    add("--metric", choices=list(METRICS), default="rougeL", help="[%(default)s]")
    add("--out", type=file_path, metavar="FILE", help="also write the numbers as JSON")
    arguments = parser.parse_args(argv)
    names = arguments.benchmark or shared_benchmarks([arguments.a, *arguments.b])
    differences = [
        (arguments.a, b, name, compare_directories(arguments.a, b, benchmark=name, metric=arguments.metric))
        for name in names
        for b in arguments.b
    ]
    if arguments.out is not None:
        content = [
            {"a": str(a), "b": str(b), "benchmark": name, **asdict(d), "z": defined(d.z)}
            for a, b, name, d in differences
        ]
        write_results(arguments.out, {"comparisons": content})
    directories = [arguments.a, *arguments.b]
    shown = dict(zip(directories, short_names(directories), strict=True))
    for a, b, name, difference in differences:
        print(f"{shown[a]} - {shown[b]} on {name}: {difference}")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparisons that the command line asks for, and return the exit code."""
    return run_command(lambda: _compare(argv))


if __name__ == "__main__":
    sys.exit(main())
