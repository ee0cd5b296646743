"""What the ranks do in the PromptKD tests: build engines, run steps, bring back what moved."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.bench.communication import CollectiveBytes
from kd.config.load import read_config
from kd.config.schema import Config
from kd.data.encoding import Example
from kd.data.loader import ExampleBatch
from kd.distributed import World
from kd.methods.method import Groundwork, own_responses
from kd.methods.promptkd import PromptKD
from kd.models.student import Student
from kd.models.teacher import PromptedTeacher
from kd.models.vocabulary import share_vocabulary
from kd.zero.engine import Engine, gathered
from kd.zero.recorder import Stopwatch
from kd.zero.residency import choose_gathering

Pair = tuple[list[int], list[int]]


def window_of(rows: list[Pair], *, step: int, world: World) -> ExampleBatch:
    """This rank's share of prompts with fixed responses."""
    examples = [
        Example(
            row_id=index,
            prompt="",
            prompt_ids=np.array(prompt, dtype=np.int32),
            response_ids=np.array(response, dtype=np.int32),
            references=(),
            source="",
        )
        for index, (prompt, response) in enumerate(rows)
    ]
    return ExampleBatch(step=step, examples=tuple(examples[world.rank :: world.size]))


def build(world: World, config: Config) -> tuple[PromptKD, Student, PromptedTeacher]:
    """Both engines and the method, with the rows' own responses as pseudo-targets."""
    vocabulary = share_vocabulary(config)
    student = Student(config)
    teacher = PromptedTeacher(config, tokenizer=vocabulary.tokenizer)
    choose_gathering({"student": student.engine, "teacher": teacher.engine}, settings=config.engine, world=world)
    method = PromptKD(
        config,
        student=student,
        teacher=teacher,
        targets=own_responses,
        groundwork=Groundwork(config, vocabulary=vocabulary, world=world, shards_teacher=teacher.runs_hooks),
    )
    return method, student, teacher


def whole_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """fp32 copies of all parameters, gathered from their shards."""
    weights = {}
    for name, parameter in model.named_parameters():
        with gathered([parameter]):
            weights[name] = parameter.detach().float().clone()
    return weights


def is_released(model: torch.nn.Module) -> bool:
    """Whether ZeRO-3 has left nothing but shards of the parameters that it does not keep."""
    return all(
        "NOT_AVAILABLE" in str(parameter.ds_status) and parameter.numel() == 0
        for parameter in model.parameters()
        if hasattr(parameter, "ds_id") and not parameter.ds_persist
    )


def reduced_by_a_failing_step(method: PromptKD, engine: Engine, window: ExampleBatch) -> int:
    """Bytes of gradient that a step still reduces when the last micro-batch of an engine's window fails."""
    accumulate = engine.accumulate

    def failing(*inputs: object, is_last: bool) -> Tensor:
        if is_last:
            raise MemoryError("no memory for the last micro-batch")
        return accumulate(*inputs, is_last=is_last)

    with pytest.MonkeyPatch.context() as patch, CollectiveBytes() as counted:
        patch.setattr(engine, "accumulate", failing)
        with pytest.raises(MemoryError):
            method.step(window)
    return counted.num_bytes["reduced"]


def train(
    world: World, *, config_file: Path, overrides: list[str], windows: list[list[Pair]], fails_first: bool = False
) -> dict[str, Any]:
    """Run one step per window; returns weights before and after, and the logged means.

    Args:
        fails_first: try the first step once before, and fail in the prompt's part of it.
    """
    config = read_config(config_file, overrides=overrides)
    method, student, teacher = build(world, config)
    before = {"student": whole_weights(student.model), "teacher": whole_weights(teacher.view.model)}
    prompt_before = teacher.values()[0]
    means: dict[str, list[float]] = {}
    norms: list[float] = []
    num_bytes: dict[str, int] = {}
    reduced_in_vain = 0
    if fails_first:
        window = window_of(windows[0], step=1, world=world)
        reduced_in_vain = reduced_by_a_failing_step(method, teacher.engine, window)
    for step, rows in enumerate(windows, start=1):
        with CollectiveBytes() as counted:
            metrics = method.step(window_of(rows, step=step, world=world))
        num_bytes = counted.num_bytes
        for name, value in metrics.token_sums.items():
            means.setdefault(name, []).append(world.sum_across_ranks(value.clone()).item() / metrics.num_tokens)
        norms.append(float(metrics.values.get("grad_norm", float("nan"))))
    return {
        "before": before,
        "after": {"student": whole_weights(student.model), "teacher": whole_weights(teacher.view.model)},
        "prompt_before": prompt_before,
        "prompt_after": teacher.values()[0],
        "means": means,
        "norms": norms,
        "released": {"student": is_released(student.model), "teacher": is_released(teacher.view.model)},
        "num_bytes": num_bytes,
        "reduced_in_vain": reduced_in_vain,
    }


def train_counting_layers(world: World, *, config_file: Path, overrides: list[str], windows: list[list[Pair]]) -> Any:
    """As `train`, and how often the first layer of each model ran."""
    config = read_config(config_file, overrides=overrides)
    method, student, teacher = build(world, config)
    calls = {"student": 0, "teacher": 0}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    student.model.model.layers[0].mlp.register_forward_hook(count("student"))
    teacher.view.model.model.layers[0].mlp.register_forward_hook(count("teacher"))
    before = {"student": whole_weights(student.model)}
    prompt_before = teacher.values()[0]
    for step, rows in enumerate(windows, start=1):
        method.step(window_of(rows, step=step, world=world))
    return {
        "before": before,
        "after": {"student": whole_weights(student.model)},
        "prompt_before": prompt_before,
        "prompt_after": teacher.values()[0],
        "layer_calls": calls,
    }


def hidden_twice(world: World, *, config_file: Path, rows: list[Pair]) -> dict[str, bool]:
    """Whether two passes agree: of guidance, which nothing may disturb, and of training, which dropout does."""
    config = read_config(config_file, overrides=["model.student_dropout=true"])
    method, student, _ = build(world, config)
    plan = method._groundwork.plan(own_responses(window_of(rows, step=1, world=world)))
    batch = plan.batches[0]
    training = [student.engine.deepspeed(batch).detach() for _ in range(2)]
    return {
        "guidance": torch.equal(student.hidden(batch), student.hidden(batch)),
        "training": torch.equal(*training),
    }


def what_moves(world: World, *, config_file: Path, rows: list[Pair]) -> dict[str, set[str]]:
    """Which of prompt, teacher and student change in each of the two optimizer steps."""
    method, student, teacher = build(world, read_config(config_file))
    targets = own_responses(window_of(rows, step=1, world=world))
    plan = method._groundwork.plan(targets)

    def state() -> dict[str, list[Tensor]]:
        return {
            "prompt": [teacher.values()[0]],
            "teacher": list(whole_weights(teacher.view.model).values()),
            "student": list(whole_weights(student.model).values()),
        }

    def moved(before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]) -> set[str]:
        return {
            name
            for name, tensors in before.items()
            if any(not torch.equal(old, new) for old, new in zip(tensors, after[name], strict=True))
        }

    start = state()
    stopwatch = Stopwatch(world.device)
    with teacher.head() as head:
        method._accumulate_prompt(plan, targets, head=head, weight=1.0, stopwatch=stopwatch)
    teacher.step(learning_rate=0.1)
    middle = state()
    with teacher.head() as head:
        method._accumulate_student(plan, head=head, stopwatch=stopwatch)
    student.step(learning_rate=0.1)
    return {"prompt step": moved(start, middle), "student step": moved(middle, state())}
