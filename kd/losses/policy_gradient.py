"""MiniLLM's policy gradient (arXiv 2306.08543): rewards of sampled tokens, and the loss term.

A token y_t is drawn from the mixture α·p + (1-α)·q. `student` and `teacher` are log q(y_t) and log p(y_t) in nats at
the time of sampling. T counts the tokens of one response, N those of all responses.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from kd.losses.terms import Term

PerToken: TypeAlias = Float[Tensor, " T"]


def token_rewards(student: PerToken, teacher: PerToken, *, scale: float, limit: float) -> PerToken:
    """r_t = (log p(y_t) - log q(y_t)) / scale, clipped to ±limit."""
    return ((teacher - student) / scale).clamp(-limit, limit)


def future_returns(rewards: PerToken, *, discount: float, length_normalized: bool) -> PerToken:
    """R_{t+1} = Σ over t' > t of γ^(t'-t-1) r_t', divided by T-t, the number of its summands; 0 for the last token."""
    returns: list[float] = []
    total = 0.0
    for reward in reversed(rewards.tolist()):
        # The token's own reward is left out: its expectation is differentiated exactly, as the single-step term.
        returns.append(total / max(1, len(returns)) if length_normalized else total)
        total = reward + discount * total
    return rewards.new_tensor(returns[::-1])


def whiten(values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """`values` moved and scaled to mean 0 and variance 1 over all N; all 0 where they are all the same."""
    centred = values - values.mean()
    return centred * (centred.square().mean() + 1e-8).rsqrt()


def importance_weights(student: PerToken, teacher: PerToken, *, teacher_share: float) -> PerToken:
    """w_t = q(y_t) / (α p(y_t) + (1-α) q(y_t)), with α the share of the teacher."""
    return 1 / (1 - teacher_share + teacher_share * (teacher - student).exp())


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyGradientTerm(Term):
    """max(-A ρ, -A clip(ρ, 1-ε, 1+ε)) with the ratio ρ_t = w_t q_θ(y_t) / q(y_t) to the time of sampling.

    `labels`, `sampled_log_probs` (log q(y_t)), `importance_weights` (w_t) and `advantages` (A_t) are [N]. The teacher
    enters through the advantages: there is no `target`.
    """

    labels: Tensor
    sampled_log_probs: Tensor
    importance_weights: Tensor
    advantages: Tensor
    ratio_clip: float

    def validate(self, *, num_rows: int, vocabulary_size: int) -> None:
        for name in ("labels", "sampled_log_probs", "importance_weights", "advantages"):
            shape = getattr(self, name).shape
            if shape != (num_rows,):
                raise ValueError(f"{name} are {list(shape)}, expected [{num_rows}]: one for each response position")

    def per_token(self, log_probs: Float[Tensor, "n V"], target: Tensor | None, rows: slice) -> Float[Tensor, " n"]:
        """The clipped loss at the positions `rows`, whose gradient is that of -A ρ where the ratio is not clipped."""
        log_ratio = log_probs.gather(-1, self.labels[rows].unsqueeze(-1)).squeeze(-1) - self.sampled_log_probs[rows]
        ratio = log_ratio.exp() * self.importance_weights[rows]
        clipped = ratio.clamp(1 - self.ratio_clip, 1 + self.ratio_clip)
        advantages = self.advantages[rows]
        return torch.maximum(-advantages * ratio, -advantages * clipped)
