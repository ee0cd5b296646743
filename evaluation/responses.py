"""Responses of a model to the prompts of a benchmark, decoded by all ranks together, and their scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from transformers import PreTrainedTokenizerBase

from evaluation.model import EvaluatedModel
from kd.data.batch import PromptBatch, split_prompts
from kd.data.encoding import Example
from kd.distributed import World
from kd.rollout.decode import decode, row_streams
from kd.rollout.sampling import DecodingSettings
from kd.text_metrics import exact_match, rouge_l


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


SeededGeneration = tuple[int, Generation]
"""The seed of a response, and the response."""


def plan_batches(
    examples: Sequence[Example], *, num_seeds: int, slots_per_row: int, max_batch_tokens: int
) -> list[list[Example]]:
    """All rows of a benchmark, longest prompts first, cut into batches; each row is answered once for each seed.

    The cut does not depend on the number of ranks, which therefore cannot change a rounding error in a response.

    Args:
        slots_per_row: slots that a response takes beside its prompt: new tokens and soft prompt.
        max_batch_tokens: slots of one batch with the responses of all seeds, unless a single row takes more.
    """
    return split_prompts(examples, slots_per_row=slots_per_row, max_batch_tokens=max_batch_tokens // num_seeds)


def generate(
    model: EvaluatedModel,
    batches: Sequence[Sequence[Example]],
    *,
    seeds: Sequence[int],
    settings: DecodingSettings,
    world: World,
    on_batch: Callable[[Sequence[SeededGeneration]], None],
) -> list[SeededGeneration]:
    """Decode and score this rank's share of `batches`; all ranks return the generations of all.

    A response depends on the seed, the row of the benchmark and the model, but for rounding errors in its batch.

    Args:
        on_batch: gets the generations of each finished batch of this rank.

    Raises:
        UserError: on every rank, where `on_batch` raises it on one.
    """
    streams = [row_streams(seed=seed, step=0) for seed in seeds]
    own: list[SeededGeneration] = []
    with world.agreed():
        for batch in batches[world.rank :: world.size]:
            prompts = PromptBatch.collate(batch, pad_id=settings.eos_id, device=world.device)
            with torch.no_grad():
                responses = decode(
                    model.view, prompts, settings=settings, streams=streams, soft_prompt=model.soft_prompt
                )
            finished = [
                (seed, _finish(example, response.token_ids, tokenizer=model.tokenizer, eos_id=settings.eos_id))
                for (example, seed), response in zip(product(batch, seeds), responses, strict=True)
            ]
            on_batch(finished)
            own += finished
    return [generation for share in world.gather_objects(own) for generation in share]


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
        exact_match=bool(exact_match(response, example.references)),
    )
