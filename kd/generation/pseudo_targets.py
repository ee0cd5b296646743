"""Pseudo-targets: y ~ q_θ(.|x) for every prompt of a window, in one call (arXiv 2402.12842, §3.1)."""

from collections.abc import Sequence

import numpy as np
import torch

from kd.config import GenerationConfig
from kd.data.batch import PromptBatch, TokenSequence, cut_prompt_batches
from kd.data.encoding import Example
from kd.distributed import World
from kd.engines.vocabulary import SharedVocabulary
from kd.generation.decoding import DecodingSettings, decode, row_streams
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
        streams = row_streams(seed=seed, step=step)
        finished: dict[int, TokenSequence] = {}
        with self._weights.ready() as view:
            for batch in self._cut(examples):
                prompts = PromptBatch.collate(batch, pad_id=self._vocabulary.pad_id, device=self._world.device)
                responses = decode(
                    view, prompts, settings=self._settings, streams=streams, any_rank_active=self._any_rank_active
                )
                for example, response in zip(batch, responses, strict=True):
                    ids = np.array(response, dtype=np.int32)
                    finished[example.row_id] = example.with_response(ids)
        return [finished[example.row_id] for example in examples]

    def _cut(self, examples: Sequence[Example]) -> list[list[Example]]:
        """Batches of rows of similar length; as many on each rank where a forward pass needs all ranks."""
        batches = cut_prompt_batches(
            examples, slots_per_row=self._settings.max_new_tokens, max_batch_tokens=self._max_batch_tokens
        )
        if self._weights.runs_hooks:
            most = torch.tensor(len(batches), device=self._world.device)
            # A rank with fewer batches repeats a row, and gets the same response again.
            batches += [batches[0][:1]] * (int(self._world.max_across_ranks(most).item()) - len(batches))
        return batches

    def _any_rank_active(self, active: bool) -> bool:
        if not self._weights.runs_hooks:
            return active
        return bool(self._world.max_across_ranks(torch.tensor(int(active), device=self._world.device)).item())
