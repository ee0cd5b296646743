"""Teacher-mixed sampling (MiniLLM, arXiv 2306.08543): each token from α·p + (1-α)·q, both models in step."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kd.config.schema import GenerationConfig
from kd.data.batch import PromptBatch
from kd.distributed import ProcessGroup, World
from kd.models.causal_lm import CausalLM
from kd.models.vocabulary import SharedVocabulary
from kd.rollout.decode import DecodingRows, Response, Streams, next_logits
from kd.rollout.kv_cache import PreallocatedCache
from kd.rollout.placement import InPlaceModel, InPlaceWeights, Placement
from kd.rollout.sampler import Sampler
from kd.rollout.sampling import DecodingSettings, choose_tokens


class TeacherMixedSampler(Sampler):
    """Samples responses that the student would give if the teacher chose the share α of the tokens."""

    def __init__(
        self,
        weights: "_Pair",
        *,
        teacher_share: float,
        settings: GenerationConfig,
        vocabulary: SharedVocabulary,
        world: World,
        say: Callable[[str], None] | None,
    ) -> None:
        super().__init__(weights, settings=settings, vocabulary=vocabulary, world=world, say=say)
        self._teacher = weights.teacher
        self._teacher_share = teacher_share

    @classmethod
    def of(cls, student: Sampler, *, teacher: InPlaceModel, teacher_share: float) -> "TeacherMixedSampler":
        """The sampler of `student` with the teacher's help.

        Args:
            teacher_share: α, above 0.
        """
        return cls(
            _Pair(student=student.weights, teacher=InPlaceWeights.of(teacher)),
            teacher_share=teacher_share,
            settings=student.settings,
            vocabulary=student.vocabulary,
            world=student.world,
            say=student.say,
        )

    def _decode(self, view: CausalLM, prompts: PromptBatch, *, streams: Streams, keep_hidden: bool) -> list[Response]:
        group = self.weights.group
        with self._teacher.ready() as teacher:
            return decode_mixed(
                view,
                teacher,
                prompts,
                teacher_share=self._teacher_share,
                settings=self._decoding,
                streams=streams,
                any_rank_active=self._any_rank_active,
                agreed_tokens=None if group is None else group.from_first,
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pair:
    """How ranks must go together while both models decode; what is ready is the student."""

    student: Placement
    teacher: Placement

    @property
    def is_collective(self) -> bool:
        return self.student.is_collective or self.teacher.is_collective

    @property
    def group(self) -> ProcessGroup | None:
        return self.student.group

    @contextmanager
    def ready(self) -> Iterator[CausalLM]:
        # The teacher too, though it is entered again for each batch: gathering it takes all ranks, and they may have
        # different numbers of batches.
        with self.teacher.ready(), self.student.ready() as view:
            yield view


def decode_mixed(
    student: CausalLM,
    teacher: CausalLM,
    prompts: PromptBatch,
    *,
    teacher_share: float,
    settings: DecodingSettings,
    streams: Streams,
    any_rank_active: Callable[[bool], bool] = bool,
    agreed_tokens: Callable[[Tensor], Tensor] | None = None,
) -> list[Response]:
    """Continue each prompt with tokens of α·p + (1-α)·q; all but the two models is as in `decode`."""
    rows = DecodingRows(prompts, settings=settings, streams=[streams])
    rows.start(prompts.attention_mask)
    cache = rows.cache = _CachePair(prompts.input_ids.shape[1] + settings.max_new_tokens)
    inputs = {
        "input_ids": prompts.input_ids,
        "attention_mask": prompts.attention_mask,
        "position_ids": prompts.position_ids,
    }
    while True:
        hidden = student.hidden_states(**inputs, cache=cache)[:, -1]
        guidance = teacher.hidden_states(**inputs, cache=cache.teacher)[:, -1]
        mixture = mixture_log_probs(
            next_logits(student, hidden, settings),
            next_logits(teacher, guidance, settings),
            teacher_share=teacher_share,
        )
        tokens = choose_tokens(mixture, rows.uniforms(), settings=settings)
        rows.append(tokens if agreed_tokens is None else agreed_tokens(tokens), hidden)
        if not any_rank_active(rows.num_unfinished > 0):
            return rows.responses()
        rows.drop_finished()
        inputs = {
            "input_ids": rows.last_tokens[:, None],
            "attention_mask": rows.attention_mask,
            "position_ids": rows.next_positions[:, None],
        }


def mixture_log_probs(
    student: Float[Tensor, "A V"], teacher: Float[Tensor, "A V"], *, teacher_share: float
) -> Float[Tensor, "A V"]:
    """log(α·p + (1-α)·q) in float32 from both models' logits."""
    return torch.logaddexp(
        functional.log_softmax(teacher, dim=-1, dtype=torch.float32) + math.log(teacher_share),
        functional.log_softmax(student, dim=-1, dtype=torch.float32) + math.log1p(-teacher_share),
    )


class _CachePair(PreallocatedCache):
    """The student's cache, and beside it the teacher's, whose rows leave together with the student's."""

    def __init__(self, num_slots: int) -> None:
        super().__init__(num_slots)
        self.teacher = PreallocatedCache(num_slots)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` of both."""
        super().batch_select_indices(indices)
        self.teacher.batch_select_indices(indices)
