"""A look at a model's numbers before a run: what the toolkit computes, against the model's own forward pass.

Model families differ in ways that no configuration tells. A few tokens tell: where the numbers differ, training or
rollouts would be wrong without an error.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from kd.data.batch import PromptBatch, PromptRow, SequenceBatch, TokenSequence
from kd.distributed import World
from kd.errors import UserError
from kd.losses.outputs import Head, Outputs
from kd.models.causal_lm import CausalLM
from kd.models.quantization import is_quantized
from kd.models.soft_prompt import response_states
from kd.rollout.kv_cache import PreallocatedCache, keeps_states
from kd.zero.memory import is_out_of_memory

TOLERANCES = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest difference, as a share of the largest value."""

_LENGTHS = (11, 7)
_NUM_DECODED = 3
_FAILURES = {
    "head": "its logits are not its output head of its last hidden states; distillation would use wrong distributions",
    "causal": "a later token changes earlier hidden states; it is no causal language model, or not configured as one",
    "embeddings": "embeddings as input give other hidden states than token ids; a soft prompt would be wrong",
    "padding": "rows padded on the left give other hidden states than single rows; rollouts would be wrong",
    "cache": "decoding with cached keys and values gives other hidden states than a full pass; rollouts would be wrong",
    "packing": "packed sequences give other hidden states than padded ones; set schedule.packing=false",
}
# What model code raises for a cache that is not of its kind.
_CACHE_ERRORS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


class UncachedError(Exception):
    """The model does not take the cache; the message says what it raised."""


def find_broken(model: nn.Module, *, values: Callable[[nn.Parameter], Tensor], world: World) -> list[str]:
    """Names of parameters with NaN or infinity; all ranks call this together.

    `values` are what a rank holds of a parameter; under ZeRO-3, its partition.
    """
    own = [name for name, parameter in model.named_parameters() if not values(parameter).isfinite().all()]
    return list(dict.fromkeys(name for names in world.gather_objects(own) for name in names))


def check_finite(
    model: nn.Module, *, name: str, world: World, values: Callable[[nn.Parameter], Tensor] = torch.Tensor.detach
) -> None:
    """Look for NaN and infinity in the weights, see `find_broken`; all ranks call this together.

    Raises:
        UserError: on all ranks, with the first tensor's name.
    """
    if broken := find_broken(model, values=values, world=world):
        others = f", and {len(broken) - 1} more tensors" if len(broken) > 1 else ""
        raise UserError(
            f"model {name}: {broken[0]} has values that are NaN or infinite{others}; expected finite weights;"
            " use another checkpoint"
        )


def check_numbers(view: CausalLM, *, head: Head, name: str, decodes: bool, packs: bool, world: World) -> None:
    """Compare a model in evaluation mode without gradient; all ranks call this together. `head` is gathered.

    Raises:
        UserError: on all ranks, where numbers differ.
    """
    if packs and keeps_states(view.model.config):
        # Numbers tell it only where the states are large.
        raise UserError(
            f"model {name}: its layers keep states, which packed sequences would share; set schedule.packing=false"
        )
    # Quantized layers have a precision of their own; in 8 bits, they round all rows of a batch by its outliers.
    tolerance = TOLERANCES[torch.bfloat16 if is_quantized(view.model.config) else view.model.dtype]
    try:
        for kind, found, expected in _comparisons(view, head=head, decodes=decodes, packs=packs):
            local = (found - expected).abs().max() / expected.abs().max()
            difference = float(world.max_across_ranks(local.float()).item())
            # A comparison with NaN is false.
            if not difference <= tolerance:
                raise UserError(
                    f"model {name}: {_FAILURES[kind]} (difference {difference:.2g} of the largest value, at most"
                    f" {tolerance:g} expected)"
                )
    except UncachedError as error:
        raise UserError(f"model {name}: {_FAILURES['cache']} ({error})") from None


def _comparisons(view: CausalLM, *, head: Head, decodes: bool, packs: bool) -> Iterator[tuple[str, Tensor, Tensor]]:
    device, vocabulary_size = view.embedding_weight.device, head.vocabulary_size
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, vocabulary_size, length).astype(np.int32) for length in _LENGTHS]
    ids = torch.from_numpy(rows[0].astype(np.int64)).to(device)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    hidden = view.hidden_states(input_ids=ids, attention_mask=mask, has_padding=False)
    own = view.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    # As the loss computes them, which a head with a forward pass of its own may not.
    values = Outputs(hidden=hidden[0], head=head).head_values()
    yield "head", head.logits(values), own[0, :, :vocabulary_size]
    prefix = view.hidden_states(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], has_padding=False)
    yield "causal", hidden[:, :-1], prefix
    embeds = view.embed(ids)
    yield "embeddings", view.hidden_states(inputs_embeds=embeds, attention_mask=mask, has_padding=False), hidden
    if decodes:
        try:
            yield from list(_decoded(view, rows, first=hidden[0]))
        except _CACHE_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise UncachedError(f"{type(error).__name__}: {' '.join(str(error).split())[:100]}") from None
    if packs:
        sequences = [TokenSequence(row_id=0, prompt_ids=row[:1], response_ids=row[1:]) for row in rows]
        padded, packed = (
            response_states(view, SequenceBatch.collate(sequences, pad_id=0, device=device, packed=packed))
            for packed in (False, True)
        )
        yield "packing", packed, padded


def _decoded(view: CausalLM, rows: list[np.ndarray], *, first: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Both rows in one batch, the last tokens one by one with a cache; `first` are the first row's hidden states."""
    device, (long, short) = first.device, rows
    lone = view.hidden_states(
        input_ids=torch.from_numpy(short.astype(np.int64)).to(device)[None],
        attention_mask=torch.ones(1, len(short), dtype=torch.bool, device=device),
        has_padding=False,
    )[0]
    expected = torch.stack([first[-_NUM_DECODED - 1 :], lone[-_NUM_DECODED - 1 :]])
    prompts = [PromptRow(row_id=0, prompt_ids=row[:-_NUM_DECODED]) for row in (long, short)]
    batch = PromptBatch.collate(prompts, pad_id=0, device=device)
    cache = PreallocatedCache(len(long), config=view.model.config)
    states = [
        view.hidden_states(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids, cache=cache
        )[:, -1]
    ]
    yield "padding", states[0], expected[:, 0]
    mask, lengths = batch.attention_mask, torch.tensor(batch.lengths, device=device)
    swap = torch.tensor([1, 0], device=device)
    for number in range(_NUM_DECODED):
        # Rows change their places in the batch, as they do when others leave it: with all that is kept of them.
        rows, states = rows[::-1], [state[swap] for state in states]
        mask, lengths, expected = mask[swap], lengths[swap], expected[swap]
        cache.batch_select_indices(swap)
        token = torch.tensor([[row[number - _NUM_DECODED]] for row in rows], device=device).long()
        mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
        positions = (lengths + number)[:, None]
        states.append(
            view.hidden_states(input_ids=token, attention_mask=mask, position_ids=positions, cache=cache)[:, -1]
        )
    yield "cache", torch.stack(states, dim=1), expected
