"""A model as methods use it: outputs without gradient, backward on a micro-batch, one optimizer step.

Gathering and releasing parameters, dummy forwards, heads, accumulation boundaries, timing, metrics and learning rates
live here; a method sees none of them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from kd.config.schema import Config
from kd.data.global_batch import GlobalBatch, MicroBatch
from kd.losses.fused import FusedLoss, fused_loss
from kd.losses.outputs import Head, Outputs, chunk_rows
from kd.losses.terms import Term
from kd.models.causal_lm import CausalLM
from kd.models.vocabulary import SharedVocabulary
from kd.zero.config import Json, training_engine_config, zero_stage
from kd.zero.engine import Engine
from kd.zero.optimizer import learning_rate_factor, make_optimizer
from kd.zero.recorder import Phase, Recorder
from kd.zero.residency import gathered, is_gathered

Loss = Callable[[Outputs], FusedLoss]
"""The loss of one micro-batch, computed inside the engine's forward pass, where the parameters are gathered."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelContext:
    """What the models of a run share."""

    config: Config
    vocabulary: SharedVocabulary
    recorder: Recorder


class EngineModule(nn.Module):
    """A causal language model as the module of an engine."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.view = CausalLM.of(model)


class ModelHandle:
    """A model in its DeepSpeed engine, one of several on the same devices."""

    def __init__(
        self, module: EngineModule, context: ModelContext, *, settings: Json, optimizer: Optimizer | None = None
    ) -> None:
        """Start the engine with a DeepSpeed configuration; without an optimizer the model is frozen."""
        self.model, self.view = module.model, module.view
        self.zero_stage = zero_stage(settings)
        self.engine = Engine(module, optimizer=optimizer, settings=settings)
        self._recorder = context.recorder
        self._vocabulary_size = context.vocabulary.size
        self._head: Head | None = None

    def pause(self) -> None:
        """Release what forward passes have gathered, before another model works on the same global batch."""
        self._head = None
        self.engine.pause()

    def release(self) -> None:
        """Partition all parameters."""
        self._head = None
        self.engine.release()

    def _infer(self, batch: GlobalBatch, *inputs: object, phase: Phase) -> Outputs:
        """Outputs at the response positions of this rank's share of a global batch, without gradient."""
        with self._recorder.time(phase):
            hidden = [self.engine.infer(part, *inputs) for part in batch.inference_batches]
            # The others are dummy forwards, which keep the ranks' collectives in step.
            own = hidden[: batch.num_own_inference_batches]
            return Outputs(hidden=torch.cat(own), head=self.current_head())

    def current_head(self) -> Head:
        """The head, gathered once until the model is updated, paused or released."""
        if self._head is None:
            self.engine.gather()
            parameters = self.view.head_parameters
            # Tensors of a gathered model outlive its partitioning. What is gathered here is copied: the hooks would
            # release a parameter that is also the embedding after the embedding's forward.
            copies = not all(is_gathered(parameter) for parameter in parameters)
            with gathered(parameters):
                tensors = [parameter.detach().clone() if copies else parameter.detach() for parameter in parameters]
            bias = tensors[1] if len(tensors) > 1 else None
            head = self.view.head(vocabulary_size=self._vocabulary_size)
            self._head = replace(head, weight=tensors[0], bias=bias)
        return self._head


class TrainedHandle(ModelHandle):
    """A model of which at least a part is trained."""

    training_phase: Phase
    metric_prefix = ""
    """Of the learning rate and the gradient norm in the metrics."""

    def __init__(
        self,
        module: EngineModule,
        context: ModelContext,
        *,
        settings: Json,
        trained: Iterable[object],
        learning_rate: float,
    ) -> None:
        """Start the engine; `learning_rate` is the base of the schedule for the parameters `trained`."""
        optimizer = make_optimizer(trained, settings=context.config.optimizer, learning_rate=learning_rate)
        super().__init__(module, context, settings=training_engine_config(settings), optimizer=optimizer)
        byte_budget = context.config.engine.loss_chunk_mib * 2**20
        self._chunk_size = chunk_rows(context.vocabulary.size, byte_budget=byte_budget)
        self._schedule = context.config.schedule
        self._scales_loss = context.config.model.dtype == "fp16"
        self._learning_rate = learning_rate
        self._pending: tuple[MicroBatch, dict[str, Term]] | None = None
        self._has_gradient = False
        self._before_backward: list[Callable[[], None]] = []

    def before_backward(self, free_memory: Callable[[], None]) -> None:
        """Call `free_memory` before the first backward pass of each global batch: another model frees its memory."""
        self._before_backward.append(free_memory)

    def backward(self, micro: MicroBatch, **terms: Term | None) -> None:
        """Add a micro-batch's gradient: of the weighted terms' mean over the response tokens of its global batch.

        The pass runs with the next call of `backward` or `step`: only then is it known whether this micro-batch is
        the last one, after which DeepSpeed reduces the gradient. Each of the `terms`, at least one, is logged under
        its name as a mean over the tokens, without its weight; None leaves a term out.
        """
        self._run_pending(is_last=False)
        self._pending = micro, {name: term for name, term in terms.items() if term is not None}

    def step(self) -> None:
        """One optimizer step with the gradient of all micro-batches since the last one."""
        self._run_pending(is_last=True)
        learning_rate = self._learning_rate * learning_rate_factor(self._recorder.step, schedule=self._schedule)
        with self._recorder.time("optimizer"):
            grad_norm = self.engine.step(learning_rate=learning_rate)
        self._recorder.record(f"{self.metric_prefix}learning_rate", learning_rate)
        self._recorder.record(f"{self.metric_prefix}grad_norm", grad_norm)
        if self._scales_loss:
            self._recorder.record(f"{self.metric_prefix}skipped_updates", self.engine.skipped_updates)
        self._has_gradient = False
        self._head = None

    def discard(self) -> None:
        """Forget the gradient of a global batch that failed."""
        self._pending = None
        if self._has_gradient:
            self._has_gradient = False
            self.engine.discard()

    def _run_pending(self, *, is_last: bool) -> None:
        if self._pending is None:
            return
        (micro, terms), self._pending = self._pending, None
        if not self._has_gradient:
            for free_memory in self._before_backward:
                free_memory()
            self._has_gradient = True
        with self._recorder.time(self.training_phase):
            loss = partial(fused_loss, terms=list(terms.values()), scale=micro.loss_scale, chunk_size=self._chunk_size)
            term_sums = self._backward(micro, loss, is_last=is_last)
        for name, term_sum in zip(terms, term_sums, strict=True):
            self._recorder.add_token_mean(name, term_sum, num_tokens=micro.num_tokens)

    def _backward(self, micro: MicroBatch, loss: Loss, *, is_last: bool) -> Tensor:
        """Run the engine's forward and backward pass; the sums of the loss terms [terms]."""
        raise NotImplementedError
