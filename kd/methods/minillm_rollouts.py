"""MiniLLM's rollouts: responses that are sampled together, trained on for a few epochs, and what their tokens earn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kd.config.methods import MiniLLMConfig
from kd.config.schema import Config
from kd.data.batch import TokenSequence
from kd.losses.policy_gradient import future_returns, importance_weights, token_rewards, whiten


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """A response with the log-probabilities in nats that both models gave its T tokens when it was sampled."""

    sequence: TokenSequence
    student_log_probs: Float[Tensor, " T"]
    teacher_log_probs: Float[Tensor, " T"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredRollout:
    """A rollout as a window learns from it; all values per token [T]."""

    sequence: TokenSequence
    sampled_log_probs: Float[Tensor, " T"]
    """log q(y_t) at the time of sampling."""
    importance_weights: Float[Tensor, " T"]
    rewards: Float[Tensor, " T"]
    advantages: Float[Tensor, " T"]


def score(rollouts: Sequence[Rollout], *, settings: MiniLLMConfig) -> list[ScoredRollout]:
    """Rewards, advantages and importance weights of the rollouts of one window, on all ranks together."""
    rewards = [
        token_rewards(
            rollout.student_log_probs.double(),
            rollout.teacher_log_probs.double(),
            scale=settings.reward_scale,
            limit=settings.reward_limit,
        )
        for rollout in rollouts
    ]
    advantages = torch.cat(
        [
            future_returns(row, discount=settings.discount, length_normalized=settings.length_normalized)
            for row in rewards
        ]
    )
    if settings.whitened:
        # All tokens, the last ones and their returns of 0 too: a shift that some tokens of a position did not
        # have would move the gradient's mean.
        advantages = whiten(advantages)
    return [
        ScoredRollout(
            sequence=rollout.sequence,
            sampled_log_probs=rollout.student_log_probs,
            importance_weights=importance_weights(
                rollout.student_log_probs.double(),
                rollout.teacher_log_probs.double(),
                teacher_share=settings.teacher_share,
            ),
            rewards=earned,
            advantages=advantage,
        )
        for rollout, earned, advantage in zip(
            rollouts, rewards, advantages.split([len(row) for row in rewards]), strict=True
        )
    ]


class RolloutStore:
    """The rollouts of the current collection, all ranks' on each rank, and which of them each step trains on.

    A collection lasts for `inner_epochs` passes in windows of the global batch, each in an order of its own.
    """

    def __init__(self, config: Config) -> None:
        self._seed = config.run.seed
        self._global_batch = config.schedule.global_batch
        self.windows_per_epoch = config.minillm.rollouts // self._global_batch
        self._windows_per_collection = self.windows_per_epoch * config.minillm.inner_epochs
        self._collection: int | None = None
        self._rollouts: list[Rollout] = []

    def collection_of(self, step: int) -> int:
        """Which collection, counted from 0, optimizer step `step`, counted from 1, trains on."""
        return (step - 1) // self._windows_per_collection

    def lacks(self, step: int) -> bool:
        """Whether rollouts must be sampled before `step`."""
        return self._collection != self.collection_of(step)

    def keep(self, rollouts: Sequence[Rollout], *, step: int) -> None:
        """Take new rollouts in the place of the old ones, in any order; their row ids differ."""
        self._rollouts = sorted(rollouts, key=lambda rollout: rollout.sequence.row_id)
        self._collection = self.collection_of(step)

    def window(self, step: int) -> list[Rollout]:
        """The rollouts that all ranks train on at `step`, shortest first."""
        epoch, window = divmod((step - 1) % self._windows_per_collection, self.windows_per_epoch)
        generator = np.random.default_rng([self._seed, self.collection_of(step), epoch])
        order = generator.permutation(len(self._rollouts))
        chosen = order[window * self._global_batch : (window + 1) * self._global_batch]
        return sorted((self._rollouts[index] for index in chosen), key=lambda rollout: rollout.sequence.num_tokens)

    def state_dict(self) -> dict[str, Any]:
        """The current collection, in tensors, numbers, lists and dictionaries."""
        rows = [
            {
                "row_id": rollout.sequence.row_id,
                "prompt_ids": torch.from_numpy(rollout.sequence.prompt_ids),
                "response_ids": torch.from_numpy(rollout.sequence.response_ids),
                "student_log_probs": rollout.student_log_probs,
                "teacher_log_probs": rollout.teacher_log_probs,
            }
            for rollout in self._rollouts
        ]
        return {"collection": self._collection, "rollouts": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the collection that `state_dict` has told of."""
        self._collection = state["collection"]
        self._rollouts = [
            Rollout(
                sequence=TokenSequence(
                    row_id=row["row_id"],
                    prompt_ids=row["prompt_ids"].numpy(),
                    response_ids=row["response_ids"].numpy(),
                ),
                student_log_probs=row["student_log_probs"],
                teacher_log_probs=row["teacher_log_probs"],
            )
            for row in state["rollouts"]
        ]
