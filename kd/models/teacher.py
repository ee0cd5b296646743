"""The teacher p: frozen and, under ZeRO-3, partitioned; its soft prompt or adapters are its only trainable part."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from kd.config.schema import Config, LoraConfig, SoftPromptConfig
from kd.data.batch import SequenceBatch
from kd.data.global_batch import GlobalBatch, MicroBatch
from kd.losses.fused import FusedLoss
from kd.losses.outputs import Head, Outputs
from kd.models.causal_lm import CausalLM, enable_checkpointing, load_causal_lm, read_model_config
from kd.models.handle import EngineModule, Loss, ModelContext, ModelHandle, TrainedHandle
from kd.models.lora import adapter_parameters, adapter_writer, adapters_off, add_adapters
from kd.models.quantization import check_unquantized
from kd.models.soft_prompt import (
    FILE_NAME,
    SoftPrompt,
    SoftPromptOrigin,
    initial_values,
    response_states,
    save_soft_prompt,
)
from kd.zero.config import teacher_deepspeed_config
from kd.zero.optimizer import parameter_groups
from kd.zero.residency import gathered

TEACHER_ADAPTER = "teacher_adapter"
"""Folder of a student's directory with the adapters of its teacher, for peft to load."""

Condition = Literal["adapted", "plain"]
"""p(·|P, x) or p(·|x): the same weights with and without the soft prompt, or the adapters."""


class TeacherModule(EngineModule):
    def __init__(self, model: PreTrainedModel, soft_prompt: SoftPrompt | None = None) -> None:
        super().__init__(model)
        self.soft_prompt = soft_prompt

    def forward(
        self, batch: SequenceBatch, condition: Condition, head: Head | None = None, loss: Loss | None = None
    ) -> Tensor | FusedLoss:
        if condition == "plain":
            with adapters_off(self.model):
                return response_states(self.view, batch)
        hidden = response_states(self.view, batch, soft_prompt=self.soft_prompt)
        if head is None or loss is None:
            return hidden
        return loss(Outputs(hidden=hidden, head=head))


class Teacher(ModelHandle):
    """p(·|x): loaded once, never trained."""

    def __init__(self, context: ModelContext) -> None:
        """Load the model, partitioned under ZeRO-3, freeze it and start its engine.

        Raises:
            UserError: the DeepSpeed JSON or the checkpoint cannot be used.
        """
        module = TeacherModule(_load_frozen(context.config))
        super().__init__(module, context, settings=teacher_deepspeed_config(context.config))

    def outputs(self, batch: GlobalBatch) -> Outputs:
        """The outputs p(·|x, y_<t) at the response positions, without gradient."""
        return self._infer(batch, "plain", phase="teacher")


class AdaptedTeacher(TrainedHandle):
    """p(·|P, x) and p(·|x) from weights that are loaded once; only P, or adapters instead of it, is trained."""

    training_phase = "prompt"
    metric_prefix = "prompt_"

    def outputs(self, batch: GlobalBatch, *, prompt: bool = True) -> Outputs:
        """The outputs p(·|P, x, y_<t) at the response positions, without gradient.

        With `prompt` False, p(·|x, y_<t): the teacher without its soft prompt or adapters.
        """
        return self._infer(batch, "adapted" if prompt else "plain", phase="teacher")

    def _backward(self, micro: MicroBatch, loss: Loss, *, is_last: bool) -> Tensor:
        return self.engine.backward(micro.batch, "adapted", self.current_head(), loss, is_last=is_last)

    @abstractmethod
    def writer(self) -> Callable[[Path], None]:
        """Gather the trained part, all ranks together; returns a function that writes it into a directory."""


class PromptedTeacher(AdaptedTeacher):
    """A teacher with a soft prompt."""

    def __init__(self, context: ModelContext, *, prompt: SoftPromptConfig) -> None:
        """Load the model as a plain teacher, initialise P and start the engine.

        Raises:
            UserError: the DeepSpeed JSON, the checkpoint or the prompt's initialisation cannot be used.
        """
        config, tokenizer = context.config, context.vocabulary.tokenizer
        model = _load_frozen(config)
        embeddings = CausalLM.of(model).embedding_weight
        with gathered([embeddings]):
            values = initial_values(prompt, embedding_weight=embeddings, tokenizer=tokenizer, seed=config.run.seed)
        # Created after, hence outside, the partitioned load; DeepSpeed partitions it when the engine starts.
        self.soft_prompt = SoftPrompt(values)
        if config.model.dtype == "fp16":
            # DeepSpeed scales the loss for fp16 parameters only, and keeps fp32 values of them itself.
            self.soft_prompt.half()
        self._origin = SoftPromptOrigin(teacher=str(config.model.teacher), init=prompt.init, init_text=prompt.init_text)
        module = TeacherModule(model, self.soft_prompt)
        settings, trained = teacher_deepspeed_config(config), [self.soft_prompt.values]
        super().__init__(module, context, settings=settings, trained=trained, learning_rate=prompt.learning_rate)

    def values(self) -> Float[Tensor, "M H"]:
        """The current soft prompt, gathered, on every rank."""
        with gathered([self.soft_prompt.values]):
            return self.soft_prompt.values.detach().float().clone()

    def writer(self) -> Callable[[Path], None]:
        values = self.values()
        return lambda directory: save_soft_prompt(values, directory / FILE_NAME, origin=self._origin)


class LoraTeacher(AdaptedTeacher):
    """A teacher with LoRA adapters instead of a soft prompt (Table 9); it starts as the plain teacher."""

    def __init__(self, context: ModelContext, *, lora: LoraConfig, learning_rate: float) -> None:
        """Load the model as a plain teacher, add the adapters and start the engine.

        Raises:
            UserError: the DeepSpeed JSON, the checkpoint or the adapted layers' names cannot be used.
        """
        config, name = context.config, str(context.config.model.teacher)
        published = read_model_config(name, trust_remote_code=config.model.trust_remote_code)
        check_unquantized(published, name=name, reason="adapters beside quantized weights are not supported")
        model = _load_frozen(config)
        add_adapters(model, lora, section="teacher_lora", name=name, seed=config.run.seed)
        for parameter in adapter_parameters(model).values():
            # As with a soft prompt: fp32 beside bf16 weights, half precision for fp16's loss scale.
            parameter.data = parameter.data.half() if config.model.dtype == "fp16" else parameter.data.float()
        module = TeacherModule(model)
        trained = parameter_groups(module, weight_decay=config.optimizer.weight_decay)
        settings = teacher_deepspeed_config(config)
        super().__init__(module, context, settings=settings, trained=trained, learning_rate=learning_rate)

    def writer(self) -> Callable[[Path], None]:
        return adapter_writer(self.model, folder=TEACHER_ADAPTER)


def _load_frozen(config: Config) -> PreTrainedModel:
    if config.model.teacher is None:
        raise ValueError("a teacher's engine needs model.teacher")
    model = load_causal_lm(
        config.model.teacher,
        config=read_model_config(
            config.model.teacher,
            trust_remote_code=config.model.trust_remote_code,
            attention=config.model.attention,
        ),
        dtype=config.model.dtype,
        deepspeed_config=teacher_deepspeed_config(config),
        keep_dropout=False,
        trust_remote_code=config.model.trust_remote_code,
    )
    model.requires_grad_(False)
    if config.model.gradient_checkpointing:
        enable_checkpointing(model)
    return model
