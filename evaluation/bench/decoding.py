"""Tokens per second of `kd.rollout.decode` and of transformers' `generate`.

Rows get lengths like those of people's responses: most short, a few long. Sampling draws from the whole vocabulary
at temperature 1, and each row is made to end at its length: in our decoder by its random numbers, since the end token
is the last of the vocabulary and a number close to 1 selects it; in `generate` by a logits processor.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from evaluation.bench.inputs import random_model
from evaluation.bench.machine import describe_briefly, describe_machine
from evaluation.bench.options import DecodingOptions
from evaluation.bench.presets import PRESETS, Preset
from evaluation.bench.report import make_out, write_json
from evaluation.terminal import results_console
from kd.data.batch import PromptBatch, TokenSequence
from kd.models.causal_lm import CausalLM
from kd.rollout.decode import decode, row_streams
from kd.rollout.sampling import DecodingSettings

MAX_NEW_TOKENS = 256
DOLLY_SHARES = (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)
DOLLY_TOKENS = (2, 5, 9, 15, 24, 33, 45, 60, 82, 111, 173, 255, 256)
"""Percentiles of the lengths of Dolly's 11,435 training responses in GPT-2 tokens, end token included, clipped at 256."""

Responses = Sequence[Sequence[int]]
_ENDS, _CONTINUES = 1 - 1e-9, 0.99


@dataclass(frozen=True, kw_only=True)
class Task:
    """Prompts, and the length of the response to each."""

    prompts: PromptBatch
    lengths: list[int]
    end_id: int


def run_decoding(options: DecodingOptions) -> None:
    """Measure both ways in this process, and write decoding.json.

    Raises:
        UserError: --out cannot be made.
    """
    make_out(options.out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    preset = PRESETS[options.preset]
    task = dolly_like_task(preset, num_prompts=options.prompts, device=device)
    # One model each: our view of a model may change it.
    view = CausalLM.of(random_model(preset, "student", device=device))
    model = random_model(preset, "student", device=device)
    ways: dict[str, Callable[[Task], Responses]] = {
        "kd.rollout.decode": lambda task: our_decode(view, task),
        "transformers.generate": lambda task: transformers_generate(model, task),
    }
    seconds: dict[str, list[float]] = {}
    for name, way in ways.items():
        # The first run warms up.
        seconds[name] = [_seconds(way, task) for _ in range(1 + options.repeats)][1:]
    _report(seconds, options, num_tokens=sum(task.lengths))


def dolly_like_task(preset: Preset, *, num_prompts: int, device: torch.device) -> Task:
    """Prompts of the preset's lengths, and responses as long as Dolly's."""
    generator = np.random.default_rng(0)
    shortest, longest = preset.prompt_tokens
    shares = (np.arange(num_prompts) + 0.5) / num_prompts * 100
    lengths = generator.permutation(np.interp(shares, DOLLY_SHARES, DOLLY_TOKENS).round().astype(int))
    rows = [
        TokenSequence(
            row_id=number,
            prompt_ids=generator.integers(0, preset.end_id, size).astype(np.int32),
            response_ids=np.zeros(0, dtype=np.int32),
        )
        for number, size in enumerate(generator.integers(shortest, longest + 1, num_prompts))
    ]
    prompts = PromptBatch.collate(rows, pad_id=preset.end_id, device=device)
    return Task(prompts=prompts, lengths=lengths.tolist(), end_id=preset.end_id)


def our_decode(view: CausalLM, task: Task) -> Responses:
    """All rows by this project's decoder."""
    free = row_streams(seed=0, step=0)

    def stream(row_ids: Sequence[int], num_tokens: int) -> Tensor:
        numbers = free(row_ids, num_tokens) * _CONTINUES
        for row, row_id in enumerate(row_ids):
            numbers[row, task.lengths[row_id] - 1] = _ENDS
        return numbers

    settings = DecodingSettings(max_new_tokens=MAX_NEW_TOKENS, vocabulary_size=task.end_id + 1, eos_id=task.end_id)
    with torch.no_grad():
        responses = decode(view, task.prompts, settings=settings, streams=[stream])
    return [response.token_ids for response in responses]


class _EndsAt(LogitsProcessor):
    """Leaves nothing but the end token to a row that has reached its length, and everything else to the others."""

    def __init__(self, task: Task) -> None:
        self._lengths = torch.tensor(task.lengths, device=task.prompts.input_ids.device)
        self._width = task.prompts.input_ids.shape[1]
        self._end_id = task.end_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ends = self._lengths == input_ids.shape[1] - self._width + 1
        scores[:, self._end_id] = -torch.inf
        scores[ends] = -torch.inf
        scores[ends, self._end_id] = 0.0
        return scores


def transformers_generate(model: PreTrainedModel, task: Task) -> Responses:
    """All rows in one batch, which lasts until the longest has ended."""
    settings = GenerationConfig(
        do_sample=True,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=task.end_id,
        pad_token_id=task.end_id,
    )
    generate: Any = model.generate
    rows: Tensor = generate(
        task.prompts.input_ids,
        attention_mask=task.prompts.attention_mask.long(),
        generation_config=settings,
        logits_processor=[_EndsAt(task)],
    )
    responses = rows[:, task.prompts.input_ids.shape[1] :].tolist()
    return [row[:length] for row, length in zip(responses, task.lengths, strict=True)]


def _seconds(way: Callable[[Task], Responses], task: Task) -> float:
    start = time.perf_counter()
    # The responses are host integers: a GPU has finished.
    found = [len(response) for response in way(task)]
    seconds = time.perf_counter() - start
    if found != task.lengths:
        raise RuntimeError(f"responses of {found} tokens, expected {task.lengths}")
    return seconds


def _report(seconds: dict[str, list[float]], options: DecodingOptions, *, num_tokens: int) -> None:
    rates = {name: num_tokens / statistics.median(times) for name, times in seconds.items()}
    ours = rates["kd.rollout.decode"]
    table = Table("", "seconds", "tokens/s", "of ours", title=f"{options.prompts} prompts, {num_tokens} new tokens")
    for name, rate in rates.items():
        table.add_row(name, f"{num_tokens / rate:.2f}", f"{rate:.0f}", f"{rate / ours:.2f}")
    machine = describe_machine(num_ranks=1)
    values = {
        "preset": options.preset,
        "num_tokens": num_tokens,
        "machine": machine,
        "seconds": seconds,
        "tokens_per_second": rates,
    }
    write_json(options.out / "decoding.json", values)
    console = results_console()
    console.print(table)
    console.print(describe_briefly(machine), f"{options.out}: decoding.json", sep="\n", markup=False, soft_wrap=True)
