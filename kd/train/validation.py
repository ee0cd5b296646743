"""Validation while training: cross entropy on the references, and metrics of generated responses."""

from collections.abc import Sequence

import numpy as np
import torch

from kd.config.schema import Config
from kd.data.batch import TokenSequence
from kd.data.encoding import Example
from kd.data.global_batch import EmptyBatchError
from kd.distributed import World
from kd.errors import UserError
from kd.methods.base import Method
from kd.rollout.sampler import Sampler
from kd.text_metrics import METRICS, Metric, find_metric


def check_validation(examples: Sequence[Example], *, config: Config, world: World) -> None:
    """Check that every rank gets a row, and that the metric can be computed.

    Raises:
        UserError: fewer rows than ranks, or an answer pattern that is not a regular expression.
    """
    num_rows = min(len(examples), config.validation.rows)
    if num_rows < world.size:
        raise UserError(
            f"{config.data.validation}: {num_rows} validation rows for {world.size} ranks; give at least one each"
        )
    _metrics(config)


class Validator:
    """Measures the student on held-out rows, which are distributed over the ranks."""

    def __init__(self, examples: Sequence[Example], *, method: Method, sampler: Sampler | None) -> None:
        """Without a `sampler`, only the loss is measured."""
        self._method = method
        self._settings = settings = method.config.validation
        self._rows = examples[: settings.rows]
        self._student = method.student
        self._sampler = sampler
        self._world = method.world
        self._metrics = _metrics(method.config) if sampler is not None else {}
        self._criterion = settings.metric if settings.metric in self._metrics else "loss"

    def measure(self) -> dict[str, float]:
        """validation/loss [nats per response token] and, of generated responses, metrics such as validation/rougeL.

        Metrics are ×100. All ranks call it together.
        """
        results = {"validation/loss": self.loss()}
        if self._sampler is not None:
            results |= self._response_metrics(self._sampler)
        return results

    def score(self, results: dict[str, float]) -> float:
        """The result of `measure` that selects the best student; higher is better."""
        value = results[f"validation/{self._criterion}"]
        return -value if self._criterion == "loss" else value

    def loss(self) -> float:
        """Cross entropy on the references [nats per response token]; all ranks call it together."""
        total = torch.zeros((), dtype=torch.float64, device=self._world.device)
        num_tokens = 0
        size = self._method.config.schedule.global_batch
        for start in range(0, len(self._rows), size):
            rows = self._rows[start : start + size]
            own = [row.with_response() for row in rows[self._world.rank :: self._world.size]]
            try:
                batch = self._method.batcher(own or [self._dummy()])
            except EmptyBatchError:
                continue
            log_probs = self._student.outputs(batch).token_log_probs(batch.labels)
            total -= log_probs.sum(dtype=torch.float64)
            num_tokens += batch.num_tokens
        self._student.release()
        return float(self._world.sum_across_ranks(total).item() / num_tokens)

    def _dummy(self) -> TokenSequence:
        """A row without a response, for a rank that has none of a batch."""
        prompt = self._rows[0].prompt_ids
        return TokenSequence(row_id=0, prompt_ids=prompt, response_ids=np.zeros(0, dtype=np.int32))

    def _response_metrics(self, sampler: Sampler) -> dict[str, float]:
        examples = self._rows[self._world.rank :: self._world.size]
        sequences = sampler.sample(examples, seed=self._settings.seed, step=0).sequences
        self._student.release()
        totals = torch.zeros(len(self._metrics), dtype=torch.float64, device=self._world.device)
        for example, sequence in zip(examples, sequences, strict=True):
            text = str(self._method.vocabulary.tokenizer.decode(sequence.response_ids, skip_special_tokens=True))
            totals += totals.new_tensor([metric(text, example.references) for metric in self._metrics.values()])
        means = (100 * self._world.sum_across_ranks(totals) / len(self._rows)).tolist()
        return {f"validation/{name}": mean for name, mean in zip(self._metrics, means, strict=True)}


def _metrics(config: Config) -> dict[str, Metric]:
    """The metrics of generated responses: ROUGE-L always, and the one that selects the best student."""
    names = [name for name in ("rougeL", config.validation.metric) if name in METRICS or name == "accuracy"]
    pattern = config.validation.answer_pattern
    return {name: find_metric(name, answer_pattern=pattern) for name in dict.fromkeys(names)}
