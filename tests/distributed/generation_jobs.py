"""What the ranks do in the sampling tests."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kd.config.schema import Config
from kd.data.encoding import Example
from kd.data.global_batch import GlobalBatcher
from kd.distributed import World
from kd.errors import UserError
from kd.losses.terms import cross_entropy
from kd.methods import load_config
from kd.models.handle import ModelContext
from kd.models.student import Student
from kd.models.vocabulary import SharedVocabulary, share_vocabulary
from kd.rollout.placement import Placement, choose_placement
from kd.rollout.sampler import SampledResponses, Sampler
from kd.zero.recorder import Recorder
from kd.zero.residency import choose_gathering
from tests.distributed.harness import example_batch

Prompts = list[list[int]]


def make_examples(prompts: Prompts) -> list[Example]:
    return [
        Example(
            row_id=index,
            prompt="",
            prompt_ids=np.array(ids, dtype=np.int32),
            response_ids=None,
            references=(),
            source="",
        )
        for index, ids in enumerate(prompts)
    ]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A student and what samples it, on one rank."""

    config: Config
    world: World
    vocabulary: SharedVocabulary
    student: Student
    weights: Placement
    sentence: str
    sampler: Sampler
    said: list[str]

    @classmethod
    def prepare(cls, world: World, *, config_file: Path, overrides: list[str], eos_id: int | None = None) -> "Sampling":
        """As a run does it; `eos_id` replaces the tokenizer's."""
        config = load_config(config_file, overrides=overrides)
        vocabulary = share_vocabulary(config)
        if eos_id is not None:
            vocabulary = replace(vocabulary, eos_id=eos_id, end_ids=(eos_id,))
        recorder = Recorder(world.device)
        recorder.start(step=1)
        student = Student(ModelContext(config=config, vocabulary=vocabulary, recorder=recorder))
        choose_gathering({"student": student.engine}, settings=config.engine, world=world)
        weights, sentence = choose_placement(
            student, settings=config.generation, world=world, reserved_bytes=student.engine.reserved_bytes
        )
        said: list[str] = []
        return cls(
            config=config,
            world=world,
            vocabulary=vocabulary,
            student=student,
            weights=weights,
            sentence=sentence,
            sampler=Sampler(weights, settings=config.generation, vocabulary=vocabulary, world=world, say=said.append),
            said=said,
        )

    def sample(self, prompts: Prompts, *, step: int, keep_hidden: bool = False) -> SampledResponses:
        """This rank's share of the prompts; row ids count over all of them."""
        mine = make_examples(prompts)[self.world.rank :: self.world.size]
        targets = self.sampler.sample(mine, seed=7, step=step, keep_hidden=keep_hidden)
        assert [sequence.row_id for sequence in targets.sequences] == [example.row_id for example in mine]
        assert self.student.model.training
        return targets

    def train(self, prompts: Prompts) -> None:
        """One optimizer step of the student, towards saying each prompt backwards."""
        batcher = GlobalBatcher(
            micro_batch=self.config.schedule.micro_batch,
            inference_batch_tokens=None,
            pad_id=self.vocabulary.pad_id,
            world=self.world,
        )
        rows = example_batch([(ids, ids[::-1]) for ids in prompts], step=1, world=self.world)
        for micro in batcher([row.with_response() for row in rows.examples]).micro_batches:
            self.student.backward(micro, cross_entropy=cross_entropy(micro.labels))
        self.student.step()


def responses(targets: SampledResponses) -> dict[int, list[int]]:
    return {sequence.row_id: sequence.response_ids.tolist() for sequence in targets.sequences}


def sample(
    world: World,
    *,
    config_file: Path,
    overrides: list[str],
    prompts: Prompts,
    steps: list[int],
    eos_id: int | None = None,
) -> dict[int, dict[int, list[int]]]:
    """Responses by step and row id of this rank's share of the prompts."""
    sampling = Sampling.prepare(world, config_file=config_file, overrides=overrides, eos_id=eos_id)
    return {step: responses(sampling.sample(prompts, step=step)) for step in steps}


def describe(world: World, *, config_file: Path, overrides: list[str], prompts: Prompts) -> dict[str, Any]:
    """How the weights lie, and the responses of step 1 with their hidden states."""
    sampling = Sampling.prepare(world, config_file=config_file, overrides=overrides)
    targets = sampling.sample(prompts, step=1, keep_hidden=True)
    group, parameters = sampling.weights.group, list(sampling.student.model.parameters())
    assert targets.hidden is not None
    return {
        "sentence": sampling.sentence,
        "group": None if group is None else group.ranks,
        "held": sampling.weights.held_bytes,
        "whole": sum(parameter.ds_numel * parameter.element_size() for parameter in parameters),
        "responses": responses(targets),
        "hidden": {row_id: states.tolist() for row_id, states in targets.hidden.items()},
        "hidden_storage": {row_id: states.untyped_storage().nbytes() for row_id, states in targets.hidden.items()},
    }


def refusal(world: World, *, config_file: Path, overrides: list[str]) -> str | None:
    """The message of the user error, if there is one."""
    try:
        Sampling.prepare(world, config_file=config_file, overrides=overrides)
    except UserError as error:
        return str(error)
    return None
