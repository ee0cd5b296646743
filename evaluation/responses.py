"""Responses of a model to the prompts of a benchmark, decoded by all ranks together, and their scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evaluation.model import EvaluatedModel
from evaluation.rouge_l import exact_match, rouge_l
from kd.data.batch import PromptBatch, TokenIds, cut_prompt_batches
from kd.data.encoding import Example
from kd.distributed import World
from kd.generation.decoding import DecodingSettings, Streams, decode, row_streams


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One line of a generations file."""

    row: int
    """Index among the rows of the benchmark's source, from 0."""
    prompt: str
    response: str
    references: tuple[str, ...]
    response_tokens: int
    """Tokens of the response, its end-of-sequence token included."""
    ended: bool
    """Whether the response reached its end-of-sequence token."""
    rougeL: float
    """×100; on disk the score has the name that metrics.jsonl gives it."""
    exact_match: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One response to make; `row_id` counts the requests, because a row is answered once for each seed."""

    row_id: int
    seed: int
    example: Example

    @property
    def prompt_ids(self) -> TokenIds:
        return self.example.prompt_ids


Batches = list[list[Request]]


def plan_batches(
    examples: Sequence[Example], *, seeds: Sequence[int], slots_per_row: int, max_batch_tokens: int
) -> Batches:
    """All requests of a benchmark, longest prompts first, cut into batches.

    The cut does not depend on the number of ranks, which therefore cannot change a rounding error in a response.

    Args:
        slots_per_row: slots that a row takes beside its prompt: new tokens and soft prompt.
        max_batch_tokens: slots of one batch, unless a single row takes more.
    """
    pairs = [(seed, example) for seed in seeds for example in examples]
    requests = [Request(row_id=index, seed=seed, example=example) for index, (seed, example) in enumerate(pairs)]
    return cut_prompt_batches(requests, slots_per_row=slots_per_row, max_batch_tokens=max_batch_tokens)


def generate(
    model: EvaluatedModel,
    batches: Batches,
    *,
    settings: DecodingSettings,
    world: World,
    on_batch: Callable[[int], None],
) -> dict[int, list[Generation]]:
    """Decode and score this rank's share of `batches`; all ranks return all generations, by seed, in row order.

    Args:
        on_batch: told the number of responses of each finished batch of this rank.
    """
    own: list[tuple[int, Generation]] = []
    for batch in batches[world.rank :: world.size]:
        prompts = PromptBatch.collate(batch, pad_id=settings.eos_id, device=world.device)
        with torch.no_grad():
            responses = decode(
                model.view, prompts, settings=settings, streams=_streams(batch), soft_prompt=model.soft_prompt
            )
        own += [
            (request.seed, _finish(request.example, ids, tokenizer=model.tokenizer, eos_id=settings.eos_id))
            for request, ids in zip(batch, responses, strict=True)
        ]
        on_batch(len(batch))
    by_seed: dict[int, list[Generation]] = {}
    for share in world.gather_objects(own):
        for seed, generation in share:
            by_seed.setdefault(seed, []).append(generation)
    return {seed: sorted(rows, key=lambda generation: generation.row) for seed, rows in by_seed.items()}


def _streams(batch: Sequence[Request]) -> Streams:
    """Random numbers that belong to (seed, row of the benchmark)."""
    requests = {request.row_id: request for request in batch}

    def draw(row_ids: Sequence[int], num_tokens: int) -> Tensor:
        chosen = [requests[row_id] for row_id in row_ids]
        return torch.cat(
            [row_streams(seed=request.seed, step=0)([request.example.row_id], num_tokens) for request in chosen]
        )

    return draw


def _finish(example: Example, ids: list[int], *, tokenizer: PreTrainedTokenizerBase, eos_id: int) -> Generation:
    response = str(tokenizer.decode(ids, skip_special_tokens=True))
    return Generation(
        row=example.row_id,
        prompt=example.prompt,
        response=response,
        references=example.references,
        response_tokens=len(ids),
        ended=ids[-1] == eos_id,
        rougeL=100 * rouge_l(response, example.references),
        exact_match=exact_match(response, example.references),
    )
