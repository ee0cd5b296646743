"""What the passes of a step allocate: they run on fake tensors, which have shapes and no storage."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from kd.config.schema import LoraConfig
from kd.data.batch import SequenceBatch, TokenSequence
from kd.errors import UserError
from kd.losses.fused import fused_loss
from kd.losses.outputs import Head, Outputs, chunk_rows
from kd.losses.terms import TRAINED, Term, cross_entropy, kl
from kd.models.causal_lm import DTYPES, enable_checkpointing, set_attention, set_for_training
from kd.models.handle import EngineModule
from kd.models.lora import add_adapters
from kd.models.soft_prompt import SoftPrompt, response_states
from kd.models.student import StudentModule
from kd.models.teacher import TeacherModule
from kd.plan.live_bytes import LiveBytes

_FAKE = FakeTensorMode()
"""Tensors of different modes cannot meet."""


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """How a backward pass reduces gradients: a bucket at a time."""

    itemsize: int
    """Bytes per element of temporary tensors."""
    bucket_elements: int


class FakeModel:
    """A model of a run without storage, whose passes are those of training."""

    def __init__(
        self,
        shapes: PretrainedConfig,
        *,
        name: str,
        dtype: str,
        checkpointing: bool,
        trust_remote_code: bool,
        attention: str = "auto",
        keep_dropout: bool = False,
        lora: LoraConfig | None = None,
    ) -> None:
        """Build the model; `lora` freezes it and adds adapters. `name` is for messages.

        Raises:
            UserError: the family cannot be built without values.
        """
        self.name = name
        shapes = type(shapes).from_dict(shapes.to_dict())
        # Flash attention has no kernel for tensors without storage, and takes as little memory as sdpa.
        set_attention(shapes, "sdpa" if attention == "flash_attention_2" else attention)
        set_for_training(shapes, keep_dropout=keep_dropout)
        with self._fake():
            self.model: PreTrainedModel = AutoModelForCausalLM.from_config(
                shapes, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code
            )
            self.model.train()
            if lora is not None:
                add_adapters(self.model, lora, section="student_lora", name=name, seed=0)
            if checkpointing:
                enable_checkpointing(self.model)

    @property
    def head(self) -> Head:
        """The output head over the model's own vocabulary."""
        view = EngineModule(self.model).view
        bias = None if view.head_bias is None else view.head_bias.detach()
        head = view.head(vocabulary_size=view.head_weight.shape[0])
        return replace(head, weight=view.head_weight.detach(), bias=bias)

    def inference(self, *, rows: int, prompt: int, response: int) -> int:
        """Peak bytes of a pass without gradient over `rows` sequences; the hidden states that it returns included."""
        module = EngineModule(self.model).eval()
        with self._measured() as live, torch.no_grad():
            response_states(module.view, self.batch(rows=rows, prompt=prompt, response=response))
        module.train()
        return live.peak

    def student_training(
        self,
        *,
        rows: int,
        prompt: int,
        response: int,
        loss_chunk_mib: int,
        target: "FakeModel | None",
        reduction: Reduction,
    ) -> int:
        """Peak bytes of forward and backward beside the accumulated gradient; without a target, of cross entropy.

        `reduction` tells what the reduction of gradients takes meanwhile.
        """
        module = StudentModule(self.model, vocabulary_size=self.head.vocabulary_size)
        with self._fake():
            batch = self.batch(rows=rows, prompt=prompt, response=response)
            terms = [cross_entropy(batch.labels) if target is None else self._term(target, num_tokens=rows * response)]
        with self._measured() as live, _reduced_gradients(module, reduction):
            loss = partial(self._loss, terms=terms, loss_chunk_mib=loss_chunk_mib)
            module(batch, loss).loss.backward()
        return live.peak

    def prompt_training(
        self, *, rows: int, prompt: int, response: int, loss_chunk_mib: int, target: "FakeModel", num_prompt_tokens: int
    ) -> int:
        """Peak bytes of forward and backward with gradient to a soft prompt, or to adapters without one."""
        if num_prompt_tokens:
            self.model.requires_grad_(False)
        with self._fake():
            hidden_size = EngineModule(self.model).view.embedding_weight.shape[1]
            soft_prompt = SoftPrompt(torch.zeros(num_prompt_tokens, hidden_size)) if num_prompt_tokens else None
            batch = self.batch(rows=rows, prompt=prompt, response=response)
            terms = [self._term(model, num_tokens=rows * response) for model in (target, self)]
        module = TeacherModule(self.model, soft_prompt)
        with self._measured() as live:
            loss = partial(self._loss, terms=terms, loss_chunk_mib=loss_chunk_mib)
            module(batch, "adapted", self.head, loss).loss.backward()
        return live.peak

    def _loss(self, outputs: Outputs, *, terms: list[Term], loss_chunk_mib: int) -> object:
        chunk_size = chunk_rows(self.head.vocabulary_size, byte_budget=loss_chunk_mib * 2**20)
        return fused_loss(outputs, terms, scale=1.0, chunk_size=chunk_size)

    def _term(self, target: "FakeModel", *, num_tokens: int) -> Term:
        size = min(target.head.vocabulary_size, self.head.vocabulary_size)
        head = replace(target.head, vocabulary_size=size)
        hidden = torch.empty(num_tokens, head.weight.shape[1], dtype=head.weight.dtype)
        return kl(TRAINED, Outputs(hidden=hidden, head=head))

    @staticmethod
    def batch(*, rows: int, prompt: int, response: int, real: bool = False) -> SequenceBatch:
        """A batch of equal sequences, of fake tensors unless it is `real`."""
        ids = np.zeros(prompt + response, dtype=np.int32)
        sequence = TokenSequence(row_id=0, prompt_ids=ids[:prompt], response_ids=ids[prompt:])
        batch = SequenceBatch.collate([sequence] * rows, pad_id=0, device=torch.device("cpu"))
        if real:
            return batch
        fakes: dict[str, Any] = {
            name: _FAKE.from_tensor(value) for name, value in vars(batch).items() if isinstance(value, Tensor)
        }
        return replace(batch, **fakes)

    @contextmanager
    def _measured(self) -> Iterator[LiveBytes]:
        with self._fake(), LiveBytes() as live:
            yield live

    @contextmanager
    def _fake(self) -> Iterator[None]:
        try:
            with _FAKE:
                yield
        except (RuntimeError, NotImplementedError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"model {self.name}: its passes cannot be followed by shapes alone ({reason[:200]}); plan with a model"
                " of another family and the same sizes"
            ) from error


@contextmanager
def _reduced_gradients(module: torch.nn.Module, reduction: Reduction) -> Iterator[None]:
    """Reduce and free each weight's gradient once it is complete: the account counts where it accumulates."""
    waiting = 0

    def reduce(num_elements: int) -> None:
        torch.empty(num_elements * reduction.itemsize, dtype=torch.uint8)

    def put_in_bucket(parameter: Tensor) -> None:
        nonlocal waiting
        if waiting + parameter.numel() > reduction.bucket_elements:
            reduce(waiting)
            waiting = 0
        if parameter.numel() > reduction.bucket_elements:
            reduce(parameter.numel())
        else:
            waiting += parameter.numel()
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(put_in_bucket) for p in module.parameters() if p.requires_grad]
    try:
        yield
        reduce(waiting)
    finally:
        for handle in handles:
            handle.remove()
