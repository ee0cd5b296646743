"""Rollouts: y ~ q_θ(·|x) for every prompt of a global batch, in one call (arXiv 2402.12842, §3.1)."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
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
from kd.errors import LoneUserError, UserError
from kd.models.handle import ModelHandle
from kd.models.vocabulary import SharedVocabulary
from kd.rollout.decode import Mixture, Response, decode, row_streams
from kd.rollout.graphs import cuda_graph
from kd.rollout.placement import InPlaceWeights, Placement
from kd.rollout.sampling import DecodingSettings
from kd.rollout.token_budget import DecodingMemoryError, TokenBudget, within_memory

_Run = Callable[[Sequence[PromptRow]], dict[int, Response]]
"""From a batch of prompts to the responses of this rank's rows in it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledResponses:
    """Responses to the prompts of this rank's rows, in their order."""

    sequences: list[TokenSequence]
    hidden: Mapping[int, Float[Tensor, "n H"]] | None = None
    """By row id, the student's hidden states that predicted each response token, where they were kept."""


class Sampler:
    """Rolls out a model with its current weights."""

    def __init__(
        self,
        placement: Placement,
        *,
        settings: GenerationConfig,
        vocabulary: SharedVocabulary,
        world: World,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Describe the rollouts; `say` receives lines for the run's log.

        Raises:
            UserError: CUDA graphs are wanted where there is no GPU, or for weights that ranks share.
        """
        self._placement = placement
        self._settings = settings
        self._vocabulary = vocabulary
        self._world = world
        self._teacher: InPlaceWeights | None = None
        self._teacher_share = 0.0
        self._group = placement.group
        self._capture = cuda_graph if settings.cuda_graphs else None
        if settings.cuda_graphs and world.device.type != "cuda":
            raise UserError(
                f"generation.cuda_graphs=true needs a GPU, and this run uses the {world.device.type}; set it to false"
            )
        self._check_capture("student", is_collective=placement.is_collective or self._group is not None)
        # Ranks that decode together hold a part of each row's keys and values.
        num_together = 1 if self._group is None else self._group.size
        self._budget = TokenBudget(settings.max_batch_tokens * num_together, world=world, say=say)
        self._decoding = DecodingSettings(
            max_new_tokens=settings.max_new_tokens,
            vocabulary_size=vocabulary.size,
            end_ids=vocabulary.end_ids,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
        )

    def mixed_with(self, teacher: ModelHandle, *, teacher_share: float) -> "Sampler":
        """A sampler that draws each token from `teacher_share`·p + (1 - `teacher_share`)·q (MiniLLM)."""
        mixed = copy.copy(self)
        mixed._teacher, mixed._teacher_share = InPlaceWeights(teacher), teacher_share
        mixed._check_capture("teacher", is_collective=mixed._teacher.is_collective)
        return mixed

    def _check_capture(self, role: str, *, is_collective: bool) -> None:
        if self._capture is not None and is_collective:
            raise UserError(
                f"generation.cuda_graphs=true needs the whole {role} on each rank, and ranks share its weights here;"
                " set it to false, or choose a layout without communication (generation.layout=gathered)"
            )

    @property
    def _is_collective(self) -> bool:
        """Whether a forward pass is a collective operation of all ranks."""
        return self._placement.is_collective or (self._teacher is not None and self._teacher.is_collective)

    def sample(
        self, examples: Sequence[Example], *, seed: int, step: int, keep_hidden: bool = False
    ) -> SampledResponses:
        """Continue the prompts of this rank's rows; the order of the rows is kept.

        A response depends on (seed, step, row id) and the weights, not on the batch, the rank or the
        placement. All ranks must call this together.

        Raises:
            UserError: memory ran out, and half of generation.max_batch_tokens was too much as well.
            LoneUserError: memory ran out in a layout in which ranks decode together.
        """
        streams = row_streams(seed=seed, step=step)
        own_ids = {example.row_id for example in examples}
        with ExitStack() as stack:
            mixture = None
            if self._teacher is not None:
                teacher = stack.enter_context(self._teacher.ready())
                mixture = Mixture(teacher=teacher, teacher_share=self._teacher_share)
            view = stack.enter_context(self._placement.ready())

            def run(batch: Sequence[PromptRow]) -> dict[int, Response]:
                prompts = PromptBatch.collate(batch, pad_id=self._vocabulary.pad_id, device=self._world.device)
                work = partial(
                    decode,
                    view,
                    prompts,
                    settings=self._decoding,
                    streams=streams,
                    mixture=mixture,
                    keep_hidden=keep_hidden,
                    any_rank_active=self._any_rank_active,
                    # All-reduced sums may differ in rounding on the ranks of a group; one different token would make
                    # their batches diverge.
                    agreed_tokens=None if self._group is None else self._group.from_first,
                    capture=self._capture,
                )
                decoded = zip(prompts.row_ids, within_memory(work), strict=True)
                return {row_id: self._keep(response) for row_id, response in decoded if row_id in own_ids}

            together = self._is_collective or self._group is not None
            responses = self._run_together(examples, run) if together else self._run_alone(examples, run)
        sequences = [row.with_response(np.array(responses[row.row_id].token_ids, dtype=np.int32)) for row in examples]
        hidden = {row_id: response.hidden for row_id, response in responses.items() if response.hidden is not None}
        return SampledResponses(sequences=sequences, hidden=hidden or None)

    def _keep(self, response: Response) -> Response:
        """The response with hidden states that do not keep those of other ranks' rows alive."""
        if self._group is None or response.hidden is None:
            return response
        return replace(response, hidden=response.hidden.clone())

    def _run_alone(self, examples: Sequence[Example], run: _Run) -> dict[int, Response]:
        """All rows; with half the budget once memory has run out."""
        responses: dict[int, Response] = {}
        while waiting := [row for row in examples if row.row_id not in responses]:
            try:
                for batch in self._split(waiting):
                    responses |= run(batch)
            except DecodingMemoryError:
                if not self._budget.halve():
                    break
        self._budget.agree()
        return responses

    def _run_together(self, examples: Sequence[Example], run: _Run) -> dict[int, Response]:
        """All rows, where a forward pass is collective: the other ranks cannot restart with a smaller budget."""
        responses: dict[int, Response] = {}
        rows = [example.with_response(np.zeros(0, dtype=np.int32)) for example in examples]
        if self._group is not None:
            # The same list on each rank of the group.
            rows = [row for share in self._group.gather_objects(rows) for row in share]
        batches = self._split(rows)
        if self._is_collective:
            most = torch.tensor(len(batches), device=self._world.device)
            # A rank with fewer batches repeats a row, and gets the same response again.
            batches += [batches[0][:1]] * (int(self._world.max_across_ranks(most).item()) - len(batches))
        try:
            for batch in batches:
                responses |= run(batch)
        except DecodingMemoryError as error:
            raise LoneUserError(
                f"rank {self._world.rank} is out of memory while decoding ({error}); lower"
                f" generation.max_batch_tokens={self._settings.max_batch_tokens}"
            ) from None
        return responses

    def _split(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Batches of rows of similar length."""
        return split_prompts(
            rows, slots_per_row=self._decoding.max_new_tokens, max_batch_tokens=self._budget.num_tokens
        )

    def _any_rank_active(self, active: bool) -> bool:
        if not self._is_collective:
            return active
        return bool(self._world.max_across_ranks(torch.tensor(int(active), device=self._world.device)).item())
