"""Sampled sequences of a model, and divergences between models at every token; by all ranks together.

Batches do not depend on the number of ranks, which share them: any number of ranks gives the same samples and numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from evaluation.generations import sample_responses, tracked
from evaluation.models import EvaluatedModel
from evaluation.settings import Sampling
from kd.data.batch import SequenceBatch, TokenSequence
from kd.data.encoding import Example
from kd.losses.divergences import Divergence
from kd.losses.outputs import chunk_rows, chunks
from kd.rollout.sampling import DecodingSettings

SampleSet = list[list[TokenSequence]]
"""For each row its sampled responses, one per seed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenScores:
    """Numbers at the T response tokens of one sequence, in nats."""

    divergences: Float[np.ndarray, "P D T"]
    """Each of D divergences between student and each of P teachers."""
    cross_entropy: Float[np.ndarray, " T"]
    """-log q(y_t) of the student."""


def sample_sequences(
    model: EvaluatedModel,
    examples: Sequence[Example],
    *,
    sampling: Sampling,
    max_new_tokens: int | None = None,
    label: str,
) -> SampleSet:
    """Sample y ~ model(.|x) at temperature 1 for every row and seed; all ranks return all samples.

    Two models draw with the same random numbers, so that their samples differ because of the models alone.
    `max_new_tokens` takes precedence over that of `sampling`.
    """
    settings = DecodingSettings(
        max_new_tokens=max_new_tokens or sampling.max_new_tokens,
        vocabulary_size=model.vocabulary_size,
        end_ids=model.end_ids,
    )
    by_seed = [
        sample_responses(
            model,
            examples,
            seed=seed,
            settings=settings,
            max_batch_tokens=sampling.max_batch_tokens,
            label=f"{label}: sampling",
        )
        for seed in sampling.seeds
    ]
    return [[example.with_response(ids) for ids in of_row] for example, *of_row in zip(examples, *by_seed, strict=True)]


def score_tokens(
    student: EvaluatedModel,
    teachers: Sequence[EvaluatedModel],
    sequences: Sequence[TokenSequence],
    *,
    divergences: Sequence[Divergence],
    micro_batch: int,
    label: str,
) -> list[TokenScores]:
    """Each divergence(student, teacher) at all response tokens of each sequence; all ranks return all of it.

    The sum over the vocabulary is exact.
    """
    world = student.world
    longest_first = sorted(range(len(sequences)), key=lambda index: sequences[index].num_tokens, reverse=True)
    batches = [longest_first[start : start + micro_batch] for start in range(0, len(sequences), micro_batch)]
    own: dict[int, TokenScores] = {}
    for indices in tracked(batches[world.rank :: world.size], label=f"{label}: scoring", world=world):
        batch = SequenceBatch.collate(
            [sequences[index] for index in indices], pad_id=student.eos_id, device=world.device
        )
        values, cross_entropy = _score_batch(student, teachers, batch, divergences=divergences)
        ends = np.cumsum(batch.response_lengths)[:-1]
        parts = zip(indices, np.split(values, ends, axis=2), np.split(cross_entropy, ends), strict=True)
        own |= {index: TokenScores(divergences=part, cross_entropy=nats) for index, part, nats in parts}
    gathered = {index: scores for share in world.gather_objects(own) for index, scores in share.items()}
    return [gathered[index] for index in range(len(sequences))]


@torch.no_grad()
def _score_batch(
    student: EvaluatedModel,
    teachers: Sequence[EvaluatedModel],
    batch: SequenceBatch,
    *,
    divergences: Sequence[Divergence],
) -> tuple[Float[np.ndarray, "P D N"], Float[np.ndarray, " N"]]:
    trained = student.outputs(batch)
    targets = [teacher.outputs(batch) for teacher in teachers]
    values = torch.empty(len(teachers), len(divergences), batch.num_response_tokens, dtype=torch.float64)
    cross_entropy = torch.empty(batch.num_response_tokens, dtype=torch.float64)
    for rows in chunks(len(trained), size=chunk_rows(student.vocabulary_size)):
        log_q = trained.log_probs(rows)
        cross_entropy[rows] = -log_q.gather(1, batch.labels[rows, None]).squeeze(1).double().cpu()
        for teacher, target in enumerate(targets):
            log_p = target.log_probs(rows)
            for number, divergence in enumerate(divergences):
                values[teacher, number, rows] = divergence(log_q, log_p).double().cpu()
    return values.numpy(), cross_entropy.numpy()
