"""Outputs of the toolkit's commands, made without a model, for tests of the report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from evaluation.analysis.exposure_bias.curve import StepSums, exposure_bias
from evaluation.analysis.student_friendliness.summary import Column, Distance, RowSet
from evaluation.generations import generations_file, write_generations
from evaluation.judge.comparisons import Comparison
from evaluation.judge.responses import Scores
from evaluation.judge.scores import feedback_score
from evaluation.judge.session import Judgement
from evaluation.results import summarise
from evaluation.statistics import Estimate, resample
from tests.unit.evaluation.generations import generation

ALPACA = "Below is an instruction.\n\n### Instruction:\n{}\n\n### Response:\n"


def write_training(directory: Path, *, num_steps: int = 4, weights: int = 6, **sections: Any) -> Path:
    """A run of PromptKD, or of what `sections` say, whose student has `weights` parameters; returns `directory`."""
    config: dict[str, Any] = {
        "method": "promptkd",
        "model": {"teacher": "somewhere/teacher", "student": "somewhere/student"},
        "data": {"train": "train.jsonl", "validation": "validation.jsonl", "max_prompt_tokens": 100},
        "generation": {"max_new_tokens": 32},
        "optimizer": {"learning_rate": 5e-6},
        "prompt": {
            "length": 7,
            "init": "text",
            "learning_rate": 1e-3,
            "regularization": "linear",
            "kd_divergence": "reverse_kl",
            "regularization_divergence": "reverse_kl",
        },
        "schedule": {"steps": 1000, "epochs": None, "global_batch": 8, "micro_batch": 4},
        "teacher_lora": {"rank": 0, "alpha": 32.0},
        "run": {"dir": str(directory)},
    }
    for name, section in sections.items():
        config[name] = config.get(name, {}) | section if isinstance(section, dict) else section
    (directory / "final").mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    (directory / "environment.json").write_text(json.dumps({"num_ranks": 2, "packages": {"torch": "2"}, "host": "a"}))
    records = [
        {
            "step": step,
            "student_kd": 2 / step,
            "validation/rougeL": 50.0 - abs(step - 3),
            "step_seconds": 1800.0,
            "peak_memory_bytes": 10**9 * step,
        }
        for step in range(1, num_steps + 1)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    save_file({"a": torch.zeros(weights)}, directory / "final" / "model.safetensors")
    save_file({"soft_prompt": torch.zeros(7, 4)}, directory / "final" / "soft_prompt.safetensors")
    return directory


def write_evaluation(
    directory: Path,
    *,
    model: Path | str,
    scores: Mapping[str, Sequence[Sequence[float]]],
    response: str = "a response",
    soft_prompt: Path | None = None,
    **decoding: Any,
) -> Path:
    """Scores of each benchmark by seed (10, 20, …) and row; returns `directory`."""
    benchmarks = {}
    for name, by_seed in scores.items():
        generations = {
            10 * index: [
                replace(generation(row, rouge_l=value, response=response), prompt=ALPACA.format(f"question {row}"))
                for row, value in enumerate(values)
            ]
            for index, values in enumerate(by_seed, start=1)
        }
        for seed, rows in generations.items():
            write_generations(generations_file(directory, benchmark=name, seed=seed), rows)
        benchmarks[name] = {
            "source": f"{name}.jsonl",
            **summarise(generations, metrics=("rougeL", "exact_match")).to_json(),
            "decoding": {"template": "alpaca", "greedy": False, "temperature": 1.0, "max_new_tokens": 256} | decoding,
        }
    results = {
        "model": str(model),
        "soft_prompt": None if soft_prompt is None else str(soft_prompt),
        "seeds": [10 * (index + 1) for index in range(max(map(len, scores.values())))],
        "benchmarks": benchmarks,
    }
    (directory / "results.json").write_text(json.dumps(results))
    return directory


def write_exposure_bias(directory: Path, *, names: Sequence[str]) -> Path:
    """Curves of five steps, and a course of three points for each name."""
    directory.mkdir(parents=True)
    generator = np.random.default_rng(1)
    counts = np.full((20, 5), 2)
    # No sample reaches the last step.
    counts[:, 4] = 0
    sums = [StepSums(nats=generator.random((20, 5)) * (counts > 0), counts=counts) for _ in range(2)]
    curve = asdict(exposure_bias(*sums, draws=resample(20, num_resamples=50)))
    points = [
        {"training_step": step, "model": "m", "ExAccErr": asdict(Estimate(value=9.0 - step, low=-2.0, high=3.0))}
        for step in (0, 2, 4)
    ]
    results = {
        "format": "exposure_bias",
        "version": 1,
        "teacher": "somewhere/teacher",
        "data": "rows.jsonl",
        "num_requests": 20,
        "students": {name: {"model": "m", "curve": curve} for name in names},
        "progress": {name: {"generation_steps": 5, "best_step": 4, "points": points} for name in names},
    }
    (directory / "exposure_bias.json").write_text(json.dumps(results))
    return directory


def write_friendliness(directory: Path) -> Path:
    """The prompt brings the teacher from 2 to 1.5 nats, and from 30 to 29 ROUGE-L."""

    def estimate(value: float) -> Estimate:
        return Estimate(value=value, low=value - 0.1, high=value + 0.1)

    def column(nats: float, rouge_l: float) -> Column:
        distance = Distance(forward_kl=estimate(nats), reverse_kl=estimate(2 * nats))
        return Column(initial=distance, final=distance, rougeL=estimate(rouge_l), response_tokens=estimate(5.0))

    rows = RowSet(
        data="rows.jsonl",
        num_rows=3,
        num_tokens=9,
        dropped_rows=0,
        without_prompt=column(2.0, 30.0),
        with_prompt=column(1.5, 29.0),
        difference=column(-0.5, -1.0),
    )
    results = {
        "format": "student_friendliness",
        "version": 1,
        "teacher": "t",
        "soft_prompt": "p",
        "initial": "i",
        "final": "f",
        "sets": {"seen": asdict(rows), "unseen": asdict(rows)},
        "examples": [],
    }
    directory.mkdir(parents=True)
    (directory / "student_friendliness.json").write_text(json.dumps(results))
    return directory


def write_judgement(directory: Path, *, benchmark: str = "vicuna", **points: int) -> Path:
    """Each named model got so many points in every comparison, the references 8."""

    def judged(model: str, value: int) -> list[tuple[Comparison, Judgement]]:
        comparisons = [
            Comparison(model=model, benchmark=benchmark, seed=seed, row=row, order="model_first", prompt="")
            for seed in (10, 20)
            for row in range(2)
        ]
        scores = Scores(first=value, second=8)
        return [(comparison, Judgement(status="judged", scores=scores)) for comparison in comparisons]

    results = {
        "format": "judge",
        "version": 1,
        "judge": {"model": "a-judge", "temperature": 0.7},
        "scores": {model: {benchmark: asdict(feedback_score(judged(model, value)))} for model, value in points.items()},
    }
    directory.mkdir(parents=True)
    (directory / "judge.json").write_text(json.dumps(results))
    return directory


def write_cost(directory: Path) -> Path:
    """Steps of GKD and PromptKD on a GPU, of 1.5 and 2 seconds."""
    results = {
        "preset_name": "tiny",
        "machine": {"num_ranks": 4, "cpu": "a CPU", "gpus": ["a GPU"]},
        "costs": [
            {
                "case": {"method": method, "zero_stage": 3, "gather": "auto"},
                "step_seconds": seconds,
                "seconds": {"student": seconds},
                "tokens_per_second": 100.0,
                "peak": {"allocated": 3 * 10**9, "reserved": 4 * 10**9},
            }
            for method, seconds in (("gkd", 1.5), ("promptkd", 2.0))
        ],
    }
    directory.mkdir(parents=True)
    (directory / "cost.json").write_text(json.dumps(results))
    return directory
