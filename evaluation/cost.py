"""What a training step costs on this machine, by its parts, with random models.

deepspeed --num_gpus 2 --module evaluation.cost --out runs/bench

Each method trains a few steps through the same code as a real run; the first step, which warms up, is left out.
Times of one machine say little: compare ratios, or two versions of the code on a quiet machine.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from kd.assembly import run_on
from kd.config import (
    CheckpointsConfig,
    Config,
    DataConfig,
    EngineConfig,
    GenerationConfig,
    ModelConfig,
    RunConfig,
    ScheduleConfig,
)
from kd.distributed import World, end_world, exit_with_user_error, start_world
from kd.errors import UserError
from kd.metrics import read_metrics

END = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Shapes of a measurement."""

    dtype: str
    vocabulary: int
    teacher: tuple[int, int]
    """Layers and width."""
    student: tuple[int, int]
    prompt_tokens: tuple[int, int]
    """Shortest and longest."""
    new_tokens: int
    micro_batch: int
    micro_batches: int
    """For each rank and step."""


PRESETS = {
    "cpu-small": Preset(
        dtype="fp32",
        vocabulary=50257,
        teacher=(8, 512),
        student=(4, 256),
        prompt_tokens=(24, 63),
        new_tokens=64,
        micro_batch=2,
        micro_batches=4,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Medians over the measured steps of one method."""

    method: str
    step_seconds: float
    generation_seconds: float
    prompt_seconds: float
    student_seconds: float
    tokens_per_second: float
    """Response tokens of all ranks."""
    peak_memory_bytes: float
    """Largest of the ranks; on a CPU the whole process, on a GPU what torch allocated."""


def make_inputs(directory: Path, preset: Preset, *, seed: int) -> None:
    """Random models, a tokenizer of single words, and prompts with responses of full length."""
    words = {f"w{index}": index for index in range(preset.vocabulary - 1)} | {END: preset.vocabulary - 1}
    plain = Tokenizer(models.WordLevel(words, unk_token=END))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=END, pad_token=END)
    torch.manual_seed(seed)
    for name, (layers, width) in (("teacher", preset.teacher), ("student", preset.student)):
        config = GPT2Config(vocab_size=preset.vocabulary, n_layer=layers, n_embd=width, n_head=8)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    generator = np.random.default_rng(seed)

    def text(num_words: int) -> str:
        return " ".join(f"w{index}" for index in generator.integers(0, preset.vocabulary - 1, num_words))

    shortest, longest = preset.prompt_tokens
    with (directory / "rows.jsonl").open("w", encoding="utf-8") as file:
        for length in generator.integers(shortest, longest + 1, 512):
            row = {"instruction": text(int(length)), "output": text(preset.new_tokens - 1)}
            file.write(json.dumps(row) + "\n")
    (directory / "template.jinja").write_text("{{ instruction }}", encoding="utf-8")


def config_of(method: str, directory: Path, preset: Preset, *, num_steps: int, num_ranks: int) -> Config:
    """The run of one method on the inputs in `directory`."""
    longest = preset.prompt_tokens[1] + 1
    return Config(
        method=method,  # type: ignore[arg-type]
        model=ModelConfig(
            student=str(directory / "student"),
            teacher=None if method == "sft" else str(directory / "teacher"),
            dtype=preset.dtype,  # type: ignore[arg-type]
            gradient_checkpointing=False,
        ),
        data=DataConfig(
            train=str(directory / "rows.jsonl"),
            template=str(directory / "template.jinja"),
            max_prompt_tokens=longest,
            max_sequence_tokens=longest + preset.new_tokens,
        ),
        generation=GenerationConfig(max_new_tokens=preset.new_tokens),
        schedule=ScheduleConfig(
            steps=num_steps,
            warmup_steps=0,
            micro_batch=preset.micro_batch,
            global_batch=preset.micro_batch * preset.micro_batches * num_ranks,
        ),
        engine=EngineConfig(),
        checkpoints=CheckpointsConfig(every=num_steps, keep=1),
        run=RunConfig(dir=str(directory / method), tensorboard=False),
    )


def summarise(method: str, directory: Path) -> Cost:
    """Medians over all steps but the first."""
    records = read_metrics(directory / method)[1:]

    def median(name: str) -> float:
        return float(statistics.median(record.get(name, 0.0) for record in records))

    names = [name for name in Cost.__dataclass_fields__ if name != "method"]
    return Cost(method=method, **{name: median(name) for name in names})


def report(costs: Sequence[Cost], *, out: Path) -> None:
    """Print the table and write cost.json."""
    table = Table(title="seconds of one step (medians)")
    for heading in ("method", "step", "generation", "prompt", "student", "tokens/s", "peak GiB"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for cost in costs:
        seconds = (cost.step_seconds, cost.generation_seconds, cost.prompt_seconds, cost.student_seconds)
        numbers = [f"{value:.2f}" for value in seconds]
        table.add_row(cost.method, *numbers, f"{cost.tokens_per_second:.0f}", f"{cost.peak_memory_bytes / 2**30:.2f}")
    Console().print(table)
    (out / "cost.json").write_text(json.dumps([asdict(cost) for cost in costs], indent=2) + "\n", encoding="utf-8")


def measure(world: World, *, out: Path, preset: Preset, num_steps: int) -> None:
    """Train with each method in turn; all ranks together.

    Raises:
        UserError: `out` exists or cannot be written.
    """
    with world.agreed():
        if world.is_main:
            try:
                out.mkdir(parents=True)
            except OSError as error:
                raise UserError(f"--out {out}: cannot be made ({error.strerror}); choose a new directory") from None
            make_inputs(out, preset, seed=0)
    methods = ("sft", "promptkd")
    for method in methods:
        config = config_of(method, out, preset, num_steps=num_steps + 1, num_ranks=world.size)
        run_on(world, config, command=sys.argv)
    if world.is_main:
        report([summarise(method, out) for method in methods], out=out)


def main() -> int:
    """Do what the command line says, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new directory for models and numbers")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu-small", help="[%(default)s]")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each method [%(default)s]")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        measure(start_world(), out=arguments.out, preset=PRESETS[arguments.preset], num_steps=arguments.steps)
    except UserError as error:
        return exit_with_user_error(error)
    end_world()
    return 0


if __name__ == "__main__":
    sys.exit(main())
