"""Sections of a configuration that several commands have, and the values that a training run gives them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from kd.config.fields import Count, NonNegativeInt, Section, option
from kd.config.load import Values
from kd.config.schema import AttentionName, ColumnRole, Config
from kd.errors import UserError

SOFT_PROMPT_FILE = "soft_prompt.safetensors"
DtypeName = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Loading(Section):
    """How models are loaded."""

    dtype: DtypeName = option("auto", help="precision; auto is the checkpoint's own")
    attention: AttentionName = option("auto", help="as model.attention in training")
    trust_remote_code: bool = option(False, help="run model code that comes with a checkpoint")


@dataclass(frozen=True, kw_only=True)
class Prompts(Section):
    """How rows become prompts."""

    rows: Count | None = option(None, help="number of rows, from the start; null for all")
    columns: Mapping[ColumnRole, str] | None = option(None, help="names of columns, as data.columns in training")
    template: str = option("alpaca", help="alpaca, chat, plain, or a Jinja file, as in training")
    template_options: Mapping[str, Any] | None = option(None, help="variables of the chat template, as in training")
    system_prompt: str | None = option(None, help="system turn of conversations that have none, as in training")
    max_prompt_tokens: Count = option(256, help="longest prompt, soft prompt not included")


@dataclass(frozen=True, kw_only=True)
class Sampling(Section):
    """How responses are sampled."""

    max_new_tokens: Count = option(256, help="longest response [tokens]")
    seeds: tuple[NonNegativeInt, ...] = option((10, 20, 30, 40, 50), help="one response to each row per seed")
    max_batch_tokens: Count = option(
        16384, help="rows × (prompt + max_new_tokens) decoded together; ranks share the batches [tokens]"
    )

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"generation.seeds is {list(self.seeds)}; give at least one, each once")


@dataclass(frozen=True, kw_only=True)
class AnalysisRows(Prompts):
    rows: Count = option(1000, help="number of rows, from the start")


@dataclass(frozen=True, kw_only=True)
class AnalysisSampling(Sampling):
    micro_batch: Count = option(8, help="sequences in a forward pass that scores them")


RUN_HELP = "run.dir of a training: gives models, template and limits that are not set here"


def read_run(run: str | Path) -> Config:
    """The configuration of a training run.

    Raises:
        UserError: `run` is not a run directory, or its method cannot be imported.
    """
    from kd.methods import load_config

    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run}: has no config.yaml; give the run.dir of a training")
    return load_config(path)


def run_values(run: str | Path) -> Values:
    """Values of a run for the fields that commands have, by the names of the fields.

    The student is best/ if the run was validated, else final/.

    Raises:
        UserError: `run` is not a run directory, or its method cannot be imported.
    """
    config, directory = read_run(run), Path(run)
    best, final, pattern = directory / "best", directory / "final", config.validation.answer_pattern
    student = str(best if best.is_dir() else final)
    return {
        "model.path": student,
        "model.student": student,
        "model.teacher": config.model.teacher,
        "model.trained_prompt": str(final / SOFT_PROMPT_FILE),
        "model.attention": config.model.attention,
        "model.initial": config.model.student,
        "model.final": str(final),
        "data.template": config.data.template,
        "data.template_options": config.data.template_options,
        "data.system_prompt": config.data.system_prompt,
        "data.max_prompt_tokens": config.data.max_prompt_tokens,
        "data.max_sequence_tokens": config.data.max_sequence_tokens,
        "data.seen": config.data.train,
        "data.unseen": config.data.validation,
        "generation.max_new_tokens": config.generation.max_new_tokens,
        "answer_pattern": pattern,
        "metrics": _metrics(config),
    }


def _metrics(config: Config) -> list[str] | None:
    """The default metrics with those that the run's validation has besides; None for the default."""
    validation = config.validation
    unicode = ["rougeL_unicode"] if validation.metric == "rougeL_unicode" else []
    accuracy = [] if validation.answer_pattern is None else ["accuracy"]
    return ["rougeL", *unicode, "exact_match", *accuracy] if unicode or accuracy else None


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig(Section):
    """Fields of the analyses that sample models; a subclass extends the sections."""

    data: AnalysisRows
    generation: AnalysisSampling
    model: Loading
    resamples: Count = option(1000, help="resamples of the rows, for intervals")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the results of an analysis show."""
        sections = (self.data, self.generation, self.model)
        common = [entry.name for kind in (AnalysisRows, AnalysisSampling, Loading) for entry in fields(kind)]
        values = {name: value for section in sections for name, value in vars(section).items() if name in common}
        return values | {"resamples": self.resamples}
