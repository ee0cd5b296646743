"""Which layout is chosen, what each rank holds then, and what a copy is made of; nothing here has storage."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from kd.config.schema import GenerationConfig
from kd.errors import UserError
from kd.rollout.inference_copy import InferenceCopy, copy_bytes
from kd.rollout.kv_cache import PreallocatedCache
from kd.rollout.placement import LayoutChoice, cache_bytes_per_token, choose_layout
from kd.rollout.tensor_parallel import UnsplittableError, split_dimensions
from tests.tiny_models import tiny_config

GIB = 2**30


def shapes_of(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def opt(*, width: int, layers: int, heads: int) -> PretrainedConfig:
    return OPTConfig(
        vocab_size=50272,
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )


OPT_1_3B = opt(width=2048, layers=24, heads=32)
LARGE = {
    "opt-1.3b": (OPT_1_3B, 1.31e9),
    "opt-2.7b": (opt(width=2560, layers=32, heads=32), 2.65e9),
    "opt-6.7b": (opt(width=4096, layers=32, heads=32), 6.65e9),
    "llama-7b": (LlamaConfig(), 6.73e9),
}


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "gpt_neox"])
def test_the_size_of_the_kv_cache_is_known_before(family: str) -> None:
    model = AutoModelForCausalLM.from_config(
        tiny_config(family, vocab_size=50, width=32, layers=3), dtype=torch.float32
    ).eval()
    cache = PreallocatedCache(5, config=model.config)
    model(input_ids=torch.ones(3, 5, dtype=torch.long), past_key_values=cache, use_cache=True)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert 3 * 5 * cache_bytes_per_token(model) == kept


@pytest.mark.parametrize("name", LARGE)
def test_two_ranks_hold_little_more_than_half_each(name: str) -> None:
    config, num_parameters = LARGE[name]
    model = shapes_of(config)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    assert whole == copy_bytes(model) == pytest.approx(2 * num_parameters, rel=0.01)
    assert 0.5 < copy_bytes(model, num_ranks=2) / whole <= 0.55


def test_what_divides_is_attention_by_heads_and_the_inner_layers() -> None:
    model = shapes_of(opt(width=64, layers=1, heads=4))
    layer = "model.decoder.layers.0"
    columns = [f"{layer}.{name}" for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "fc1")]
    rows = [f"{layer}.{name}" for name in ("self_attn.out_proj", "fc2")]
    assert split_dimensions(model, num_ranks=2) == {
        **{f"{name}.{part}": 0 for name in columns for part in ("weight", "bias")},
        **{f"{name}.weight": 1 for name in rows},
    }


@pytest.mark.parametrize(
    ("config", "num_ranks", "reason"),
    [
        (GPT2Config(n_layer=1), 2, "no plan for the family gpt2"),
        (MixtralConfig(num_hidden_layers=1), 2, "parts that are not supported"),
        (opt(width=64, layers=1, heads=4), 3, "num_attention_heads=4 does not divide"),
        (Qwen3Config(num_hidden_layers=1, num_key_value_heads=2), 4, "num_key_value_heads=2 does not divide"),
        (LlamaConfig(num_hidden_layers=1, intermediate_size=11007), 2, "11007 outputs of .*gate_proj do not divide"),
    ],
    ids=["no plan", "experts", "heads", "key-value heads", "width"],
)
def test_what_does_not_divide_says_why(config: PretrainedConfig, num_ranks: int, reason: str) -> None:
    with pytest.raises(UnsplittableError, match=reason):
        split_dimensions(shapes_of(config), num_ranks=num_ranks)


def choose(
    config: PretrainedConfig, *, layout: str = "auto", size: int = 1, free: float, hosts: tuple[int, ...] = (4, 4)
) -> LayoutChoice:
    ranks = [list(range(sum(hosts[:host]), sum(hosts[: host + 1]))) for host in range(len(hosts))]
    settings = GenerationConfig(layout=layout, tensor_parallel_size=size)  # type: ignore[arg-type]
    return choose_layout(shapes_of(config), settings=settings, free_bytes=int(free * GIB), hosts=ranks)


@pytest.mark.parametrize(
    ("free", "size", "hosts", "chosen"),
    [
        # In bf16 OPT-1.3B takes 2.45 GiB, a share of two ranks 1.33 GiB, of four 0.76 GiB.
        (5.0, 1, (4, 4), ("gathered", 1)),
        (4.0, 1, (4, 4), ("tensor_parallel", 2)),
        (2.0, 1, (4, 4), ("tensor_parallel", 4)),
        (4.0, 4, (4, 4), ("tensor_parallel", 4)),
        (2.0, 1, (4, 2), ("zero3", 1)),
        (4.0, 1, (3, 3), ("zero3", 1)),
        (1.0, 1, (4, 4), ("zero3", 1)),
        (2.0, 2, (4, 4), ("zero3", 1)),
    ],
)
def test_auto_takes_the_fastest_layout_that_fits_half_the_free_memory(
    free: float, size: int, hosts: tuple[int, ...], chosen: tuple[str, int]
) -> None:
    choice = choose(OPT_1_3B, free=free, size=size, hosts=hosts)
    assert (choice.layout, choice.num_ranks) == chosen
    assert "a full copy takes 2.45 GiB" in choice.reason
    assert f"{free:.2f} GiB free per rank" in choice.reason


def test_auto_does_not_divide_a_family_without_a_plan() -> None:
    choice = choose(GPT2Config(), free=0.3)
    assert choice.layout == "zero3"
    assert "cannot be divided over 4 ranks: there is no plan for the family gpt2" in choice.reason


def test_a_student_that_cannot_be_divided_is_gathered_or_refused() -> None:
    choice = choose(GPT2Config(), layout="tensor_parallel", size=2, free=1.0)
    assert choice.layout == "gathered"
    assert choice.reason == "the model cannot be divided over 2 ranks: there is no plan for the family gpt2"
    with pytest.raises(UserError, match="no plan .*; and a full copy of 0.23 GiB does not fit.*layout=zero3"):
        choose(GPT2Config(), layout="tensor_parallel", size=2, free=0.3)


def test_groups_are_inside_hosts() -> None:
    assert choose(OPT_1_3B, layout="tensor_parallel", size=2, free=1.0, hosts=(4, 2)).num_ranks == 2
    with pytest.raises(UserError, match=r"tensor_parallel_size=4 does not divide .* each host \(4, 2\)"):
        choose(OPT_1_3B, layout="tensor_parallel", size=4, free=100.0, hosts=(4, 2))


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_a_copy_has_the_sources_values_buffers_and_ties(family: str) -> None:
    config = tiny_config(family, vocab_size=50, width=32, layers=2, tie_word_embeddings=True)
    source = AutoModelForCausalLM.from_config(config).eval()
    weights = InferenceCopy(source, keep=True, device=torch.device("cpu"))
    inputs = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.bool)}
    with weights.ready() as view:
        assert view.head_weight is view.embedding_weight
        assert view.head_weight is not source.get_output_embeddings().weight
        states = view.hidden_states(**inputs)
    with torch.no_grad():
        torch.testing.assert_close(states, source.base_model(**inputs).last_hidden_state, rtol=0, atol=0)


def test_a_copy_that_is_not_kept_takes_memory_inside_its_context_only() -> None:
    source = AutoModelForCausalLM.from_config(tiny_config("llama", vocab_size=50, width=32, layers=1))
    weights = InferenceCopy(source, keep=False, device=torch.device("cpu"))
    assert weights.held_bytes == 0
    with weights.ready():
        assert weights.held_bytes == copy_bytes(source)
    assert weights.held_bytes == 0
