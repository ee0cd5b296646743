"""Evaluation of trained models: responses to benchmarks and their scores, comparisons, analyses, reports.

The Python API is `evaluate`. Importing it does not load torch.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["evaluate"]


def evaluate(
    model: str | Path | None = None,
    *,
    run: str | Path | None = None,
    benchmarks: Mapping[str, str | Path],
    out: str | Path,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Sample a model's responses to benchmarks, score them, and return the content of results.json.

    Runs on one rank, or, if a launcher started this process, on all of its ranks. Seeds whose responses are in `out`
    already are not sampled again.

    Args:
        model: from_pretrained directory or hub name; not needed with `run`.
        run: run directory of a training; gives the model, template and limits that are not set here.
        benchmarks: file of rows, or hub name, of each benchmark by its name.
        out: directory for the responses and results.json.
        overrides: further fields, `section.field=value` as on the command line, such as "generation.max_new_tokens=64".

    Raises:
        UserError: on every rank, if a field or an input cannot be used.
    """
    from evaluation.results import RESULTS_FILE
    from evaluation.scoring import COMMAND, evaluate_model
    from kd.distributed.session import joined_world

    argv = [*overrides, "--out", str(out)]
    argv += [word for name, path in benchmarks.items() for word in ("--benchmark", f"{name}={path}")]
    argv += [] if model is None else ["--model", str(model)]
    argv += [] if run is None else ["--run", str(run)]
    with joined_world() as world:
        with world.agreed():
            config = COMMAND.read(argv)
        evaluate_model(config, world=world)
        # The other ranks need not see the main rank's files.
        results = (config.out / RESULTS_FILE).read_text(encoding="utf-8") if world.is_main else ""
        content: dict[str, Any] = json.loads(world.from_main(results))
    return content
