"""DistiLLM (arXiv 2402.03898): skew divergences, and the student's responses from a replay buffer when they help."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kd.config.fields import Count, NonNegativeFloat, Share, option
from kd.config.schema import Config
from kd.data.batch import TokenSequence
from kd.data.global_batch import GlobalBatch
from kd.data.loader import ExampleBatch
from kd.errors import UserError
from kd.losses.divergences import DivergenceName
from kd.methods.base import Method, MethodContext, Needs, uniform
from kd.methods.distillation import DistillationSettings

THRESHOLD_STEP = 0.1
"""Increment of the threshold, as in the published code."""

Source = Literal["data", "buffer", "student"]

# Random streams beside those of `kd.methods.base`.
_SOURCE, _BUFFER_ROWS = 2, 3


@dataclass(frozen=True, kw_only=True)
class DistiLLMSettings(DistillationSettings):
    divergence: DivergenceName = option("skew_kl", help="D, as kd.divergence")
    initial_threshold: Share = option(
        0.0, help="initial φ, probability that a global batch has responses of the student"
    )
    loss_tolerance: NonNegativeFloat = option(
        0.1, help="ε: φ rises by 0.1 when the validation loss has risen by this much [nats]"
    )
    buffer_rows: Count = option(1000, help="size of the replay buffer [responses]")


def choose_source(number: float, *, threshold: float, step: int, num_steps: int, buffer_is_full: bool) -> Source:
    """Source of a global batch's responses, by a uniform number in [0, 1).

    The student's responses have the probability φ = `threshold`: fresh ones φ·(1 - k/K), stored ones the rest of it.
    While the buffer fills, all of them are fresh.
    """
    if number >= threshold:
        return "data"
    if not buffer_is_full or number < threshold * (1 - step / num_steps):
        return "student"
    return "buffer"


class ReplayBuffer:
    """The latest responses of the student, those of all ranks on every rank."""

    def __init__(self, *, num_rows: int) -> None:
        self._rows: deque[TokenSequence] = deque(maxlen=num_rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_full(self) -> bool:
        return len(self) == self._rows.maxlen

    def add(self, rows: Sequence[TokenSequence]) -> None:
        """Store rows; they replace the oldest ones of a full buffer."""
        self._rows.extend(rows)

    def draw(self, num_rows: int, *, generator: np.random.Generator) -> list[TokenSequence]:
        """Different rows, uniformly."""
        return [self._rows[index] for index in generator.choice(len(self), size=num_rows, replace=False)]

    def state_dict(self) -> list[dict[str, Any]]:
        """All rows, oldest first."""
        return [row.state_dict() for row in self._rows]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Replace all rows by those of `state`."""
        self._rows.clear()
        self.add([TokenSequence.from_state(row) for row in state])


class DistiLLM(Method):
    """Minimises T²·D, a skew divergence by default, on responses that are off-policy as far as that does no harm."""

    sections = {"distillm": DistiLLMSettings}
    follows_validation = True

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.settings = self.config.section(DistiLLMSettings)
        self.threshold = self.settings.initial_threshold
        self.buffer = ReplayBuffer(num_rows=self.settings.buffer_rows)
        self._reference_loss: float | None = None

    @classmethod
    def needs(cls, config: Config) -> Needs:
        return Needs(teacher=True, rollouts=True, references=True)

    @classmethod
    def check(cls, config: Config) -> None:
        if config.data.responses is not None:
            return
        if config.data.validation is None:
            raise UserError("method distillm follows the validation loss; set data.validation")
        num_rows = config.section(DistiLLMSettings).buffer_rows
        if num_rows < config.schedule.global_batch:
            raise UserError(
                f"distillm.buffer_rows={num_rows} is less than schedule.global_batch={config.schedule.global_batch}; a"
                " global batch could not be drawn from it"
            )

    def step(self, batch: ExampleBatch) -> None:
        """One step on the data's, fresh or stored responses: one choice for each global batch."""
        responses = self.responses(batch)
        teacher = self.teacher.outputs(responses)
        for micro in responses.micro_batches:
            self.student.backward(micro, student_kd=self.settings.term(teacher[micro]))
        self.student.step()
        self.recorder.record("replay_threshold", self.threshold)

    def responses(self, batch: ExampleBatch) -> GlobalBatch:
        """The responses to learn from; the source is the same on all ranks."""
        source = choose_source(
            uniform(self.config.run.seed, batch.step, stream=_SOURCE),
            threshold=self.threshold,
            step=batch.step,
            num_steps=self.config.schedule.steps,
            buffer_is_full=self.buffer.is_full,
        )
        # Fixed responses leave nothing to choose.
        if source == "data" or self.config.data.responses is not None:
            return self.references(batch)
        if source == "buffer":
            return self.batcher(self._draw(batch.step))
        rollouts = self.rollout(batch)
        rows = [row for share in self.world.gather_objects(list(rollouts.sequences)) for row in share]
        # An order that does not depend on the number of ranks.
        self.buffer.add(sorted(rows, key=lambda row: row.row_id))
        return rollouts

    def _draw(self, step: int) -> list[TokenSequence]:
        """This rank's share of a global batch from the buffer, distributed like any other."""
        entropy = np.random.SeedSequence((self.config.run.seed, step), spawn_key=(_BUFFER_ROWS,))
        generator = np.random.default_rng(entropy)
        rows = self.buffer.draw(self.config.schedule.global_batch, generator=generator)
        rows.sort(key=lambda row: row.num_tokens)
        return rows[self.world.rank :: self.world.size]

    def follow_validation(self, loss: float) -> None:
        """Raise the threshold if the loss [nats per token] has risen since the last raise, or since the beginning."""
        if self._reference_loss is None:
            self._reference_loss = loss
        elif loss >= self._reference_loss + self.settings.loss_tolerance:
            self.threshold = min(1.0, self.threshold + THRESHOLD_STEP)
            self._reference_loss = loss

    def state_dict(self) -> dict[str, Any]:
        """The threshold, the reference loss and the buffer; the same on all ranks."""
        buffer = self.buffer.state_dict()
        return {"threshold": self.threshold, "reference_loss": self._reference_loss, "buffer": buffer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.threshold = state["threshold"]
        self._reference_loss = state["reference_loss"]
        self.buffer.load_state_dict(state["buffer"])
