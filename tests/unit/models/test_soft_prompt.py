"""The soft prompt: initial values, place next to the text, and file."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kd.config.schema import SoftPromptConfig
from kd.errors import UserError
from kd.models.soft_prompt import (
    SoftPrompt,
    SoftPromptOrigin,
    initial_token_ids,
    initial_values,
    load_soft_prompt,
    save_soft_prompt,
)
from tests.tiny_tokenizers import save_tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tiny_tokenizer(directory)
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
    # A tokenizer that adds a token to every text, as Llama's and OPT's do.
    loaded.add_bos_token = True
    return loaded


def test_text_is_repeated_or_truncated_and_has_no_special_token(tokenizer: PreTrainedTokenizerBase) -> None:
    text = list(tokenizer("Suppose you", add_special_tokens=False)["input_ids"])
    assert tokenizer.bos_token_id not in text
    longer = initial_token_ids(SoftPromptConfig(init_text="Suppose you", length=len(text) + 2), tokenizer=tokenizer)
    assert longer == [*text, *text[:2]]
    shorter = initial_token_ids(SoftPromptConfig(init_text="Suppose you", length=len(text) - 1), tokenizer=tokenizer)
    assert shorter == text[:-1]


def test_padding_repeats_the_padding_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (
        initial_token_ids(SoftPromptConfig(init="padding", length=3), tokenizer=tokenizer)
        == [tokenizer.pad_token_id] * 3
    )


def test_without_a_padding_token_padding_is_the_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """As in GPT-2."""
    without = copy.deepcopy(tokenizer)
    without.pad_token = None
    ids = initial_token_ids(SoftPromptConfig(init="padding", length=2), tokenizer=without)
    assert ids == [without.eos_token_id] * 2


def test_text_values_are_rows_of_the_embedding(tokenizer: PreTrainedTokenizerBase) -> None:
    weight = torch.randn(400, 8, dtype=torch.bfloat16)
    settings = SoftPromptConfig(length=4)
    values = initial_values(settings, embedding_weight=weight, tokenizer=tokenizer, seed=1)
    assert values.dtype == torch.float32
    assert torch.equal(values, weight[initial_token_ids(settings, tokenizer=tokenizer)].float())


def test_random_values_are_as_large_as_embeddings_and_seeded(tokenizer: PreTrainedTokenizerBase) -> None:
    weight = 0.3 * torch.randn(400, 64)
    settings = SoftPromptConfig(init="random", length=50)
    first, again, other = (
        initial_values(settings, embedding_weight=weight, tokenizer=tokenizer, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.std().item() == pytest.approx(0.3, rel=0.05)


def test_the_prompt_stands_next_to_the_text() -> None:
    soft_prompt = SoftPrompt(torch.tensor([[10.0], [11.0]]))
    embeds = torch.tensor([[[0.0], [0.0], [1.0]], [[1.0], [2.0], [3.0]]])
    left = torch.tensor([[False, False, True], [True, True, True]])
    out, mask = soft_prompt(embeds, left)
    assert out[..., 0].tolist() == [[0, 0, 10, 11, 1], [10, 11, 1, 2, 3]]
    assert mask.tolist() == [[False, False, True, True, True], [True] * 5]
    right = torch.tensor([[True, False, False], [True, True, True]])
    out, mask = soft_prompt(embeds, right)
    assert out[..., 0].tolist() == [[10, 11, 0, 0, 1], [10, 11, 1, 2, 3]]
    assert mask.tolist() == [[True, True, True, False, False], [True] * 5]


def test_a_saved_prompt_comes_back_with_its_origin(tmp_path: Path) -> None:
    values = torch.randn(5, 8)
    origin = SoftPromptOrigin(teacher="some/teacher", init="text", init_text="Hello")
    save_soft_prompt(values, tmp_path / "p.safetensors", origin=origin)
    prompt, loaded = load_soft_prompt(tmp_path / "p.safetensors")
    assert isinstance(prompt, SoftPrompt) and torch.equal(prompt.values, values) and prompt.num_tokens == 5
    assert loaded == origin


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_text("no tensors")
    for path in (tmp_path / "p.safetensors", tmp_path / "missing.safetensors"):
        with pytest.raises(UserError, match=r"soft prompt .*: cannot be read"):
            load_soft_prompt(path)


def test_a_text_without_tokens_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="init_text has no tokens"):
        initial_token_ids(SoftPromptConfig(init_text=""), tokenizer=tokenizer)
