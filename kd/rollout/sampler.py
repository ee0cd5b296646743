"""Rollouts: y ~ q_θ(·|x) for every prompt of a global batch, in one call (arXiv 2402.12842, §3.1)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kd.config.schema import GenerationConfig
from kd.data.batch import PromptBatch, PromptRow, Row, TokenSequence, split_prompts
from kd.data.encoding import Example
from kd.distributed import World
from kd.errors import LoneUserError
from kd.models.causal_lm import CausalLM
from kd.models.vocabulary import SharedVocabulary
from kd.rollout.decode import Response, Streams, decode, row_streams
from kd.rollout.placement import Placement
from kd.rollout.sampling import DecodingSettings
from kd.rollout.token_budget import DecodingMemoryError, TokenBudget, within_memory

_Run = Callable[[Sequence[PromptRow]], dict[int, Response]]
"""From a batch of prompts to the responses of this rank's rows among them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledResponses:
    """Responses to the prompts of this rank's rows, in their order."""

    sequences: list[TokenSequence]
    hidden: Mapping[int, Float[Tensor, "n H"]] | None = None
    """By row id, the student's hidden states that predicted each response token, where they were kept."""


class Sampler:
    """Samples responses of the student with the weights it has at the time of the call."""

    def __init__(
        self,
        weights: Placement,
        *,
        settings: GenerationConfig,
        vocabulary: SharedVocabulary,
        world: World,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """`say` gets a line whenever the run's log should tell something."""
        self.weights = weights
        self.settings = settings
        self.say = say
        self._max_batch_tokens = settings.max_batch_tokens
        # Of each row, ranks that decode together hold a part of the keys and values each.
        num_together = 1 if weights.group is None else weights.group.size
        self._budget = TokenBudget(settings.max_batch_tokens * num_together, world=world, say=say)
        self.vocabulary = vocabulary
        self.world = world
        self._decoding = DecodingSettings(
            max_new_tokens=settings.max_new_tokens,
            vocabulary_size=vocabulary.size,
            eos_id=vocabulary.eos_id,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
        )

    def sample(
        self, examples: Sequence[Example], *, seed: int, step: int, keep_hidden: bool = False
    ) -> SampledResponses:
        """Continue the prompts of this rank's rows; the order of the rows is kept.

        A response depends on (seed, step, row id) and the weights, not on the batch, the rank or the
        layout. All ranks must call this together.

        Raises:
            UserError: memory ran out, and half of generation.max_batch_tokens was too much as well.
            LoneUserError: memory ran out in a layout in which ranks decode together.
        """
        streams = row_streams(seed=seed, step=step)
        own_ids = {example.row_id for example in examples}
        with self.weights.ready() as view:

            def run(batch: Sequence[PromptRow]) -> dict[int, Response]:
                prompts = PromptBatch.collate(batch, pad_id=self.vocabulary.pad_id, device=self.world.device)
                decoded = within_memory(partial(self._decode, view, prompts, streams=streams, keep_hidden=keep_hidden))
                return {
                    row_id: self._keep(response)
                    for row_id, response in zip(prompts.row_ids, decoded, strict=True)
                    if row_id in own_ids
                }

            if self.weights.is_collective or self.weights.group is not None:
                responses = self._run_together(examples, run)
            else:
                responses = self._run_alone(examples, run)
        return _in_order(examples, responses)

    def _decode(self, view: CausalLM, prompts: PromptBatch, *, streams: Streams, keep_hidden: bool) -> list[Response]:
        group = self.weights.group
        return decode(
            view,
            prompts,
            settings=self._decoding,
            streams=[streams],
            keep_hidden=keep_hidden,
            any_rank_active=self._any_rank_active,
            # Sums may round differently on the ranks of some group; one token that differs would part their batches.
            agreed_tokens=None if group is None else group.from_first,
        )

    def _keep(self, response: Response) -> Response:
        """A response whose hidden states do not hold those of other ranks' rows."""
        if self.weights.group is None or response.hidden is None:
            return response
        return replace(response, hidden=response.hidden.clone())

    def _run_alone(self, examples: Sequence[Example], run: _Run) -> dict[int, Response]:
        """All rows; with half the budget after memory has run out."""
        responses: dict[int, Response] = {}
        while waiting := [row for row in examples if row.row_id not in responses]:
            try:
                for batch in self._cut(waiting):
                    responses |= run(batch)
            except DecodingMemoryError:
                if not self._budget.halve():
                    break
        self._budget.agree()
        return responses

    def _run_together(self, examples: Sequence[Example], run: _Run) -> dict[int, Response]:
        """All rows, where a forward pass needs other ranks: they cannot be told to begin again with less."""
        responses: dict[int, Response] = {}
        batches = self._cut(self._pool(examples))
        if self.weights.is_collective:
            most = torch.tensor(len(batches), device=self.world.device)
            # A rank with fewer batches repeats a row, and gets the same response again.
            batches += [batches[0][:1]] * (int(self.world.max_across_ranks(most).item()) - len(batches))
        try:
            for batch in batches:
                responses |= run(batch)
        except DecodingMemoryError as error:
            raise LoneUserError(
                f"rank {self.world.rank} is out of memory while decoding ({error}); lower"
                f" generation.max_batch_tokens={self._max_batch_tokens}"
            ) from None
        return responses

    def _pool(self, examples: Sequence[Example]) -> list[TokenSequence]:
        """The prompts of all ranks that decode together, the same list on each of them."""
        own = [example.with_response(np.zeros(0, dtype=np.int32)) for example in examples]
        group = self.weights.group
        return own if group is None else [row for rows in group.gather_objects(own) for row in rows]

    def _cut(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Batches of rows of similar length."""
        return split_prompts(
            rows, slots_per_row=self._decoding.max_new_tokens, max_batch_tokens=self._budget.num_tokens
        )

    def _any_rank_active(self, active: bool) -> bool:
        if not self.weights.is_collective:
            return active
        return bool(self.world.max_across_ranks(torch.tensor(int(active), device=self.world.device)).item())


def _in_order(examples: Sequence[Example], responses: Mapping[int, Response]) -> SampledResponses:
    sequences = [
        example.with_response(np.array(responses[example.row_id].token_ids, dtype=np.int32)) for example in examples
    ]
    hidden = {row_id: response.hidden for row_id, response in responses.items() if response.hidden is not None}
    return SampledResponses(sequences=sequences, hidden=hidden or None)
