"""Decoding of a benchmark against a plain loop without padding, cache or batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from evaluation.model import EvaluatedModel, load_model
from evaluation.responses import Generation, SeededGeneration, generate, plan_batches
from kd.data.encoding import Example
from kd.distributed import World
from kd.models.soft_prompt import SoftPrompt
from kd.rollout.sampling import DecodingSettings
from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import NUM_ENTRIES

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
NUM_TOKENS = 12
PADDING = 600
LENGTHS = (3, 11, 1, 7)


def example(row_id: int, length: int) -> Example:
    ids = np.random.default_rng(row_id).integers(1, NUM_ENTRIES, size=length).astype(np.int32)
    return Example(
        row_id=row_id, prompt="", prompt_ids=ids, response_ids=None, references=("yes",), source=f"file:{row_id}"
    )


EXAMPLES = [example(row_id, length) for row_id, length in enumerate(LENGTHS)]


def load(directory: Path, *, soft_prompt: SoftPrompt | None) -> EvaluatedModel:
    return load_model(
        str(directory),
        config=AutoConfig.from_pretrained(directory),
        soft_prompt=soft_prompt,
        tokenizer=AutoTokenizer.from_pretrained(directory),
        dtype="fp32",
        trust_remote_code=False,
        world=ALONE,
    )


def run(
    model: EvaluatedModel,
    examples: list[Example],
    *,
    seeds: tuple[int, ...] = (10,),
    greedy: bool = False,
    max_batch_tokens: int = 10_000,
) -> dict[int, list[Generation]]:
    settings = DecodingSettings(
        max_new_tokens=NUM_TOKENS,
        vocabulary_size=NUM_ENTRIES,
        eos_id=int(model.tokenizer.eos_token_id),
        greedy=greedy,
    )
    batches = plan_batches(examples, num_seeds=len(seeds), slots_per_row=NUM_TOKENS, max_batch_tokens=max_batch_tokens)
    told: list[SeededGeneration] = []
    generated = generate(model, batches, seeds=seeds, settings=settings, world=ALONE, on_batch=told.extend)
    assert told == generated
    by_row = sorted(generated, key=lambda pair: pair[1].row)
    return {seed: [generation for other, generation in by_row if other == seed] for seed in seeds}


@torch.no_grad()
def plain_greedy(model: PreTrainedModel, prompt: Tensor, ids: list[int], *, eos_id: int) -> tuple[list[int], bool]:
    """Most likely tokens after [P, x], and whether an entry beyond the tokenizer was ever more likely."""
    embed = model.get_input_embeddings()
    response: list[int] = []
    tempted = False
    while len(response) < NUM_TOKENS and eos_id not in response:
        embeds = torch.cat([prompt, embed(torch.tensor(ids + response))])[None]
        logits = model(inputs_embeds=embeds).logits[0, -1]
        tempted |= int(logits.argmax()) >= NUM_ENTRIES
        response.append(int(logits[:NUM_ENTRIES].argmax()))
    return response, tempted


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize("num_slots", [0, 3])
def test_greedy_responses_equal_a_plain_loop(family: str, num_slots: int, tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path, family, seed=1, padding=PADDING)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    values = torch.randn(num_slots, 32, generator=torch.Generator().manual_seed(2))
    evaluated = load(directory, soft_prompt=SoftPrompt(values) if num_slots else None)
    eos_id = int(evaluated.tokenizer.eos_token_id)
    expected = [plain_greedy(model, values, row.prompt_ids.tolist(), eos_id=eos_id) for row in EXAMPLES]
    assert any(tempted for _, tempted in expected)
    generations = run(evaluated, EXAMPLES, greedy=True)[10]
    assert [row.response for row in generations] == [
        evaluated.tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in expected
    ]
    assert [row.response_tokens for row in generations] == [len(ids) for ids, _ in expected]
    assert [row.ended for row in generations] == [ids[-1] == eos_id for ids, _ in expected]


def test_sampled_response_depends_on_seed_and_row_alone(tmp_path: Path) -> None:
    prompt = SoftPrompt(torch.randn(3, 32, generator=torch.Generator().manual_seed(2)))
    model = load(save_tiny_model(tmp_path, "gpt2", seed=1), soft_prompt=prompt)
    together = run(model, EXAMPLES, seeds=(10, 20, 30))
    assert [row.row for row in together[10]] == [0, 1, 2, 3]
    for seed in (10, 20, 30):
        for row in EXAMPLES:
            assert run(model, [row], seeds=(seed,))[seed] == [together[seed][row.row_id]]
    assert together[10] != together[20] != together[30]
    assert run(model, EXAMPLES, seeds=(30, 10, 20), max_batch_tokens=1) == together


def test_rows_with_equal_prompts_have_their_own_random_numbers(tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path, "gpt2", seed=1), soft_prompt=None)
    twins = [example(5, 4), Example(**vars(example(5, 4)) | {"row_id": 6})]
    first, second = run(model, twins)[10]
    assert first.response != second.response


def test_batches_keep_to_the_budget_and_hold_every_row() -> None:
    batches = plan_batches(EXAMPLES, num_seeds=2, slots_per_row=10, max_batch_tokens=70)
    # Lengths 11 | 7 3 | 1; two responses each: 11 7 would be 84 wide, 7 3 1 would be 102.
    assert [[len(row.prompt_ids) for row in batch] for batch in batches] == [[11], [7, 3], [1]]
    sizes = [2 * len(batch) * (len(batch[0].prompt_ids) + 10) for batch in batches]
    assert max(sizes) <= 70
    assert sorted(row.row_id for batch in batches for row in batch) == [0, 1, 2, 3]


def test_row_beyond_the_budget_has_a_batch_of_its_own() -> None:
    batches = plan_batches(EXAMPLES, num_seeds=5, slots_per_row=10, max_batch_tokens=1)
    assert [len(batch) for batch in batches] == [1, 1, 1, 1]
