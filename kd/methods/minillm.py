"""MiniLLM (arXiv 2306.08543): the reverse KL over whole responses, by policy gradient on teacher-mixed samples."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kd.config.schema import Config
from kd.data.corpus import find_corpus, load_corpus
from kd.data.global_batch import GlobalBatch, MicroBatch
from kd.data.loader import ExampleBatch
from kd.errors import UserError
from kd.losses.policy_gradient import PolicyGradientTerm
from kd.losses.terms import TRAINED, cross_entropy, kl
from kd.methods.base import Method, MethodContext, Needs
from kd.methods.minillm_rollouts import MiniLLMSettings, Rollout, RolloutStore, ScoredRollout, score
from kd.zero.memory import gib


class MiniLLM(Method):
    """Minimises KL(q_θ ‖ p) over whole responses: the next token exactly, later ones by sampling; and a corpus loss."""

    sections = {"minillm": MiniLLMSettings}

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.settings = self.config.section(MiniLLMSettings)
        self._store = RolloutStore(self.config)
        self._loader = context.loader
        self._corpus = None
        if self.settings.corpus_source is not None:
            self._corpus = load_corpus(
                self.settings.corpus_source,
                config=self.config,
                tokenizer=self.vocabulary.tokenizer,
                directory=context.run_dir,
                world=self.world,
                say=context.say,
            )
        if self._sampler is not None and self.decodes_with_teacher(self.config):
            self._sampler = self._sampler.mixed_with(self.teacher, teacher_share=self.settings.teacher_share)
            if self.teacher.engine.is_collective:
                size = gib(self.teacher.engine.resident.num_bytes)
                context.say(
                    f"rollouts: ZeRO-3 gathers the teacher layer by layer, {size} for every sampled token;"
                    " engine.gather=model gathers it once"
                )

    @classmethod
    def needs(cls, config: Config) -> Needs:
        return Needs(teacher=True, rollouts=True, references=False)

    @classmethod
    def decodes_with_teacher(cls, config: Config) -> bool:
        return config.section(MiniLLMSettings).teacher_share > 0

    @classmethod
    def check(cls, config: Config) -> None:
        settings, generation = config.section(MiniLLMSettings), config.generation
        if settings.corpus is None:
            raise UserError(
                "method minillm needs minillm.corpus, plain text such as the student was pre-trained on; give a file,"
                " a folder of .txt files, or none to train without"
            )
        if settings.rollouts % config.schedule.global_batch:
            raise UserError(
                f"minillm.rollouts={settings.rollouts} is not a multiple of schedule.global_batch="
                f"{config.schedule.global_batch}; change one of them"
            )
        if (generation.temperature, generation.top_p, generation.top_k) != (1, 1, 0):
            raise UserError(
                "method minillm weighs tokens by the models' own probabilities; set generation.temperature=1,"
                " generation.top_p=1 and generation.top_k=0"
            )

    @classmethod
    def check_files(cls, config: Config) -> None:
        if (source := config.section(MiniLLMSettings).corpus_source) is not None:
            find_corpus(source)

    def step(self, batch: ExampleBatch) -> None:
        """One step on stored rollouts, and on the corpus; a step that begins a collection samples it first."""
        if self._store.lacks(batch.step):
            with self.recorder.time("generation"):
                self._store.keep(self._collect(batch.step), step=batch.step)
        scored = self._own_share(score(self._store.batch(batch.step), settings=self.settings))
        rollouts = self.batcher([rollout.sequence for rollout in scored])
        corpus = None if self._corpus is None else self.references(self._corpus.batch(batch.step))
        teacher = self.teacher.outputs(rollouts)
        corpus_teacher = None if corpus is None else self.teacher.outputs(corpus)

        for micro in rollouts.micro_batches:
            self.student.backward(
                micro, policy_gradient=self._policy_gradient(micro, scored), student_kd=kl(TRAINED, teacher[micro])
            )
        if corpus is not None and corpus_teacher is not None:
            weight, ratio = self.settings.corpus_weight, self.settings.corpus_kd_ratio
            for micro in corpus.micro_batches:
                self.student.backward(
                    micro,
                    corpus_cross_entropy=weight * (1 - ratio) * cross_entropy(micro.labels),
                    corpus_kd=weight * ratio * kl(corpus_teacher[micro], TRAINED),
                )
        self.student.step()
        self._record(rollouts, scored)

    def _policy_gradient(self, micro: MicroBatch, scored: Sequence[ScoredRollout]) -> PolicyGradientTerm:
        """The long part of the gradient: all tokens but the next one."""
        by_row = {rollout.sequence.row_id: rollout for rollout in scored}
        rows = [by_row[row_id] for row_id in micro.batch.row_ids]
        return PolicyGradientTerm(
            labels=micro.labels,
            sampled_log_probs=self._concatenate([row.sampled_log_probs for row in rows]),
            importance_weights=self._concatenate([row.importance_weights for row in rows]),
            advantages=self._concatenate([row.advantages for row in rows]),
            ratio_clip=self.settings.ratio_clip,
        )

    def _collect(self, step: int) -> list[Rollout]:
        """Sample the collection that `step` begins, on all ranks, with both models' log-probabilities of its tokens."""
        first = self._store.collection_of(step) * self._store.batches_per_epoch + 1
        prompts = [
            example
            for number in range(first, first + self._store.batches_per_epoch)
            for example in self._loader.batch(number).examples
        ]
        # Numbered within the collection, the same for any number of ranks: a small data set repeats in it.
        examples = [replace(row, row_id=index * self.world.size + self.world.rank) for index, row in enumerate(prompts)]
        rollouts = self.rollout(ExampleBatch(step=step, examples=tuple(examples)))
        own = self._with_log_probs(rollouts)
        return [rollout for share in self.world.gather_objects(own) for rollout in share]

    def _with_log_probs(self, rollouts: GlobalBatch) -> list[Rollout]:
        """The sampled sequences of this rank with the log-probabilities of their tokens under both models."""
        sequences = {sequence.row_id: sequence for sequence in rollouts.sequences}
        row_ids, lengths = zip(*rollouts.response_lengths, strict=True)
        teacher = self.teacher.outputs(rollouts).token_log_probs(rollouts.labels).cpu().split(lengths)
        # Sampling has gathered the teacher too.
        self.teacher.pause()
        student = self.student.outputs(rollouts).token_log_probs(rollouts.labels).cpu().split(lengths)
        self.student.pause()
        return [
            # Clones: pickling a view would send all of its memory.
            Rollout(
                sequence=sequences[row_id], student_log_probs=of_student.clone(), teacher_log_probs=of_teacher.clone()
            )
            for row_id, of_student, of_teacher in zip(row_ids, student, teacher, strict=True)
        ]

    def _own_share(self, rollouts: Sequence[ScoredRollout]) -> Sequence[ScoredRollout]:
        return rollouts[self.world.rank :: self.world.size]

    def _concatenate(self, rows: Sequence[Tensor]) -> Tensor:
        """Values of consecutive rows [N], as the loss reads them."""
        return torch.cat(list(rows)).to(self.world.device, torch.float32)

    def _record(self, rollouts: GlobalBatch, scored: Sequence[ScoredRollout]) -> None:
        for name, values in (
            ("reward", [row.rewards for row in scored]),
            ("importance_weight", [row.importance_weights for row in scored]),
        ):
            total = self._concatenate(values).sum()
            self.recorder.add_token_mean(name, total, num_tokens=rollouts.num_tokens)

    def state_dict(self) -> dict[str, Any]:
        """The rollouts: a run that resumes within a collection cannot sample them again."""
        return self._store.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the rollouts of `state_dict`."""
        self._store.load_state_dict(state)
