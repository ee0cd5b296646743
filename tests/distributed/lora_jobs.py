"""Jobs of the LoRA tests: train with adapters, and return what moved and what must not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor

from kd.distributed import World
from kd.methods import load_config
from kd.models.handle import ModelContext
from kd.models.lora import adapter_parameters, gather_adapters, plain_parameters
from kd.models.student import Student
from kd.models.teacher import LoraTeacher, Teacher
from kd.models.vocabulary import share_vocabulary
from kd.rollout.placement import choose_placement
from kd.rollout.sampler import Sampler
from kd.zero.recorder import Recorder
from kd.zero.residency import gathered
from tests.distributed.generation_jobs import Prompts, make_examples, responses
from tests.distributed.harness import FIXED_RESPONSES, Harness, Pair, full_weights


def base_weights(model: Any) -> dict[str, Tensor]:
    """The frozen weights under their published names."""
    weights = {}
    for parameter in plain_parameters(model):
        with gathered([parameter.base]):
            weights[parameter.name] = parameter.base.detach().clone()
    return weights


def train(world: World, *, config_file: Path, overrides: list[str], batches: list[list[Pair]]) -> dict[str, Any]:
    """One step for each batch; adapters, base weights and the plain teacher's hidden states before and after."""
    harness = Harness(world, config_file, [*FIXED_RESPONSES, *overrides], batches=batches)
    student, teacher = harness.student, harness.teacher
    batch = harness.global_batch()

    def state() -> dict[str, Any]:
        own = gather_adapters(student.model) if student.is_adapted else full_weights(student.model)
        found: dict[str, Any] = {"student": own, "student_base": base_weights(student.model)}
        if isinstance(teacher, LoraTeacher):
            found["plain"] = teacher.outputs(batch, prompt=False).hidden
            teacher.release()
            found["teacher"] = gather_adapters(teacher.model)
            found["teacher_base"] = base_weights(teacher.model)
        return found

    before = state()
    for step in range(1, len(batches) + 1):
        harness.step(step)
    return {"before": before, "after": state(), "means": harness.means}


def plain_states(world: World, *, config_file: Path, overrides: list[str], rows: list[Pair]) -> Tensor:
    """Hidden states of a teacher that was never adapted."""
    adapted = Harness(world, config_file, [*FIXED_RESPONSES, *overrides], batches=[rows])
    config, vocabulary = adapted.config, share_vocabulary(adapted.config)
    teacher = Teacher(ModelContext(config=config, vocabulary=vocabulary, recorder=Recorder(world.device)))
    return teacher.outputs(adapted.global_batch()).hidden


def sample(world: World, *, config_file: Path, overrides: list[str], prompts: Prompts) -> dict[str, Any]:
    """Responses of an adapted student in every layout, and its adapters."""
    config = load_config(config_file, overrides=overrides)
    vocabulary = share_vocabulary(config)
    student = Student(ModelContext(config=config, vocabulary=vocabulary, recorder=Recorder(world.device)))
    own = list(adapter_parameters(student.model).values())
    with deepspeed.zero.GatheredParameters(own, modifier_rank=0):
        for index, parameter in enumerate(own):
            # Far from the published model: both matrices away from zero.
            parameter.data.copy_(0.3 * torch.sin(torch.arange(parameter.numel()) + index).view_as(parameter))
    found: dict[str, Any] = {"adapters": gather_adapters(student.model)}
    examples = make_examples(prompts)[world.rank :: world.size]
    for layout, num_ranks in (("zero3", 1), ("gathered", 1), ("tensor_parallel", 2)):
        settings = replace(config.generation, layout=layout, tensor_parallel_size=num_ranks)
        weights, sentence = choose_placement(
            student, settings=settings, world=world, reserved_bytes=student.engine.reserved_bytes
        )
        sampler = Sampler(weights, settings=settings, vocabulary=vocabulary, world=world)
        found[layout] = responses(sampler.sample(examples, seed=7, step=1))
        found[f"{layout} is"] = sentence
    return found


def dtypes(world: World, *, config_file: Path, overrides: list[str]) -> dict[str, set[torch.dtype]]:
    """Precisions of adapters and of base weights."""
    harness = Harness(world, config_file, [*FIXED_RESPONSES, *overrides])
    student, teacher = harness.student, harness.teacher
    assert isinstance(teacher, LoraTeacher)
    return {
        "teacher_adapters": {parameter.dtype for parameter in adapter_parameters(teacher.model).values()},
        "teacher_base": {parameter.base.dtype for parameter in plain_parameters(teacher.model)},
        "student_adapters": {parameter.dtype for parameter in adapter_parameters(student.model).values()},
    }
