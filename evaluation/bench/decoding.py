"""Tokens per second of `kd.rollout.decode` and of transformers' `generate`.

Rows get lengths like those of people's responses: most short, a few long. Our decoder drops rows that have ended. A
row is made to end at its length by its random numbers: the end token is the last of the vocabulary, so a number close
to 1 selects it. `generate` continues all rows until the longest has ended, so it samples all of them to that length.
Fixed shapes are those that CUDA graphs need; on a GPU they are repeated as graphs.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from evaluation.bench.inputs import random_model
from evaluation.bench.presets import PRESETS, Preset, PresetName
from evaluation.bench.results import describe_machine, make_out, print_results
from evaluation.command import Command
from evaluation.results import write_json
from kd.config.fields import Count, Section, option
from kd.data.batch import PromptBatch, TokenSequence
from kd.distributed import on_gpu
from kd.models.causal_lm import CausalLM
from kd.rollout.decode import decode, row_streams
from kd.rollout.graphs import Capture, cuda_graph
from kd.rollout.placement import cache_bytes_per_token
from kd.rollout.sampling import DecodingSettings

REPEATS = 3
DOLLY_SHARES = (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)
DOLLY_TOKENS = (2, 5, 9, 15, 24, 33, 45, 60, 82, 111, 173, 255, 256)
"""Percentiles of Dolly's 11,435 training responses in GPT-2 tokens, end token included, clipped at 256."""


@dataclass(frozen=True, kw_only=True)
class DecodingConfig(Section):
    preset: PresetName = option("cpu-small", help=f"whose student decodes: {', '.join(PRESETS)}")
    prompts: Count = option(64, help="number of prompts")
    out: Path | None = option(None, help="new directory for the results; null for a new one in runs/")


DECODING = Command(config=DecodingConfig, program="python -m evaluation.bench decoding", description=__doc__)


@dataclass(frozen=True, kw_only=True)
class DecodingCost:
    """Seconds of each decoder, and what the memory's bandwidth allows at best."""

    num_tokens: int
    seconds: dict[str, list[float]]
    """Of each repetition, by the name of the decoder."""
    bandwidth: float
    """Of a copy: bytes read and written per second."""
    roofline_tokens_per_second: float
    """If each token's forward pass reads the weights and the active rows' cache once, and does nothing else."""

    @property
    def tokens_per_second(self) -> dict[str, float]:
        """Medians."""
        return {name: self.num_tokens / statistics.median(times) for name, times in self.seconds.items()}


def run_decoding(config: DecodingConfig) -> None:
    """Measure all in this process, and write decoding.json.

    Raises:
        UserError: --out cannot be made.
    """
    out = make_out(config.out, command="decoding")
    cost = measure_decoding(PRESETS[config.preset], num_prompts=config.prompts)
    rates = cost.tokens_per_second
    table = Table("", "seconds", "tokens/s", "of ours", title=f"{config.prompts} prompts, {cost.num_tokens} new tokens")
    for name, rate in (rates | {"roofline": cost.roofline_tokens_per_second}).items():
        of_ours = rate / rates["kd.rollout.decode"]
        table.add_row(name, f"{cost.num_tokens / rate:.2f}", f"{rate:.0f}", f"{of_ours:.2f}")
    machine = describe_machine(num_ranks=1)
    values = {"preset": config.preset, **asdict(cost), "tokens_per_second": rates}
    write_json(out / "decoding.json", values | {"machine": machine})
    print_results(table, machine=machine, out=out)


