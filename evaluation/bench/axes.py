"""The sizes that `evaluation.bench.scaling` varies, one at a time."""

from dataclasses import dataclass, replace
from typing import Literal, assert_never

from evaluation.bench.presets import Preset

BASE = Preset(
    family="gpt2",
    teacher={"n_layer": 4, "n_embd": 256, "n_head": 8},
    student={"n_layer": 2, "n_embd": 128, "n_head": 8},
    dtype="fp32",
    vocabulary=16384,
    prompt_tokens=(16, 32),
    new_tokens=32,
    micro_batch=2,
    micro_batches=2,
)
"""Smaller than cpu-small: every point of every axis trains a few steps."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One size that is varied while the others stay as in `BASE`."""

    name: Literal["sequence", "batch", "vocabulary", "prompt"]
    title: str
    label: str
    """What the values are."""
    values: tuple[int, ...]

    def preset(self, value: int) -> Preset:
        """`BASE` with another value of this size."""
        match self.name:
            case "sequence":
                # The prompts stay as they are: the response grows.
                return replace(BASE, new_tokens=value - BASE.prompt_tokens[1])
            case "batch":
                return replace(BASE, micro_batches=value // BASE.micro_batch)
            case "vocabulary":
                return replace(BASE, vocabulary=value)
            case "prompt":
                return replace(BASE, soft_prompt_tokens=value)
        assert_never(self.name)


AXES = (
    Axis(
        name="sequence",
        title="sequence length",
        label="longest sequence (tokens)",
        values=(64, 128, 192, 256),
    ),
    Axis(name="batch", title="batch", label="sequences per rank and step", values=(2, 4, 8, 12)),
    Axis(name="vocabulary", title="vocabulary", label="entries of the vocabulary", values=(4096, 16384, 32768, 49152)),
    Axis(name="prompt", title="prompt length", label="soft prompt, m (tokens)", values=(1, 7, 32, 64)),
)
