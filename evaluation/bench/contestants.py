"""Ways to decode the same prompts to responses of the same lengths.

Sampling draws from all of the vocabulary at temperature 1. Each row's length is set beforehand, and every way is
made to end the row there, so that all of them make the same number of tokens in each row:

- this project's loop by the random numbers it is given: the end token is the last of the vocabulary, so a number
  close to 1 chooses it, and any other number does not;
- `transformers.generate` by a logits processor that leaves nothing but the end token, or everything but it;
- transformers' continuous batching by a maximum number of tokens for each request;
- `deepspeed.runtime.rollout` not at all: its sampling path is `generate` with the end token switched off (under
  ZeRO-3 all ranks must make as many steps), so it decodes every row to the limit and cuts afterwards. Its own
  continuous batching and its CUDA graphs choose tokens greedily only, which an on-policy method cannot use.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessor, PreTrainedModel
from transformers.generation import LogitsProcessorList

from kd.config.schema import GenerationConfig as OurSettings
from kd.data.batch import PromptBatch, TokenSequence, split_prompts
from kd.models.causal_lm import CausalLM
from kd.rollout.decode import Streams, decode, row_streams
from kd.rollout.sampling import DecodingSettings

Responses = Sequence[Sequence[int]]
_ENDS = 1 - 1e-9
_GOES_ON = 0.99
_PAGE_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class Task:
    """Prompts, and how long the response to each of them shall be."""

    prompts: list[list[int]]
    lengths: list[int]
    max_new_tokens: int
    end_id: int
    device: torch.device

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    def batch(self) -> PromptBatch:
        """All prompts together, padded on the left."""
        return PromptBatch.collate(self.rows(), pad_id=self.end_id, device=self.device)

    def rows(self) -> list[TokenSequence]:
        """The prompts, numbered in order."""
        none = np.zeros(0, dtype=np.int32)
        return [
            TokenSequence(row_id=number, prompt_ids=np.array(ids, dtype=np.int32), response_ids=none)
            for number, ids in enumerate(self.prompts)
        ]

    def cut(self, sequences: Tensor) -> Responses:
        """Responses out of whole rows [B, prompt + new tokens]."""
        width = max(map(len, self.prompts))
        return [row[:length] for row, length in zip(sequences[:, width:].tolist(), self.lengths, strict=True)]

    def sampling(self, *, end_id: int | None) -> GenerationConfig:
        """transformers' settings for plain sampling."""
        return GenerationConfig(
            do_sample=True,
            top_k=0,
            top_p=1.0,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=end_id,
            pad_token_id=self.end_id,
        )


def scripted_streams(task: Task) -> Streams:
    """Random numbers that end row i after `lengths[i]` tokens, and never before."""
    free = row_streams(seed=0, step=0)

    def draw(row_ids: Sequence[int], num_tokens: int) -> Tensor:
        numbers = free(row_ids, num_tokens) * _GOES_ON
        for place, row_id in enumerate(row_ids):
            numbers[place, task.lengths[row_id] - 1] = _ENDS
        return numbers

    return draw


def our_loop(view: CausalLM, task: Task) -> Responses:
    """`kd.rollout.decode`, in batches as a training step cuts them."""
    settings = DecodingSettings(max_new_tokens=task.max_new_tokens, vocabulary_size=task.end_id + 1, eos_id=task.end_id)
    budget = OurSettings().max_batch_tokens
    responses: dict[int, Sequence[int]] = {}
    for rows in split_prompts(task.rows(), slots_per_row=task.max_new_tokens, max_batch_tokens=budget):
        prompts = PromptBatch.collate(rows, pad_id=task.end_id, device=task.device)
        with torch.no_grad():
            decoded = decode(view, prompts, settings=settings, streams=[scripted_streams(task)])
        responses |= {row_id: response.token_ids for row_id, response in zip(prompts.row_ids, decoded, strict=True)}
    return [responses[number] for number in range(len(task.prompts))]


class _EndsAt(LogitsProcessor):
    """Leaves the end token alone where a row has reached its length, and takes it away everywhere else."""

    def __init__(self, task: Task) -> None:
        self._lengths = torch.tensor(task.lengths, device=task.device)
        self._width = max(map(len, task.prompts))
        self._end_id = task.end_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ends = self._lengths == input_ids.shape[1] - self._width + 1
        scores[:, self._end_id] = -torch.inf
        scores[ends] = -torch.inf
        scores[ends, self._end_id] = 0.0
        return scores


def transformers_generate(model: PreTrainedModel, task: Task) -> Responses:
    """All rows in one batch that lasts until the longest has ended."""
    prompts = task.batch()
    generate: Any = model.generate
    sequences: Tensor = generate(
        prompts.input_ids,
        attention_mask=prompts.attention_mask.long(),
        generation_config=task.sampling(end_id=task.end_id),
        logits_processor=LogitsProcessorList([_EndsAt(task)]),
    )
    return task.cut(sequences)


@contextmanager
def continuous_batching(model: PreTrainedModel, task: Task) -> Iterator[Callable[[], Responses]]:
    """transformers' continuous batching, ready to take requests inside the context."""
    pages = [-(-(len(ids) + length) // _PAGE_TOKENS) for ids, length in zip(task.prompts, task.lengths, strict=True)]
    limits = ContinuousBatchingConfig(
        page_size=_PAGE_TOKENS,
        # Left to itself it takes nine tenths of the free memory; these are enough for all requests at once.
        num_blocks=sum(pages) + len(pages),
        max_batch_tokens=sum(map(len, task.prompts)),
    )
    ready: Any = model.continuous_batching_context_manager
    with ready(generation_config=task.sampling(end_id=-1), continuous_batching_config=limits) as manager:

        def run() -> Responses:
            pairs = zip(task.prompts, task.lengths, strict=True)
            names = [manager.add_request(ids, max_new_tokens=length, eos_token_id=-1) for ids, length in pairs]
            finished: dict[str, Sequence[int]] = {}
            while len(finished) < len(names):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    finished[result.request_id] = result.generated_tokens
                elif not manager.is_running():
                    raise RuntimeError("transformers' continuous batching has stopped; its log says why")
            return [finished[name] for name in names]

        yield run


def deepspeed_rollout(model: PreTrainedModel, task: Task) -> Responses:
    """DeepSpeed's rollout engine on a plain model."""
    from deepspeed.runtime.rollout import HybridEngineRollout, RolloutRequest, SamplingConfig

    prompts = task.batch()
    # Of an engine this path uses the module alone, and of a tokenizer these two numbers.
    rollout = HybridEngineRollout(
        engine=SimpleNamespace(module=model),
        tokenizer=SimpleNamespace(pad_token_id=task.end_id, eos_token_id=task.end_id),
    )
    request = RolloutRequest(prompt_ids=prompts.input_ids, prompt_attention_mask=prompts.attention_mask.long())
    batch = rollout.generate(request, SamplingConfig(max_new_tokens=task.max_new_tokens, top_k=0))
    return task.cut(batch.input_ids)
