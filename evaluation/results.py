"""Files of an evaluation: generations with the settings they were made with, and the summary of their scores."""

import json
import os
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from evaluation.responses import Generation
from kd.errors import UserError

RESULTS_FILE = "results.json"
SETTINGS_FILE = "settings.json"

Settings = Mapping[str, str | int | float | bool | None]
"""Everything that decides which responses a model gives, but the seed."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score ×100 for each seed, and their mean with two standard errors."""

    per_seed: dict[int, float]
    mean: float
    standard_error: float | None
    """Over the seeds: what other samples of the same rows would change; None with one seed."""
    standard_error_over_rows: float | None
    """Over the rows, each with its mean over the seeds: what other rows would change; None with one row."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the responses, the end-of-sequence token included."""

    mean: float
    standard_deviation: float
    shortest: int
    median: float
    percentile_90: float
    longest: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one benchmark came to; shares and lengths are over all seeds."""

    rougeL: Score
    exact_match: Score
    num_samples: int
    """Rows with a response, for each seed."""
    truncated_share: float
    """Responses without end-of-sequence token within the limit, 0 to 1."""
    empty_share: float
    """Responses without text, 0 to 1."""
    response_tokens: Lengths


def summarise(by_seed: Mapping[int, Sequence[Generation]]) -> Summary:
    """Aggregate the generations of at least one seed."""
    every = [generation for rows in by_seed.values() for generation in rows]
    return Summary(
        rougeL=_score(by_seed, lambda generation: generation.rougeL),
        exact_match=_score(by_seed, lambda generation: 100 * generation.exact_match),
        num_samples=len(every) // len(by_seed),
        truncated_share=statistics.fmean(not generation.ended for generation in every),
        empty_share=statistics.fmean(not generation.response.strip() for generation in every),
        response_tokens=_lengths([generation.response_tokens for generation in every]),
    )


def _score(by_seed: Mapping[int, Sequence[Generation]], value: Callable[[Generation], float]) -> Score:
    values = np.array([[value(generation) for generation in rows] for rows in by_seed.values()])
    return Score(
        per_seed=dict(zip(by_seed, values.mean(axis=1).tolist(), strict=True)),
        mean=float(values.mean()),
        standard_error=_standard_error(values.mean(axis=1)),
        standard_error_over_rows=_standard_error(values.mean(axis=0)),
    )


def _standard_error(values: Float[np.ndarray, " N"]) -> float | None:
    return float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None


def _lengths(counts: Sequence[int]) -> Lengths:
    return Lengths(
        mean=float(np.mean(counts)),
        standard_deviation=float(np.std(counts)),
        shortest=min(counts),
        median=float(np.median(counts)),
        percentile_90=float(np.percentile(counts, 90)),
        longest=max(counts),
    )


def generations_file(directory: Path, seed: int) -> Path:
    """Where the generations of `seed` stand in the directory of a benchmark."""
    return directory / f"seed-{seed}.jsonl"


def evaluated_seeds(directory: Path) -> list[int]:
    """Seeds whose generations stand in the directory of a benchmark, in ascending order."""
    names = (path.stem.removeprefix("seed-") for path in directory.glob("seed-*.jsonl"))
    return sorted(int(name) for name in names if name.isdecimal())


def claim(directory: Path, *, settings: Settings) -> None:
    """Note in a benchmark's directory how its generations are made, or check that they are made so.

    Raises:
        UserError: it holds generations of other settings, or cannot be written.
    """
    path = directory / SETTINGS_FILE
    if not any(directory.glob("*.jsonl")):
        write_atomically(path, json.dumps(settings, indent=2) + "\n")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = next(key for key in settings if found.get(key) != settings[key])
    except (OSError, ValueError, AttributeError):
        raise UserError(
            f"{path}: cannot be read, so that nobody knows how the generations beside it were made;"
            f" delete {directory} or use another --out"
        ) from None
    except StopIteration:
        return
    raise UserError(
        f"{directory}: was made with {differing}={found.get(differing)}, this call has"
        f" {differing}={settings[differing]}; use another --out or delete {directory}"
    )


def kept_benchmarks(
    out: Path, *, named: Collection[str], weights: Mapping[str, Any], seeds: Sequence[int]
) -> dict[str, Any]:
    """What results.json says of benchmarks that this call does not name.

    Args:
        out: directory of results.json and generations.
        weights: those settings of a benchmark that are about the model, as this call has them.

    Raises:
        UserError: they are of another model or other seeds, or cannot be read.
    """
    path = out / RESULTS_FILE
    if not path.exists():
        return {}
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        others = {name: entry for name, entry in earlier["benchmarks"].items() if name not in named}
        fits = earlier["seeds"] == list(seeds)
        for name in others:
            found = json.loads((out / "generations" / name / SETTINGS_FILE).read_text(encoding="utf-8"))
            fits = fits and all(found[key] == value for key, value in weights.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: is not what this command writes; use another --out or delete {out}") from None
    if others and not fits:
        raise UserError(
            f"{path}: has {', '.join(others)} of another model or other seeds, which would be lost; name these"
            " benchmarks too, or use another --out"
        )
    return others


def write_generations(path: Path, generations: Sequence[Generation]) -> None:
    """Write one JSON object a line.

    Raises:
        UserError: the file cannot be written.
    """
    lines = [generation_line(generation) for generation in generations]
    write_atomically(path, "\n".join(lines) + "\n")


def read_generations(path: Path) -> list[Generation]:
    """Read what `write_generations` wrote.

    Raises:
        UserError: no such file, or a line of another kind.
    """
    try:
        # Not splitlines(): a response may hold characters that Python takes for the end of a line.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a file of evaluate.py") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no UTF-8 text; delete the file and evaluate again") from None
    return [parse_generation(line, place=f"{path}:{number}")[1] for number, line in enumerate(lines, start=1)]


def generation_line(generation: Generation, **extra: int) -> str:
    """A generation and `extra` keys as JSON without a line break."""
    return json.dumps(extra | asdict(generation), ensure_ascii=False)


def parse_generation(line: str, *, place: str, extra: Sequence[str] = ()) -> tuple[dict[str, int], Generation]:
    """The values of the `extra` keys of a line of `generation_line`, and the generation.

    Raises:
        UserError: a line of another kind; names `place`.
    """
    try:
        values = json.loads(line)
        others = {name: int(values.pop(name)) for name in extra}
        return others, Generation(**values | {"references": tuple(values["references"])})
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{place}: not a line of evaluate.py; delete the file and evaluate again") from None


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results.json.

    Raises:
        UserError: the file cannot be written.
        ValueError: a number that JSON does not have; see `evaluation.intervals.defined`.
    """
    write_atomically(path, json.dumps(results, indent=2, allow_nan=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file that other processes see whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose a writable --out") from None
