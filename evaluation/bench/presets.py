"""Shapes of measurements: models, batches and lengths, without real weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, TypeAdapter
from transformers import AutoConfig, PretrainedConfig

from kd.errors import UserError

Role = Literal["teacher", "student"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One method with one way to partition its models."""

    method: str
    zero_stage: int
    gather: str = "auto"
    """As `engine.gather`."""

    @property
    def name(self) -> str:
        gather = "" if self.gather == "auto" else f" gather={self.gather}"
        return f"{self.method} ZeRO-{self.zero_stage}{gather}"

    def file(self, out: Path) -> Path:
        """The configuration of its run."""
        return out / "models" / f"{self.name.replace(' ', '-')}.yaml"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The pair of models and the batch of each rank."""

    family: str
    """A model type of transformers; its configuration takes the sizes below by its own names."""
    teacher: Mapping[str, int | float]
    student: Mapping[str, int | float]
    dtype: Literal["bf16", "fp32"]
    vocabulary: int
    prompt_tokens: tuple[int, int]
    """Shortest and longest x; lengths are drawn uniformly."""
    new_tokens: int
    """Length of every y, except for the rare one that a random model ends by itself."""
    micro_batch: int
    micro_batches: int
    """Micro-batches of each rank in a step."""
    gradient_checkpointing: bool = False

    @property
    def end_id(self) -> int:
        """The end-of-sequence token: the last of the vocabulary."""
        return self.vocabulary - 1

    def model_config(self, role: Role) -> PretrainedConfig:
        """Configuration of the teacher or of the student."""
        sizes = self.teacher if role == "teacher" else self.student
        special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), self.end_id)
        return AutoConfig.for_model(self.family, vocab_size=self.vocabulary, **special, **sizes)

    def run_config(self, case: Case, *, num_steps: int, num_ranks: int, out: Path) -> dict[str, Any]:
        """The run of one case in `out`, which has what `write_inputs` writes in models/."""
        models, num_tokens = out / "models", self.prompt_tokens[1] + self.new_tokens
        # A frozen teacher has no optimizer state or gradients that stages 1 and 2 could partition.
        teacher_stage = 3 if case.zero_stage == 3 else 0
        return {
            "method": case.method,
            "model": {
                "student": str(models / "student"),
                "teacher": None if case.method == "sft" else str(models / "teacher"),
                "dtype": self.dtype,
                "gradient_checkpointing": self.gradient_checkpointing,
            },
            "data": {
                "train": str(models / "rows.jsonl"),
                "template": str(models / "template.jinja"),
                "max_prompt_tokens": self.prompt_tokens[1],
                "max_sequence_tokens": num_tokens,
            },
            "generation": {"max_new_tokens": self.new_tokens},
            # No text has known words here, and the unknown one may have a zero embedding.
            "prompt": {"init": "random"},
            "schedule": {
                "steps": num_steps,
                "warmup_steps": 0,
                "micro_batch": self.micro_batch,
                "global_batch": self.micro_batch * self.micro_batches * num_ranks,
            },
            "engine": {
                "student": f"ds_configs/zero{case.zero_stage}.json",
                "teacher": f"ds_configs/zero{teacher_stage}.json",
                "gather": case.gather,
            },
            "checkpoints": {"every": num_steps},
            "run": {"dir": str(out / "runs" / case.file(out).stem), "tensorboard": False},
        }


PRESETS = TypeAdapter(dict[str, Preset]).validate_python(
    yaml.safe_load(Path(__file__).with_name("presets.yaml").read_text(encoding="utf-8"))
)


def _check_name(name: str) -> str:
    if name not in PRESETS:
        raise UserError(f"preset is {name!r}; expected one of {', '.join(PRESETS)}")
    return name


PresetName = Annotated[str, AfterValidator(_check_name)]
