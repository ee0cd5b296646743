"""Models that are compared on the same token ids, and what can be checked of them before weights are loaded."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from evaluation.command_options import AnalysisOptions
from evaluation.limits import row_limits
from evaluation.model import EvaluatedModel, check_positions, choose_dtype, load_model
from kd.data.encoding import Encoded, encode
from kd.data.instructions import read_instructions
from kd.data.templates import load_template
from kd.distributed import World
from kd.models.causal_lm import read_model_config
from kd.models.soft_prompt import SoftPrompt
from kd.models.vocabulary import check_same_entries, load_tokenizer, vocabulary_size


@dataclass(frozen=True, kw_only=True, eq=False)
class Lineup:
    """A teacher and its students, none of them loaded yet."""

    tokenizer: PreTrainedTokenizerBase
    options: AnalysisOptions
    configs: dict[str, PretrainedConfig]

    @property
    def vocabulary(self) -> int:
        """Entries of the tokenizer that all models share."""
        return vocabulary_size(self.tokenizer)

    @property
    def eos_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def read(
        self, source: str, *, responses: Literal["required", "optional"], max_sequence_tokens: int = sys.maxsize
    ) -> Encoded:
        """Turn the first rows of a file into token ids; rows with longer prompts are left out.

        Raises:
            UserError: the file or a row cannot be used, no prompt is short enough, or the limits contradict each other.
        """
        options = self.options
        limits = row_limits(
            template=options.template,
            max_prompt_tokens=options.max_prompt_tokens,
            max_sequence_tokens=max_sequence_tokens,
        )
        return encode(
            read_instructions(source)[: options.rows],
            tokenizer=self.tokenizer,
            template=load_template(options.template, tokenizer=self.tokenizer),
            data=limits,
            responses=responses,
        )

    def check_lengths(self, longest: int) -> None:
        """Check that every model has a position for each of `longest` tokens.

        Raises:
            UserError: one has fewer.
        """
        for name, config in self.configs.items():
            check_positions(config, name=name, longest=longest)

    def load(self, name: str, *, world: World, soft_prompt: SoftPrompt | None = None) -> EvaluatedModel:
        """Load one of the models on this rank.

        Raises:
            UserError: on every rank, if its weights cannot be used.
        """
        with world.agreed():
            return load_model(
                name,
                config=self.configs[name],
                soft_prompt=soft_prompt,
                tokenizer=self.tokenizer,
                dtype=choose_dtype(self.options.dtype, config=self.configs[name]),
                trust_remote_code=self.options.trust_remote_code,
                world=world,
            )


def line_up(teacher: str, students: Sequence[str], *, options: AnalysisOptions) -> Lineup:
    """Read configurations and tokenizers of all models.

    Raises:
        UserError: one cannot be read, or tokenizers differ.
    """
    trust = options.trust_remote_code
    names = list(dict.fromkeys([teacher, *students]))
    configs = {name: read_model_config(name, trust_remote_code=trust) for name in names}
    tokenizer = load_tokenizer(teacher, trust_remote_code=trust)
    for name in names[1:]:
        check_same_entries(load_tokenizer(name, trust_remote_code=trust), tokenizer)
    return Lineup(tokenizer=tokenizer, options=options, configs=configs)
