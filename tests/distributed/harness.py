"""What the distributed tests share: configurations, global batches, and a method with its models on one rank."""

import json
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from kd.config.schema import Config
from kd.data.batch import TokenSequence
from kd.data.encoding import Example
from kd.data.global_batch import GlobalBatch
from kd.data.loader import ExampleBatch
from kd.distributed import World
from kd.methods import load_config
from kd.models.vocabulary import share_vocabulary
from kd.rollout.sampler import SampledResponses
from kd.train.assemble import build_method
from kd.zero.recorder import StepMetrics
from kd.zero.residency import gathered

Pair = tuple[list[int], list[int]]
"""Token ids of a prompt and of its response."""

NUM_STEPS = 3
RATE = 0.5
FIXED_RESPONSES = ["data.train=null", "data.responses=unused"]
"""Overrides with which methods learn from the rows' own responses in place of rollouts."""


def make_batches(*, vocabulary: int, seed: int = 0) -> list[list[Pair]]:
    """Three global batches of 4 rows with uneven lengths; one response is empty."""
    generator = np.random.default_rng(seed)
    batches = []
    for _ in range(NUM_STEPS):
        prompts, responses = generator.integers(3, 12, size=4), generator.integers(1, 9, size=4)
        rows = [
            (generator.integers(0, vocabulary, n).tolist(), generator.integers(0, vocabulary, m).tolist())
            for n, m in zip(prompts, responses, strict=True)
        ]
        rows[0] = (rows[0][0], [])
        batches.append(rows)
    return batches


def write_config(
    directory: Path,
    *,
    stage: int = 3,
    teacher_stage: int = 3,
    micro_batch: int = 1,
    dtype: str = "fp32",
    **sections: Any,
) -> Path:
    """A configuration file for models in `directory`/teacher and `directory`/student, trained by SGD."""
    values: dict[str, Any] = {
        "method": "promptkd",
        "model": {"teacher": str(directory / "teacher"), "student": str(directory / "student"), "dtype": dtype},
        "data": {"train": "unused", "max_prompt_tokens": 32, "max_sequence_tokens": 64},
        "prompt": {"length": 5, "learning_rate": RATE},
        "generation": {"max_new_tokens": 16},
        "optimizer": {"name": "sgd", "learning_rate": RATE, "weight_decay": 0.0, "grad_clip": 0.0},
        "schedule": {"steps": NUM_STEPS, "warmup_steps": 0, "global_batch": 4, "micro_batch": micro_batch},
        "engine": {
            "student": str(_zero_json(directory, stage=stage)),
            "teacher": str(_zero_json(directory, stage=teacher_stage)),
        },
        "run": {"dir": str(directory / "run")},
    }
    for name, section in sections.items():
        values[name] |= section
    path = directory / f"config-{stage}-{teacher_stage}-{micro_batch}-{dtype}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _zero_json(directory: Path, *, stage: int) -> Path:
    path = directory / f"zero{stage}.json"
    settings: dict[str, Any] = {"stage": stage}
    if stage == 3:
        # The models are so small that DeepSpeed would partition nothing.
        settings["stage3_param_persistence_threshold"] = 0
    path.write_text(json.dumps({"zero_optimization": settings}))
    return path


def example_batch(rows: Sequence[Pair], *, step: int, world: World) -> ExampleBatch:
    """This rank's share of rows with their own responses."""
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


@dataclass(frozen=True)
class FixedLoader:
    """Given global batches in the place of a data loader; batch numbers count from 1."""

    batches: Sequence[Sequence[Pair]]
    world: World

    def batch(self, step: int) -> ExampleBatch:
        return example_batch(self.batches[step - 1], step=step, world=self.world)


@dataclass(frozen=True)
class FixedSampler:
    """Given responses by step and row id in the place of rollouts."""

    responses: Sequence[Sequence[list[int]]]

    def sample(
        self, examples: Sequence[Example], *, seed: int, step: int, keep_hidden: bool = False
    ) -> SampledResponses:
        rows = [np.array(self.responses[step - 1][row.row_id], dtype=np.int32) for row in examples]
        return SampledResponses(sequences=[row.with_response(ids) for row, ids in zip(examples, rows, strict=True)])


Sequences = list[tuple[int, list[int], list[int]]]
"""Row id, prompt and response of each sequence of a global batch, over all ranks."""


@dataclass
class Recorded:
    """The first global batch of each step, over all ranks, and whether it came with the student's hidden states."""

    sequences: list[Sequences] = field(default_factory=list)
    kept_hidden: list[bool] = field(default_factory=list)


