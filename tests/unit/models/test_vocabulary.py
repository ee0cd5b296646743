"""Pairs that must not be trained together are refused before a weight is loaded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd.config.schema import Config, DataConfig, GenerationConfig, ModelConfig, RunConfig
from kd.errors import UserError
from kd.models.causal_lm import dropout_settings, read_model_config
from kd.models.vocabulary import load_tokenizer, save_tokenizer, share_vocabulary
from tests.tiny_models import save_tiny_model


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path / "teacher", "llama", seed=1, padding=16)
    save_tiny_model(tmp_path / "student", "llama", seed=2)
    for name in ("teacher", "student"):
        # Proof that no check needs them.
        (tmp_path / name / "model.safetensors").unlink()
    return tmp_path


def config_of(directory: Path, *, dtype: Any = "fp32", max_sequence_tokens: int = 100) -> Config:
    return Config(
        model=ModelConfig(student=str(directory / "student"), teacher=str(directory / "teacher"), dtype=dtype),
        data=DataConfig(train="unused", max_prompt_tokens=32, max_sequence_tokens=max_sequence_tokens),
        run=RunConfig(dir=str(directory / "run")),
        generation=GenerationConfig(max_new_tokens=16),
    )


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_padding_columns_are_not_shared(pair: Path) -> None:
    vocabulary = share_vocabulary(config_of(pair), teacher_slots=7)
    assert vocabulary.size == len(AutoTokenizer.from_pretrained(pair / "student")) == 400
    assert vocabulary.eos_id == vocabulary.tokenizer.eos_token_id


def test_the_first_differing_entry_is_named(pair: Path) -> None:
    path = pair / "teacher" / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    by_id = {index: token for token, index in vocabulary.items()}
    vocabulary[by_id[300]], vocabulary[by_id[310]] = 310, 300
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="entry 300 is") as error:
        share_vocabulary(config_of(pair), teacher_slots=7)
    assert repr(by_id[310]) in str(error.value) and repr(by_id[300]) in str(error.value)


def test_another_end_of_sequence_is_refused(pair: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pair / "teacher")
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(5)
    tokenizer.save_pretrained(pair / "teacher")
    with pytest.raises(UserError, match="end of sequence is"):
        share_vocabulary(config_of(pair), teacher_slots=7)


def test_one_end_of_sequence_can_be_set_for_both(pair: Path) -> None:
    """A base student and an instruct teacher, whose responses end in a token of their own."""
    tokenizer = AutoTokenizer.from_pretrained(pair / "teacher")
    published, end = tokenizer.eos_token_id, tokenizer.convert_ids_to_tokens(5)
    tokenizer.eos_token = end
    tokenizer.save_pretrained(pair / "teacher")
    edit(pair / "teacher" / "generation_config.json", eos_token_id=[5, 6, 405])
    config = config_of(pair)
    vocabulary = share_vocabulary(replace(config, data=replace(config.data, end_of_sequence=end)), teacher_slots=7)
    assert vocabulary.eos_id == vocabulary.tokenizer.eos_token_id == 5
    # The published ends of both models, without the one that is no entry.
    assert set(vocabulary.end_ids) == {5, 6, published}
    assert vocabulary.describe_ends().startswith(f"responses of the data end in {end!r}; rollouts end at {end!r} or ")
    unknown = replace(config, data=replace(config.data, end_of_sequence="<|end|>"))
    with pytest.raises(UserError, match=r"data.end_of_sequence is '<\|end\|>', which is no entry of the tokenizer of"):
        share_vocabulary(unknown, teacher_slots=7)


def test_the_end_of_sequence_is_exported(pair: Path) -> None:
    name, out = str(pair / "student"), pair / "export"
    for end in (None, "!"):
        out.mkdir(exist_ok=True)
        tokenizer = load_tokenizer(name, trust_remote_code=False, end_of_sequence=end)
        save_tokenizer(tokenizer, name=name, directory=out)
        assert AutoTokenizer.from_pretrained(out).eos_token == (end or AutoTokenizer.from_pretrained(name).eos_token)
        same = (out / "tokenizer_config.json").read_bytes() == (pair / "student/tokenizer_config.json").read_bytes()
        assert same == (end is None)


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        ("student", {"vocab_size": 399}, "head has 399 entries, the tokenizer 400"),
        # 100 tokens fit the student; with 7 of the prompt they do not fit the teacher.
        ("teacher", {"max_position_embeddings": 106}, "has 106 positions"),
        ("student", {"max_position_embeddings": 99}, "has 99 positions"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(pair: Path, model: str, values: dict[str, Any], message: str) -> None:
    edit(pair / model / "config.json", **values)
    with pytest.raises(UserError, match=message):
        share_vocabulary(config_of(pair), teacher_slots=7)


def test_positions_that_are_just_enough_are_accepted(pair: Path) -> None:
    edit(pair / "teacher" / "config.json", max_position_embeddings=107)
    edit(pair / "student" / "config.json", max_position_embeddings=100)
    assert share_vocabulary(config_of(pair), teacher_slots=7).size == 400


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is supported on this machine's GPU")
def test_fp16_is_refused_on_a_cpu(pair: Path) -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        share_vocabulary(config_of(pair, dtype="fp16"))


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        read_model_config(str(tmp_path / "nowhere"), trust_remote_code=False)


def test_code_of_a_checkpoint_does_not_run_unless_asked_for(pair: Path) -> None:
    """A configuration that names its own module must not import it."""
    marker = pair / "ran"
    (pair / "student" / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass EvilConfig: pass\n")
    edit(pair / "student" / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.EvilConfig"})
    with pytest.raises(UserError, match="student"):
        read_model_config(str(pair / "student"), trust_remote_code=False)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("family", "expected"), [("gpt2", {"resid_pdrop", "embd_pdrop", "attn_pdrop"}), ("opt", {"dropout"})]
)
def test_dropout_probabilities_are_found_by_name(tmp_path: Path, family: str, expected: set[str]) -> None:
    directory = save_tiny_model(tmp_path / family, family, seed=1)
    found = dropout_settings(AutoModelForCausalLM.from_pretrained(directory).config)
    assert expected <= found.keys()


def spoil(path: Path, content: bytes | None) -> None:
    """Write `content`, or only half of the file."""
    old = path.read_bytes()
    path.write_bytes(old[: len(old) // 2] if content is None else content)


BROKEN = [(None, "is not valid JSON: "), (bytes(9), "is not valid JSON: "), (b"[]", "is not a JSON object")]


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_a_broken_file_of_a_tokenizer_is_named(file: str, content: bytes | None, message: str, pair: Path) -> None:
    spoil(pair / "student" / file, content)
    with pytest.raises(UserError, match=f"student: cannot be read \\({file} {message}"):
        load_tokenizer(str(pair / "student"), trust_remote_code=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((content, f"teacher: cannot read generation_config.json .*{message}") for content, message in BROKEN),
        (b'{"eos_token_id": "</s>"}', "eos_token_id is '</s>' in generation_config.json or config.json; expected"),
        (b'{"eos_token_id": [1.5]}', r"eos_token_id is \[1.5\] in generation_config.json"),
        (b'{"max_new_tokens": "many"}', "teacher: cannot read generation_config.json "),
    ],
)
def test_a_broken_generation_config_is_not_passed_over(content: bytes | None, message: str, pair: Path) -> None:
    spoil(pair / "teacher" / "generation_config.json", content)
    with pytest.raises(UserError, match=message):
        share_vocabulary(config_of(pair))
