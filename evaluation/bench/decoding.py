"""Tokens per second of decoding, on responses as long as people's: `python -m evaluation.bench decoding`."""

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel

from evaluation.bench.contestants import (
    Responses,
    Task,
    continuous_batching,
    deepspeed_rollout,
    our_loop,
    transformers_generate,
)
from evaluation.bench.inputs import write_inputs
from evaluation.bench.machine import counted, describe_machine
from evaluation.bench.options import DecodingOptions
from evaluation.bench.outputs import make_out, print_files, write_json
from evaluation.bench.presets import PRESETS, Preset
from evaluation.bench.rates import synchronize
from evaluation.terminal import results_console
from kd.config.schema import GenerationConfig
from kd.distributed import World, end_world, start_deepspeed, start_world
from kd.models.causal_lm import DTYPES, CausalLM
from kd.models.student import Student
from kd.rollout.placement import Placement, choose_placement

MAX_NEW_TOKENS = 256
DOLLY_SHARES = (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)
DOLLY_TOKENS = (2, 5, 9, 15, 24, 33, 45, 60, 82, 111, 173, 255, 256)
"""Responses of Dolly's 11,435 training rows: percentiles of their GPT-2 tokens, the end token included, cut at 256."""

OURS, GATHERED = "this project", "this project, gathered"


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of one way to decode."""

    name: str
    all_seconds: list[float]
    """Of the slowest rank, for all prompts."""
    num_tokens: int
    """On all ranks, up to each row's end."""

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / statistics.median(self.all_seconds)


def run_decoding(options: DecodingOptions) -> None:
    """Let all ways decode the same prompts, on all ranks that a launcher has started.

    Raises:
        UserError: on every rank alike, where --out cannot be made.
    """
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    world = start_world()
    out = world.from_main(options.out)
    with world.agreed():
        if world.is_main:
            make_out(out)
    start_deepspeed()
    preset = PRESETS[options.preset]
    try:
        if world.is_main:
            write_inputs(out / "models", preset, seed=0, device=world.device)
        world.barrier()
        speeds = measure_speeds(preset, options, out=out, world=world)
    finally:
        if world.is_main:
            shutil.rmtree(out / "models", ignore_errors=True)
    if world.is_main:
        _print_speeds(speeds, options, out=out, world=world)
    end_world()


def dolly_like_task(preset: Preset, *, num_prompts: int, seed: int, device: torch.device) -> Task:
    """Prompts of the preset's lengths; the responses' lengths are evenly spaced quantiles of Dolly's, shuffled."""
    generator = np.random.default_rng(seed)
    shortest, longest = preset.prompt_tokens
    sizes = generator.integers(shortest, longest + 1, num_prompts)
    shares = (np.arange(num_prompts) + 0.5) / num_prompts * 100
    lengths = generator.permutation(np.interp(shares, DOLLY_SHARES, DOLLY_TOKENS).round().astype(int))
    return Task(
        prompts=[generator.integers(0, preset.end_id, size).tolist() for size in sizes],
        lengths=lengths.tolist(),
        max_new_tokens=MAX_NEW_TOKENS,
        end_id=preset.end_id,
        device=device,
    )


def measure_speeds(preset: Preset, options: DecodingOptions, *, out: Path, world: World) -> list[Speed]:
    """Every way in turn; all ranks at once, each with prompts of its own. What is measured is written after each."""
    task = dolly_like_task(preset, num_prompts=options.prompts, seed=world.rank, device=world.device)
    model, own = (_load_student(preset, out=out, world=world) for _ in range(2))
    # As training's own copies; the others get the model as everyone loads it.
    view = CausalLM.of(own)
    speeds: list[Speed] = []

    def measure(name: str, run: Callable[[], Responses]) -> None:
        speeds.append(_measure(name, run, task=task, repeats=options.repeats, world=world))
        with world.agreed():
            if world.is_main:
                _write_speeds(speeds, options, out=out, world=world)

    measure(OURS, lambda: our_loop(view, task))
    measure("transformers.generate", lambda: transformers_generate(model, task))
    with continuous_batching(model, task) as run:
        measure("transformers, continuous batching", run)
    measure("deepspeed.runtime.rollout", lambda: deepspeed_rollout(model, task))
    if world.size > 1:
        weights = _gathered_weights(preset, out=out, world=world)

        def refresh_and_decode() -> Responses:
            with weights.ready() as gathered:
                return our_loop(gathered, task)

        measure(GATHERED, refresh_and_decode)
    return speeds


def _load_student(preset: Preset, *, out: Path, world: World) -> PreTrainedModel:
    loaded: Any = AutoModelForCausalLM.from_pretrained(out / "models" / "student", dtype=DTYPES[preset.dtype])
    model: PreTrainedModel = loaded.to(world.device).eval()
    return model


def _gathered_weights(preset: Preset, *, out: Path, world: World) -> Placement:
    """A decoding copy beside a ZeRO-3 student, as in training."""
    config = preset.config("sft", inputs=out / "models", run_dir=out, zero_stage=3, num_steps=1, num_ranks=world.size)
    settings = GenerationConfig(layout="gathered", max_new_tokens=MAX_NEW_TOKENS)
    weights, _ = choose_placement(Student(config), settings=settings, world=world)
    return weights


def _measure(name: str, run: Callable[[], Responses], *, task: Task, repeats: int, world: World) -> Speed:
    seconds = []
    for _ in range(1 + repeats):
        world.barrier()
        start = time.perf_counter()
        responses = run()
        synchronize(world)
        taken = torch.tensor(time.perf_counter() - start, dtype=torch.float64, device=world.device)
        seconds.append(float(world.max_across_ranks(taken).item()))
        found = [len(response) for response in responses]
        if found != task.lengths:
            raise RuntimeError(f"{name}: responses of {found} tokens, expected {task.lengths}")
    # The first warms up.
    total = world.sum_across_ranks(torch.tensor(task.num_tokens, device=world.device))
    return Speed(name=name, all_seconds=seconds[1:], num_tokens=int(total.item()))


def _write_speeds(speeds: list[Speed], options: DecodingOptions, *, out: Path, world: World) -> None:
    values = {
        "preset": options.preset,
        "prompts_per_rank": options.prompts,
        "machine": describe_machine(num_ranks=world.size),
        "ways": [asdict(speed) | {"tokens_per_second": speed.tokens_per_second} for speed in speeds],
    }
    write_json(out / "decoding.json", values)


def _print_speeds(speeds: list[Speed], options: DecodingOptions, *, out: Path, world: World) -> None:
    table = Table(
        title=f"{options.prompts} prompts for each of {counted(world.size, 'rank')}, responses as long as Dolly's"
    )
    for heading in ("", "seconds", "tokens/s", "of this project's"):
        table.add_column(heading, justify="right" if heading else "left")
    ours = speeds[0].tokens_per_second
    for speed in speeds:
        rate = speed.tokens_per_second
        table.add_row(speed.name, f"{statistics.median(speed.all_seconds):.2f}", f"{rate:.0f}", f"{rate / ours:.2f}")
    console = results_console()
    console.print(table)
    print_files(out, console=console)
