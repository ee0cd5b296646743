"""Validation while training: cross entropy on the references, ROUGE-L of sampled responses."""

from collections.abc import Sequence

import numpy as np
import torch

from evaluation.rouge_l import rouge_l
from kd.config.schema import Config
from kd.data.batch import SequenceBatch, TokenSequence, cut_micro_batches
from kd.data.encoding import Example
from kd.distributed import World
from kd.errors import UserError
from kd.losses.fused import FusedLoss
from kd.losses.likelihood import LikelihoodTerm
from kd.losses.terms import Projection
from kd.methods.method import Groundwork
from kd.models.student import Student
from kd.models.vocabulary import SharedVocabulary
from kd.rollout.sampler import Sampler


def check_validation(examples: Sequence[Example], *, config: Config, world: World) -> None:
    """Check that every rank gets a row.

    Raises:
        UserError: fewer rows than ranks.
    """
    num_rows = min(len(examples), config.validation.rows)
    if num_rows < world.size:
        raise UserError(
            f"{config.data.validation}: {num_rows} validation rows for {world.size} ranks; give at least one each"
        )


class Validator:
    """Measures the student on held-out rows, shared out over the ranks."""

    def __init__(
        self,
        config: Config,
        *,
        examples: Sequence[Example],
        student: Student,
        sampler: Sampler | None,
        vocabulary: SharedVocabulary,
        groundwork: Groundwork,
        world: World,
    ) -> None:
        """`sampler` None leaves ROUGE-L out."""
        rows = examples[: config.validation.rows]
        self._examples = rows[world.rank :: world.size]
        self._num_rows = len(rows)
        self._student = student
        self._sampler = sampler
        self._vocabulary = vocabulary
        self._groundwork = groundwork
        self._world = world
        self._seed = config.validation.seed
        self._micro_batch = config.schedule.micro_batch

    def measure(self) -> dict[str, float]:
        """validation/loss (nats per response token) and validation/rougeL (×100); all ranks call it together."""
        results = {"validation/loss": self.loss()}
        if self._sampler is not None:
            results["validation/rougeL"] = self._rouge_l(self._sampler)
        return results

    def loss(self) -> float:
        """Cross entropy on the references [nats per response token]; all ranks call it together."""
        batches = cut_micro_batches([row.with_response() for row in self._examples], micro_batch=self._micro_batch)
        # Under ZeRO-3 a forward pass needs all ranks: those with fewer batches run one without a response.
        most = int(self._world.max_across_ranks(torch.tensor(len(batches), device=self._world.device)).item())
        first = self._examples[0]
        silent = TokenSequence(row_id=0, prompt_ids=first.prompt_ids, response_ids=np.zeros(0, dtype=np.int32))
        batches += [[silent]] * (most - len(batches))
        totals = torch.zeros(2, dtype=torch.float64, device=self._world.device)
        for rows in batches:
            batch = SequenceBatch.collate(rows, pad_id=self._vocabulary.pad_id, device=self._world.device)

            def loss(student: Projection, labels: torch.Tensor = batch.labels) -> FusedLoss:
                return self._groundwork.loss(student, [LikelihoodTerm(labels=labels)], scale=1.0)

            totals[0] += self._student.measure(batch, loss)[0]
            totals[1] += batch.num_response_tokens
        self._student.release()
        nats, tokens = self._world.sum_across_ranks(totals).tolist()
        return float(nats / tokens)

    def _rouge_l(self, sampler: Sampler) -> float:
        sequences = sampler.sample(self._examples, seed=self._seed, step=0).sequences
        self._student.release()
        total = torch.zeros((), dtype=torch.float64, device=self._world.device)
        for example, sequence in zip(self._examples, sequences, strict=True):
            text = str(self._vocabulary.tokenizer.decode(sequence.response_ids, skip_special_tokens=True))
            total += rouge_l(text, example.references)
        return float(100 * self._world.sum_across_ranks(total).item() / self._num_rows)
