"""The student q_θ under ZeRO-0, 1, 2 or 3."""

import deepspeed
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from kd.data.batch import SequenceBatch
from kd.data.global_batch import GlobalBatch, MicroBatch
from kd.losses.fused import FusedLoss
from kd.losses.outputs import Outputs
from kd.models.causal_lm import CausalLM, enable_checkpointing, load_causal_lm, read_model_config, training_settings
from kd.models.handle import EngineModule, Loss, ModelContext, TrainedHandle
from kd.models.lora import add_adapters
from kd.models.soft_prompt import response_states
from kd.zero.config import student_deepspeed_config
from kd.zero.optimizer import parameter_groups
from kd.zero.residency import is_zero3

STUDENT_ADAPTER = "adapter"
"""Folder of a student's directory with its adapters, for peft to load."""


class _TrainableHead(nn.Module):
    """Computes the loss, which reads the head's parameters outside the head's own forward.

    A module of its own, so that ZeRO-3 gathers the head for it, in forward and again where its gradient arrives in
    backward, and leaves it partitioned in passes that end in hidden states.
    """

    def __init__(self, view: CausalLM, *, vocabulary_size: int) -> None:
        super().__init__()
        self.view = view
        self._vocabulary_size = vocabulary_size
        for parameter in view.head_parameters:
            if is_zero3(parameter):
                deepspeed.zero.register_external_parameter(self, parameter)

    def forward(self, hidden: Float[Tensor, "N H"], loss: Loss) -> FusedLoss:
        return loss(Outputs(hidden=hidden, head=self.view.head(vocabulary_size=self._vocabulary_size)))


class StudentModule(EngineModule):
    def __init__(self, model: PreTrainedModel, *, vocabulary_size: int) -> None:
        super().__init__(model)
        self.head = _TrainableHead(self.view, vocabulary_size=vocabulary_size)

    def forward(self, batch: SequenceBatch, loss: Loss | None = None) -> Tensor | FusedLoss:
        hidden = response_states(self.view, batch)
        return hidden if loss is None else self.head(hidden, loss)


class Student(TrainedHandle):
    """q_θ: rolled out, read by the prompt's loss, and trained."""

    training_phase = "student"

    def __init__(self, context: ModelContext) -> None:
        """Load the model, partitioned under ZeRO-3, and start its engine.

        Raises:
            UserError: the DeepSpeed JSON or the checkpoint cannot be used.
        """
        config, settings = context.config, student_deepspeed_config(context.config)
        self.name = config.model.student
        model_config = read_model_config(
            self.name, trust_remote_code=config.model.trust_remote_code, attention=config.model.attention
        )
        self.published_settings = training_settings(model_config)
        model = load_causal_lm(
            self.name,
            config=model_config,
            dtype=config.model.dtype,
            deepspeed_config=settings,
            keep_dropout=config.model.student_dropout,
            trust_remote_code=config.model.trust_remote_code,
        )
        if model.generation_config is not None:
            # Exports: `generate` stops where rollouts do.
            ends = context.vocabulary.end_ids
            model.generation_config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]
        self.is_adapted = config.student_lora.is_on
        if self.is_adapted:
            add_adapters(model, config.student_lora, section="student_lora", name=self.name, seed=config.run.seed)
        if config.model.gradient_checkpointing:
            enable_checkpointing(model)
        module = StudentModule(model, vocabulary_size=context.vocabulary.size)
        trained = parameter_groups(module, weight_decay=config.optimizer.weight_decay)
        rate = config.optimizer.learning_rate
        super().__init__(module, context, settings=settings, trained=trained, learning_rate=rate)

    def outputs(self, batch: GlobalBatch) -> Outputs:
        """The outputs q_θ(·|x, y_<t) at the response positions, without gradient.

        Hidden states that were kept while sampling are used again: q_θ has not changed since then.
        """
        if batch.student_hidden is None:
            return self._infer(batch, phase="student")
        # A dummy micro-batch has a row of this rank without its response.
        hidden = torch.cat([batch.student_hidden[row_id][:length] for row_id, length in batch.response_lengths])
        return Outputs(hidden=hidden, head=self.current_head())

    def _backward(self, micro: MicroBatch, loss: Loss, *, is_last: bool) -> Tensor:
        self._recorder.trained_on(micro.num_tokens)
        return self.engine.backward(micro.batch, loss, is_last=is_last)
