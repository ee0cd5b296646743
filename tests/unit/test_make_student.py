"""A depth-pruned student is its teacher without the other layers, in every family."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from kd.cli import make_student
from kd.errors import UserError
from kd.models.prune import find_layer_stack, prune_config
from tests.tiny_models import FAMILIES, save_tiny_model

NUM_LAYERS = 5
STACKS = {
    "gpt2": "transformer.h",
    "opt": "model.decoder.layers",
    "llama": "model.layers",
    "gpt_neox": "gpt_neox.layers",
}


@pytest.fixture(scope="module", params=FAMILIES)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("teachers") / request.param
    return save_tiny_model(directory, request.param, seed=3, layers=NUM_LAYERS)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama") / "teacher", "llama", seed=3, layers=NUM_LAYERS)


def prune(teacher: Path, out: Path, *options: str) -> int:
    return make_student(["--teacher", str(teacher), "--out", str(out), *options])


def without_other_layers(directory: Path, *, kept: list[int]) -> nn.Module:
    """The teacher with the layers that are not kept replaced by nothing."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    parent, _, attribute = STACKS[directory.name].rpartition(".")
    layers = model.get_submodule(STACKS[directory.name])
    setattr(model.get_submodule(parent), attribute, nn.ModuleList([layers[index] for index in kept]))
    return model


@pytest.mark.parametrize(("options", "kept"), [(["--layers", "0,1,4"], [0, 1, 4]), (["--keep", "2"], [0, 4])])
def test_the_student_computes_what_the_teacher_computes_without_the_other_layers(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], kept: list[int]
) -> None:
    assert prune(teacher, tmp_path / "student", *options) == 0
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    ids = torch.randint(0, 400, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = without_other_layers(teacher, kept=kept)(ids, use_cache=False).logits
        assert torch.equal(student(ids, use_cache=False).logits, expected)
        # With a cache as well: its slots belong to layer numbers, which must have closed up.
        cached = student.generate(ids, max_new_tokens=4, do_sample=False, min_new_tokens=4)
        plain = student.generate(ids, max_new_tokens=4, do_sample=False, min_new_tokens=4, use_cache=False)
    assert torch.equal(cached, plain)
    assert student.config.num_hidden_layers == len(kept)
    shown = capsys.readouterr().out
    assert f"{NUM_LAYERS} layers" in shown
    assert f"{len(kept)} layers" in shown


def test_tokenizer_and_generation_config_go_along(llama: Path, tmp_path: Path) -> None:
    GenerationConfig(eos_token_id=0, max_new_tokens=17).save_pretrained(llama)
    prune(llama, tmp_path / "student", "--keep", "3")
    tokens = [AutoTokenizer.from_pretrained(directory).get_vocab() for directory in (llama, tmp_path / "student")]
    assert tokens[0] == tokens[1]
    assert GenerationConfig.from_pretrained(tmp_path / "student").max_new_tokens == 17
    assert not (tmp_path / "student.partial").exists()


def test_weights_keep_the_stored_precision_unless_another_is_asked_for(llama: Path, tmp_path: Path) -> None:
    prune(llama, tmp_path / "half", "--layers", "0,4", "--dtype", "bf16")
    prune(tmp_path / "half", tmp_path / "quarter", "--layers", "1")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "quarter", dtype="auto")
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.bfloat16}


def test_lists_with_an_entry_for_each_layer_are_pruned_alike(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    config = AutoConfig.for_model(
        "qwen2", num_hidden_layers=3, layer_types=kinds, eos_token_id=[1, 2, 3], use_sliding_window=True
    )
    student = prune_config(config, layers=[1, 2])
    assert student.layer_types == kinds[1:]
    assert student.num_hidden_layers == 2
    assert student.eos_token_id == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "0,5"], "the teacher has no layer 5; expected numbers from 0 to 4"),
        (["--layers", "0,-1"], "the teacher has no layer -1"),
        (["--layers", "0,2,2"], "layer 2 is named twice"),
        (["--layers", "2,0"], "not in ascending order; expected 0,2"),
        (["--layers", "0;2"], "expected numbers with commas between them"),
        (["--keep", "1"], "expected a number from 2 to 5"),
        (["--keep", "6"], "expected a number from 2 to 5"),
    ],
)
def test_layers_that_cannot_be_kept_are_refused(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert prune(llama, tmp_path / "student", *options) == 2
    assert_one_error(capsys.readouterr().err, message)
    assert not (tmp_path / "student").exists()


def test_an_existing_directory_is_never_written_to(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(llama, tmp_path, "--keep", "2") == 2
    assert_one_error(capsys.readouterr().err, "exists already")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert prune(tmp_path / "empty", tmp_path / "student", "--keep", "2") == 2
    assert_one_error(capsys.readouterr().err, "no readable config.json")


def test_a_model_that_is_no_stack_of_layers_is_refused(llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.model.second_stack = nn.ModuleList([nn.Identity() for _ in range(NUM_LAYERS)])
    with pytest.raises(UserError, match="found model.layers, model.second_stack"):
        find_layer_stack(model, num_layers=NUM_LAYERS, name="m")


def test_layers_that_depend_on_their_index_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_model(tmp_path / "teacher", "llama", seed=0)
    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=400,
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=8,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "teacher")
    # Its first layer is dense, whichever layer that is: the second one would lose its experts.
    assert prune(tmp_path / "teacher", tmp_path / "student", "--layers", "1,2") == 2
    assert_one_error(capsys.readouterr().err, "depend on their index")
    assert prune(tmp_path / "teacher", tmp_path / "other", "--layers", "0,2") == 0


def assert_one_error(shown: str, message: str) -> None:
    [line] = shown.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_student_of_an_adapters_folder_has_its_merged_layers(llama: Path, tmp_path: Path) -> None:
    base: Any = AutoModelForCausalLM.from_pretrained(llama)
    adapted: Any = peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM"))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    assert prune(tmp_path / "adapter", tmp_path / "student", "--layers", "0,4") == 0
    merged = adapted.merge_and_unload().state_dict()
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student").state_dict()
    for ours, theirs in ((0, 0), (1, 4)):
        name = "model.layers.{}.self_attn.q_proj.weight"
        torch.testing.assert_close(student[name.format(ours)], merged[name.format(theirs)], atol=1e-6, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "student").get_vocab()
