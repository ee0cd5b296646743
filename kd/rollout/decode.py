"""The decoding loop: prompts in, responses out, with a key-value cache and one random stream for each row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kd.data.batch import PromptBatch
from kd.models.causal_lm import CausalLM
from kd.models.soft_prompt import SoftPrompt
from kd.rollout.graphs import Capture, RepeatedWork
from kd.rollout.kv_cache import PreallocatedCache
from kd.rollout.sampling import DecodingSettings, choose_tokens, mixture_log_probs

COMPACT_SHARE = 8
"""The batch is compacted once more than one in this many rows have finished."""

FIXED_COMPACT_SHARE = 3
"""The same with fixed shapes, where new ones cost a capture."""

SLOT_BUCKET = 128
"""With fixed shapes, attention reads a multiple of so many slots."""

NOTICE_EVERY = 8
"""Tokens after which a GPU is asked which rows have ended."""

Streams = Callable[[Sequence[int], int], Float[Tensor, "B T"]]
"""From row ids and a number of tokens to uniform numbers in [0, 1), the same for a row in any batch."""


def row_streams(*, seed: int, step: int) -> Streams:
    """Random streams that belong to rows: they depend on (seed, step, row id) and nothing else."""

    def draw(row_ids: Sequence[int], num_tokens: int) -> Tensor:
        rows = [
            np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, step, row_id)))).random(num_tokens)
            for row_id in row_ids
        ]
        return torch.from_numpy(np.stack(rows))

    return draw


@dataclass(frozen=True, kw_only=True, eq=False)
class Response:
    """The tokens of one response, including the end token if one was reached."""

    token_ids: list[int]
    hidden: Float[Tensor, "n H"] | None
    """The hidden state that predicted each token, if they were kept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """Teacher-mixed sampling (MiniLLM, arXiv 2306.08543): each token is drawn from α·p + (1-α)·q."""

    teacher: CausalLM
    teacher_share: float
    """α, above 0."""


def decode(
    view: CausalLM,
    prompts: PromptBatch,
    *,
    settings: DecodingSettings,
    streams: Streams,
    soft_prompt: SoftPrompt | None = None,
    mixture: Mixture | None = None,
    keep_hidden: bool = False,
    any_rank_active: Callable[[bool], bool] = bool,
    agreed_tokens: Callable[[Tensor], Tensor] | None = None,
    capture: Capture | None = None,
) -> list[Response]:
    """Continue each prompt until an end token or `max_new_tokens`.

    Args:
        soft_prompt: precedes each prompt.
        mixture: a second model that decodes the same tokens.
        any_rank_active: from whether this rank has unfinished rows to whether any rank has. Under ZeRO-3's hooks every
            rank must run every forward pass; a rank that has finished runs dummy forwards.
        agreed_tokens: replaces the chosen tokens [A] by those of the first rank, for ranks that decode together.
        capture: decode with fixed shapes, and repeat each token's work as `capture` makes it. Not for settings that
            read the rows' tokens, nor for forward passes that are collective.

    Returns:
        One response for each prompt, in their order.
    """
    models = [view] if mixture is None else [view, mixture.teacher]
    rows = DecodingRows(
        models, prompts, settings=settings, streams=streams, keep_hidden=keep_hidden, fixed_shapes=capture is not None
    )

    def choose(states: list[Tensor]) -> None:
        # Without the padding columns of the heads.
        logits = [
            model.logits(hidden)[:, : settings.vocabulary_size] for model, hidden in zip(models, states, strict=True)
        ]
        mixed = logits[0] if mixture is None else mixture_log_probs(*logits, teacher_share=mixture.teacher_share)
        tokens = choose_tokens(mixed, rows.uniforms(), settings=settings, history=rows.history())
        rows.append(tokens if agreed_tokens is None else agreed_tokens(tokens), states[0])

    next_token = RepeatedWork(lambda: choose(rows.forward()), capture=capture)
    every = notice_every(prompts.input_ids.device.type, settings=settings)
    choose(rows.prefill(soft_prompt))
    while True:
        rows.num_chosen += 1
        if rows.is_full or rows.num_chosen % every == 0:
            rows.notice()
            if not any_rank_active(rows.has_unfinished):
                return rows.responses()
            rows.compact()
        next_token(rows.shape)


def notice_every(device_type: str, *, settings: DecodingSettings) -> int:
    """Tokens between two looks at which rows have ended; tokens that a row gets meanwhile are discarded.

    A look waits for the GPU, which could otherwise be given the next tokens' work. A CPU has nothing to wait for, and
    settings that read the rows' tokens wait for each of them anyway.
    """
    return 1 if device_type == "cpu" or settings.reads_history else NOTICE_EVERY


