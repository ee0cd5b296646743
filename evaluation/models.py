"""An evaluated model: a plain Hugging Face model on each rank, with or without a soft prompt."""

import sys
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from evaluation.settings import DtypeName, Loading
from kd.data.batch import SequenceBatch, TokenIds
from kd.distributed import World
from kd.errors import UserError
from kd.losses.outputs import Head, Outputs
from kd.models.causal_lm import DTYPES, CausalLM, load_causal_lm
from kd.models.soft_prompt import SoftPrompt
from kd.models.vocabulary import vocabulary_size


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedModel:
    """A model that is sampled or scored; `soft_prompt` is None for a model alone."""

    view: CausalLM
    soft_prompt: SoftPrompt | None
    tokenizer: PreTrainedTokenizerBase
    world: World
    """The ranks, each of which has the whole model."""

    @property
    def vocabulary_size(self) -> int:
        """Entries of the tokenizer; the head may have more."""
        return vocabulary_size(self.tokenizer)

    @property
    def eos_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def num_soft_tokens(self) -> int:
        return 0 if self.soft_prompt is None else self.soft_prompt.num_tokens

    def outputs(self, batch: SequenceBatch) -> Outputs:
        """Outputs at the response positions, with the soft prompt in front of the prompt where there is one."""
        if self.soft_prompt is None:
            hidden = self.view.hidden_states(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        else:
            embeds, mask = self.soft_prompt(self.view.embed(batch.input_ids), batch.attention_mask)
            hidden = self.view.hidden_states(inputs_embeds=embeds, attention_mask=mask)
        head = Head(
            weight=self.view.head_weight, bias=self.view.head_bias, vocabulary_size=vocabulary_size(self.tokenizer)
        )
        return Outputs(hidden=hidden.flatten(0, 1)[batch.shifted_positions(self.num_soft_tokens)], head=head)

    def text(self, token_ids: TokenIds) -> str:
        """The text of a response, without special tokens."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))


def choose_dtype(name: DtypeName, *, config: PretrainedConfig) -> str:
    """fp32, bf16 or fp16: as asked, or the checkpoint's own (fp32 where it names none, or for fp16 on a CPU).

    Raises:
        UserError: a precision that the device lacks.
    """
    on_gpu = torch.cuda.is_available()
    if name == "auto":
        own = next((known for known, dtype in DTYPES.items() if dtype == config.dtype), "fp32")
        return "fp32" if own == "fp16" and not on_gpu else own
    if name == "fp16" and not on_gpu:
        raise UserError("model.dtype=fp16 needs a GPU; use fp32 or bf16 on a CPU")
    if name == "bf16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise UserError("model.dtype=bf16 is not supported by this GPU; use fp16")
    return name


def load_model(
    name: str,
    *,
    config: PretrainedConfig,
    soft_prompt: SoftPrompt | None = None,
    tokenizer: PreTrainedTokenizerBase,
    loading: Loading,
    world: World,
) -> EvaluatedModel:
    """Load the whole model on this rank's device.

    Raises:
        UserError: a precision that the device lacks, unreadable weights, fewer entries than the tokenizer has, or a
            soft prompt of another width.
    """
    if not (world.is_main and sys.stderr.isatty()):
        logging.disable_progress_bar()
    # Inside the device's context, weights go from the files to the device without a copy on the host.
    with world.device:
        model = load_causal_lm(
            name,
            config=config,
            dtype=choose_dtype(loading.dtype, config=config),
            deepspeed_config={},
            keep_dropout=True,
            trust_remote_code=loading.trust_remote_code,
        )
    model.train(False).requires_grad_(False)
    entries, width = cast(nn.Embedding, model.get_input_embeddings()).weight.shape
    if entries < vocabulary_size(tokenizer):
        raise UserError(
            f"model {name}: has embeddings for {entries} tokens, its tokenizer has {vocabulary_size(tokenizer)};"
            " use the tokenizer it was trained with"
        )
    if soft_prompt is not None and soft_prompt.values.shape[1] != width:
        raise UserError(
            f"soft prompt: its vectors have {soft_prompt.values.shape[1]} numbers, the embeddings of {name} have"
            f" {width}; give the teacher that it was trained with"
        )
    on_device = None if soft_prompt is None else soft_prompt.to(world.device)
    return EvaluatedModel(view=CausalLM.of(model), soft_prompt=on_device, tokenizer=tokenizer, world=world)


def check_positions(config: PretrainedConfig, *, name: str, longest: int) -> None:
    """Check that the model has a position for each of the `longest` tokens of soft prompt, prompt and response.

    Raises:
        UserError: it has fewer.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < longest:
        raise UserError(
            f"model {name}: has {positions} positions, prompts and responses together need {longest};"
            " lower data.max_prompt_tokens, or the limits of responses or sequences"
        )
