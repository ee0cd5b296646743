"""Cross entropy on given labels, as a term of the chunked loss."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class LikelihoodTerm:
    """Negative log-likelihood in nats of `labels` [N] (int64, each below the shared vocabulary's size).

    The range of the labels is not checked beforehand: that would wait for the device at every step.
    """

    labels: Tensor
    weight: float = 1.0

    def validate(self, *, num_rows: int, vocabulary_size: int) -> None:
        """Raise ValueError unless there is one int64 label for each of the `num_rows` positions."""
        if self.labels.shape != (num_rows,) or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels are {self.labels.dtype} {list(self.labels.shape)}, expected torch.int64 "
                f"[{num_rows}]: one label for each response position"
            )

    @property
    def target(self) -> None:
        """Nothing: labels are no distribution."""
        return None

    def per_token(self, log_probs: Float[Tensor, "n V"], target: Tensor | None, rows: slice) -> Float[Tensor, " n"]:
        """-log p(label) in nats for the positions `rows`, given their log-probabilities [n, V]."""
        # gather instead of nll_loss: an ignore index would drop tokens that the caller has counted.
        return -log_probs.gather(-1, self.labels[rows].unsqueeze(-1)).squeeze(-1)
