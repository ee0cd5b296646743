"""The token loop: prompts in, responses out, with a key-value cache and one random stream per row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kd.data.batch import PromptBatch
from kd.models.causal_lm import CausalLM
from kd.models.soft_prompt import SoftPrompt
from kd.rollout.kv_cache import PreallocatedCache
from kd.rollout.sampling import DecodingSettings, choose_tokens

COMPACT_SHARE = 8
"""Ended rows leave the batch as soon as they are more than one in this many."""

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
    """What one row said: its tokens, the end token included where it was reached."""

    token_ids: list[int]
    hidden: Float[Tensor, "n H"] | None
    """The hidden state that predicted each token, where it was asked for."""


def decode(
    view: CausalLM,
    prompts: PromptBatch,
    *,
    settings: DecodingSettings,
    streams: Sequence[Streams],
    soft_prompt: SoftPrompt | None = None,
    keep_hidden: bool = False,
    any_rank_active: Callable[[bool], bool] = bool,
    agreed_tokens: Callable[[Tensor], Tensor] | None = None,
) -> list[Response]:
    """Continue each prompt until its end-of-sequence token or `max_new_tokens`.

    Args:
        view: the model; on return its weights and modes are as they were.
        streams: one for each sample; a prompt runs through the model once, whatever the number of samples.
        soft_prompt: stands in front of each prompt when given.
        keep_hidden: return the hidden states too, which are the model's own q(.|x, y_<t) before its head.
        any_rank_active: told whether this rank has unfinished rows, answers whether any rank has. Under
            ZeRO-3's hooks every rank must run every forward pass; a rank that is done runs it for show.
        agreed_tokens: replaces the chosen tokens [A] by those of the first rank, where ranks decode together.

    Returns:
        One response for each sample of each prompt: all samples of the first prompt, then of the second, ….
    """
    rows = DecodingRows(prompts, settings=settings, streams=streams)
    hidden = _prefill(view, prompts, rows, soft_prompt)
    if keep_hidden:
        rows.keep_hidden(width=hidden.shape[-1], dtype=hidden.dtype)
    while True:
        logits = next_logits(view, hidden, settings)
        tokens = choose_tokens(logits, rows.uniforms(), settings=settings, history=rows.history())
        rows.append(tokens if agreed_tokens is None else agreed_tokens(tokens), hidden)
        if not any_rank_active(rows.num_unfinished > 0):
            return rows.responses()
        rows.drop_finished()
        hidden = view.hidden_states(
            input_ids=rows.last_tokens[:, None],
            attention_mask=rows.attention_mask,
            position_ids=rows.next_positions[:, None],
            cache=rows.cache,
        )[:, -1]


class DecodingRows:
    """All rows of a batch: what they said so far, and the slots of those that are still in the model's batch.

    A rows in the model's batch, R rows in all (prompts times samples).
    """

    def __init__(self, prompts: PromptBatch, *, settings: DecodingSettings, streams: Sequence[Streams]) -> None:
        device = prompts.input_ids.device
        num_prompts, num_samples = len(prompts.row_ids), len(streams)
        self.settings = settings
        self._prompts = prompts
        self._num_samples = num_samples
        drawn = [stream(prompts.row_ids, settings.max_new_tokens) for stream in streams]
        self._uniforms = torch.stack(drawn, dim=1).flatten(0, 1).to(device)
        self._tokens: list[list[int]] = [[] for _ in range(num_prompts * num_samples)]
        self._finished = [False] * len(self._tokens)
        self._active = list(range(len(self._tokens)))
        self._num_chosen = 0
        self._hidden: Tensor | None = None

    def start(self, attention_mask: Bool[Tensor, "B T"]) -> None:
        """Make room for the prompts' slots [B, T], padding on the left, and for the new tokens."""
        room = attention_mask.new_ones(len(attention_mask), self.settings.max_new_tokens)
        self._mask = torch.cat([attention_mask, room], dim=1)
        self._num_slots = attention_mask.shape[1]
        self._lengths = attention_mask.sum(dim=1)
        self.cache = PreallocatedCache(self._mask.shape[1])

    def multiply(self, hidden: Float[Tensor, "B H"]) -> Float[Tensor, "R H"]:
        """Turn each prefilled prompt into as many rows as there are samples."""
        if self._num_samples == 1:
            return hidden
        select = torch.arange(len(hidden), device=hidden.device).repeat_interleave(self._num_samples)
        self.cache.batch_select_indices(select)
        self._mask, self._lengths = self._mask[select], self._lengths[select]
        return hidden[select]

    def keep_hidden(self, *, width: int, dtype: torch.dtype) -> None:
        """Make room for the hidden states of all rows [R, max_new_tokens, H]."""
        shape = (len(self._tokens), self.settings.max_new_tokens, width)
        self._hidden = torch.empty(shape, dtype=dtype, device=self._uniforms.device)

    @property
    def attention_mask(self) -> Bool[Tensor, "A T"]:
        """Slots of the active rows up to and including the last token."""
        return self._mask[:, : self._num_slots + self._num_chosen]

    @property
    def next_positions(self) -> Int64[Tensor, " A"]:
        """Position of the last token, counted from the first real slot."""
        return self._lengths + self._num_chosen - 1

    @property
    def num_unfinished(self) -> int:
        return self._finished.count(False)

    def uniforms(self) -> Float[Tensor, " A"]:
        """This token's random number of each active row."""
        return self._uniforms[:, self._num_chosen]

    def history(self) -> list[list[int]] | None:
        """All tokens of each active row, prompt included, where the settings ask for them."""
        if not self.settings.reads_history:
            return None
        prompts = [
            ids[-length:] for ids, length in zip(self._prompts.input_ids.tolist(), self._prompts.lengths, strict=True)
        ]
        return [prompts[index // self._num_samples] + self._tokens[index] for index in self._active]

    def append(self, tokens: Int64[Tensor, " A"], hidden: Float[Tensor, "A H"]) -> None:
        """Add one token to each active row that has not ended, and note which rows end with it."""
        if self._hidden is not None:
            self._hidden[torch.tensor(self._active, device=hidden.device), self._num_chosen] = hidden
        self.last_tokens = tokens
        self._num_chosen += 1
        full = self._num_chosen == self.settings.max_new_tokens
        for index, token in zip(self._active, tokens.tolist(), strict=True):
            if not self._finished[index]:
                self._tokens[index].append(token)
                self._finished[index] = full or token == self.settings.eos_id

    def drop_finished(self) -> None:
        """Take ended rows out of the batch and of the cache, as soon as that pays for copying the cache.

        One row stays while other ranks decode, for show.
        """
        keep = [place for place, index in enumerate(self._active) if not self._finished[index]] or [0]
        if (len(self._active) - len(keep)) * COMPACT_SHARE <= len(self._active):
            return
        select = torch.tensor(keep, device=self.last_tokens.device)
        self.cache.batch_select_indices(select)
        self._active = [self._active[place] for place in keep]
        self._uniforms, self._mask = self._uniforms[select], self._mask[select]
        self._lengths, self.last_tokens = self._lengths[select], self.last_tokens[select]

    def responses(self) -> list[Response]:
        """All rows, in their original order."""
        return [
            Response(token_ids=ids, hidden=None if self._hidden is None else self._hidden[index, : len(ids)])
            for index, ids in enumerate(self._tokens)
        ]


def _prefill(
    view: CausalLM, prompts: PromptBatch, rows: DecodingRows, soft_prompt: SoftPrompt | None
) -> Float[Tensor, "R H"]:
    """Run the prompts through the model; hidden states of the last slot of each row."""
    if soft_prompt is None:
        rows.start(prompts.attention_mask)
        hidden = view.hidden_states(
            input_ids=prompts.input_ids,
            attention_mask=prompts.attention_mask,
            position_ids=prompts.position_ids,
            cache=rows.cache,
        )
    else:
        embeds, mask = soft_prompt(view.embed(prompts.input_ids), prompts.attention_mask)
        rows.start(mask)
        positions = (mask.long().cumsum(dim=1) - 1).clamp_min(0)
        hidden = view.hidden_states(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, cache=rows.cache)
    return rows.multiply(hidden[:, -1])


def next_logits(view: CausalLM, hidden: Float[Tensor, "A H"], settings: DecodingSettings) -> Float[Tensor, "A V"]:
    """What the head makes of the last hidden states, for the tokens of the shared vocabulary."""
    # Only tokens that both tokenizers know: the head's padding columns are cut off.
    logits: Tensor = view.model.get_output_embeddings()(hidden)
    return logits[:, : settings.vocabulary_size]
