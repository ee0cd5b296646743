"""The configuration of `evaluation/evaluate.py`: what to evaluate, how to decode, and how to score."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from evaluation.settings import RUN_HELP, Loading, Prompts, Sampling
from kd.config.fields import MixtureShare, NonNegativeInt, PositiveFloat, Probability, Section, option, required
from kd.errors import UserError
from kd.text_metrics import METRICS, Metric, find_metric

_ACCURACY = "accuracy"


@dataclass(frozen=True, kw_only=True)
class ModelSection(Loading):
    path: str = required(help="from_pretrained directory or hub name")
    soft_prompt: Path | None = option(
        None, help="soft_prompt.safetensors of a run; the model is then the run's teacher"
    )


@dataclass(frozen=True, kw_only=True)
class BenchmarkSection(Prompts):
    benchmarks: dict[str, str] = required(
        help="NAME: FILE of rows with references, or a hub name; the flag is repeated"
    )
    overlong: Literal["drop", "truncate"] = option(
        "drop", help="rows with a longer prompt: drop them, or keep the prompt's last tokens"
    )


@dataclass(frozen=True, kw_only=True)
class DecodingSection(Sampling):
    greedy: bool = option(False, help="take the most likely token; all seeds then agree")
    temperature: PositiveFloat = option(1.0, help="logits are divided by this before sampling")
    top_p: Probability = option(1.0, help="smallest set with this probability; 1 disables it")
    top_k: NonNegativeInt = option(0, help="sample from the k most likely tokens; 0 disables it")
    min_p: MixtureShare = option(0.0, help="least probability, as a share of the largest; 0 disables it")
    repetition_penalty: PositiveFloat = option(1.0, help="on tokens of prompt and response; 1 disables it")
    no_repeat_ngram_size: NonNegativeInt = option(0, help="no n tokens come twice; 0 disables it")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide a response, except for its seed."""
        return {name: value for name, value in asdict(self).items() if name not in ("seeds", "max_batch_tokens")}


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """What to evaluate, how to decode, and where to write."""

    run: Path | None = option(None, help=RUN_HELP)
    model: ModelSection
    data: BenchmarkSection
    generation: DecodingSection = DecodingSection()
    metrics: tuple[str, ...] = option(("rougeL", "exact_match"), help=f"of {', '.join([*METRICS, _ACCURACY])}")
    answer_pattern: str | None = option(
        None, help="accuracy: regular expression whose first group is the answer in response and reference"
    )
    out: Path = required(help="directory for generations/<name>/seed-<s>.jsonl and results.json")

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS and name != _ACCURACY:
                raise UserError(f"metrics: {name!r} is none of {', '.join([*METRICS, _ACCURACY])}")
        self.find_metrics()

    def find_metrics(self) -> dict[str, Metric]:
        """The metrics by their names.

        Raises:
            UserError: accuracy without a pattern, or with one that is not a regular expression.
        """
        return {name: find_metric(name, answer_pattern=self.answer_pattern) for name in self.metrics}

    @property
    def decoding(self) -> dict[str, Any]:
        """The settings that decide responses, as results.json has them."""
        prompts = {name: getattr(self.data, name) for name in ("max_prompt_tokens", "template", "overlong")}
        return self.generation.settings | prompts
