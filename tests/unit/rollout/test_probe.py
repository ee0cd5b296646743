"""The numeric probe accepts families that are right, and names what is wrong with others."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from kd.distributed import World
from kd.errors import UserError
from kd.losses.outputs import UNCHANGED, LogitMap
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
    check_numbers(view, head=view.head(vocabulary_size=290), name="models/m", decodes=decodes, packs=packs, world=ALONE)


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
    ("family", "settings", "expected"),
    [
        ("gemma2", {"head_dim": 16, "final_logit_softcapping": 0.5}, LogitMap(cap=0.5)),
        ("cohere", {"logit_scale": 0.0625}, LogitMap(scale=0.0625)),
        ("granite", {"logits_scaling": 4.0}, LogitMap(scale=0.25)),
        ("granite", {}, UNCHANGED),
        (
            "falcon_h1",
            {"num_key_value_heads": 4, "lm_head_multiplier": 3.0, "mamba_d_ssm": 32, "mamba_n_heads": 2},
            LogitMap(scale=3.0),
        ),
        ("recurrent_gemma", {"num_hidden_layers": 3, "logits_soft_cap": 0.5}, LogitMap(cap=0.5)),
    ],
)
def test_scaled_and_capped_logits_are_right(family: str, settings: dict[str, Any], expected: LogitMap) -> None:
    model = tiny(family, **(SIZES | settings))
    with torch.no_grad():
        # Logits of a size that a cap changes.
        model.get_output_embeddings().weight.mul_(20)
    view = CausalLM.of(model)
    assert view.logit_map == expected
    probe(model, decodes=False)
    if expected != UNCHANGED:
        head = replace(view.head(vocabulary_size=290), logit_map=UNCHANGED)
        with torch.no_grad(), pytest.raises(UserError, match="its logits are not its output head"):
            check_numbers(view, head=head, name="models/m", decodes=False, packs=False, world=ALONE)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        hidden = view.hidden_states(input_ids=ids, attention_mask=None)
        torch.testing.assert_close(view.logits(hidden[0]), model(input_ids=ids).logits[0])


@pytest.mark.parametrize(
    ("family", "settings", "options", "message"),
    [
        (
            # transformers' Llama does not read this setting.
            "llama",
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
        # Its layers keep states outside the cache: they stay in their places where rows change theirs.
        ("recurrent_gemma", {**SIZES, "block_types": ["recurrent", "attention"]}, {}, "rollouts would be wrong"),
        ("xlstm", {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4}, {}, "rollouts would be wrong"),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2}, {"packs": True}, "its layers keep states, which packed"),
        ("opt", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}, {"packs": True}, "set schedule.packing=false"),
    ],
)
def test_what_is_wrong_is_named(family: str, settings: dict[str, Any], options: dict[str, Any], message: str) -> None:
    model = tiny(family, **settings)
    with pytest.raises(UserError, match=f"model models/m: .*{message}"):
        probe(model, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_family_with_states_is_right(dtype: torch.dtype) -> None:
    # Its hidden states are fp32 in a bf16 model.
    probe(tiny("mamba", hidden_size=32, num_hidden_layers=2).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_family_that_is_not_rolled_out_needs_no_cache(dtype: torch.dtype) -> None:
    model = tiny("xlstm", hidden_size=32, num_hidden_layers=2, num_heads=4).to(dtype)
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
    check_finite(model, name="models/m", world=ALONE)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 4] = value
        model.get_parameter("model.norm.weight")[2] = value
    expected = (
        "model models/m: model.layers.1.mlp.up_proj.weight has values that are NaN or infinite, and 1 more tensors"
    )
    with pytest.raises(UserError, match=expected):
        check_finite(model, name="models/m", world=ALONE)
