"""Sampled responses against a plain loop without padding, cache or batches; and the files of responses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from evaluation.generations import (
    evaluated_seeds,
    generations_file,
    read_generations,
    sample_responses,
    write_generations,
)
from evaluation.models import EvaluatedModel, find_models
from evaluation.settings import Loading
from kd.data.encoding import Example
from kd.distributed import World
from kd.errors import UserError
from kd.models.soft_prompt import SoftPrompt
from kd.rollout.sampling import DecodingSettings
from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import NUM_ENTRIES
from tests.unit.evaluation.generations import generation

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
    models = find_models([str(directory)], loading=Loading(dtype="fp32"), world=ALONE)
    return models.load(str(directory), soft_prompt=soft_prompt)


def run(
    model: EvaluatedModel,
    examples: list[Example],
    *,
    seed: int = 10,
    greedy: bool = False,
    max_batch_tokens: int = 10_000,
) -> list[list[int]]:
    settings = DecodingSettings(
        max_new_tokens=NUM_TOKENS, vocabulary_size=NUM_ENTRIES, end_ids=model.end_ids, greedy=greedy
    )
    found = sample_responses(
        model,
        examples,
        seed=seed,
        settings=settings,
        max_batch_tokens=max_batch_tokens,
        label="",
    )
    return [ids.tolist() for ids in found]


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
    eos_id = evaluated.eos_id
    expected = [plain_greedy(model, values, row.prompt_ids.tolist(), eos_id=eos_id) for row in EXAMPLES]
    assert any(tempted for _, tempted in expected)
    assert run(evaluated, EXAMPLES, greedy=True) == [ids for ids, _ in expected]


def test_a_response_depends_on_seed_and_row_alone(tmp_path: Path) -> None:
    prompt = SoftPrompt(torch.randn(3, 32, generator=torch.Generator().manual_seed(2)))
    model = load(save_tiny_model(tmp_path, "gpt2", seed=1), soft_prompt=prompt)
    together = {seed: run(model, EXAMPLES, seed=seed) for seed in (10, 20)}
    for seed, responses in together.items():
        assert [run(model, [row], seed=seed)[0] for row in EXAMPLES] == responses
        assert run(model, EXAMPLES[::-1], seed=seed, max_batch_tokens=1)[::-1] == responses
    assert together[10] != together[20]
    twins = [example(5, 4), Example(**vars(example(5, 4)) | {"row_id": 6})]
    first, second = run(model, twins)
    assert first != second


def test_responses_come_back_as_they_were(tmp_path: Path) -> None:
    path = generations_file(tmp_path / "new", benchmark="test", seed=10)
    rows = [generation(0, response="one\u2028two\nthree", rouge_l=100 / 3), generation(1, response="")]
    rows.append(replace(rows[0], row=2, scores={**rows[0].scores, "accuracy": 100.0}))
    write_generations(path, rows)
    assert read_generations(path) == rows
    assert [file.name for file in path.parent.iterdir()] == ["seed-10.jsonl"]
    keys = ["row", "prompt", "response", "references", "response_tokens", "ended", "rougeL", "exact_match"]
    first = json.loads(path.read_text().split("\n")[0])
    assert list(first) == keys
    assert first["exact_match"] is False


@pytest.mark.parametrize("changed", [{"row": "0"}, {"row": -1}, {"row": None}, {"response": None}])
def test_a_line_with_other_values_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "seed-10.jsonl"
    write_generations(path, [generation(0)])
    path.write_text(json.dumps(json.loads(path.read_text()) | changed) + "\n")
    with pytest.raises(UserError, match="seed-10.jsonl:1: not a line of evaluate.py"):
        read_generations(path)


def test_a_metric_is_added_beside_the_others() -> None:
    scored = generation(0, rouge_l=50.0, response="a b").scored({"words": lambda text, _: len(text.split()) / 4})
    assert scored.scores == {"rougeL": 50.0, "exact_match": 0.0, "words": 50.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"row": 1}\n', "seed-10.jsonl:1: not a line of evaluate.py"),
        (b"\xff\n", "seed-10.jsonl:1: not valid UTF-8"),
        (b"", "found none"),
        (b'{"row"', "seed-10.jsonl:1: not valid JSON"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "seed-10.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_generations(path)


def test_only_files_of_seeds_are_seeds(tmp_path: Path) -> None:
    directory = generations_file(tmp_path, benchmark="test", seed=20).parent
    directory.mkdir(parents=True)
    for name in ("seed-20.jsonl", "seed-3.jsonl", "seed-3 (copy).jsonl", ".seed-4.jsonl.1.partial"):
        (directory / name).touch()
    assert evaluated_seeds(tmp_path, benchmark="test") == [3, 20]
