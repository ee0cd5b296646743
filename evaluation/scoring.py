"""Samples a model's responses to benchmarks and scores them: the command `promptkd evaluate`."""

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import PretrainedConfig, PreTrainedTokenizerBase

import kd
from evaluation.answers import Work, answer
from evaluation.benchmarks.rows import PromptSettings, read_benchmark
from evaluation.command_options import Named
from evaluation.identity import describe_weights, digest
from evaluation.model import check_positions, choose_dtype, load_model
from evaluation.options import Options, parse_options
from evaluation.ranks import run_on_ranks
from evaluation.results import (
    RESULTS_FILE,
    Settings,
    Summary,
    claim,
    generations_file,
    kept_benchmarks,
    read_generations,
    summarise,
    write_results,
)
from evaluation.terminal import results_console
from kd.data.encoding import Encoded
from kd.distributed import World
from kd.models.causal_lm import read_model_config
from kd.models.soft_prompt import SoftPrompt, load_soft_prompt
from kd.models.vocabulary import load_tokenizer, vocabulary_size
from kd.rollout.sampling import DecodingSettings

_PACKAGES = ("torch", "transformers", "tokenizers", "rouge_score")

# Fields of DecodingSettings.
_CHOICE_OPTIONS = (
    "greedy",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
)
# Options that describe the decoding of every benchmark in results.json.
_DECODING_OPTIONS = ("max_new_tokens", "max_prompt_tokens", "template", "overlong", *_CHOICE_OPTIONS)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Preparation:
    """What is known before weights are loaded; the tuples follow `Options.benchmarks`."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    soft_prompt: SoftPrompt | None
    dtype: str
    encoded: tuple[Encoded, ...]
    slots_per_row: int
    """Slots that a row takes beside its prompt: soft prompt and new tokens."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says, and return the exit code."""
    return run_on_ranks(lambda: parse_options(argv), lambda options, world: evaluate(options, world=world))


def evaluate(options: Options, *, world: World) -> None:
    """Make the generations that are missing, score all of them and write results.json; all ranks call it together.

    Raises:
        UserError: on every rank, if an input cannot be used.
    """
    missing: list[tuple[int, ...]] = []
    with world.agreed():
        prepared = _prepare(options)
        if world.is_main:
            # Refused before hours of work, and read again when it is written.
            _kept(options, prepared)
            missing = _claim(options, prepared)
    # Only the main rank need see the files.
    missing = world.gather_objects(missing)[0]
    if any(missing):
        _fill(options, prepared, missing=missing, world=world)
    with world.agreed():
        if world.is_main:
            _report(options, prepared, world=world)


def _prepare(options: Options) -> _Preparation:
    config = read_model_config(options.model, trust_remote_code=options.trust_remote_code)
    tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
    prompts = PromptSettings(
        template=options.template, max_prompt_tokens=options.max_prompt_tokens, overlong=options.overlong
    )
    encoded = tuple(
        read_benchmark(benchmark, tokenizer=tokenizer, settings=prompts, num_rows=options.rows)
        for benchmark in options.benchmarks
    )
    soft_prompt = None if options.soft_prompt is None else load_soft_prompt(options.soft_prompt)[0]
    slots_per_row = options.max_new_tokens + (0 if soft_prompt is None else soft_prompt.num_tokens)
    longest = max(len(example.prompt_ids) for rows in encoded for example in rows.examples)
    check_positions(config, name=options.model, longest=longest + slots_per_row)
    return _Preparation(
        config=config,
        tokenizer=tokenizer,
        soft_prompt=soft_prompt,
        dtype=choose_dtype(options.dtype, config=config),
        encoded=encoded,
        slots_per_row=slots_per_row,
    )


def _claim(options: Options, prepared: _Preparation) -> list[tuple[int, ...]]:
    """Reserve the benchmarks' directories, say which rows were lost, and return the seeds that each one lacks."""
    missing = []
    for benchmark, rows in zip(options.benchmarks, prepared.encoded, strict=True):
        for line in rows.report.lines():
            print(line, file=sys.stderr)
        directory = _directory(options, benchmark)
        claim(directory, settings=_settings(options, prepared, rows=rows))
        missing.append(tuple(seed for seed in options.seeds if not generations_file(directory, seed).exists()))
    return missing


