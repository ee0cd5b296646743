"""Sequence-level distillation (Kim and Rush, arXiv 1606.07947) on responses of the teacher."""

from dataclasses import dataclass

from kd.config.fields import Count, Share, option
from kd.config.schema import Config
from kd.data.loader import ExampleBatch
from kd.errors import UserError
from kd.losses.terms import cross_entropy
from kd.methods.base import Method, Needs
from kd.methods.distillation import DistillationSettings


@dataclass(frozen=True, kw_only=True)
class SeqKDSettings(DistillationSettings):
    ratio: Share = option(0.5, help="r in (1-r)·CE + r·D; 0 needs no teacher while training")
    samples: Count = option(1, help="responses of the teacher to each prompt that `promptkd generate` writes")


class SeqKD(Method):
    """Minimises (1 - r)·CE + r·T²·D per token of the teacher's responses, which `promptkd generate` has written.

    With r = 0, as Kim and Rush define it, training needs no teacher.
    """

    sections = {"seqkd": SeqKDSettings}
    alternative_sources = False

    @classmethod
    def needs(cls, config: Config) -> Needs:
        return Needs(teacher=config.section(SeqKDSettings).ratio > 0, rollouts=False, references=True)

    @classmethod
    def check(cls, config: Config) -> None:
        if config.model.teacher is None:
            raise UserError("method seqkd needs model.teacher, a directory or hub name")
        if config.data.responses is None:
            raise UserError(
                "method seqkd learns from the teacher's responses: set data.responses, the file that"
                " `promptkd generate` writes"
            )

    def step(self, batch: ExampleBatch) -> None:
        """One step on the teacher's responses."""
        settings = self.config.section(SeqKDSettings)
        responses = self.references(batch)
        teacher = self.teacher.outputs(responses) if settings.ratio > 0 else None
        for micro in responses.micro_batches:
            self.student.backward(
                micro,
                student_kd=None if teacher is None else settings.ratio * settings.term(teacher[micro]),
                cross_entropy=(1 - settings.ratio) * cross_entropy(micro.labels),
            )
        self.student.step()
