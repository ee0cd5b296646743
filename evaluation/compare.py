"""Whether one model's responses score better than another's: differences of a metric, row by row.

python -m evaluation.compare --a DIR --b DIR [DIR …] [--benchmark NAME …] [--metric rougeL]

The directories are those that evaluate.py wrote to (`out`). A row counts once, with its mean over the seeds. Interval
and p come from a paired bootstrap over the rows, the same rows for both models.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from evaluation.command import Command
from evaluation.display import metric_label, short_names
from evaluation.generations import evaluated_seeds, generations_directory, generations_file, read_generations
from evaluation.results import score_matrix, write_json
from evaluation.statistics import finite, interval, resample, standard_error
from kd.config.fields import Section, option, required
from kd.errors import UserError

NUM_RESAMPLES = 10_000
# Entries of the resamples that are drawn at a time.
_DRAWN_ENTRIES = 2**24


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Section):
    a: Path = required(help="directory of the first model")
    b: tuple[str, ...] = required(help="directories of the models it is compared with")
    benchmarks: tuple[str, ...] | None = option(
        None, help="names of benchmarks; null for all that the directories share"
    )
    metric: str = option("rougeL", help="name of a metric in results.json")
    out: Path | None = option(None, help="also write the numbers to this JSON file")


COMMAND = Command(
    config=CompareConfig,
    program="promptkd compare",
    description=__doc__,
    flags={"benchmarks": "--benchmark"},
)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean over rows of a - b, in points of the metric (×100)."""

    metric: str
    mean: float
    standard_error: float
    """Over rows."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    p_value: float
    """Two-sided: how often the mean of as many rows, drawn with replacement, has the other sign or is 0.

    Like the interval, it is too small with only a few dozen rows.
    """
    z: float
    """`mean` in standard errors; infinite (null in a file) where all rows differ by one amount, 0 if none differs."""
    num_rows: int
    num_seeds: int

    def __str__(self) -> str:
        return (
            f"{self.mean:+.2f} ± {self.standard_error:.2f} {metric_label(self.metric)},"
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
    a: Float[np.ndarray, "S B"], b: Float[np.ndarray, "S B"], *, metric: str = "rougeL"
) -> PairedDifference:
    """Compare two models' scores of the same rows; each row counts once, with its mean over the seeds.

    Raises:
        ValueError: arrays of different shapes, or fewer than two rows.
    """
    if a.shape != b.shape or a.shape[1] < 2:
        raise ValueError(f"expected the scores of two or more rows in equal shapes, got {a.shape} and {b.shape}")
    differences = a.mean(axis=0) - b.mean(axis=0)
    mean, error = float(differences.mean()), standard_error(differences) or 0.0
    infinite = 0.0 if mean == 0 else math.copysign(math.inf, mean)
    means = _resampled_means(differences)
    low, high = interval(means[:, None])
    rarer_sign = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    return PairedDifference(
        metric=metric,
        mean=mean,
        standard_error=error,
        low=float(low[0]),
        high=float(high[0]),
        # One more in both: the rows as they are belong to what could have been drawn.
        p_value=min(1.0, 2 * (rarer_sign + 1) / (NUM_RESAMPLES + 1)),
        z=mean / error if error > 0 else infinite,
        num_rows=a.shape[1],
        num_seeds=a.shape[0],
    )


def _resampled_means(values: Float[np.ndarray, " B"]) -> Float[np.ndarray, " R"]:
    size = max(1, _DRAWN_ENTRIES // len(values))
    parts = [
        resample(len(values), num_resamples=min(size, NUM_RESAMPLES - start), seed=start) @ values / len(values)
        for start in range(0, NUM_RESAMPLES, size)
    ]
    return np.concatenate(parts)


def read_row_scores(out: Path, *, benchmark: str, metric: str) -> RowScores:
    """Read the scores of all seeds of a benchmark from an `out` directory of evaluate.py.

    Raises:
        UserError: there are none, they lack the metric, or a file is broken.
    """
    directory = generations_directory(out, benchmark=benchmark)
    seeds = evaluated_seeds(out, benchmark=benchmark)
    if not seeds:
        raise UserError(f"{directory}: has no seed-<s>.jsonl; give a directory of evaluate.py with that benchmark")
    by_seed = [read_generations(generations_file(out, benchmark=benchmark, seed=seed)) for seed in seeds]
    if len({len(rows) for rows in by_seed}) > 1:
        raise UserError(f"{directory}: its seeds have different numbers of rows; evaluate again into another --out")
    known = set.intersection(*(set(response.scores) for rows in by_seed for response in rows))
    if metric not in known:
        raise UserError(
            f"{directory}: has no scores {metric}, it has {', '.join(sorted(known)) or 'none'};"
            f" evaluate again with --metrics {metric}"
        )
    return RowScores(
        values=score_matrix(by_seed, metric=metric),
        seeds=tuple(seeds),
        rows=tuple((response.row, response.references) for response in by_seed[0]),
    )


def compare_directories(a: Path, b: Path, *, benchmark: str, metric: str = "rougeL") -> PairedDifference:
    """Compare the responses in two directories of evaluate.py.

    Raises:
        UserError: other rows or seeds in one of them, or fewer than two rows.
    """
    of_a, of_b = (read_row_scores(directory, benchmark=benchmark, metric=metric) for directory in (a, b))
    if of_a.seeds != of_b.seeds:
        seeds = [",".join(map(str, scores.seeds)) for scores in (of_a, of_b)]
        raise UserError(
            f"{benchmark}: {a} has the seeds {seeds[0]}, {b} has {seeds[1]}; evaluate both with the same --seeds"
        )
    if of_a.rows != of_b.rows:
        raise UserError(f"{benchmark}: {a} and {b} have different rows; evaluate both on the same file and limits")
    if len(of_a.rows) < 2:
        raise UserError(f"{benchmark}: has one row; a comparison needs two or more")
    return paired_difference(of_a.values, of_b.values, metric=metric)


def _shared_benchmarks(directories: Sequence[Path]) -> list[str]:
    of_each = [{path.name for path in (directory / "generations").glob("*")} for directory in directories]
    shared = sorted(set.intersection(*of_each))
    if not shared:
        names = ", ".join(map(str, directories))
        raise UserError(f"{names}: have no benchmark in common; give directories of evaluate.py")
    return shared


def compare(config: CompareConfig) -> None:
    """Print the comparisons that a configuration asks for, and write them to its `out`.

    Raises:
        UserError: directories that cannot be compared, or an `out` that cannot be written.
    """
    if config.out is not None and config.out.is_dir():
        raise UserError(f"out {config.out}: is a directory; give the path of a file")
    directories = [config.a, *map(Path, config.b)]
    shown = dict(zip(directories, short_names(directories), strict=True))
    entries = []
    for name in config.benchmarks or _shared_benchmarks(directories):
        for b in directories[1:]:
            found = compare_directories(config.a, b, benchmark=name, metric=config.metric)
            print(f"{shown[config.a]} - {shown[b]} on {name}: {found}")
            entries.append({"a": str(config.a), "b": str(b), "benchmark": name, **asdict(found), "z": finite(found.z)})
    if config.out is not None:
        write_json(config.out, {"comparisons": entries})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit code."""
    return COMMAND.run(compare, argv)


if __name__ == "__main__":
    sys.exit(main())
