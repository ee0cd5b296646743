"""The numeric probe accepts families that are right, and names what is wrong with others."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from kd.distributed import World
from kd.errors import UserError
from kd.losses.outputs import Head
from kd.models.causal_lm import CausalLM
from kd.rollout.probe import check_finite, check_numbers
from tests.tiny_models import FAMILIES, tiny_config

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


def tiny(family: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=300, **SPECIAL, **settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


@torch.no_grad()
def probe(model: PreTrainedModel, *, decodes: bool = True, packs: bool = False) -> None:
    view = CausalLM.of(model)
    head = Head(weight=view.head_weight, bias=view.head_bias, vocabulary_size=290)
    check_numbers(view, head=head, name="models/m", decodes=decodes, packs=packs, world=ALONE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_known_families_are_right(family: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = tiny_config(family, vocab_size=300, width=32, layers=2, bos_token_id=0, eos_token_id=0)
    before = torch.get_rng_state()
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    after = torch.get_rng_state()
    probe(model, packs=family != "opt")
    assert not torch.equal(before, after) and torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize(
    ("family", "settings", "options", "message"),
    [
        (
            "granite",
            {**SIZES, "logits_scaling": 4.0},
            {},
            "its logits are not its output head of its last hidden",
        ),
        (
            "bert-generation",
            SIZES,
            {},
            "a later token changes earlier hidden states; it is no causal language",
        ),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2}, {}, "rollouts would be wrong"),
        ("opt", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}, {"packs": True}, "set schedule.packing=false"),
    ],
)
def test_what_is_wrong_is_named(family: str, settings: dict[str, Any], options: dict[str, Any], message: str) -> None:
    model = tiny(family, **settings)
    with pytest.raises(UserError, match=f"model models/m: .*{message}"):
        probe(model, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_family_that_is_not_rolled_out_needs_no_cache(dtype: torch.dtype) -> None:
    # Its hidden states are fp32 in a bf16 model.
    model = tiny("mamba", hidden_size=32, num_hidden_layers=2).to(dtype)
    probe(model, decodes=False)
    with pytest.raises(UserError, match="rollouts would be wrong"):
        probe(model)


class NormalisedHead(torch.nn.Linear):
    """A head that is a linear layer in name only."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(hidden, torch.nn.functional.normalize(self.weight))


def test_a_head_with_a_forward_pass_of_its_own_is_refused() -> None:
    model = tiny("llama", **SIZES)
    probe(model)
    model.set_output_embeddings(NormalisedHead(32, 300, bias=False))
    with pytest.raises(UserError, match="its logits are not its output head of its last hidden states"):
        probe(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    model = tiny("llama", **SIZES)
    check_finite(model.named_parameters(), name="models/m", world=ALONE)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 4] = value
        model.get_parameter("model.norm.weight")[2] = value
    expected = (
        "model models/m: model.layers.1.mlp.up_proj.weight has values that are NaN or infinite, and 1 more tensors"
    )
    with pytest.raises(UserError, match=expected):
        check_finite(model.named_parameters(), name="models/m", world=ALONE)