class Harness:
    """A method with its models on one rank, as a run builds them; steps run on given global batches."""

    def __init__(
        self,
        world: World,
        config_file: Path,
        overrides: Iterable[str] = (),
        *,
        batches: Sequence[Sequence[Pair]] = (),
        responses: Sequence[Sequence[list[int]]] | None = None,
    ) -> None:
        """`responses` replace the student's rollouts."""
        self.world = world
        self.config: Config = load_config(config_file, overrides=list(overrides))
        self.loader: Any = FixedLoader(batches, world)
        self.said: list[str] = []
        method, _ = build_method(
            self.config,
            vocabulary=share_vocabulary(self.config),
            loader=self.loader,
            run_dir=config_file.parent,
            world=world,
            say=self.said.append,
        )
        self.method: Any = method
        self.student, self.teacher = method.student, getattr(method, "teacher", None)
        if responses is not None:
            self.method._sampler = FixedSampler(responses)
        self.means: dict[str, list[float]] = {}

    def step(self, number: int, rows: Sequence[Pair] | None = None) -> StepMetrics:
        """Run a step on its batch, or on other rows, and note the means over tokens that a run would log."""
        batch = self.loader.batch(number) if rows is None else example_batch(rows, step=number, world=self.world)
        metrics: StepMetrics = self.method.run(batch)
        for name, part in metrics.token_means.items():
            self.means.setdefault(name, []).append(self.world.sum_across_ranks(part.clone()).item())
        return metrics

    def global_batch(self, number: int = 1) -> GlobalBatch:
        """The batch of a step with the rows' own responses."""
        batch: GlobalBatch = self.method.references(self.loader.batch(number))
        return batch

    def prompt(self) -> Tensor | None:
        """The soft prompt, if the teacher has one."""
        return self.teacher.values() if hasattr(self.teacher, "values") else None

    @contextmanager
    def recording(self) -> Any:
        """Record the first global batch of each step inside."""
        recorded = Recorded()
        make = self.method.batcher
        steps: set[int] = set()

        def batcher(sequences: Sequence[TokenSequence], **arguments: Any) -> GlobalBatch:
            batch: GlobalBatch = make(sequences, **arguments)
            if self.method.recorder.step not in steps:
                steps.add(self.method.recorder.step)
                own = [(row.row_id, row.prompt_ids.tolist(), row.response_ids.tolist()) for row in sequences]
                recorded.sequences.append(sorted(row for share in self.world.gather_objects(own) for row in share))
                recorded.kept_hidden.append(batch.student_hidden is not None)
            return batch

        self.method.batcher = batcher
        yield recorded
        self.method.batcher = make


def full_weights(model: nn.Module) -> dict[str, Tensor]:
    """fp32 copies of all parameters, gathered."""
    weights = {}
    for name, parameter in model.named_parameters():
        with gathered([parameter]):
            weights[name] = parameter.detach().float().clone()
    return weights


def is_released(model: nn.Module) -> bool:
    """Whether ZeRO-3 has partitioned all parameters, except those that it keeps."""
    return all(
        "NOT_AVAILABLE" in str(parameter.ds_status) and parameter.numel() == 0
        for parameter in model.parameters()
        if hasattr(parameter, "ds_id") and not parameter.ds_persist
    )


def train(
    world: World,
    *,
    config_file: Path,
    overrides: list[str],
    batches: list[list[Pair]],
    responses: list[list[list[int]]] | None = None,
    rolls_out: bool = False,
) -> dict[str, Any]:
    """One step for each batch; weights and soft prompt before and after, logged means, and what was learned from.

    Args:
        responses: replace the student's rollouts.
        rolls_out: sample from the student as a run does; otherwise methods learn from the rows' own responses.
    """
    fixed = [] if rolls_out or responses is not None else FIXED_RESPONSES
    harness = Harness(world, config_file, [*fixed, *overrides], batches=batches, responses=responses)
    student, teacher = harness.student.model, None if harness.teacher is None else harness.teacher.view.model
    before = {"student": full_weights(student), "teacher": {} if teacher is None else full_weights(teacher)}
    prompt_before = harness.prompt()
    norms = []
    with harness.recording() as recorded:
        for step in range(1, len(batches) + 1):
            metrics = harness.step(step)
            norms.append(float(metrics.values.get("grad_norm", float("nan"))))
    return {
        "before": before,
        "after": {"student": full_weights(student), "teacher": {} if teacher is None else full_weights(teacher)},
        "prompt_before": prompt_before,
        "prompt_after": harness.prompt(),
        "means": harness.means,
        "norms": norms,
        "released": {"student": is_released(student), "teacher": teacher is None or is_released(teacher)},
        "sequences": recorded.sequences,
        "kept_hidden": recorded.kept_hidden,
    }


def assert_same_updates(
    before: dict[str, Tensor], after: dict[str, Tensor], updates: dict[str, Tensor], *, tolerance: float = 1e-4
) -> None:
    """`after - before` equals `updates` up to a small part of the largest one, which is not negligible."""
    largest = max(update.abs().max().item() for update in updates.values())
    assert largest >= 1e-3
    for name, update in updates.items():
        ours = after[name].double() - before[name].double()
        assert (ours - update).abs().max().item() <= tolerance * largest, name


def assert_same_on_all_ranks(results: Sequence[dict[str, Any]]) -> None:
    for other in results[1:]:
        for name, value in results[0]["after"]["student"].items():
            assert torch.equal(value, other["after"]["student"][name]), name
        if results[0]["prompt_after"] is not None:
            assert torch.equal(results[0]["prompt_after"], other["prompt_after"])
