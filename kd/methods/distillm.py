"""DistiLLM (arXiv 2402.03898): skew divergences, and the student's responses from a replay buffer when they help."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from kd.config.schema import Config
from kd.data.batch import TokenSequence
from kd.data.loader import ExampleBatch
from kd.distributed import World
from kd.methods.distillation import Objective, PlainDistillation
from kd.methods.method import Groundwork, Targets, own_responses
from kd.methods.targets import chance
from kd.models.student import Student
from kd.models.teacher import Teacher
from kd.rollout.sampler import PseudoTargets
from kd.zero.recorder import StepMetrics

THRESHOLD_STEP = 0.1
"""What the threshold rises by, as in the published code."""

Source = Literal["data", "buffer", "student"]

# Streams beside those of `kd.methods.targets`.
_CHOICE_OF_SOURCE, _CHOICE_OF_ROWS = 2, 3


def choose_source(number: float, *, threshold: float, step: int, num_steps: int, buffer_is_full: bool) -> Source:
    """Where a window's responses come from, by a uniform number in [0, 1).

    The student's responses have the chance φ = `threshold`: fresh ones φ·(1 - k/K), stored ones the rest of it.
    While the buffer fills, all of them are fresh.
    """
    if number >= threshold:
        return "data"
    if not buffer_is_full or number < threshold * (1 - step / num_steps):
        return "student"
    return "buffer"


class ReplayBuffer:
    """The newest responses of the student, those of all ranks on every rank."""

    def __init__(self, *, num_rows: int) -> None:
        self._rows: deque[TokenSequence] = deque(maxlen=num_rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_full(self) -> bool:
        return len(self) == self._rows.maxlen

    def add(self, rows: Sequence[TokenSequence]) -> None:
        """Store rows; as many of the oldest make room for them."""
        self._rows.extend(rows)

    def draw(self, num_rows: int, *, generator: np.random.Generator) -> list[TokenSequence]:
        """Different rows, each with the same chance."""
        return [self._rows[index] for index in generator.choice(len(self), size=num_rows, replace=False)]

    def state_dict(self) -> dict[str, list[Any]]:
        """All rows, oldest first."""
        return {
            "row_ids": [row.row_id for row in self._rows],
            "prompts": [torch.from_numpy(row.prompt_ids) for row in self._rows],
            "responses": [torch.from_numpy(row.response_ids) for row in self._rows],
        }

    def load_state_dict(self, state: Mapping[str, list[Any]]) -> None:
        """Hold the rows of `state` and no other."""
        columns = zip(state["row_ids"], state["prompts"], state["responses"], strict=True)
        self._rows.clear()
        self.add(
            [
                TokenSequence(row_id=row_id, prompt_ids=prompt.numpy(), response_ids=response.numpy())
                for row_id, prompt, response in columns
            ]
        )


class AdaptiveTargets:
    """The data's, the student's fresh or its stored responses: one choice for each window, the same on all ranks."""

    def __init__(self, config: Config, *, sampled: Targets, world: World) -> None:
        """`sampled` makes fresh responses."""
        settings = config.distillm
        self.threshold = settings.initial_threshold
        self.buffer = ReplayBuffer(num_rows=settings.buffer_rows)
        self._tolerance = settings.loss_tolerance
        self._reference_loss: float | None = None
        self._sampled = sampled
        self._seed = config.run.seed
        self._schedule = config.schedule
        self._world = world

    def __call__(self, window: ExampleBatch) -> PseudoTargets:
        source = choose_source(
            chance(self._seed, window.step, stream=_CHOICE_OF_SOURCE),
            threshold=self.threshold,
            step=window.step,
            num_steps=self._schedule.steps,
            buffer_is_full=self.buffer.is_full,
        )
        if source == "data":
            return own_responses(window)
        if source == "student":
            targets = self._sampled(window)
            rows = [row for share in self._world.gather_objects(targets.sequences) for row in share]
            # An order that the number of ranks has no part in.
            self.buffer.add(sorted(rows, key=lambda row: row.row_id))
            return targets
        return PseudoTargets(sequences=self._draw(window.step))

    def _draw(self, step: int) -> list[TokenSequence]:
        """This rank's share of a window out of the buffer, dealt out like any other window."""
        entropy = np.random.SeedSequence((self._seed, step), spawn_key=(_CHOICE_OF_ROWS,))
        rows = self.buffer.draw(self._schedule.global_batch, generator=np.random.default_rng(entropy))
        rows.sort(key=lambda row: row.num_tokens)
        return rows[self._world.rank :: self._world.size]

    def follow(self, loss: float) -> None:
        """Raise the threshold if the validation loss has risen since it was raised last, or since the beginning."""
        if self._reference_loss is None:
            self._reference_loss = loss
        elif loss >= self._reference_loss + self._tolerance:
            self.threshold = min(1.0, self.threshold + THRESHOLD_STEP)
            self._reference_loss = loss

    def state_dict(self) -> dict[str, Any]:
        """Threshold, the loss that the next one is compared with, and the buffer."""
        return {
            "threshold": self.threshold,
            "reference_loss": self._reference_loss,
            "buffer": self.buffer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.threshold = state["threshold"]
        self._reference_loss = state["reference_loss"]
        self.buffer.load_state_dict(state["buffer"])


class DistiLLM(PlainDistillation):
    """Minimises T²·D, a skew divergence by default, on responses that are off-policy as far as that does no harm."""

    def __init__(
        self, config: Config, *, student: Student, teacher: Teacher, sampled: Targets, groundwork: Groundwork
    ) -> None:
        """`sampled` are fresh responses, or fixed ones (data.responses), which leave nothing to choose."""
        self._adaptive = AdaptiveTargets(config, sampled=sampled, world=groundwork.world)
        super().__init__(
            config,
            student=student,
            teacher=teacher,
            targets=self._adaptive if config.samples_responses else sampled,
            groundwork=groundwork,
        )

    @staticmethod
    def objective(config: Config) -> Objective:
        """D alone."""
        return Objective.of(config.distillm)

    def step(self, window: ExampleBatch) -> StepMetrics:
        """One optimizer step of the student on a window."""
        metrics = super().step(window)
        return replace(metrics, values={**metrics.values, "replay_threshold": self._adaptive.threshold})

    def follow_validation(self, loss: float) -> None:
        """Take note of a validation loss [nats per token]."""
        self._adaptive.follow(loss)

    def state_dict(self) -> dict[str, Any]:
        """What the choice of responses remembers; the same on all ranks."""
        return self._adaptive.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._adaptive.load_state_dict(state)
