"""Steps of TRL's DistillationTrainer on the same models, rows, batch and lengths.

On-policy reverse KL over the whole vocabulary (beta = 1), temperature 1, unpartitioned models under DDP: TRL's
counterpart of `gkd`. Needs the extra `bench`.
"""

import importlib
import importlib.metadata
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.bench.steps import WARM_UP_STEPS
from kd.distributed import on_gpu
from kd.methods import load_config


@dataclass(frozen=True, kw_only=True)
class PeerCost:
    """Seconds of a peer's step, from the end of one optimizer step to the end of the next."""

    name: str
    version: str
    step_seconds: float
    all_step_seconds: list[float]


def measure_trl(file: Path, fields: Sequence[str], num_steps: int, num_ranks: int) -> PeerCost:
    """Train `num_steps` steps after those that warm up, as one rank of all, with the shapes of a `gkd` run."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    # By name: type checkers must not need the extra.
    trl: Any = importlib.import_module("trl")

    class StepEnds(TrainerCallback):
        """Records when optimizer steps end."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            if on_gpu():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    ends, config = StepEnds(), load_config(file, overrides=fields)
    model, schedule, is_bf16 = config.model, config.schedule, config.model.dtype == "bf16"
    assert model.teacher is not None
    rows = load_dataset("json", data_files=config.data.train, split="train")
    teacher_dtype = torch.bfloat16 if is_bf16 else torch.float32
    with tempfile.TemporaryDirectory() as directory:
        trainer = trl.DistillationTrainer(
            # Under bf16 its optimizer updates fp32 weights, as ZeRO's does.
            model=AutoModelForCausalLM.from_pretrained(model.student, dtype=torch.float32),
            teacher_model=AutoModelForCausalLM.from_pretrained(model.teacher, dtype=teacher_dtype),
            args=trl.DistillationConfig(
                output_dir=directory,
                use_cpu=not on_gpu(),
                bf16=is_bf16,
                gradient_checkpointing=model.gradient_checkpointing,
                per_device_train_batch_size=schedule.micro_batch,
                gradient_accumulation_steps=schedule.global_batch // (schedule.micro_batch * num_ranks),
                max_completion_length=config.generation.max_new_tokens,
                max_steps=WARM_UP_STEPS + num_steps,
                beta=1.0,
                temperature=1.0,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=rows.map(lambda row: {"prompt": row["instruction"]}, remove_columns=rows.column_names),
            processing_class=AutoTokenizer.from_pretrained(model.student),
            callbacks=[ends],
        )
        trainer.train()
    seconds = [end - start for start, end in itertools.pairwise(ends.times[WARM_UP_STEPS - 1 :])]
    return PeerCost(
        name="TRL",
        version=importlib.metadata.version("trl"),
        step_seconds=statistics.median(seconds),
        all_step_seconds=seconds,
    )