class DecodingRows:
    """All rows of a batch: their tokens so far, and the slots of those that are still in the model's batch.

    A counts the active rows in the model's batch. The work for a token reads the number of tokens on the device, so
    that the same work does for the next one.
    """

    def __init__(
        self,
        models: Sequence[CausalLM],
        prompts: PromptBatch,
        *,
        settings: DecodingSettings,
        streams: Streams,
        keep_hidden: bool,
        fixed_shapes: bool,
    ) -> None:
        self._models = models
        self._settings = settings
        self._prompts = prompts
        self._keeps_hidden = keep_hidden
        self._fixes_shapes = fixed_shapes
        self._has_padding = len(set(prompts.lengths)) > 1
        device = prompts.input_ids.device
        self._uniforms = streams(prompts.row_ids, settings.max_new_tokens).to(device)
        self._chosen = torch.zeros(self._uniforms.shape, dtype=torch.long, device=device)
        self._finished = [False] * len(self._chosen)
        self._active = list(range(len(self._chosen)))
        # The same on the device, where indices of the host would have to be copied for each token.
        self._rows = torch.arange(len(self._chosen), device=device)
        self.num_chosen = 0
        """Tokens of each row so far, those after its end included."""
        self._count = torch.zeros(1, dtype=torch.long, device=device)
        self._hidden: Tensor | None = None

    def prefill(self, soft_prompt: SoftPrompt | None) -> list[Float[Tensor, "A _"]]:
        """Run the prompts, padded on the left; the hidden states of each model at the last slot of each row."""
        ids, mask = self._prompts.input_ids, self._prompts.attention_mask
        inputs = {"input_ids": ids}
        if soft_prompt is not None:
            embeds, mask = soft_prompt(self._models[0].embed(ids), mask)
            inputs = {"inputs_embeds": embeds}
        self._mask = torch.cat([mask, mask.new_ones(len(mask), self._settings.max_new_tokens)], dim=1)
        self._num_slots = mask.shape[1]
        self._lengths = mask.sum(dim=1)
        self._caches = [PreallocatedCache(self._mask.shape[1], config=model.model.config) for model in self._models]
        positions = (mask.long().cumsum(dim=1) - 1).clamp_min(0)
        return self._last_states(**inputs, attention_mask=mask, position_ids=positions, has_padding=self._has_padding)

    def forward(self) -> list[Float[Tensor, "A _"]]:
        """Run the last token of each active row; the hidden states of each model, whose sizes may differ."""
        last = self._count - 1
        if self._fixes_shapes:
            for cache in self._caches:
                cache.fix_shape(last + self._num_slots, num_visible=self._num_visible)
        return self._last_states(
            input_ids=self._chosen[self._rows, last][:, None],
            attention_mask=self._mask[:, : self._num_visible],
            position_ids=(self._lengths + last)[:, None],
            # Slots that are not filled yet are hidden as padding is.
            has_padding=self._has_padding or self._fixes_shapes,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Active rows, and slots of keys and values that the next token's work reads."""
        return len(self._active), self._num_visible

    @property
    def _num_visible(self) -> int:
        filled = self._num_slots + self.num_chosen
        return min(-(-filled // SLOT_BUCKET) * SLOT_BUCKET, self._mask.shape[1]) if self._fixes_shapes else filled

    def _last_states(self, *, has_padding: bool, **inputs: Tensor) -> list[Tensor]:
        pairs = zip(self._models, self._caches, strict=True)
        return [model.hidden_states(**inputs, cache=cache, has_padding=has_padding)[:, -1] for model, cache in pairs]

    @property
    def has_unfinished(self) -> bool:
        return not all(self._finished)

    def uniforms(self) -> Float[Tensor, " A"]:
        """This token's random number of each active row."""
        return self._uniforms[self._rows, self._count]

    def history(self) -> list[list[int]] | None:
        """All tokens of each active row, prompt included, if the settings need them."""
        if not self._settings.reads_history:
            return None
        padded = zip(self._prompts.input_ids.tolist(), self._prompts.lengths, strict=True)
        prompts = [ids[-length:] for ids, length in padded]
        chosen = self._chosen[:, : self.num_chosen].tolist()
        return [prompts[index] + chosen[index] for index in self._active]

    def append(self, tokens: Int64[Tensor, " A"], hidden: Float[Tensor, "A H"]) -> None:
        """Add one token to each active row; those after a row's end do not count."""
        if self._keeps_hidden:
            if self._hidden is None:
                self._hidden = hidden.new_empty(*self._chosen.shape, hidden.shape[-1])
            self._hidden[self._rows, self._count] = hidden
        self._chosen[self._rows, self._count] = tokens
        self._count += 1

    @property
    def is_full(self) -> bool:
        """Whether all rows have `max_new_tokens` tokens."""
        return self.num_chosen == self._settings.max_new_tokens

    def notice(self) -> None:
        """Note which rows have ended; waits for the device."""
        chosen = self._chosen[:, : self.num_chosen]
        # Without a tensor of the ids, which would have to be copied from the host.
        is_end = [chosen == end_id for end_id in self._settings.end_ids]
        ended = torch.stack(is_end).any(dim=0).any(dim=1).tolist()
        self._finished = [self.is_full or has_end for has_end in ended]

    def compact(self) -> None:
        """Remove finished rows from the batch and the caches once there are enough of them.

        One row remains for dummy forwards while other ranks decode.
        """
        keep = [row for row, index in enumerate(self._active) if not self._finished[index]] or [0]
        share = FIXED_COMPACT_SHARE if self._fixes_shapes else COMPACT_SHARE
        if (len(self._active) - len(keep)) * share <= len(self._active):
            return
        select = torch.tensor(keep, device=self._rows.device)
        self._active, self._rows = [self._active[row] for row in keep], self._rows[select]
        self._mask, self._lengths = self._mask[select], self._lengths[select]
        for cache in self._caches:
            cache.batch_select_indices(select)

    def responses(self) -> list[Response]:
        """All rows, in their original order, each until its end."""
        responses = []
        for index, ids in enumerate(self._chosen.tolist()):
            ends = (place for place, token in enumerate(ids, start=1) if token in self._settings.end_ids)
            length = next(ends, self.num_chosen)
            hidden = None if self._hidden is None else self._hidden[index, :length]
            responses.append(Response(token_ids=ids[:length], hidden=hidden))
        return responses
