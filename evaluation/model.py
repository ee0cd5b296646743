"""The evaluated model: a plain Hugging Face model on each rank, with or without a soft prompt."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from evaluation.options import DtypeName
from kd.distributed import World
from kd.engines.causal_lm import DTYPES, CausalLM, load_causal_lm
from kd.engines.soft_prompt import SoftPrompt, load_soft_prompt
from kd.engines.vocabulary import vocabulary_size
from kd.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedModel:
    """Everything that decoding needs; `soft_prompt` is None for a model alone."""

    view: CausalLM
    soft_prompt: SoftPrompt | None
    tokenizer: PreTrainedTokenizerBase

    @property
    def vocabulary_size(self) -> int:
        """Real entries of the tokenizer; a head's padding beyond them is never generated."""
        return vocabulary_size(self.tokenizer)

    @property
    def num_prompt_slots(self) -> int:
        """M, slots that the soft prompt takes in front of each row."""
        return 0 if self.soft_prompt is None else self.soft_prompt.num_tokens


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
        raise UserError("--dtype fp16 needs a GPU; use fp32 or bf16 on a CPU")
    if name == "bf16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise UserError("--dtype bf16 is not supported by this GPU; use fp16")
    return name


def load_model(
    name: str,
    *,
    soft_prompt: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str,
    trust_remote_code: bool,
    world: World,
) -> EvaluatedModel:
    """Load the whole model on this rank's device.

    Raises:
        UserError: unreadable weights, fewer entries than the tokenizer, or a soft prompt of another width.
    """
    if not (world.is_main and sys.stderr.isatty()):
        logging.disable_progress_bar()
    # Inside the device's context, weights go from the files to the device without a copy on the host.
    with world.device:
        model = load_causal_lm(
            name, dtype=dtype, deepspeed_config={}, keep_dropout=False, trust_remote_code=trust_remote_code
        )
    model.eval().requires_grad_(False)
    entries, width = model.get_input_embeddings().weight.shape
    if entries < vocabulary_size(tokenizer):
        raise UserError(
            f"model {name}: knows {entries} tokens, its tokenizer {vocabulary_size(tokenizer)};"
            " use the tokenizer it was trained with"
        )
    prompt = None
    if soft_prompt is not None:
        prompt, origin = load_soft_prompt(soft_prompt)
        if prompt.values.shape[1] != width:
            made_for = f" (made for {origin.teacher})" if origin.teacher else ""
            raise UserError(
                f"soft prompt {soft_prompt}{made_for}: its vectors have {prompt.values.shape[1]} numbers, the embeddings"
                f" of {name} have {width}; give the teacher it was trained with as --model"
            )
        prompt = prompt.to(world.device)
    return EvaluatedModel(view=CausalLM.of(model), soft_prompt=prompt, tokenizer=tokenizer)


def check_positions(config: PretrainedConfig, *, name: str, longest: int) -> None:
    """Refuse sequences (prompts with soft prompt and response) of `longest` tokens if the model has fewer positions.

    Raises:
        UserError: as said.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < longest:
        raise UserError(
            f"model {name}: has {positions} positions, prompts and responses together ask for {longest};"
            " lower --max-new-tokens or --max-prompt-tokens"
        )
