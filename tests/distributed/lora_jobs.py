"""What the ranks do in the tests of LoRA: train with adapters, and bring back what moved and what must not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor

from kd.config.load import read_config
from kd.config.schema import Config
from kd.distributed import World
from kd.methods.choice import load_teacher
from kd.methods.gkd import GKD
from kd.methods.method import Groundwork, own_responses
from kd.methods.promptkd import PromptKD
from kd.models.lora import adapter_parameters, gather_adapters, plain_parameters
from kd.models.student import Student
from kd.models.teacher import LoraTeacher, Teacher
from kd.models.vocabulary import SharedVocabulary, share_vocabulary
from kd.rollout.placement import choose_placement
from kd.rollout.sampler import Sampler
from kd.zero.engine import gathered
from kd.zero.residency import choose_gathering
from tests.distributed.generation_jobs import Prompts, make_examples, responses
from tests.distributed.promptkd_jobs import Pair, whole_weights, window_of


def prepare(world: World, config: Config) -> tuple[Student, Teacher | None, Groundwork, SharedVocabulary]:
    vocabulary = share_vocabulary(config)
    student, teacher = Student(config), load_teacher(config, vocabulary=vocabulary)
    engines = {"student": student.engine} | ({} if teacher is None else {"teacher": teacher.engine})
    choose_gathering(engines, settings=config.engine, world=world)
    shards_teacher = teacher is not None and teacher.runs_hooks
    groundwork = Groundwork(config, vocabulary=vocabulary, world=world, shards_teacher=shards_teacher)
    return student, teacher, groundwork, vocabulary


def base_weights(model: Any) -> dict[str, Tensor]:
    """The frozen weights under their published names."""
    weights = {}
    for parameter in plain_parameters(model):
        with gathered([parameter.base]):
            weights[parameter.name] = parameter.base.detach().clone()
    return weights


def train(world: World, *, config_file: Path, overrides: list[str], windows: list[list[Pair]]) -> dict[str, Any]:
    """One step per window with the rows' own responses; adapters, base weights and plain states before and after."""
    config = read_config(config_file, overrides=overrides)
    student, teacher, groundwork, _ = prepare(world, config)
    algorithm: Any = {"gkd": GKD, "promptkd": PromptKD}[config.method]
    method = algorithm(config, student=student, teacher=teacher, targets=own_responses, groundwork=groundwork)
    batches = groundwork.plan(own_responses(window_of(windows[0], step=1, world=world))).batches

    def state() -> dict[str, Any]:
        own = gather_adapters(student.model) if student.is_adapted else whole_weights(student.model)
        found: dict[str, Any] = {"student": own, "student_base": base_weights(student.model)}
        if teacher is not None:
            found["plain"] = [teacher.hidden(batch) for batch in batches]
            teacher.release()
        if isinstance(teacher, LoraTeacher):
            found["teacher"] = gather_adapters(teacher.model)
            found["teacher_base"] = base_weights(teacher.model)
        return found

    before = state()
    means: dict[str, list[float]] = {}
    for step, rows in enumerate(windows, start=1):
        metrics = method.step(window_of(rows, step=step, world=world))
        for name, value in metrics.token_sums.items():
            means.setdefault(name, []).append(world.sum_across_ranks(value.clone()).item() / metrics.num_tokens)
    return {"before": before, "after": state(), "means": means}


def plain_states(world: World, *, config_file: Path, overrides: list[str], rows: list[Pair]) -> list[Tensor]:
    """Hidden states of a teacher that was never adapted."""
    config = read_config(config_file, overrides=overrides)
    _, _, groundwork, _ = prepare(world, config)
    teacher = Teacher(config)
    plan = groundwork.plan(own_responses(window_of(rows, step=1, world=world)))
    return [teacher.hidden(batch) for batch in plan.batches]


def sample(world: World, *, config_file: Path, overrides: list[str], prompts: Prompts) -> dict[str, Any]:
    """Responses of an adapted student in every layout, and its adapters."""
    config = read_config(config_file, overrides=overrides)
    student, vocabulary = Student(config), share_vocabulary(config)
    own = list(adapter_parameters(student.model).values())
    with deepspeed.zero.GatheredParameters(own, modifier_rank=0):
        for index, parameter in enumerate(own):
            # Far from the published model: both matrices away from zero.
            parameter.data.copy_(0.3 * torch.sin(torch.arange(parameter.numel()) + index).view_as(parameter))
    found: dict[str, Any] = {"adapters": gather_adapters(student.model)}
    examples = make_examples(prompts)[world.rank :: world.size]
    for layout, num_ranks in (("zero3", 1), ("gathered", 1), ("tensor_parallel", 2)):
        settings = replace(config.generation, layout=layout, tensor_parallel_size=num_ranks)
        weights, sentence = choose_placement(student, settings=settings, world=world)
        sampler = Sampler(weights, settings=settings, vocabulary=vocabulary, world=world)
        found[layout] = responses(sampler.sample(examples, seed=7, step=1))
        found[f"{layout} is"] = sentence
    return found


def dtypes(world: World, *, config_file: Path, overrides: list[str]) -> dict[str, set[torch.dtype]]:
    """Precisions of adapters and of base weights."""
    student, teacher, *_ = prepare(world, read_config(config_file, overrides=overrides))
    assert isinstance(teacher, LoraTeacher)
    return {
        "teacher_adapters": {parameter.dtype for parameter in adapter_parameters(teacher.model).values()},
        "teacher_base": {parameter.base.dtype for parameter in plain_parameters(teacher.model)},
        "student_adapters": {parameter.dtype for parameter in adapter_parameters(student.model).values()},
    }
