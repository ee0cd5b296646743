"""The student's engine: q_θ under ZeRO-0, 1, 2 or 3."""

from collections.abc import Callable
from pathlib import Path

import deepspeed
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from kd.config.schema import Config
from kd.data.batch import SequenceBatch
from kd.losses.fused import FusedLoss
from kd.losses.terms import Projection
from kd.models.causal_lm import CausalLM, load_causal_lm, read_model_config, training_settings
from kd.models.lora import adapter_writer, add_adapters
from kd.zero.config import student_deepspeed_config, zero_stage
from kd.zero.engine import Engine, TrainedModel, enable_checkpointing
from kd.zero.optimizer import make_optimizer, parameter_groups

STUDENT_ADAPTER = "adapter"
"""Where a student's directory has its adapters, for peft to load."""

Loss = Callable[[Projection], FusedLoss]
"""From the student's projection of the response positions to the loss of a micro-batch."""


class _TrainableHead(nn.Module):
    """The loss that reads the head's parameters outside the head's own forward.

    A module of its own, so that ZeRO-3 gathers the head for it, in forward and again where its gradient arrives
    in backward, and leaves it in its shards in passes that end in hidden states.
    """

    def __init__(self, view: CausalLM) -> None:
        super().__init__()
        self.view = view
        for parameter in view.head_parameters:
            if hasattr(parameter, "ds_id"):
                deepspeed.zero.register_external_parameter(self, parameter)

    def forward(self, hidden: Float[Tensor, "N H"], loss: Loss) -> tuple[Tensor, Tensor]:
        result = loss(Projection(hidden=hidden, weight=self.view.head_weight, bias=self.view.head_bias))
        # A tuple, not the dataclass: DeepSpeed's hooks find the tensors of plain containers only.
        return result.loss, result.term_sums


class _StudentModule(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.view = CausalLM.of(model)
        self.head = _TrainableHead(self.view)

    def forward(self, sequences: SequenceBatch, loss: Loss | None = None) -> Tensor | tuple[Tensor, Tensor]:
        states = self.view.hidden_states(input_ids=sequences.input_ids, attention_mask=sequences.attention_mask)
        hidden = states.flatten(0, 1)[sequences.response_positions]
        if loss is None:
            return hidden
        result: tuple[Tensor, Tensor] = self.head(hidden, loss)
        return result


class Student(TrainedModel):
    """q_θ: sampled from, guiding the prompt, and trained."""

    def __init__(self, config: Config) -> None:
        """Load the model, into shards under ZeRO-3, and start its engine.

        Raises:
            UserError: the DeepSpeed JSON or the checkpoint cannot be used.
        """
        settings = student_deepspeed_config(config)
        self.zero_stage = zero_stage(settings)
        model_config = read_model_config(config.model.student, trust_remote_code=config.model.trust_remote_code)
        self.name = config.model.student
        self.published_settings = training_settings(model_config)
        self.model = load_causal_lm(
            config.model.student,
            config=model_config,
            dtype=config.model.dtype,
            deepspeed_config=settings,
            keep_dropout=config.model.student_dropout,
            trust_remote_code=config.model.trust_remote_code,
        )
        self.is_adapted = config.student_lora.is_on
        if self.is_adapted:
            add_adapters(self.model, config.student_lora, section="student_lora", name=self.name, seed=config.run.seed)
        if config.model.gradient_checkpointing:
            enable_checkpointing(self.model)
        module = _StudentModule(self.model)
        self.view = module.view
        optimizer = make_optimizer(
            parameter_groups(module, weight_decay=config.optimizer.weight_decay),
            settings=config.optimizer,
            learning_rate=config.optimizer.learning_rate,
        )
        self.engine = Engine(module, optimizer=optimizer, settings=settings)

    def adapter_writer(self) -> Callable[[Path], None]:
        """Gather the adapters, all ranks together; returns what writes them into the student's directory."""
        write = adapter_writer(self.model)
        # A folder of its own: beside config.json, from_pretrained would look for what the adapters belong to.
        return lambda directory: write(directory / STUDENT_ADAPTER)

    def hidden(self, sequences: SequenceBatch) -> Float[Tensor, "N H"]:
        """Hidden states that predict the response tokens, without gradient."""
        return self.engine.hidden(sequences)

    def accumulate(self, sequences: SequenceBatch, loss: Loss, *, is_last: bool) -> Float[Tensor, " terms"]:
        """Add a micro-batch's gradient to the window's; returns the loss terms' sums over its tokens."""
        return self.engine.accumulate(sequences, loss, is_last=is_last)

    def measure(self, sequences: SequenceBatch, loss: Loss) -> Float[Tensor, " terms"]:
        """The loss terms' sums over a micro-batch's tokens, without gradient."""
        return self.engine.measure(sequences, loss)
