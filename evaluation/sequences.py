"""Sampled sequences of a model, and divergences between models at every token; by all ranks together.

Batches are cut without regard to the number of ranks, and dealt out to them: any number of ranks gives the same
samples and the same numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from evaluation.lineup import Lineup
from evaluation.model import EvaluatedModel
from evaluation.responses import plan_batches
from kd.data.batch import PromptBatch, SequenceBatch, TokenSequence
from kd.data.encoding import Example
from kd.distributed import World
from kd.losses.divergences import Divergence
from kd.losses.fused import chunk_rows
from kd.rollout.decode import decode, row_streams
from kd.rollout.sampling import DecodingSettings

T = TypeVar("T")

SampleSet = list[list[TokenSequence]]
"""For each request its samples, one a seed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What sampling and scoring need beside the models."""

    lineup: Lineup
    world: World


def sample(
    work: Work, model: EvaluatedModel, examples: Sequence[Example], *, max_new_tokens: int, what: str
) -> SampleSet:
    """Draw y ~ model(.|x) at temperature 1 for every request and seed; all ranks return all samples.

    A sample depends on (seed, row) and the model alone, as in evaluate.py: two models draw with the same random
    numbers, so that what differs between their samples is due to the models.

    Args:
        what: shown beside the progress bar.
    """
    options, world = work.lineup.options, work.world
    prompt_slots = 0 if model.soft_prompt is None else model.soft_prompt.num_tokens
    batches = plan_batches(
        examples,
        num_seeds=len(options.seeds),
        slots_per_row=max_new_tokens + prompt_slots,
        max_batch_tokens=options.max_batch_tokens,
    )
    settings = DecodingSettings(
        max_new_tokens=max_new_tokens, vocabulary_size=work.lineup.vocabulary, eos_id=work.lineup.eos_id
    )
    streams = [row_streams(seed=seed, step=0) for seed in options.seeds]
    own: dict[int, list[TokenSequence]] = {}
    for batch in _tracked(batches[world.rank :: world.size], what=f"{what}: sampling", world=world):
        prompts = PromptBatch.collate(batch, pad_id=work.lineup.eos_id, device=world.device)
        with torch.no_grad():
            responses = decode(model.view, prompts, settings=settings, streams=streams, soft_prompt=model.soft_prompt)
        ids = [np.array(response.token_ids, dtype=np.int32) for response in responses]
        for index, example in enumerate(batch):
            of_example = ids[index * len(streams) : (index + 1) * len(streams)]
            own[example.row_id] = [example.with_response(response_ids) for response_ids in of_example]
    everyone = {row_id: samples for share in world.gather_objects(own) for row_id, samples in share.items()}
    return [everyone[example.row_id] for example in examples]


def token_divergences(
    work: Work,
    student: EvaluatedModel,
    teachers: Sequence[EvaluatedModel],
    sequences: Sequence[TokenSequence],
    *,
    divergences: Sequence[Divergence],
    what: str,
) -> list[Float[np.ndarray, "P D T"]]:
    """Each of D divergences(student, teacher) in nats, for P teachers, at all T response tokens of each sequence.

    The hidden state of y_{t-1} predicts y_t, and the sum over the vocabulary is exact. All ranks return all of it.
    """
    world = work.world
    size = work.lineup.options.micro_batch
    longest_first = sorted(range(len(sequences)), key=lambda index: sequences[index].num_tokens, reverse=True)
    batches = [longest_first[start : start + size] for start in range(0, len(sequences), size)]
    own: dict[int, np.ndarray] = {}
    for indices in _tracked(batches[world.rank :: world.size], what=f"{what}: scoring", world=world):
        batch = SequenceBatch.collate(
            [sequences[index] for index in indices], pad_id=work.lineup.eos_id, device=world.device
        )
        with torch.no_grad():
            values = _score(student, teachers, batch, divergences=divergences, vocabulary=work.lineup.vocabulary)
        ends = np.cumsum(batch.response_lengths)[:-1]
        own |= dict(zip(indices, np.split(values, ends, axis=2), strict=True))
    everyone = {index: values for share in world.gather_objects(own) for index, values in share.items()}
    return [everyone[index] for index in range(len(sequences))]


def _score(
    student: EvaluatedModel,
    teachers: Sequence[EvaluatedModel],
    batch: SequenceBatch,
    *,
    divergences: Sequence[Divergence],
    vocabulary: int,
) -> Float[np.ndarray, "P D N"]:
    states = [model.response_states(batch) for model in (student, *teachers)]
    values = torch.empty(len(teachers), len(divergences), batch.num_response_tokens, dtype=torch.float64)
    chunk = chunk_rows(vocabulary)
    for start in range(0, batch.num_response_tokens, chunk):
        rows = slice(start, start + chunk)
        trained = _log_probs(student, states[0][rows], vocabulary=vocabulary)
        for place, (teacher, hidden) in enumerate(zip(teachers, states[1:], strict=True)):
            target = _log_probs(teacher, hidden[rows], vocabulary=vocabulary)
            for number, divergence in enumerate(divergences):
                values[place, number, rows] = divergence(trained, target).double().cpu()
    return values.numpy()


def _log_probs(model: EvaluatedModel, hidden: Float[Tensor, "n H"], *, vocabulary: int) -> Float[Tensor, "n V"]:
    """Over the shared vocabulary, in fp32 whatever the weights are."""
    weight, bias = model.view.head_weight, model.view.head_bias
    logits = functional.linear(
        hidden.to(weight.dtype), weight[:vocabulary], None if bias is None else bias[:vocabulary]
    )
    return logits.float().log_softmax(dim=-1)


def _tracked(batches: Sequence[T], *, what: str, world: World) -> Iterator[T]:
    console = Console(stderr=True)
    hidden = not (world.is_main and console.is_terminal)
    yield from track(batches, description=what, console=console, disable=hidden)
