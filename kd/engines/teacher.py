"""The teacher's engine: frozen, ZeRO-3-sharded, with the soft prompt as its only trainable tensor."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd.config import Config
from kd.data.batch import SequenceBatch
from kd.engines.causal_lm import CausalLM, load_causal_lm, read_model_config
from kd.engines.deepspeed_config import teacher_deepspeed_config
from kd.engines.optimization import make_optimizer
from kd.engines.soft_prompt import SoftPrompt, SoftPromptOrigin, initial_values
from kd.engines.trainable import Loss, ProjectingModule, TrainableEngine, enable_checkpointing, gathered
from kd.losses.linear_divergence import Projection

Condition = Literal["prompted", "plain"]
"""p(.|P, x) or p(.|x): the same sharded weights with and without the soft prompt."""


class _TeacherModule(ProjectingModule):
    def __init__(self, model: PreTrainedModel, soft_prompt: SoftPrompt) -> None:
        super().__init__(model)
        self.soft_prompt = soft_prompt

    def forward(
        self, sequences: SequenceBatch, condition: Condition, loss: Loss | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if condition == "plain":
            states = self.view.hidden_states(input_ids=sequences.input_ids, attention_mask=sequences.attention_mask)
            return self.finish(states.flatten(0, 1)[sequences.response_positions], loss)
        embeds, mask = self.soft_prompt(self.view.embed(sequences.input_ids), sequences.attention_mask)
        states = self.view.hidden_states(inputs_embeds=embeds, attention_mask=mask)
        positions = sequences.shifted_positions(self.soft_prompt.num_tokens)
        return self.finish(states.flatten(0, 1)[positions], loss)


class Teacher:
    """p(.|P, x) and p(.|x), loaded once; only P is trained."""

    def __init__(self, config: Config, *, tokenizer: PreTrainedTokenizerBase) -> None:
        """Load the model into shards, freeze it, put P beside it and start the engine.

        Raises:
            UserError: the DeepSpeed JSON, the checkpoint or the prompt's initialisation cannot be used.
        """
        if config.model.teacher is None:
            raise ValueError("a teacher's engine needs model.teacher")
        settings = teacher_deepspeed_config(config)
        model = load_causal_lm(
            config.model.teacher,
            config=read_model_config(config.model.teacher, trust_remote_code=config.model.trust_remote_code),
            dtype=config.model.dtype,
            deepspeed_config=settings,
            keep_dropout=False,
            trust_remote_code=config.model.trust_remote_code,
        )
        model.requires_grad_(False)
        if config.model.gradient_checkpointing:
            enable_checkpointing(model)
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
        self.origin = SoftPromptOrigin(
            teacher=config.model.teacher, init=config.prompt.init, init_text=config.prompt.init_text
        )
        module = _TeacherModule(model, self.soft_prompt)
        self.view = module.view
        optimizer = make_optimizer(
            [self.soft_prompt.values], settings=config.optimizer, learning_rate=config.prompt.learning_rate
        )
        self.engine = TrainableEngine(module, optimizer=optimizer, settings=settings)

    def hidden(self, sequences: SequenceBatch, condition: Condition) -> Float[Tensor, "N H"]:
        """Hidden states that predict the response tokens, without gradient."""
        return self.engine.hidden(sequences, condition)

    @contextmanager
    def projection(self, hidden: Float[Tensor, "N H"]) -> Iterator[Projection]:
        """Kept hidden states with the frozen head, gathered inside the context."""
        with gathered(self.view.head_parameters):
            yield Projection(hidden=hidden, weight=self.view.head_weight, bias=self.view.head_bias)

    def accumulate_prompt(self, sequences: SequenceBatch, loss: Loss, *, is_last: bool) -> Float[Tensor, " terms"]:
        """Add a micro-batch's gradient of P; returns the loss terms' sums over its tokens."""
        return self.engine.accumulate(sequences, "prompted", loss, is_last=is_last)

    def step_prompt(self, *, learning_rate: float) -> None:
        """One optimizer step of P with the window's gradient."""
        self.engine.step(learning_rate=learning_rate)

    def soft_prompt_values(self) -> Float[Tensor, "M H"]:
        """The current P, whole, on every rank."""
        with gathered([self.soft_prompt.values]):
            return self.soft_prompt.values.detach().float().clone()
