"""Supervised fine-tuning: cross entropy on the responses of the data."""

from kd.config.schema import Config
from kd.data.loader import ExampleBatch
from kd.errors import UserError
from kd.losses.terms import cross_entropy
from kd.methods.base import Method, Needs


class SFT(Method):
    """Minimises -log q_θ(y|x) per response token."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        return Needs(teacher=False, rollouts=False, references=True)

    @classmethod
    def check(cls, config: Config) -> None:
        if config.model.teacher is not None:
            raise UserError("method sft trains model.student alone; set model.teacher=null")

    def step(self, batch: ExampleBatch) -> None:
        """One step on the references."""
        references = self.references(batch)
        for micro in references.micro_batches:
            self.student.backward(micro, cross_entropy=cross_entropy(micro.labels))
        self.student.step()
