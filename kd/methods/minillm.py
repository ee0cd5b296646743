"""MiniLLM (arXiv 2306.08543): the reverse KL over whole responses, by policy gradient on teacher-mixed samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kd.config.schema import Config
from kd.data.batch import SequenceBatch
from kd.data.loader import BatchLoader, ExampleBatch
from kd.losses.divergences import forward_kl, reverse_kl
from kd.losses.likelihood import LikelihoodTerm
from kd.losses.policy_gradient import LogProbRecorder, PolicyGradientTerm
from kd.losses.terms import DivergenceTerm, Head, Projection, Term
from kd.methods.method import Groundwork, Targets, WindowPlan, own_responses
from kd.methods.minillm_rollouts import Rollout, RolloutStore, ScoredRollout, score
from kd.models.student import Student
from kd.models.teacher import Teacher
from kd.rollout.sampler import PseudoTargets
from kd.zero.recorder import StepMetrics, Stopwatch

MakeTerms = Callable[[SequenceBatch, Projection], Sequence[Term]]
"""From a micro-batch and the teacher's projection of its response positions to the terms of its loss."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of the loss: sequences, and what it measures on each of their response tokens."""

    plan: WindowPlan
    terms: MakeTerms
    names: tuple[str, ...]


class MiniLLM:
    """Minimises KL(q_θ ‖ p) over whole responses: the next token exactly, later ones by sampling; and a corpus loss."""

    def __init__(
        self,
        config: Config,
        *,
        student: Student,
        teacher: Teacher,
        targets: Targets,
        windows: Callable[[int], ExampleBatch],
        corpus: BatchLoader | None,
        groundwork: Groundwork,
    ) -> None:
        """`windows` gives this rank's prompts by number; `corpus` None leaves its loss out."""
        self._student = student
        self._teacher = teacher
        self._targets = targets
        self._windows = windows
        self._corpus = corpus
        self._groundwork = groundwork
        self._settings = config.minillm
        self._learning_rate = config.optimizer.learning_rate
        self._store = RolloutStore(config)

    def state_dict(self) -> dict[str, Any]:
        """The rollouts, which a run that goes on between two samplings cannot sample again."""
        return self._store.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the rollouts of `state_dict`."""
        self._store.load_state_dict(state)

    def step(self, window: ExampleBatch) -> StepMetrics:
        """One optimizer step of the student; prompts come from its own windows, at the beginning of a collection."""
        groundwork = self._groundwork
        stopwatch = Stopwatch(groundwork.device)
        learning_rate = groundwork.learning_rate(self._learning_rate, step=window.step)
        groundwork.gather(self._student, self._teacher, stopwatch=stopwatch)
        if self._store.lacks(window.step):
            with stopwatch.time("generation"):
                self._store.keep(self._collect(window.step), step=window.step)
        rollouts = self._own_part(score(self._store.window(window.step), settings=self._settings))
        plan = groundwork.plan(PseudoTargets(sequences=[rollout.sequence for rollout in rollouts]))
        num_tokens = plan.mean.num_tokens
        if num_tokens == 0:
            return groundwork.skip(stopwatch)
        parts = [self._rollouts_part(plan, rollouts)]
        if self._corpus is not None:
            parts.append(self._corpus_part(self._corpus.window(window.step)))
        sums = self._accumulate(parts, num_tokens=num_tokens, stopwatch=stopwatch)
        sums |= {
            "reward": self._column([row.rewards for row in rollouts]).sum(),
            "importance_weight": self._column([row.importance_weights for row in rollouts]).sum(),
        }
        return groundwork.finish(
            self._student, learning_rate=learning_rate, num_tokens=num_tokens, token_sums=sums, stopwatch=stopwatch
        )

    def _collect(self, step: int) -> list[Rollout]:
        """Sample the responses of the collection that `step` begins, on all ranks, and what both models say of them."""
        world = self._groundwork.world
        first = self._store.collection_of(step) * self._store.windows_per_epoch + 1
        prompts = [
            example
            for number in range(first, first + self._store.windows_per_epoch)
            for example in self._windows(number).examples
        ]
        # The place in the collection, the same for any number of ranks: a small data set has rows several times in it.
        examples = [replace(row, row_id=place * world.size + world.rank) for place, row in enumerate(prompts)]
        targets = self._targets(ExampleBatch(step=step, examples=tuple(examples)))
        own = self._note_log_probs(targets)
        return [rollout for rollouts in world.gather_objects(own) for rollout in rollouts]

    def _note_log_probs(self, targets: PseudoTargets) -> list[Rollout]:
        """The sampled sequences of this rank, with the log-probabilities of their tokens under both models."""
        plan = self._groundwork.plan(targets)
        sequences = {sequence.row_id: sequence for sequence in targets.sequences}
        with self._teacher.head() as head:

            def teacher_log_probs(batch: SequenceBatch) -> Tensor:
                recorder = LogProbRecorder.of(batch.labels)
                self._groundwork.loss(head.project(self._teacher.hidden(batch)), [recorder], scale=1.0)
                return recorder.values[:, None]

            teacher = plan.hidden(teacher_log_probs)
            # Of the sampling too, which may have run the sharded teacher.
            self._teacher.pause()
        student = plan.hidden(self._student_log_probs)
        self._student.pause()
        return [
            # Clones: a part of a tensor is sent with all of its memory.
            Rollout(
                sequence=sequences[row_id], student_log_probs=of_student.clone(), teacher_log_probs=of_teacher.clone()
            )
            for batch, *pair in zip(plan.batches, student, teacher, strict=True)
            for row_id, of_student, of_teacher in zip(
                batch.row_ids, *(values[:, 0].cpu().split(batch.response_lengths) for values in pair), strict=True
            )
        ]

    def _student_log_probs(self, batch: SequenceBatch) -> Tensor:
        recorder = LogProbRecorder.of(batch.labels)
        self._student.measure(batch, lambda student: self._groundwork.loss(student, [recorder], scale=1.0))
        return recorder.values[:, None]

    def _own_part(self, rollouts: Sequence[ScoredRollout]) -> Sequence[ScoredRollout]:
        world = self._groundwork.world
        return rollouts[world.rank :: world.size]

    def _rollouts_part(self, plan: WindowPlan, rollouts: Sequence[ScoredRollout]) -> _Part:
        """The policy gradient and the single step's term."""
        by_row = {rollout.sequence.row_id: rollout for rollout in rollouts}

        def terms(batch: SequenceBatch, teacher: Projection) -> Sequence[Term]:
            rows = [by_row[row_id] for row_id in batch.row_ids]
            long_part = PolicyGradientTerm(
                labels=batch.labels,
                sampled_log_probs=self._column([row.sampled_log_probs for row in rows]),
                importance_weights=self._column([row.importance_weights for row in rows]),
                advantages=self._column([row.advantages for row in rows]),
                ratio_clip=self._settings.ratio_clip,
            )
            return long_part, DivergenceTerm(divergence=reverse_kl, target=teacher)

        return _Part(plan=plan, terms=terms, names=("policy_gradient", "student_kd"))

    def _corpus_part(self, window: ExampleBatch) -> _Part:
        """The corpus loss."""
        weight, ratio = self._settings.corpus_weight, self._settings.corpus_kd_ratio

        def terms(batch: SequenceBatch, teacher: Projection) -> Sequence[Term]:
            return (
                LikelihoodTerm(labels=batch.labels, weight=weight * (1 - ratio)),
                DivergenceTerm(divergence=forward_kl, target=teacher, weight=weight * ratio),
            )

        plan = self._groundwork.plan(own_responses(window))
        return _Part(plan=plan, terms=terms, names=("corpus_cross_entropy", "corpus_kd"))

    def _accumulate(self, parts: Sequence[_Part], *, num_tokens: int, stopwatch: Stopwatch) -> dict[str, Tensor]:
        """Gradient of the parts' token means; returns their terms' sums, which `num_tokens` divides into means."""
        with stopwatch.time("teacher"):
            hidden = [part.plan.hidden(self._teacher.hidden) for part in parts]
        # Before the release: a teacher that is whole need not gather its head again.
        with self._teacher.head() as head:
            self._teacher.release()
            with stopwatch.time("student"), self._student.window():
                return {
                    name: total * (num_tokens / part.plan.mean.num_tokens)
                    for part, states in zip(parts, hidden, strict=True)
                    for name, total in zip(
                        part.names,
                        self._accumulate_part(part, states, head=head, ends_window=part is parts[-1]),
                        strict=True,
                    )
                }

    def _accumulate_part(self, part: _Part, hidden: Sequence[Tensor], *, head: Head, ends_window: bool) -> Tensor:
        terms = [
            part.terms(batch, head.project(states)) for batch, states in zip(part.plan.batches, hidden, strict=True)
        ]
        return self._groundwork.accumulate(part.plan, terms, student=self._student, ends_window=ends_window)

    def _column(self, rows: Sequence[Tensor]) -> Tensor:
        """Values of consecutive rows, one after the other [N], as the loss reads them."""
        return torch.cat(list(rows)).to(self._groundwork.device, torch.float32)
