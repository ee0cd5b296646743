"""The student's engine: q_θ under ZeRO-0, 1, 2 or 3."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor

from kd.config import Config
from kd.data.batch import SequenceBatch
from kd.engines.causal_lm import dropout_settings, load_causal_lm, read_model_config
from kd.engines.deepspeed_config import student_deepspeed_config, zero_stage
from kd.engines.optimization import make_optimizer, student_parameter_groups
from kd.engines.trainable import Loss, ProjectingModule, TrainableEngine, enable_checkpointing, gathered
from kd.losses.linear_divergence import Projection


class _StudentModule(ProjectingModule):
    def forward(self, sequences: SequenceBatch, loss: Loss | None = None) -> Tensor | tuple[Tensor, Tensor]:
        states = self.view.hidden_states(input_ids=sequences.input_ids, attention_mask=sequences.attention_mask)
        return self.finish(states.flatten(0, 1)[sequences.response_positions], loss)


class Student:
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
        self.published_dropout = dropout_settings(model_config)
        self.model = load_causal_lm(
            config.model.student,
            config=model_config,
            dtype=config.model.dtype,
            deepspeed_config=settings,
            keep_dropout=config.model.student_dropout,
            trust_remote_code=config.model.trust_remote_code,
        )
        if config.model.gradient_checkpointing:
            enable_checkpointing(self.model)
        module = _StudentModule(self.model)
        self.view = module.view
        optimizer = make_optimizer(
            student_parameter_groups(module, weight_decay=config.optimizer.weight_decay),
            settings=config.optimizer,
            learning_rate=config.optimizer.learning_rate,
        )
        self.engine = TrainableEngine(module, optimizer=optimizer, settings=settings)

    def hidden(self, sequences: SequenceBatch) -> Float[Tensor, "N H"]:
        """Hidden states that predict the response tokens, without gradient."""
        return self.engine.hidden(sequences)

    @contextmanager
    def projection(self, hidden: Float[Tensor, "N H"]) -> Iterator[Projection]:
        """Kept hidden states with the current head, gathered inside the context."""
        with gathered(self.view.head_parameters):
            yield Projection(hidden=hidden, weight=self.view.head_weight, bias=self.view.head_bias)

    def accumulate(self, sequences: SequenceBatch, loss: Loss, *, is_last: bool) -> Float[Tensor, " terms"]:
        """Add a micro-batch's gradient to the window's; returns the loss terms' sums over its tokens."""
        return self.engine.accumulate(sequences, loss, is_last=is_last)

    def measure(self, sequences: SequenceBatch, loss: Loss) -> Float[Tensor, " terms"]:
        """The loss terms' sums over a micro-batch's tokens, without gradient."""
        return self.engine.measure(sequences, loss)

    def step(self, *, learning_rate: float) -> None:
        """One optimizer step of θ with the window's gradient."""
        self.engine.step(learning_rate=learning_rate)