def _kept(options: Options, prepared: _Preparation) -> dict[str, Any]:
    """Results of other benchmarks that earlier calls left in the same directory."""
    named = [benchmark.name for benchmark in options.benchmarks]
    return kept_benchmarks(options.out, named=named, weights=_weights(options, prepared), seeds=options.seeds)


def _directory(options: Options, benchmark: Named) -> Path:
    return options.out / "generations" / benchmark.name


def _settings(options: Options, prepared: _Preparation, *, rows: Encoded) -> Settings:
    """What decides the responses; batch size and number of ranks do not."""
    return {
        **_weights(options, prepared),
        "rows": digest([(example.row_id, example.prompt, example.references) for example in rows.examples]),
    } | {name: getattr(options, name) for name in _DECODING_OPTIONS}


def _weights(options: Options, prepared: _Preparation) -> Settings:
    prompt = prepared.soft_prompt
    return {
        **describe_weights(options.model),
        "soft_prompt": None if prompt is None else digest(prompt.values.tolist()),
        "dtype": prepared.dtype,
    }


def _fill(options: Options, prepared: _Preparation, *, missing: Sequence[tuple[int, ...]], world: World) -> None:
    """Load the model and write the generations of the missing seeds of each benchmark."""
    with world.agreed():
        model = load_model(
            options.model,
            config=prepared.config,
            soft_prompt=prepared.soft_prompt,
            tokenizer=prepared.tokenizer,
            dtype=prepared.dtype,
            trust_remote_code=options.trust_remote_code,
            world=world,
        )
    decoding = DecodingSettings(
        max_new_tokens=options.max_new_tokens,
        vocabulary_size=vocabulary_size(prepared.tokenizer),
        eos_id=int(prepared.tokenizer.eos_token_id),
        **{name: getattr(options, name) for name in _CHOICE_OPTIONS},
    )
    console = Console(stderr=True)
    with Progress(console=console, disable=not (world.is_main and console.is_terminal)) as progress:
        for benchmark, rows, seeds in zip(options.benchmarks, prepared.encoded, missing, strict=True):
            work = Work(
                directory=_directory(options, benchmark),
                examples=rows.examples,
                seeds=seeds,
                # Greedy responses are the same for every seed.
                sampled=seeds[:1] if options.greedy else seeds,
                slots_per_row=prepared.slots_per_row,
                max_batch_tokens=options.max_batch_tokens,
            )
            if seeds:
                answer(work, model, settings=decoding, world=world, progress=progress)


def _report(options: Options, prepared: _Preparation, *, world: World) -> None:
    """Write results.json from the files of all seeds, and print the scores."""
    benchmarks = _kept(options, prepared)
    table = Table("benchmark", "ROUGE-L", "exact match", "samples", "cut %", "empty %", "tokens", title=options.model)
    for benchmark, rows in zip(options.benchmarks, prepared.encoded, strict=True):
        directory = _directory(options, benchmark)
        summary = summarise({seed: read_generations(generations_file(directory, seed)) for seed in options.seeds})
        benchmarks[benchmark.name] = {
            "source": benchmark.path,
            **asdict(summary),
            "source_rows": rows.report.num_rows,
            "dropped_rows": len(rows.report.dropped),
            "truncated_prompts": len(rows.report.truncated_prompts),
            "decoding": {name: getattr(options, name) for name in _DECODING_OPTIONS},
        }
        table.add_row(benchmark.name, *_cells(summary, num_seeds=len(options.seeds)))
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    write_results(
        options.out / RESULTS_FILE,
        {
            "model": options.model,
            "soft_prompt": None if options.soft_prompt is None else str(options.soft_prompt),
            "dtype": prepared.dtype,
            "seeds": options.seeds,
            "num_ranks": world.size,
            "versions": {"python": platform.python_version(), "kd": kd.__version__, **versions},
            "benchmarks": benchmarks,
        },
    )
    results_console().print(table)


def _cells(summary: Summary, *, num_seeds: int) -> list[str]:
    scores = [
        f"{score.mean:.2f}" + ("" if score.standard_error is None else f" ± {score.standard_error:.2f}")
        for score in (summary.rougeL, summary.exact_match)
    ]
    return [
        *scores,
        f"{summary.num_samples} × {num_seeds}",
        f"{100 * summary.truncated_share:.1f}",
        f"{100 * summary.empty_share:.1f}",
        f"{summary.response_tokens.mean:.1f}",
    ]
