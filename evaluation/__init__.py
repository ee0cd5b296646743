"""Scores of trained models: responses to benchmarks, ROUGE-L, exact match.

The Python API is `evaluate`. Importing it does not load torch.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["evaluate"]


def evaluate(
    model: str | Path, *, benchmarks: Mapping[str, str | Path], out: str | Path, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Sample a model's responses to benchmarks, score them, and return the content of results.json.

    Runs on one rank, or, if a launcher started this process, on all of its ranks. Generations that are in `out`
    already are not sampled again.

    Args:
        model: from_pretrained directory or hub name.
        benchmarks: file of rows, or hub name, of each benchmark by its name.
        out: directory for generations and results.json.
        options: further options of `promptkd evaluate`, such as ["--max-new-tokens", "64"].

    Raises:
        UserError: on every rank, if an option or an input cannot be used.
    """
    from evaluation.options import parse_options
    from evaluation.results import RESULTS_FILE
    from evaluation.scoring import evaluate as evaluate_on
    from kd.distributed.session import joined_world

    named = [word for name, path in benchmarks.items() for word in ("--benchmark", f"{name}={path}")]
    with joined_world() as world:
        with world.agreed():
            parsed = parse_options(["--model", str(model), "--out", str(out), *named, *options])
        evaluate_on(parsed, world=world)
        # The other ranks need not see the main rank's files.
        results = (parsed.out / RESULTS_FILE).read_text(encoding="utf-8") if world.is_main else ""
        content: dict[str, Any] = json.loads(world.from_main(results))
    return content
