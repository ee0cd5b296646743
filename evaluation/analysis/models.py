"""Models that are compared on the same token ids, and the checks that come before their weights are loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from evaluation.models import EvaluatedModel, check_positions, load_model
from evaluation.settings import Loading
from kd.distributed import World
from kd.models.causal_lm import read_model_config
from kd.models.soft_prompt import SoftPrompt
from kd.models.vocabulary import check_same_entries, load_tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelSet:
    """A teacher and its students with one tokenizer; none of them is loaded yet."""

    tokenizer: PreTrainedTokenizerBase
    configs: dict[str, PretrainedConfig]
    loading: Loading
    world: World

    def check_lengths(self, longest: int) -> None:
        """Check that every model has a position for each of `longest` tokens.

        Raises:
            UserError: one has fewer.
        """
        for name, config in self.configs.items():
            check_positions(config, name=name, longest=longest)

    def load(self, name: str, *, soft_prompt: SoftPrompt | None = None) -> EvaluatedModel:
        """Load one of the models on this rank; all ranks call it together.

        Raises:
            UserError: on every rank, if its weights cannot be used.
        """
        with self.world.agreed():
            return load_model(
                name,
                config=self.configs[name],
                soft_prompt=soft_prompt,
                tokenizer=self.tokenizer,
                loading=self.loading,
                world=self.world,
            )


def find_models(teacher: str, students: Sequence[str], *, loading: Loading, world: World) -> ModelSet:
    """Read configurations and tokenizers of all models.

    Raises:
        UserError: one cannot be read, or tokenizers differ.
    """
    trust = loading.trust_remote_code
    names = list(dict.fromkeys([teacher, *students]))
    configs = {name: read_model_config(name, trust_remote_code=trust) for name in names}
    tokenizer = load_tokenizer(teacher, trust_remote_code=trust)
    for name in names[1:]:
        check_same_entries(load_tokenizer(name, trust_remote_code=trust), tokenizer)
    return ModelSet(tokenizer=tokenizer, configs=configs, loading=loading, world=world)
