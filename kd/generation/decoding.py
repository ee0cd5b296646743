"""The token loop: prompts in, responses out, with a key-value cache and one random stream per row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers import DynamicCache

from kd.data.batch import PromptBatch
from kd.engines.causal_lm import CausalLM
from kd.engines.soft_prompt import SoftPrompt

Streams = Callable[[Sequence[int], int], Float[Tensor, "B T"]]
"""From row ids and a number of tokens to uniform numbers in [0, 1), the same for a row in any batch."""


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """How to choose tokens: `greedy`, or sampling after temperature, top-k and top-p."""

    max_new_tokens: int
    vocabulary_size: int
    eos_id: int
    greedy: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def row_streams(*, seed: int, step: int) -> Streams:
    """Random streams that belong to rows: they depend on (seed, step, row id) and nothing else."""

    def draw(row_ids: Sequence[int], num_tokens: int) -> Tensor:
        rows = [
            np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, step, row_id)))).random(num_tokens)
            for row_id in row_ids
        ]
        return torch.from_numpy(np.stack(rows))

    return draw


def decode(
    view: CausalLM,
    prompts: PromptBatch,
    *,
    settings: DecodingSettings,
    streams: Streams,
    soft_prompt: SoftPrompt | None = None,
    any_rank_active: Callable[[bool], bool] = bool,
) -> list[list[int]]:
    """Continue each prompt until its end-of-sequence token or `max_new_tokens`.

    Args:
        view: the model; on return its weights and modes are as they were.
        soft_prompt: stands in front of each prompt when given.
        any_rank_active: told whether this rank has unfinished rows, answers whether any rank has. Under
            ZeRO-3's hooks every rank must run every forward pass; a rank that is done runs it for show.

    Returns:
        Token ids of each response, the end token included where it was reached.
    """
    rows = _ActiveRows(prompts, settings=settings, streams=streams)
    hidden = _prefill(view, prompts, rows, soft_prompt)
    while True:
        rows.append(choose_tokens(_logits(view, hidden, settings), rows.uniforms(), settings=settings))
        if not any_rank_active(rows.num_unfinished > 0):
            return rows.responses
        rows.drop_finished()
        hidden = view.hidden_states(
            input_ids=rows.last_tokens[:, None],
            attention_mask=rows.attention_mask,
            position_ids=rows.next_positions[:, None],
            cache=rows.cache,
        )


def choose_tokens(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], *, settings: DecodingSettings
) -> Int64[Tensor, " B"]:
    """One token per row: the most likely one, or the one where the row's uniform number falls."""
    if settings.greedy:
        return logits.argmax(dim=-1)
    logits = logits.float() / settings.temperature
    if settings.top_k or settings.top_p < 1:
        logits = _keep_likely(logits, top_k=settings.top_k, top_p=settings.top_p)
    # float64: a running sum of 50,000 float32 probabilities is off by more than the rare tokens have.
    cumulative = logits.softmax(dim=-1).double().cumsum(dim=-1)
    # Strictly below the total, so that the chosen token always has a probability above 0.
    threshold = uniforms.to(cumulative)[:, None] * (cumulative[:, -1:] * (1 - 2**-40))
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1)


def _keep_likely(logits: Float[Tensor, "B V"], *, top_k: int, top_p: float) -> Float[Tensor, "B V"]:
    """Logits with -inf outside the top-k tokens, and of those outside the smallest set of probability top_p."""
    ordered, order = logits.sort(dim=-1, descending=True)
    if top_k:
        ordered[:, top_k:] = -torch.inf
    if top_p < 1:
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        # The most likely token stays whatever top_p is: nothing comes before it.
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(ordered).scatter_(1, order, ordered)


class _ActiveRows:
    """The rows still being continued: their slots, their random numbers and what they said so far."""

    def __init__(self, prompts: PromptBatch, *, settings: DecodingSettings, streams: Streams) -> None:
        device = prompts.input_ids.device
        self.settings = settings
        self.responses: list[list[int]] = [[] for _ in prompts.row_ids]
        self.cache = DynamicCache()
        self._indices = list(range(len(prompts.row_ids)))
        self._finished = [False] * len(prompts.row_ids)
        self._uniforms = streams(prompts.row_ids, settings.max_new_tokens).to(device)
        self._num_chosen = 0
        self._dummy = False

    def start(self, attention_mask: Bool[Tensor, "B T"]) -> None:
        """Take the slots of the prefilled prompts [B, T], padding on the left."""
        room = attention_mask.new_ones(len(attention_mask), self.settings.max_new_tokens)
        self._mask = torch.cat([attention_mask, room], dim=1)
        self._num_slots = attention_mask.shape[1]
        self._lengths = attention_mask.sum(dim=1)

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
        return 0 if self._dummy else self._finished.count(False)

    def uniforms(self) -> Float[Tensor, " A"]:
        """This token's random number of each active row."""
        return self._uniforms[:, self._num_chosen]

    def append(self, tokens: Int64[Tensor, " A"]) -> None:
        """Add one token to each active row and note which rows have ended."""
        self.last_tokens = tokens
        self._num_chosen += 1
        if self._dummy:
            return
        full = self._num_chosen == self.settings.max_new_tokens
        for place, token in enumerate(tokens.tolist()):
            self.responses[self._indices[place]].append(token)
            self._finished[place] = full or token == self.settings.eos_id

    def drop_finished(self) -> None:
        """Take ended rows out of the batch and of the cache; the last one stays while other ranks decode."""
        keep = [place for place, finished in enumerate(self._finished) if not finished]
        if self._dummy or len(keep) == len(self._finished):
            return
        if not keep:
            self._dummy, keep = True, [0]
        select = torch.tensor(keep, device=self.last_tokens.device)
        self.cache.batch_select_indices(select)
        self._indices = [self._indices[place] for place in keep]
        self._finished = [self._finished[place] for place in keep]
        self._uniforms, self._mask = self._uniforms[select], self._mask[select]
        self._lengths, self.last_tokens = self._lengths[select], self.last_tokens[select]


def _prefill(view: CausalLM, prompts: PromptBatch, rows: _ActiveRows, soft_prompt: SoftPrompt | None) -> Tensor:
    """Run the prompts through the model; hidden states of the last slot [B, 1, H]."""
    if soft_prompt is None:
        rows.start(prompts.attention_mask)
        return view.hidden_states(
            input_ids=prompts.input_ids,
            attention_mask=prompts.attention_mask,
            position_ids=prompts.position_ids,
            cache=rows.cache,
        )[:, -1:]
    embeds, mask = soft_prompt(view.embed(prompts.input_ids), prompts.attention_mask)
    rows.start(mask)
    positions = (mask.long().cumsum(dim=1) - 1).clamp_min(0)
    return view.hidden_states(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, cache=rows.cache)[
        :, -1:
    ]


def _logits(view: CausalLM, hidden: Float[Tensor, "A 1 H"], settings: DecodingSettings) -> Float[Tensor, "A V"]:
    # Only tokens that both tokenizers know: the head's padding columns are cut off.
    logits: Tensor = view.model.get_output_embeddings()(hidden[:, -1])
    return logits[:, : settings.vocabulary_size]