def measure_decoding(preset: Preset, *, num_prompts: int) -> DecodingCost:
    """Decode the same prompts to the same lengths in each way, after one decoding each that warms up."""
    device = torch.device("cuda" if on_gpu() else "cpu")
    prompts, lengths = prompts_and_lengths(preset, num_prompts=num_prompts, device=device)
    # One model each: our view of a model may change it.
    view = CausalLM.of(random_model(preset, "student", device=device))
    model = random_model(preset, "student", device=device)
    ways: dict[str, Callable[[], list[int]]] = {
        "kd.rollout.decode": lambda: our_decode(view, prompts, lengths),
        f"kd.rollout.decode, {'CUDA graphs' if on_gpu() else 'fixed shapes'}": lambda: our_decode(
            view, prompts, lengths, capture=graphs_of(device)
        ),
        "transformers.generate": lambda: transformers_generate(model, prompts, lengths),
    }
    seconds = {name: [_seconds(way, lengths) for _ in range(1 + REPEATS)][1:] for name, way in ways.items()}
    bandwidth = copy_bandwidth(device)
    num_slots = sum(start * end + end * (end + 1) // 2 for start, end in zip(prompts.lengths, lengths, strict=True))
    num_bytes = max(lengths) * sum(p.nbytes for p in model.parameters()) + num_slots * cache_bytes_per_token(model)
    return DecodingCost(
        num_tokens=sum(lengths),
        seconds=seconds,
        bandwidth=bandwidth,
        roofline_tokens_per_second=sum(lengths) * bandwidth / num_bytes,
    )


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that copies within the device's memory read and write; the fastest of ten."""
    source = torch.zeros(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target, seconds = torch.empty_like(source), []
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


def prompts_and_lengths(preset: Preset, *, num_prompts: int, device: torch.device) -> tuple[PromptBatch, list[int]]:
    """Prompts of the preset's lengths, and lengths of their responses, distributed like Dolly's."""
    generator = np.random.default_rng(0)
    shortest, longest = preset.prompt_tokens
    none = np.zeros(0, dtype=np.int32)
    ids = [
        generator.integers(0, preset.end_id, size).astype(np.int32)
        for size in generator.integers(shortest, longest + 1, num_prompts)
    ]
    rows = [TokenSequence(row_id=row, prompt_ids=prompt, response_ids=none) for row, prompt in enumerate(ids)]
    shares = (np.arange(num_prompts) + 0.5) / num_prompts * 100
    lengths = generator.permutation(np.interp(shares, DOLLY_SHARES, DOLLY_TOKENS).round().astype(int))
    return PromptBatch.collate(rows, pad_id=preset.end_id, device=device), lengths.tolist()


def graphs_of(device: torch.device) -> Capture:
    """CUDA graphs; on a CPU the same work with fixed shapes, done each time."""
    return cuda_graph if device.type == "cuda" else lambda work: work


def our_decode(
    view: CausalLM, prompts: PromptBatch, lengths: list[int], *, capture: Capture | None = None
) -> list[int]:
    """Numbers of tokens that our decoder gave each row."""
    free = row_streams(seed=0, step=0)

    def stream(row_ids: Sequence[int], num_tokens: int) -> Tensor:
        numbers = free(row_ids, num_tokens) * 0.99
        for row, row_id in enumerate(row_ids):
            numbers[row, lengths[row_id] - 1] = 1 - 1e-9
        return numbers

    vocabulary = view.model.config.vocab_size
    settings = DecodingSettings(max_new_tokens=max(lengths), vocabulary_size=vocabulary, end_ids=(vocabulary - 1,))
    with torch.no_grad():
        responses = decode(view, prompts, settings=settings, streams=stream, capture=capture)
    return [len(response.token_ids) for response in responses]


def transformers_generate(model: PreTrainedModel, prompts: PromptBatch, lengths: list[int]) -> list[int]:
    """Numbers of tokens of each row, after `generate` has sampled all rows to the longest."""
    generate: Any = model.generate
    rows: Tensor = generate(
        prompts.input_ids,
        attention_mask=prompts.attention_mask.long(),
        do_sample=True,
        top_k=0,
        # No row ends earlier.
        min_new_tokens=max(lengths),
        max_new_tokens=max(lengths),
        eos_token_id=model.config.vocab_size - 1,
        pad_token_id=model.config.vocab_size - 1,
    )
    responses = rows[:, prompts.input_ids.shape[1] :].tolist()
    return [len(row[:length]) for row, length in zip(responses, lengths, strict=True)]


def _seconds(way: Callable[[], list[int]], lengths: list[int]) -> float:
    start = time.perf_counter()
    # Responses are host integers: a GPU has finished.
    found = way()
    seconds = time.perf_counter() - start
    if found != lengths:
        raise RuntimeError(f"responses of {found} tokens, expected {lengths}")
    return seconds
