"""Samples a model's responses to benchmarks and scores them: the command `evaluation/evaluate.py`."""

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

import kd
from evaluation.command import Command
from evaluation.display import metric_label, results_console, with_error
from evaluation.examples import print_report, read_examples
from evaluation.generations import Response, generations_file, read_generations, sample_responses, write_generations
from evaluation.models import EvaluatedModel, ModelSet, find_models
from evaluation.results import (
    RESULTS_FILE,
    claim,
    describe_weights,
    digest,
    kept_benchmarks,
    summarise,
    write_json,
)
from evaluation.scoring_config import EvaluationConfig
from evaluation.settings import run_values
from kd.data.batch import TokenIds
from kd.data.encoding import Encoded, Example
from kd.distributed import World
from kd.models.soft_prompt import SoftPrompt, load_soft_prompt
from kd.rollout.sampling import DecodingSettings
from kd.text_metrics import describe_unread

_PACKAGES = ("torch", "transformers", "tokenizers", "rouge_score")


COMMAND = Command(
    config=EvaluationConfig,
    program="promptkd evaluate",
    description="Sample a model's responses to benchmarks, and score them. Finished seeds are not sampled again.",
    flags={"model.path": "--model", "data.benchmarks": "--benchmark"},
    run_values=run_values,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit code."""
    return COMMAND.run_on_ranks(lambda config, world: evaluate_model(config, world=world), argv)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Inputs:
    """What is read before weights are loaded."""

    models: ModelSet
    soft_prompt: SoftPrompt | None
    rows: dict[str, Encoded]
    """By the name of the benchmark."""
    weights: dict[str, str | None]
    """What the responses depend on besides rows and decoding."""


def evaluate_model(config: EvaluationConfig, *, world: World) -> None:
    """Sample the responses that are missing, score all of them and write results.json; all ranks call it together.

    Raises:
        UserError: on every rank, if an input cannot be used.
    """
    missing: dict[str, list[int]] = {}
    with world.agreed():
        inputs = _read_inputs(config, world=world)
        if world.is_main:
            # Before hours of work, not only when it is written.
            _kept(config, inputs)
            missing = _claim(config, inputs)
    # Only the main rank needs to see the files.
    missing = world.from_main(missing)
    if any(missing.values()):
        _sample_missing(config, inputs, missing=missing, world=world)
    with world.agreed():
        if world.is_main:
            _report(config, inputs, world=world)


def _read_inputs(config: EvaluationConfig, *, world: World) -> _Inputs:
    name, data = config.model.path, config.data
    models = find_models([name], loading=config.model, world=world)
    rows = {
        benchmark: read_examples(
            source, tokenizer=models.tokenizer, prompts=data, overlong=data.overlong, responses="required"
        )
        for benchmark, source in data.benchmarks.items()
    }
    prompt = None if config.model.soft_prompt is None else load_soft_prompt(config.model.soft_prompt)[0]
    slots = config.generation.max_new_tokens + (0 if prompt is None else prompt.num_tokens)
    models.check_lengths(slots + max(len(row.prompt_ids) for encoded in rows.values() for row in encoded.examples))
    weights = {
        **describe_weights(name),
        "soft_prompt": None if prompt is None else digest(prompt.values.tolist()),
        "dtype": models.dtype(name),
    }
    return _Inputs(models=models, soft_prompt=prompt, rows=rows, weights=weights)


def _kept(config: EvaluationConfig, inputs: _Inputs) -> dict[str, Any]:
    """Results of other benchmarks that earlier calls left in the same directory."""
    return kept_benchmarks(config.out, named=inputs.rows, weights=inputs.weights, seeds=config.generation.seeds)


def _claim(config: EvaluationConfig, inputs: _Inputs) -> dict[str, list[int]]:
    """Reserve the benchmarks' directories, report rows that did not fit, and return the seeds that each one lacks."""
    missing = {}
    for name, rows in inputs.rows.items():
        print_report(rows)
        unread = describe_unread(example.references for example in rows.examples)
        if unread is not None and "rougeL" in config.metrics:
            print(f"{name}: {unread}", file=sys.stderr)
        content = digest([(example.row_id, example.prompt, example.references) for example in rows.examples])
        claim(config.out, benchmark=name, settings={**inputs.weights, "rows": content, **config.decoding})
        files = {seed: generations_file(config.out, benchmark=name, seed=seed) for seed in config.generation.seeds}
        missing[name] = [seed for seed, path in files.items() if not path.exists()]
    return missing


def _sample_missing(config: EvaluationConfig, inputs: _Inputs, *, missing: dict[str, list[int]], world: World) -> None:
    """Load the model and write the responses of the missing seeds, each as soon as it is complete."""
    model = inputs.models.load(config.model.path, soft_prompt=inputs.soft_prompt)
    settings = DecodingSettings(
        vocabulary_size=model.vocabulary_size, end_ids=model.end_ids, **config.generation.settings
    )
    for name, seeds in missing.items():
        examples = inputs.rows[name].examples
        responses: list[Response] = []
        for seed in seeds:
            if not (settings.greedy and responses):
                sampled = sample_responses(
                    model,
                    examples,
                    seed=seed,
                    settings=settings,
                    max_batch_tokens=config.generation.max_batch_tokens,
                    label=name,
                )
                responses = [_response(one, ids, model=model) for one, ids in zip(examples, sampled, strict=True)]
            with world.agreed():
                if world.is_main:
                    write_generations(generations_file(config.out, benchmark=name, seed=seed), responses)


def _response(example: Example, ids: TokenIds, *, model: EvaluatedModel) -> Response:
    return Response(
        row=example.row_id,
        prompt=example.prompt,
        response=model.text(ids),
        references=example.references,
        response_tokens=len(ids),
        ended=bool(ids[-1] in model.end_ids),
    )


def _report(config: EvaluationConfig, inputs: _Inputs, *, world: World) -> None:
    """Score the responses of all seeds, write results.json, and print the scores."""
    benchmarks = _kept(config, inputs)
    seeds = config.generation.seeds
    headings = [metric_label(name) for name in config.metrics]
    table = Table("benchmark", *headings, "samples", "truncated %", "empty %", "tokens", title=config.model.path)
    for name, rows in inputs.rows.items():
        scored = {seed: _score_file(config, benchmark=name, seed=seed) for seed in seeds}
        summary = summarise(scored, metrics=config.metrics)
        benchmarks[name] = {
            "source": config.data.benchmarks[name],
            "columns": config.data.columns,
            **summary.to_json(),
            "source_rows": rows.report.num_rows,
            "dropped_rows": len(rows.report.dropped),
            "truncated_prompts": len(rows.report.truncated_prompts),
            "decoding": config.decoding,
        }
        scores = [with_error(score.mean, score.standard_error) for score in summary.scores.values()]
        shares = [f"{100 * share:.1f}" for share in (summary.truncated_share, summary.empty_share)]
        num_samples = f"{summary.num_samples} × {len(seeds)}"
        table.add_row(name, *scores, num_samples, *shares, f"{summary.response_tokens['mean']:.1f}")
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    results = {
        "model": config.model.path,
        "soft_prompt": None if config.model.soft_prompt is None else str(config.model.soft_prompt),
        "dtype": inputs.weights["dtype"],
        "seeds": seeds,
        "num_ranks": world.size,
        "versions": {"python": platform.python_version(), "kd": kd.__version__, **versions},
        "benchmarks": benchmarks,
    }
    write_json(config.out / RESULTS_FILE, results)
    results_console().print(table)


def _score_file(config: EvaluationConfig, *, benchmark: str, seed: int) -> list[Response]:
    """The scored responses of one seed; scores that are not in the file yet are added to it."""
    path = generations_file(config.out, benchmark=benchmark, seed=seed)
    responses = read_generations(path)
    scored = [response.scored(config.find_metrics()) for response in responses]
    if scored != responses:
        write_generations(path, scored)
    return scored
