"""Adapters in a model: their number, the unchanged base, and the merged weights."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from kd.config.schema import LoraConfig
from kd.models.lora import ADAPTER, adapter_parameters, adapters_off, add_adapters, plain_parameters
from tests.tiny_models import FAMILIES, save_tiny_model


def add(model: PreTrainedModel, *, targets: tuple[str, ...] | None = None, seed: int = 1) -> None:
    add_adapters(model, LoraConfig(rank=4, alpha=8.0, targets=targets), section="student_lora", name="m", seed=seed)


@pytest.mark.parametrize(("rank", "alpha", "millions"), [(4, 32, 1.229), (8, 16, 2.458)])
def test_gpt2_xl_has_as_many_trainable_parameters_as_in_table_9(rank: int, alpha: float, millions: float) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=1600, n_layer=48, n_head=25))
    add_adapters(model, LoraConfig(rank=rank, alpha=alpha), section="teacher_lora", name="gpt2-xl", seed=1)
    assert {name.split(".")[4] for name in adapter_parameters(model)} == {"c_attn"}
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == sum(parameter.numel() for parameter in adapter_parameters(model).values())
    assert trainable == 48 * rank * (1600 + 4800)
    assert trainable / 1e6 == pytest.approx(millions, abs=5e-4)


@pytest.fixture(params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path, request.param, seed=1)


def load(checkpoint: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(checkpoint)
    return model.eval()


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.arange(1, 30)[None]).logits
    return logits


def test_plain_parameters_are_those_of_the_merged_model(checkpoint: Path) -> None:
    model, plain = load(checkpoint), load(checkpoint)
    before = logits_of(plain)
    add(model, targets=("all-linear",))
    assert torch.equal(logits_of(model), before), "adapters start as nothing"
    for parameter in adapter_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    merged = {parameter.name: parameter.value() for parameter in plain_parameters(model)}
    assert merged.keys() == dict(plain.named_parameters()).keys()
    plain.load_state_dict(merged, strict=False)
    torch.testing.assert_close(logits_of(plain), logits_of(model), atol=1e-4, rtol=1e-4)
    assert (logits_of(model) - before).abs().max() > 0.1
    with adapters_off(model):
        assert torch.equal(logits_of(model), before)
    assert all(parameter.requires_grad for parameter in adapter_parameters(model).values())


def test_adapters_are_switched_on_again_after_an_error(checkpoint: Path) -> None:
    model = load(checkpoint)
    add(model)
    for parameter in adapter_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    before = logits_of(model)

    def fail_inside() -> None:
        with adapters_off(model):
            assert not torch.equal(logits_of(model), before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    assert torch.equal(logits_of(model), before)
    assert all(parameter.requires_grad for parameter in adapter_parameters(model).values())


def test_adapters_follow_from_the_seed_and_leave_other_random_numbers_alone(checkpoint: Path) -> None:
    values = []
    for seed in (1, 1, 2):
        model = load(checkpoint)
        torch.manual_seed(seed + 10)
        expected = torch.rand(3)
        torch.manual_seed(seed + 10)
        add(model, seed=seed)
        assert torch.equal(torch.rand(3), expected)
        values.append(torch.cat([parameter.flatten() for parameter in adapter_parameters(model).values()]))
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


def test_a_tied_head_is_one_plain_parameter_in_two_places(tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path, "gpt2", seed=1))
    add(model)
    both = {parameter.name: parameter.base for parameter in plain_parameters(model, remove_duplicate=False)}
    assert both["lm_head.weight"] is both["transformer.wte.weight"]
    once = [parameter.name for parameter in plain_parameters(model)]
    assert "lm_head.weight" not in once
    assert ADAPTER not in " ".join(once)
