"""The teacher's engine: frozen and, under ZeRO-3, sharded; what adapts it is its only trainable part."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd.config.schema import Config
from kd.data.batch import SequenceBatch
from kd.losses.fused import FusedLoss
from kd.models.causal_lm import CausalLM, load_causal_lm, read_model_config
from kd.models.lora import adapter_parameters, adapter_writer, adapters_off, add_adapters
from kd.models.soft_prompt import FILE_NAME, SoftPrompt, SoftPromptOrigin, initial_values, save_soft_prompt
from kd.zero.config import teacher_deepspeed_config, zero_stage
from kd.zero.engine import Engine, EngineModel, TrainedModel, enable_checkpointing, gathered
from kd.zero.optimizer import make_optimizer, parameter_groups

Condition = Literal["adapted", "plain"]
"""p(.|P, x) or p(.|x): the same sharded weights with and without the soft prompt, or what stands in its place."""

AdaptedLoss = Callable[[Float[Tensor, "N H"]], FusedLoss]
"""From the adapted teacher's hidden states at the response positions to the loss of a micro-batch."""


class _TeacherModule(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.view = CausalLM.of(model)

    def forward(
        self, sequences: SequenceBatch, condition: Condition, loss: AdaptedLoss | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        hidden = self.plain(sequences) if condition == "plain" else self.adapted(sequences)
        if loss is None:
            return hidden
        result = loss(hidden)
        # A tuple, not the dataclass: DeepSpeed's hooks find the tensors of plain containers only.
        return result.loss, result.term_sums

    def plain(self, sequences: SequenceBatch) -> Float[Tensor, "N H"]:
        states = self.view.hidden_states(input_ids=sequences.input_ids, attention_mask=sequences.attention_mask)
        return states.flatten(0, 1)[sequences.response_positions]

    def adapted(self, sequences: SequenceBatch) -> Float[Tensor, "N H"]:
        raise TypeError("a plain teacher has no soft prompt")


class _PromptedModule(_TeacherModule):
    def __init__(self, model: PreTrainedModel, soft_prompt: SoftPrompt) -> None:
        super().__init__(model)
        self.soft_prompt = soft_prompt

    def adapted(self, sequences: SequenceBatch) -> Float[Tensor, "N H"]:
        embeds, mask = self.soft_prompt(self.view.embed(sequences.input_ids), sequences.attention_mask)
        states = self.view.hidden_states(inputs_embeds=embeds, attention_mask=mask)
        return states.flatten(0, 1)[sequences.shifted_positions(self.soft_prompt.num_tokens)]


class _LoraModule(_TeacherModule):
    def plain(self, sequences: SequenceBatch) -> Float[Tensor, "N H"]:
        with adapters_off(self.model):
            return super().plain(sequences)

    def adapted(self, sequences: SequenceBatch) -> Float[Tensor, "N H"]:
        return super().plain(sequences)


class Teacher(EngineModel):
    """p(.|x): loaded once, never trained."""

    def __init__(self, config: Config) -> None:
        """Load the model, into shards under ZeRO-3, freeze it and start its engine.

        Raises:
            UserError: the DeepSpeed JSON or the checkpoint cannot be used.
        """
        self._start(config, _TeacherModule(_load_frozen(config)))

    def _start(self, config: Config, module: _TeacherModule, *, trained: Sequence[object] = ()) -> None:
        self.view = module.view
        optimizer = None
        if trained:
            optimizer = make_optimizer(trained, settings=config.optimizer, learning_rate=config.prompt.learning_rate)
        settings = teacher_deepspeed_config(config)
        self.zero_stage = zero_stage(settings)
        self.engine = Engine(module, optimizer=optimizer, settings=settings)

    def hidden(self, sequences: SequenceBatch, condition: Condition = "plain") -> Float[Tensor, "N H"]:
        """Hidden states that predict the response tokens, without gradient."""
        return self.engine.hidden(sequences, condition)


class AdaptedTeacher(Teacher, TrainedModel, ABC):
    """p(.|P, x) and p(.|x), loaded once; only P, or what stands in its place, is trained."""

    def accumulate(self, sequences: SequenceBatch, loss: AdaptedLoss, *, is_last: bool) -> Float[Tensor, " terms"]:
        """Add a micro-batch's gradient; returns the loss terms' sums over its tokens."""
        return self.engine.accumulate(sequences, "adapted", loss, is_last=is_last)

    @abstractmethod
    def writer(self) -> Callable[[Path], None]:
        """Gather what was trained, all ranks together; returns what writes it into a student's directory."""
        ...


class PromptedTeacher(AdaptedTeacher):
    """Adapted by a soft prompt."""

    def __init__(self, config: Config, *, tokenizer: PreTrainedTokenizerBase) -> None:
        """Load the model as a plain teacher, put P beside it and start the engine.

        Raises:
            UserError: the DeepSpeed JSON, the checkpoint or the prompt's initialisation cannot be used.
        """
        model = _load_frozen(config)
        embedding_weight = CausalLM.of(model).embedding_weight
        with gathered([embedding_weight]):
            values = initial_values(
                config.prompt, embedding_weight=embedding_weight, tokenizer=tokenizer, seed=config.run.seed
            )
        # Made after, hence outside, the sharded load; DeepSpeed shards it when the engine starts.
        self.soft_prompt = SoftPrompt(values)
        if config.model.dtype == "fp16":
            # DeepSpeed scales the loss for fp16 parameters only, and keeps fp32 values of them itself.
            self.soft_prompt.half()
        self._origin = SoftPromptOrigin(
            teacher=str(config.model.teacher), init=config.prompt.init, init_text=config.prompt.init_text
        )
        module = _PromptedModule(model, self.soft_prompt)
        self._start(config, module, trained=[self.soft_prompt.values])

    def values(self) -> Float[Tensor, "M H"]:
        """The current soft prompt, gathered, on every rank."""
        with gathered([self.soft_prompt.values]):
            return self.soft_prompt.values.detach().float().clone()

    def writer(self) -> Callable[[Path], None]:
        """Gather the soft prompt, all ranks together; returns what writes it into a student's directory."""
        values = self.values()

        def write(directory: Path) -> None:
            save_soft_prompt(values, directory / FILE_NAME, origin=self._origin)

        return write


class LoraTeacher(AdaptedTeacher):
    """Adapted by LoRA in the place of a soft prompt (Table 9); it starts as the plain teacher."""

    def __init__(self, config: Config) -> None:
        """Load the model as a plain teacher, add the adapters and start the engine.

        Raises:
            UserError: the DeepSpeed JSON, the checkpoint or the adapted layers' names cannot be used.
        """
        self.model = _load_frozen(config)
        name = str(config.model.teacher)
        add_adapters(self.model, config.teacher_lora, section="teacher_lora", name=name, seed=config.run.seed)
        for parameter in adapter_parameters(self.model).values():
            # As with a soft prompt: fp32 beside bf16 weights, half precision for fp16's loss scale.
            parameter.data = parameter.data.half() if config.model.dtype == "fp16" else parameter.data.float()
        module = _LoraModule(self.model)
        self._start(config, module, trained=parameter_groups(module, weight_decay=config.optimizer.weight_decay))

    def writer(self) -> Callable[[Path], None]:
        """Gather the adapters, all ranks together; returns what writes them into a student's directory."""
        write = adapter_writer(self.model)
        return lambda directory: write(directory / TEACHER_ADAPTER)


TEACHER_ADAPTER = "teacher_adapter"
"""Where a student's directory has the adapters of its teacher, for peft to load."""


def _load_frozen(config: Config) -> PreTrainedModel:
    if config.model.teacher is None:
        raise ValueError("a teacher's engine needs model.teacher")
    model = load_causal_lm(
        config.model.teacher,
        config=read_model_config(config.model.teacher, trust_remote_code=config.model.trust_remote_code),
        dtype=config.model.dtype,
        deepspeed_config=teacher_deepspeed_config(config),
        keep_dropout=False,
        trust_remote_code=config.model.trust_remote_code,
    )
    model.requires_grad_(False)
    if config.model.gradient_checkpointing:
        enable_checkpointing(model)
    return model
