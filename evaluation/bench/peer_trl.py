"""The step of TRL's DistillationTrainer on the same models, prompts and lengths, in processes of its own.

On-policy reverse KL over the whole vocabulary (beta = 1), temperature 1, unsharded models under DDP: what TRL's
user gets for the method that is `gkd` here. Needs the extra `bench`.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.bench.launching import run_ranks
from evaluation.bench.presets import WARM_UP_STEPS, Preset
from kd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PeerCost:
    """End-to-end steps of a peer."""

    name: str
    version: str
    all_step_seconds: list[float]
    """From the end of one optimizer step to the end of the next."""

    @property
    def step_seconds(self) -> float:
        return float(statistics.median(self.all_step_seconds))


def check_trl(*, num_ranks: int) -> None:
    """Raise UserError unless TRL is installed and this host has room for as many ranks of it."""
    if importlib.util.find_spec("trl") is None:
        raise UserError('--peer trl: trl is not installed; pip install -e ".[bench]"')
    if torch.cuda.is_available() and torch.cuda.device_count() < num_ranks:
        raise UserError(
            f"--peer trl starts {num_ranks} ranks on one host, which has {torch.cuda.device_count()} GPUs;"
            " measure it on one host"
        )


def measure_trl(
    preset: Preset, *, inputs: Path, out: Path, num_steps: int, num_ranks: int, num_threads: int
) -> PeerCost:
    """Train with TRL on `num_ranks` ranks of this host.

    Raises:
        UserError: TRL failed.
    """
    result = out / "trl.json"
    settings = {
        "bf16": preset.dtype == "bf16",
        "gradient_checkpointing": preset.gradient_checkpointing,
        "per_device_train_batch_size": preset.micro_batch,
        "gradient_accumulation_steps": preset.micro_batches,
        "max_completion_length": preset.new_tokens,
        "max_steps": WARM_UP_STEPS + num_steps,
    }
    arguments = ["--inputs", str(inputs), "--result", str(result), "--settings", json.dumps(settings)]
    found = run_ranks(
        "evaluation.bench.peer_trl",
        arguments,
        num_ranks=num_ranks,
        num_threads=num_threads,
        result=result,
        log=out / "trl.log",
        # As its users find torch; `kd` asks for huge pages.
        THP_MEM_ALLOC_ENABLE="0",
    )
    return PeerCost(**found)


def train(inputs: Path, settings: dict[str, Any], *, result: Path) -> None:
    """One rank of the peer; the first one writes the end-to-end seconds of all steps but the first few."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    # By name: type checkers must not need the extra.
    trl: Any = importlib.import_module("trl")

    class Ends(TrainerCallback):
        """Notes when optimizer steps end."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    ends = Ends()
    rows = load_dataset("json", data_files=str(inputs / "rows.jsonl"), split="train")
    rows = rows.map(lambda row: {"prompt": row["instruction"]}, remove_columns=["instruction", "output"])
    trainer = trl.DistillationTrainer(
        model=AutoModelForCausalLM.from_pretrained(inputs / "student", dtype=torch.float32),
        teacher_model=AutoModelForCausalLM.from_pretrained(
            inputs / "teacher", dtype=torch.bfloat16 if settings["bf16"] else torch.float32
        ),
        args=trl.DistillationConfig(
            output_dir=str(result.with_suffix("")),
            use_cpu=not torch.cuda.is_available(),
            beta=1.0,
            temperature=1.0,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(inputs / "student"),
        callbacks=[ends],
    )
    trainer.train()
    if trainer.is_world_process_zero():
        times = ends.times[WARM_UP_STEPS - 1 :]
        seconds = [end - start for start, end in itertools.pairwise(times)]
        cost = PeerCost(name="TRL", version=importlib.metadata.version("trl"), all_step_seconds=seconds)
        result.write_text(json.dumps(asdict(cost)), encoding="utf-8")


def main() -> int:
    """Do what the command line says, on one rank of torchrun."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=Path, required=True, metavar="DIR", help="models and rows")
    parser.add_argument("--result", type=Path, required=True, metavar="FILE", help="gets the seconds, as JSON")
    parser.add_argument("--settings", type=json.loads, required=True, metavar="JSON", help="of DistillationConfig")
    arguments = parser.parse_args()
    train(arguments.inputs, arguments.settings, result=arguments.result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
