"""results.json: the summary of each benchmark, and which settings the responses beside it were sampled with."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from evaluation.generations import Response, generations_directory
from evaluation.statistics import standard_error
from kd.errors import UserError
from kd.files import write_atomically
from kd.models.adapter_folder import base_of

RESULTS_FILE = "results.json"
SETTINGS_FILE = "settings.json"


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric ×100 for each seed, and its mean with two standard errors."""

    per_seed: dict[int, float]
    mean: float
    standard_error: float | None
    """Over the seeds: what other samples of the same rows would change; None with one seed."""
    standard_error_over_rows: float | None
    """Over the rows, each with its mean over the seeds: what other rows would change; None with one row."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The result of one benchmark; shares and lengths are over all seeds."""

    scores: dict[str, Score]
    """By the name of the metric."""
    num_samples: int
    """Rows with a response, for each seed."""
    truncated_share: float
    """Responses without an end-of-sequence token within the limit, 0 to 1."""
    empty_share: float
    """Responses without text, 0 to 1."""
    response_tokens: dict[str, float]
    """Mean, spread and quantiles of the lengths, the end-of-sequence token included."""

    def to_json(self) -> dict[str, Any]:
        """The summary as results.json has it: one entry per metric, beside the others."""
        values = asdict(self)
        return {**values.pop("scores"), **values}


def summarise(by_seed: Mapping[int, Sequence[Response]], *, metrics: Collection[str]) -> Summary:
    """Aggregate the scored responses of at least one seed."""
    every = [response for rows in by_seed.values() for response in rows]
    counts = [response.response_tokens for response in every]
    return Summary(
        scores={name: _score(by_seed, score_matrix(by_seed.values(), metric=name)) for name in metrics},
        num_samples=len(every) // len(by_seed),
        truncated_share=float(np.mean([not response.ended for response in every])),
        empty_share=float(np.mean([not response.response.strip() for response in every])),
        response_tokens={
            "mean": float(np.mean(counts)),
            "standard_deviation": float(np.std(counts)),
            "shortest": min(counts),
            "median": float(np.median(counts)),
            "percentile_90": float(np.percentile(counts, 90)),
            "longest": max(counts),
        },
    )


def score_matrix(by_seed: Collection[Sequence[Response]], *, metric: str) -> Float[np.ndarray, "S B"]:
    """Scores ×100 for each seed (S) and row (B)."""
    return np.array([[response.scores[metric] for response in rows] for rows in by_seed])


def _score(seeds: Collection[int], values: Float[np.ndarray, "S B"]) -> Score:
    return Score(
        per_seed=dict(zip(seeds, values.mean(axis=1).tolist(), strict=True)),
        mean=float(values.mean()),
        standard_error=standard_error(values.mean(axis=1)),
        standard_error_over_rows=standard_error(values.mean(axis=0)),
    )


def claim(out: Path, *, benchmark: str, settings: Mapping[str, Any]) -> None:
    """Write down everything but the seed that decides a benchmark's responses, or check that `out` has the same.

    Raises:
        UserError: `out` has responses of other settings, or cannot be written.
    """
    directory = generations_directory(out, benchmark=benchmark)
    path = directory / SETTINGS_FILE
    if not any(directory.glob("*.jsonl")):
        write_json(path, settings)
        return
    found = read_json(path, advice=f"the responses beside it may be of other settings; delete {directory}")
    for name, value in settings.items():
        if found.get(name) != value:
            raise UserError(
                f"{directory}: was made with {name}={found.get(name)}, this call has {name}={value};"
                f" use another --out or delete {directory}"
            )


def kept_benchmarks(
    out: Path, *, named: Collection[str], weights: Mapping[str, Any], seeds: Sequence[int]
) -> dict[str, Any]:
    """The entries of results.json for benchmarks that are not `named`, if they are of the same `weights` and `seeds`.

    Raises:
        UserError: they are of another model or other seeds, or cannot be read.
    """
    path = out / RESULTS_FILE
    if not path.exists():
        return {}
    advice = f"use another --out or delete {out}"
    earlier = read_json(path, advice=advice)
    others = {name: entry for name, entry in earlier.get("benchmarks", {}).items() if name not in named}
    fits = earlier.get("seeds") == list(seeds)
    for name in others:
        found = read_json(generations_directory(out, benchmark=name) / SETTINGS_FILE, advice=advice)
        fits = fits and weights.items() <= found.items()
    if others and not fits:
        raise UserError(
            f"{path}: has {', '.join(others)} of another model or other seeds, which would be lost; name these"
            " benchmarks too, or use another --out"
        )
    return others


def read_json(path: Path, *, advice: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file cannot be read or holds something else; the message ends with `advice`.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {advice}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; {advice}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file.

    Raises:
        UserError: the file cannot be written.
        ValueError: a number that JSON does not have; see `evaluation.statistics.finite`.
    """
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def digest(value: object) -> str:
    """Sixteen characters that distinguish one JSON value from others."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def describe_weights(name: str) -> dict[str, str]:
    """Where a model's weights are, and a digest of their files' names, sizes and times; none of a model of the hub.

    A hash of their content would take as long as loading them.
    """
    directory = Path(name)
    # An adapter's folder and its base.
    places = {directory, Path(base_of(name))}
    files = sorted(path for place in places for kind in ("*.safetensors", "*.bin") for path in place.glob(kind))
    return {
        "model": str(directory.resolve()) if directory.is_dir() else name,
        "weights": digest([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]),
    }
