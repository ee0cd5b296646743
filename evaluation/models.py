"""Evaluated models: their checks without weights, then a plain Hugging Face model on each rank."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from evaluation.settings import Loading
from kd.data.batch import SequenceBatch, TokenIds
from kd.distributed import World, on_gpu
from kd.errors import UserError
from kd.losses.outputs import Outputs
from kd.models.adapter_folder import describe_adapter
from kd.models.causal_lm import DTYPES, CausalLM, load_causal_lm, read_model_config
from kd.models.soft_prompt import SoftPrompt, response_states
from kd.models.vocabulary import (
    check_dtype,
    check_model,
    check_same_entries,
    end_ids,
    load_tokenizer,
    published_ends,
    vocabulary_size,
)
from kd.rollout.probe import check_finite, check_numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedModel:
    """A model that is sampled or scored; `soft_prompt` is None for a model alone."""

    view: CausalLM
    soft_prompt: SoftPrompt | None
    tokenizer: PreTrainedTokenizerBase
    world: World
    """The ranks, each with all of the model's weights."""

    @property
    def vocabulary_size(self) -> int:
        """Entries of the tokenizer; the head may have more."""
        return vocabulary_size(self.tokenizer)

    @property
    def eos_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end a response: the tokenizer's, and those of the model's generation_config.json."""
        return end_ids(self.tokenizer, published_ends(self.view.model.generation_config))

    @property
    def num_soft_tokens(self) -> int:
        return 0 if self.soft_prompt is None else self.soft_prompt.num_tokens

    def outputs(self, batch: SequenceBatch) -> Outputs:
        """Outputs at the response positions, with the soft prompt in front of the prompt where there is one."""
        hidden = response_states(self.view, batch, soft_prompt=self.soft_prompt)
        return Outputs(hidden=hidden, head=self.view.head(vocabulary_size=self.vocabulary_size))

    def text(self, token_ids: TokenIds) -> str:
        """The text of a response, without special tokens."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelSet:
    """Models with one tokenizer, whose weights are not loaded yet."""

    tokenizer: PreTrainedTokenizerBase
    configs: dict[str, PretrainedConfig]
    """By directory or hub name."""
    loading: Loading
    world: World

    def check_lengths(self, longest: int) -> None:
        """Check that every model has a position for each of `longest` tokens, its soft prompt included.

        Raises:
            UserError: one has fewer, or fewer entries than the tokenizer.
        """
        for name, config in self.configs.items():
            check_model(config, name=name, vocabulary=vocabulary_size(self.tokenizer), longest=longest)

    def dtype(self, name: str) -> str:
        """fp32, bf16 or fp16: as asked, or the checkpoint's own (fp32 where it names none, or for fp16 on a CPU).

        Raises:
            UserError: a precision that the device lacks.
        """
        if self.loading.dtype == "auto":
            own = next((known for known, dtype in DTYPES.items() if dtype == self.configs[name].dtype), "fp32")
            return "fp32" if own == "fp16" and not on_gpu() else own
        check_dtype(self.loading.dtype)
        return self.loading.dtype

    def load(self, name: str, *, soft_prompt: SoftPrompt | None = None, decodes: bool = True) -> EvaluatedModel:
        """Load one of the models on each rank's device; all ranks call it together.

        Args:
            decodes: False for a model that only scores responses.

        Raises:
            UserError: on every rank, if the device lacks the precision, the weights cannot be read or are not finite,
                the soft prompt has another width, or the family's numbers would be wrong.
        """
        if not (self.world.is_main and sys.stderr.isatty()):
            logging.disable_progress_bar()
        for line in describe_adapter(name) if self.world.is_main else ():
            print(line, file=sys.stderr)
        with self.world.agreed():
            model = load_causal_lm(
                name,
                config=self.configs[name],
                dtype=self.dtype(name),
                deepspeed_config={},
                keep_dropout=True,
                trust_remote_code=self.loading.trust_remote_code,
            )
            model.train(False).requires_grad_(False)
            width = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[1]
            if soft_prompt is not None and soft_prompt.values.shape[1] != width:
                raise UserError(
                    f"soft prompt: its vectors have {soft_prompt.values.shape[1]} numbers, the embeddings of {name}"
                    f" have {width}; give the teacher that it was trained with"
                )
        view, world = CausalLM.of(model), self.world
        check_finite(model, name=name, world=world)
        with torch.no_grad():
            size = vocabulary_size(self.tokenizer)
            head = view.head(vocabulary_size=size)
            check_numbers(view, head=head, name=name, decodes=decodes, packs=False, world=world)
        on_device = None if soft_prompt is None else soft_prompt.to(world.device)
        return EvaluatedModel(view=view, soft_prompt=on_device, tokenizer=self.tokenizer, world=world)


def find_models(names: Sequence[str], *, loading: Loading, world: World) -> ModelSet:
    """Read the configurations and tokenizers of models; a teacher comes before its students.

    Raises:
        UserError: one cannot be read, or tokenizers differ.
    """
    trust = loading.trust_remote_code
    configs = {name: read_model_config(name, trust_remote_code=trust, attention=loading.attention) for name in names}
    first, *others = (load_tokenizer(name, trust_remote_code=trust) for name in configs)
    for other in others:
        check_same_entries(other, first)
    return ModelSet(tokenizer=first, configs=configs, loading=loading, world=world)
