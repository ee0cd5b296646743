"""Shapes of measurements: models, batches and lengths, without real weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import AutoConfig, PretrainedConfig

Role = Literal["teacher", "student"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The pair of models and the batch of each rank."""

    family: str
    """A model type of transformers; its configuration takes the sizes below by its own names."""
    teacher: Mapping[str, int]
    student: Mapping[str, int]
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

    def run_config(self, *, method: str, zero_stage: int, gather: str, num_ranks: int, models: Path) -> dict[str, Any]:
        """Sections of a run's configuration; `models` is where `write_inputs` has written."""
        longest = self.prompt_tokens[1] + self.new_tokens
        return {
            "method": method,
            "model": {
                "student": str(models / "student"),
                "teacher": None if method == "sft" else str(models / "teacher"),
                "dtype": self.dtype,
                "gradient_checkpointing": self.gradient_checkpointing,
            },
            "data": {
                "train": str(models / "rows.jsonl"),
                "template": str(models / "template.jinja"),
                "max_prompt_tokens": self.prompt_tokens[1],
                "max_sequence_tokens": longest,
            },
            "generation": {"max_new_tokens": self.new_tokens},
            "schedule": {
                "warmup_steps": 0,
                "micro_batch": self.micro_batch,
                "global_batch": self.micro_batch * self.micro_batches * num_ranks,
            },
            "engine": {
                "student": f"ds_configs/zero{zero_stage}.json",
                # A frozen teacher has no optimizer state or gradients for stages 1 and 2 to partition.
                "teacher": f"ds_configs/zero{3 if zero_stage == 3 else 0}.json",
                "gather": gather,
            },
        }


def _gpt2(*, layers: int, width: int) -> dict[str, int]:
    return {"n_layer": layers, "n_embd": width, "n_head": 8}


def _opt(*, layers: int, width: int, heads: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "word_embed_proj_dim": width,
        "ffn_dim": 4 * width,
        "num_attention_heads": heads,
    }


def _llama(*, layers: int, width: int, inner: int, heads: int, key_value_heads: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
    }


def _paper(family: str, *, teacher: Mapping[str, int], student: Mapping[str, int], vocabulary: int) -> Preset:
    """64 sequences in a step on four GPUs of 80 GB, prompts of at most 256 tokens, 256 new ones."""
    return Preset(
        family=family,
        teacher=teacher,
        student=student,
        dtype="bf16",
        vocabulary=vocabulary,
        prompt_tokens=(32, 256),
        new_tokens=256,
        micro_batch=4,
        micro_batches=4,
        gradient_checkpointing=True,
    )


_LLAMA_7B = _llama(layers=32, width=4096, inner=11008, heads=32, key_value_heads=32)
_LLAMA_13B = _llama(layers=40, width=5120, inner=13824, heads=40, key_value_heads=40)
_OPT_13B = _opt(layers=40, width=5120, heads=40)

PRESETS = {
    # Two cores: a step takes seconds, and the vocabulary weighs as much as in large models.
    "cpu-small": Preset(
        family="gpt2",
        teacher=_gpt2(layers=8, width=512),
        student=_gpt2(layers=4, width=256),
        dtype="fp32",
        vocabulary=50257,
        prompt_tokens=(24, 63),
        new_tokens=64,
        micro_batch=2,
        micro_batches=4,
    ),
    # One GPU of 80 GB or more: 6.7B and 1.1B parameters, the paper's lengths and batch.
    "gpu-1": Preset(
        family="llama",
        teacher=_LLAMA_7B,
        student=_llama(layers=22, width=2048, inner=5632, heads=32, key_value_heads=4),
        dtype="bf16",
        vocabulary=32000,
        prompt_tokens=(32, 256),
        new_tokens=256,
        micro_batch=8,
        micro_batches=8,
    ),
    # launch/experiments/opt/promptkd_1.3b.yaml and llama/promptkd_7b.yaml, then the pair of the paper's Table 3.
    "paper-opt": _paper("opt", teacher=_OPT_13B, student=_opt(layers=24, width=2048, heads=32), vocabulary=50272),
    "paper-llama": _paper("llama", teacher=_LLAMA_13B, student=_LLAMA_7B, vocabulary=32000),
    "paper-table3": _paper("opt", teacher=_OPT_13B, student=_opt(layers=32, width=4096, heads=32), vocabulary=50272),
    # Seconds on anything: to see that all parts of the bench work.
    "tiny": Preset(
        family="gpt2",
        teacher=_gpt2(layers=2, width=32),
        student=_gpt2(layers=1, width=16),
        dtype="fp32",
        vocabulary=512,
        prompt_tokens=(4, 8),
        new_tokens=6,
        micro_batch=2,
        micro_batches=2,
    ),
}
