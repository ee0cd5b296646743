"""The configuration of `evaluation/evaluate.py`: what to evaluate, how to decode, and how to score."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from evaluation.command import flag
from evaluation.settings import RUN_HELP, Loading, Prompts, Sampling
from kd.config.fields import MixtureShare, NonNegativeInt, PositiveFloat, Probability, Section, help_text
from kd.errors import UserError
from kd.text_metrics import METRICS, Metric, find_metric

_ACCURACY = "accuracy"


@dataclass(frozen=True, kw_only=True)
class ModelSection(Loading):
    path: str = field(metadata=flag("--model", "from_pretrained directory or hub name"))
    soft_prompt: Path | None = field(
        default=None, metadata=help_text("soft_prompt.safetensors of a run; the model is then the run's teacher")
    )


@dataclass(frozen=True, kw_only=True)
class BenchmarkSection(Prompts):
    benchmarks: dict[str, str] = field(
        metadata=flag("--benchmark", "NAME: FILE of rows with references, or a hub name; the flag is repeated")
    )
    overlong: Literal["drop", "truncate"] = field(
        default="drop", metadata=help_text("rows with a longer prompt: drop them, or keep the prompt's last tokens")
    )


@dataclass(frozen=True, kw_only=True)
class DecodingSection(Sampling):
    greedy: bool = field(default=False, metadata=help_text("take the most likely token; all seeds then agree"))
    temperature: PositiveFloat = field(default=1.0, metadata=help_text("logits are divided by this before sampling"))
    top_p: Probability = field(default=1.0, metadata=help_text("smallest set with this probability; 1 disables it"))
    top_k: NonNegativeInt = field(default=0, metadata=help_text("sample from the k most likely tokens; 0 disables it"))
    min_p: MixtureShare = field(
        default=0.0, metadata=help_text("least probability, as a share of the largest; 0 disables it")
    )
    repetition_penalty: PositiveFloat = field(
        default=1.0, metadata=help_text("on tokens of prompt and response; 1 disables it")
    )
    no_repeat_ngram_size: NonNegativeInt = field(default=0, metadata=help_text("no n tokens come twice; 0 disables it"))


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """What to evaluate, how to decode, and where to write."""

    run: Path | None = field(default=None, metadata=RUN_HELP)
    model: ModelSection
    data: BenchmarkSection
    generation: DecodingSection = DecodingSection()
    metrics: tuple[str, ...] = field(
        default=("rougeL", "exact_match"), metadata=help_text(f"of {', '.join([*METRICS, _ACCURACY])}")
    )
    answer_pattern: str | None = field(
        default=None,
        metadata=help_text("accuracy: regular expression whose first group is the answer in response and reference"),
    )
    out: Path = field(metadata=help_text("directory for generations/<name>/seed-<s>.jsonl and results.json"))

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
        choice = asdict(self.generation)
        del choice["seeds"], choice["max_batch_tokens"]
        prompts = {name: getattr(self.data, name) for name in ("max_prompt_tokens", "template", "overlong")}
        return {"max_new_tokens": choice.pop("max_new_tokens"), **prompts, **choice}
