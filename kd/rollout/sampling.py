"""The next token of each row: greedy, or drawn after processors that are called as in transformers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

BLOCK = 256
"""Entries of the vocabulary that are summed together while a token is drawn."""


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """How responses are made: `greedy`, or sampling after the processors, in the order of the fields below."""

    max_new_tokens: int
    vocabulary_size: int
    end_ids: tuple[int, ...]
    """Tokens that end a response."""
    greedy: bool = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def reads_history(self) -> bool:
        """Whether the choice depends on the tokens before, beyond what the model makes of them."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0


def choose_tokens(
    logits: Float[Tensor, "B V"],
    uniforms: Float[Tensor, " B"],
    *,
    settings: DecodingSettings,
    history: Sequence[Sequence[int]] | None = None,
) -> Int64[Tensor, " B"]:
    """One token per row: the most likely one, or the one where the row's uniform number in [0, 1) falls.

    `history` has all tokens of each row so far, prompt included; it is needed where `settings.reads_history`.
    """
    logits = logits.float()
    if settings.reads_history:
        if history is None:
            raise ValueError("a repetition penalty or n-gram block needs the rows' history")
        logits = _discourage_repetition(logits, history, settings=settings)
    if settings.greedy:
        return logits.argmax(dim=-1)
    if settings.temperature != 1:
        logits = logits / settings.temperature
    if settings.top_k:
        least = logits.topk(min(settings.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if settings.top_p < 1:
        logits = _keep_nucleus(logits, top_p=settings.top_p)
    if settings.min_p > 0:
        probability = logits.softmax(dim=-1)
        logits = logits.masked_fill(probability < settings.min_p * probability.amax(-1, keepdim=True), -torch.inf)
    return _draw(logits, uniforms)


def mixture_log_probs(
    student: Float[Tensor, "A V"], teacher: Float[Tensor, "A V"], *, teacher_share: float
) -> Float[Tensor, "A V"]:
    """log(α·p + (1-α)·q) in float32 from both models' logits."""
    return torch.logaddexp(
        functional.log_softmax(teacher, dim=-1, dtype=torch.float32) + math.log(teacher_share),
        functional.log_softmax(student, dim=-1, dtype=torch.float32) + math.log1p(-teacher_share),
    )


def _draw(logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """Inverse transform sampling in two levels: which block of the vocabulary, then which entry of it.

    Sums are float64: a running sum of 50,000 float32 probabilities is off by more than the rare tokens have.
    In two levels only the block sums and one block are float64, and not the vocabulary.
    """
    width = logits.shape[-1]
    weights = logits.new_zeros(len(logits), -(-width // BLOCK) * BLOCK)
    torch.exp(logits - logits.amax(dim=-1, keepdim=True), out=weights[:, :width])
    blocks = weights.view(len(logits), -1, BLOCK)
    ends = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    # Strictly below the total, so that the chosen block and token have a probability above 0.
    below_one = 1 - 2**-40
    threshold = uniforms.to(ends)[:, None] * (ends[:, -1:] * below_one)
    # Logits that are not finite have no such block: any token does, since the loss on them ends the run.
    block = torch.searchsorted(ends, threshold, right=True).clamp_max(blocks.shape[1] - 1)
    start = functional.pad(ends, (1, 0)).gather(1, block)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).squeeze(1).double().cumsum(dim=-1)
    # The two levels round differently: the threshold must stay inside the chosen block.
    threshold = (threshold - start).clamp_min(0).minimum(inside[:, -1:] * below_one)
    return (block * BLOCK + torch.searchsorted(inside, threshold, right=True)).clamp_max(width - 1).squeeze(1)


def _keep_nucleus(logits: Float[Tensor, "B V"], *, top_p: float) -> Float[Tensor, "B V"]:
    """Logits with -inf outside the smallest set of most likely tokens of probability `top_p`."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability
    # The most likely token stays whatever top_p is: nothing comes before it.
    ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(ordered).scatter_(1, order, ordered)


def _discourage_repetition(
    logits: Float[Tensor, "B V"], history: Sequence[Sequence[int]], *, settings: DecodingSettings
) -> Float[Tensor, "B V"]:
    """Apply repetition penalty and n-gram block row by row: rows have no padding there, whatever the batch."""
    rows = []
    block_ngrams = NoRepeatNGramLogitsProcessor(max(1, settings.no_repeat_ngram_size))
    for scores, ids in zip(logits.split(1), history, strict=True):
        # Tokens beyond the shared vocabulary cannot be chosen anyway.
        seen = torch.tensor([[token for token in ids if token < scores.shape[-1]]], device=logits.device)
        if (penalty := settings.repetition_penalty) != 1:
            values = scores.gather(1, seen)
            scores = scores.scatter(1, seen, torch.where(values < 0, values * penalty, values / penalty))
        if settings.no_repeat_ngram_size:
            scores = block_ngrams(seen, scores)
        rows.append(scores)
    return torch.cat(rows)
