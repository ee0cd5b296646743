"""The soft prompt P: m embedding vectors in front of the request (arXiv 2402.12842, §3)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from kd.config.schema import SoftPromptConfig
from kd.data.batch import SequenceBatch, restarting
from kd.errors import UserError
from kd.models.causal_lm import CausalLM

FILE_NAME = "soft_prompt.safetensors"
_TENSOR_NAME = "soft_prompt"


@dataclass(frozen=True, kw_only=True)
class SoftPromptOrigin:
    """The origin of a soft prompt, stored with its values."""

    teacher: str
    init: str
    init_text: str


class SoftPrompt(nn.Module):
    """Trainable embeddings `values` [M, H] in fp32, independent of the model family."""

    def __init__(self, values: Float[Tensor, "M H"]) -> None:
        super().__init__()
        self.num_tokens = values.shape[0]
        self.values = nn.Parameter(values.detach().float().clone())

    def forward(
        self, inputs_embeds: Float[Tensor, "B T H"], attention_mask: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B {self.num_tokens}+T H"], Bool[Tensor, "B {self.num_tokens}+T"]]:
        """Put P next to the text: PAD … PAD, P, x with padding on the left; P, x, PAD … on the right."""
        (num_rows, width, hidden), m = inputs_embeds.shape, self.num_tokens
        start = attention_mask.long().argmax(dim=1, keepdim=True)
        slot = torch.arange(m + width, device=inputs_embeds.device).expand(num_rows, -1)
        # Indices into [P, text]: text slot t stands at m + t.
        source = torch.where(slot < start, slot + m, torch.where(slot < start + m, slot - start, slot))
        prompts = self.values.expand(num_rows, -1, -1).to(inputs_embeds.dtype)
        embeds = torch.cat([prompts, inputs_embeds], dim=1).gather(1, source[:, :, None].expand(-1, -1, hidden))
        mask = torch.cat([attention_mask.new_ones(num_rows, m), attention_mask], dim=1).gather(1, source)
        return embeds, mask

    def packed(
        self, inputs_embeds: Float[Tensor, "1 T H"], lengths: Sequence[int]
    ) -> tuple[Float[Tensor, "1 S H"], Int64[Tensor, "1 S"]]:
        """Put P before each packed sequence; also the positions of all slots, which restart with each P."""
        m, device = self.num_tokens, inputs_embeds.device
        # Indices into [P, text]: text slot t stands at m + t.
        ends = np.cumsum(lengths)
        parts = [(np.arange(m), np.arange(m + end - size, m + end)) for size, end in zip(lengths, ends, strict=True)]
        source = torch.from_numpy(np.concatenate([part for pair in parts for part in pair])).to(device)
        both = torch.cat([self.values.to(inputs_embeds.dtype), inputs_embeds[0]])
        return both[source][None], restarting([m + size for size in lengths], device=device)


def response_states(
    view: CausalLM, batch: SequenceBatch, *, soft_prompt: SoftPrompt | None = None
) -> Float[Tensor, "N H"]:
    """The hidden states that predict the response tokens, with the soft prompt before each sequence if there is one."""
    mask, positions = batch.attention_mask, batch.position_ids
    if soft_prompt is None:
        states = view.hidden_states(
            input_ids=batch.input_ids, attention_mask=mask, position_ids=positions, has_padding=False
        )
        return states.flatten(0, 1)[batch.response_positions]
    embeds = view.embed(batch.input_ids)
    if batch.packed_lengths is not None:
        embeds, positions = soft_prompt.packed(embeds, batch.packed_lengths)
    elif mask is not None:
        embeds, mask = soft_prompt(embeds, mask)
    states = view.hidden_states(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, has_padding=False)
    return states.flatten(0, 1)[batch.shifted_positions(soft_prompt.num_tokens)]


def initial_token_ids(settings: SoftPromptConfig, *, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The m token ids whose embeddings P starts from: the text repeated or truncated, or the padding token.

    Raises:
        UserError: the text has no tokens, or there is no padding token.
    """
    if settings.init == "padding":
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if pad_id is None:
            raise UserError("prompt.init=padding: the tokenizer has neither a padding nor an end token; use text")
        return [pad_id] * settings.length
    ids = list(tokenizer(settings.init_text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise UserError("prompt.init_text has no tokens; give some text, or prompt.init=random")
    return [ids[index % len(ids)] for index in range(settings.length)]


def initial_values(
    settings: SoftPromptConfig, *, embedding_weight: Float[Tensor, "V H"], tokenizer: PreTrainedTokenizerBase, seed: int
) -> Float[Tensor, "M H"]:
    """Starting values of P from the teacher's (gathered) embedding matrix."""
    if settings.init == "random":
        # As large as the model's own embeddings: attention would ignore smaller vectors.
        scale = embedding_weight.float().std().item()
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(settings.length, embedding_weight.shape[1], generator=generator) * scale
    ids = initial_token_ids(settings, tokenizer=tokenizer)
    return embedding_weight[torch.tensor(ids, device=embedding_weight.device)].float().cpu()


def save_soft_prompt(values: Float[Tensor, "M H"], path: Path, *, origin: SoftPromptOrigin) -> None:
    """Write P [M, H] with its text, length and teacher name as safetensors."""
    metadata = asdict(origin) | {"length": str(values.shape[0])}
    save_file({_TENSOR_NAME: values.detach().float().cpu().contiguous()}, path, metadata=metadata)


def load_soft_prompt(path: Path | str) -> tuple[SoftPrompt, SoftPromptOrigin]:
    """Read what `save_soft_prompt` wrote.

    Raises:
        UserError: no such file, or another kind of file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            values = file.get_tensor(_TENSOR_NAME)
    except (OSError, SafetensorError) as error:
        raise UserError(f"soft prompt {path}: cannot be read ({error}); expected a {FILE_NAME} of a run") from None
    origin = {entry.name: metadata.get(entry.name, "") for entry in fields(SoftPromptOrigin)}
    return SoftPrompt(values), SoftPromptOrigin(**origin)
