"""What the ranks do in the MiniLLM tests: build engines, run steps, bring back what moved."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.config.load import read_config
from kd.config.schema import Config
from kd.data.corpus import CorpusBlocks
from kd.data.loader import BatchLoader
from kd.distributed import World
from kd.methods.method import Groundwork, Targets, own_responses
from kd.methods.minillm import MiniLLM
from kd.methods.targets import sampled_responses
from kd.models.student import Student
from kd.models.teacher import Teacher
from kd.models.vocabulary import SharedVocabulary, share_vocabulary
from kd.rollout.placement import InPlaceWeights, choose_placement
from kd.rollout.sampler import Sampler
from kd.rollout.teacher_mixed import TeacherMixedSampler
from kd.zero.residency import choose_gathering
from tests.distributed.generation_jobs import Prompts, make_examples, responses
from tests.distributed.promptkd_jobs import Pair, is_released, whole_weights, window_of
from tests.distributed.sampling_fault_jobs import interrupted_at


def corpus_loader(tokens: list[int], config: Config, *, rank: int, num_ranks: int) -> BatchLoader:
    """Windows of blocks of these tokens."""
    blocks = CorpusBlocks(
        np.array(tokens, dtype=np.int32), block_tokens=config.data.max_sequence_tokens, source="corpus"
    )
    return BatchLoader(
        blocks, global_batch=config.schedule.global_batch, rank=rank, num_ranks=num_ranks, seed=config.run.seed
    )


def mixed_sampler(
    world: World, config: Config, *, student: Student, teacher: Teacher, vocabulary: SharedVocabulary
) -> TeacherMixedSampler:
    weights, _ = choose_placement(student, settings=config.generation, world=world)
    choose_gathering({"teacher": teacher.engine}, settings=config.engine, world=world)
    return TeacherMixedSampler(
        weights,
        InPlaceWeights.of(teacher),
        teacher_share=config.minillm.teacher_share,
        settings=config.generation,
        vocabulary=vocabulary,
        world=world,
    )


def build(
    world: World, config: Config, *, windows: list[list[Pair]], corpus: list[int], samples: bool = False
) -> tuple[MiniLLM, Student]:
    """The method; its responses are the rows' own, or sampled as a run does it."""
    vocabulary = share_vocabulary(config)
    student, teacher = Student(config), Teacher(config)
    choose_gathering({"student": student.engine, "teacher": teacher.engine}, settings=config.engine, world=world)
    targets: Targets = own_responses
    if samples:
        if config.minillm.teacher_share > 0:
            sampler: Sampler = mixed_sampler(world, config, student=student, teacher=teacher, vocabulary=vocabulary)
        else:
            weights, _ = choose_placement(student, settings=config.generation, world=world)
            sampler = Sampler(weights, settings=config.generation, vocabulary=vocabulary, world=world)
        targets = sampled_responses(sampler, seed=config.run.seed)
    method = MiniLLM(
        config,
        student=student,
        teacher=teacher,
        targets=targets,
        windows=lambda number: window_of(windows[number - 1], step=number, world=world),
        corpus=corpus_loader(corpus, config, rank=world.rank, num_ranks=world.size) if corpus else None,
        groundwork=Groundwork(config, vocabulary=vocabulary, world=world, shards_teacher=teacher.runs_hooks),
    )
    return method, student


def train(
    world: World,
    *,
    config_file: Path,
    overrides: list[str],
    windows: list[list[Pair]],
    corpus: list[int],
    num_steps: int,
) -> dict[str, Any]:
    """Run steps; returns the student before and after, the logged means, and the rows of each step."""
    config = read_config(config_file, overrides=overrides)
    method, student = build(world, config, windows=windows, corpus=corpus)
    before, means, rows = whole_weights(student.model), [], []
    for step in range(1, num_steps + 1):
        metrics = method.step(window_of([], step=step, world=world))
        sums = {name: world.sum_across_ranks(value.clone()).item() for name, value in metrics.token_sums.items()}
        means.append({name: value / metrics.num_tokens for name, value in sums.items()})
        rows.append([rollout.sequence.row_id for rollout in method._store.window(step)])
    return {"before": before, "after": whole_weights(student.model), "means": means, "rows": rows}


def sample(
    world: World, *, config_file: Path, overrides: list[str], shares: list[Prompts], eos_id: int
) -> dict[int, list[int]]:
    """Teacher-mixed responses by row id, which counts over the shares of all ranks, of this rank's share."""
    config = read_config(config_file, overrides=overrides)
    vocabulary = replace(share_vocabulary(config), eos_id=eos_id)
    student, teacher = Student(config), Teacher(config)
    sampler = mixed_sampler(world, config, student=student, teacher=teacher, vocabulary=vocabulary)
    examples = make_examples([prompt for share in shares for prompt in share])
    start = sum(len(share) for share in shares[: world.rank])
    targets = sampler.sample(examples[start : start + len(shares[world.rank])], seed=7, step=1)
    assert student.model.training and teacher.view.model.training
    return responses(targets)


def sample_and_train(
    world: World,
    *,
    config_file: Path,
    overrides: list[str],
    windows: list[list[Pair]],
    interrupted_pass: int | None = None,
) -> dict[str, Any]:
    """One step on responses that are sampled for it: these, the logged sums and the student's weights after it.

    A step before that is interrupted in one of its passes, if it is given; the result has what that leaves.
    """
    config = read_config(config_file, overrides=overrides)
    method, student = build(world, config, windows=windows, corpus=[], samples=True)
    if interrupted_pass is not None:
        with interrupted_at(interrupted_pass):
            method.step(window_of([], step=1, world=world))
    models = {"student": student.model, "teacher": method._teacher.view.model}
    left = {"training": {name: model.training for name, model in models.items()}, "grad": torch.is_grad_enabled()}
    metrics = method.step(window_of([], step=1, world=world))
    return {
        "left": left,
        "released": {name: is_released(model) for name, model in models.items()},
        "responses": {
            rollout.sequence.row_id: rollout.sequence.response_ids.tolist() for rollout in method._store.window(1)
        },
        "sums": {name: value.item() for name, value in metrics.token_sums.items()},
        "weights": whole_weights(student.model),
    }


def gradients(
    world: World, *, config_file: Path, overrides: list[str], prompt: list[int], num_windows: int
) -> list[dict[str, Tensor]]:
    """Estimates of the gradient of KL(q‖p) over whole responses, one from each of several windows of fresh samples."""
    config = read_config(config_file, overrides=overrides)
    rows: list[Pair] = [(prompt, []) for _ in range(config.schedule.global_batch)]
    method, student = build(world, config, windows=[rows] * num_windows, corpus=[], samples=True)
    start = {name: value.detach().clone() for name, value in student.model.named_parameters()}
    found = []
    for step in range(1, num_windows + 1):
        metrics = method.step(window_of([], step=step, world=world))
        # From a mean over tokens to one over responses.
        factor = metrics.num_tokens / config.schedule.global_batch / config.optimizer.learning_rate
        found.append(
            {name: factor * (start[name] - value).detach().double() for name, value in student.model.named_parameters()}
        )
        with torch.no_grad():
            for name, value in student.model.named_parameters():
                value.copy_(start[name])
    return found
