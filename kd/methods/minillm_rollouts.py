"""MiniLLM's rollouts: responses that are sampled together and trained on for a few epochs, and their rewards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kd.config.fields import Count, MixtureShare, NonNegativeFloat, PositiveFloat, Section, Share, option
from kd.config.schema import Config
from kd.data.batch import TokenSequence
from kd.losses.policy_gradient import future_returns, importance_weights, token_rewards, whiten


@dataclass(frozen=True, kw_only=True)
class MiniLLMSettings(Section):
    corpus: str | None = option(
        None, help="pre-training text: a plain-text file, a folder of .txt files, or none to train without"
    )
    corpus_weight: NonNegativeFloat = option(1.0, help="weight of the loss on the corpus")
    corpus_kd_ratio: Share = option(0.5, help="r in (1-r)·CE + r·KL(p||q) on the corpus")
    teacher_share: MixtureShare = option(
        0.2, help="α: tokens are sampled from α·p + (1-α)·q; 0 samples from the student alone"
    )
    rollouts: Count = option(256, help="responses sampled at a time, over all ranks")
    inner_epochs: Count = option(4, help="epochs over these responses before the next ones")
    ratio_clip: PositiveFloat = option(0.2, help="ε: ratios are clipped to 1 ± ε")
    reward_scale: PositiveFloat = option(0.5, help="rewards are divided by it")
    reward_limit: PositiveFloat = option(100.0, help="then rewards are clipped to ± this")
    discount: Share = option(0.95, help="γ of later rewards")
    length_normalized: bool = option(True, help="divide a return by the number of tokens that it sums over")
    whitened: bool = option(True, help="normalise the returns of a global batch to mean 0 and variance 1")

    @property
    def corpus_source(self) -> str | None:
        """Path of the corpus; None without one."""
        return None if self.corpus == "none" else self.corpus


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """A response with the log-probabilities in nats that both models gave its T tokens when it was sampled."""

    sequence: TokenSequence
    student_log_probs: Float[Tensor, " T"]
    teacher_log_probs: Float[Tensor, " T"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredRollout:
    """A rollout with the values that the loss reads, per token [T]."""

    sequence: TokenSequence
    sampled_log_probs: Float[Tensor, " T"]
    """log q(y_t) at the time of sampling."""
    importance_weights: Float[Tensor, " T"]
    rewards: Float[Tensor, " T"]
    advantages: Float[Tensor, " T"]


def score(rollouts: Sequence[Rollout], *, settings: MiniLLMSettings) -> list[ScoredRollout]:
    """Rewards, advantages and importance weights of the rollouts of one global batch."""
    log_probs = [(rollout.student_log_probs.double(), rollout.teacher_log_probs.double()) for rollout in rollouts]
    rewards = [token_rewards(q, p, scale=settings.reward_scale, limit=settings.reward_limit) for q, p in log_probs]
    advantages = torch.cat(
        [
            future_returns(row, discount=settings.discount, length_normalized=settings.length_normalized)
            for row in rewards
        ]
    )
    if settings.whitened:
        # Over all tokens, including the last ones with their returns of 0: a shift of some tokens only would bias the
        # gradient's mean.
        advantages = whiten(advantages)
    weights = [importance_weights(q, p, teacher_share=settings.teacher_share) for q, p in log_probs]
    columns = zip(rollouts, weights, rewards, advantages.split([len(row) for row in rewards]), strict=True)
    return [
        ScoredRollout(
            sequence=rollout.sequence,
            sampled_log_probs=rollout.student_log_probs,
            importance_weights=weight,
            rewards=reward,
            advantages=advantage,
        )
        for rollout, weight, reward, advantage in columns
    ]


class RolloutStore:
    """The rollouts of the current collection, all ranks' on each rank, and which of them each step trains on.

    A collection lasts for `inner_epochs` epochs of global batches, each in an order of its own.
    """

    def __init__(self, config: Config) -> None:
        settings = config.section(MiniLLMSettings)
        self._seed = config.run.seed
        self._global_batch = config.schedule.global_batch
        self.batches_per_epoch = settings.rollouts // self._global_batch
        self._batches_per_collection = self.batches_per_epoch * settings.inner_epochs
        self._collection: int | None = None
        self._rollouts: list[Rollout] = []

    def collection_of(self, step: int) -> int:
        """Which collection, counted from 0, optimizer step `step`, counted from 1, trains on."""
        return (step - 1) // self._batches_per_collection

    def lacks(self, step: int) -> bool:
        """Whether rollouts must be sampled before `step`."""
        return self._collection != self.collection_of(step)

    def keep(self, rollouts: Sequence[Rollout], *, step: int) -> None:
        """Replace the rollouts; their order does not matter, their row ids differ."""
        self._rollouts = sorted(rollouts, key=lambda rollout: rollout.sequence.row_id)
        self._collection = self.collection_of(step)

    def batch(self, step: int) -> list[Rollout]:
        """The rollouts that all ranks train on at `step`, shortest first."""
        epoch, index = divmod((step - 1) % self._batches_per_collection, self.batches_per_epoch)
        generator = np.random.default_rng([self._seed, self.collection_of(step), epoch])
        order = generator.permutation(len(self._rollouts))
        chosen = order[index * self._global_batch : (index + 1) * self._global_batch]
        return sorted((self._rollouts[row] for row in chosen), key=lambda rollout: rollout.sequence.num_tokens)

    def state_dict(self) -> dict[str, Any]:
        """The current collection, in tensors, numbers, lists and dictionaries."""
        rollouts = [{**vars(rollout), "sequence": rollout.sequence.state_dict()} for rollout in self._rollouts]
        return {"collection": self._collection, "rollouts": rollouts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the collection that `state_dict` returned."""
        self._collection = state["collection"]
        self._rollouts = [
            Rollout(**{**rollout, "sequence": TokenSequence.from_state(rollout["sequence"])})
            for rollout in state["rollouts"]
        ]
