"""Pseudo-targets: y ~ q_θ(.|x) for every prompt of a window, in one call (arXiv 2402.12842, §3.1)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from kd.config import GenerationConfig
from kd.data.batch import PromptBatch, TokenSequence
from kd.data.encoding import Example
from kd.distributed import World
from kd.engines.causal_lm import CausalLM
from kd.engines.soft_prompt import SoftPrompt
from kd.engines.vocabulary import SharedVocabulary
from kd.generation.decoding import DecodingSettings, Streams, decode, row_streams
from kd.generation.weights import DecodingWeights


class Sampler:
    """Samples responses of the student with the weights it has at the time of the call."""

    def __init__(
        self,
        weights: DecodingWeights,
        *,
        settings: GenerationConfig,
        vocabulary: SharedVocabulary,
        world: World,
    ) -> None:
        self._weights = weights
        self._max_batch_tokens = settings.max_batch_tokens
        self._vocabulary = vocabulary
        self._world = world
        self._settings = DecodingSettings(
            max_new_tokens=settings.max_new_tokens,
            vocabulary_size=vocabulary.size,
            eos_id=vocabulary.eos_id,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
        )

    def sample(self, examples: Sequence[Example], *, seed: int, step: int) -> list[TokenSequence]:
        """Continue the prompts of this rank's rows; the order of the rows is kept.

        A response depends on (seed, step, row id) and the weights, not on the batch, the rank or the
        layout. All ranks must call this together.
        """
        with self._weights.ready() as view:
            return sample_rows(
                view,
                examples,
                settings=self._settings,
                streams=row_streams(seed=seed, step=step),
                pad_id=self._vocabulary.pad_id,
                max_batch_tokens=self._max_batch_tokens,
                device=self._world.device,
                world=self._world if self._weights.runs_hooks else None,
            )


def sample_rows(
    view: CausalLM,
    examples: Sequence[Example],
    *,
    settings: DecodingSettings,
    streams: Streams,
    pad_id: int,
    max_batch_tokens: int,
    device: torch.device,
    soft_prompt: SoftPrompt | None = None,
    world: World | None = None,
    on_batch: Callable[[list[TokenSequence]], None] = lambda _: None,
) -> list[TokenSequence]:
    """Continue prompts in batches of rows of similar length.

    Args:
        max_batch_tokens: rows × (prompt + new tokens) of one batch.
        world: given when each forward pass is a collective operation of these ranks.
        on_batch: told the finished rows of each batch.
    """
    batches = _cut_by_tokens(examples, max_new_tokens=settings.max_new_tokens, budget=max_batch_tokens)
    num_batches = len(batches)
    if world is not None:
        num_batches = int(world.max_across_ranks(torch.tensor(num_batches, device=device)).item())
        # A rank with fewer batches repeats one, and drops what comes out.
        batches += [batches[0][:1]] * (num_batches - len(batches))
    finished: dict[int, TokenSequence] = {}
    for batch in batches:
        prompts = PromptBatch.collate(batch, pad_id=pad_id, device=device)
        responses = decode(
            view,
            prompts,
            settings=settings,
            streams=streams,
            soft_prompt=soft_prompt,
            any_rank_active=bool if world is None else _any_rank_active(world),
        )
        sequences = [
            TokenSequence(
                row_id=row.row_id, prompt_ids=row.prompt_ids, response_ids=np.array(response, dtype=np.int32)
            )
            for row, response in zip(batch, responses, strict=True)
        ]
        finished.update((sequence.row_id, sequence) for sequence in sequences)
        on_batch(sequences)
    return [finished[example.row_id] for example in examples]


def _any_rank_active(world: World) -> Callable[[bool], bool]:
    def ask(active: bool) -> bool:
        return bool(world.max_across_ranks(torch.tensor(int(active), device=world.device)).item())

    return ask


def _cut_by_tokens(examples: Sequence[Example], *, max_new_tokens: int, budget: int) -> list[list[Example]]:
    """Rows sorted by prompt length, cut so that no batch needs more than `budget` slots (or is one row)."""
    batches: list[list[Example]] = []
    for example in sorted(examples, key=lambda row: len(row.prompt_ids), reverse=True):
        # The first row of a batch is its longest.
        if batches and (len(batches[-1]) + 1) * (len(batches[-1][0].prompt_ids) + max_new_tokens) <= budget:
            batches[-1].append(example)
        else:
            batches.append([example])
    return batches
