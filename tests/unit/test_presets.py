"""Every preset loads, stays short, and says what the paper says; its pair of models fits together."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from kd.config import Config
from kd.config_file import read_config
from kd.engines.causal_lm import CausalLM

EXPERIMENTS = Path(__file__).parents[2] / "launch" / "experiments"
PRESETS = sorted(EXPERIMENTS.glob("**/*.yaml"))
PAPER = [path for path in PRESETS if path.parent.name in ("gpt2", "opt", "llama")]


@dataclass(frozen=True, kw_only=True)
class Published:
    """Hyper-parameters of PromptKD in the paper's appendix A and its run scripts."""

    teacher: str
    student: str
    learning_rate: float
    global_batch: int
    epochs: int


PROMPTKD = {
    "gpt2/promptkd_base": Published(
        teacher="gpt2-xl", student="gpt2-base", learning_rate=5e-5, global_batch=32, epochs=20
    ),
    "gpt2/promptkd_medium": Published(
        teacher="gpt2-xl", student="gpt2-medium", learning_rate=1e-5, global_batch=8, epochs=20
    ),
    "gpt2/promptkd_large": Published(
        teacher="gpt2-xl", student="gpt2-large", learning_rate=5e-6, global_batch=8, epochs=15
    ),
    "opt/promptkd_1.3b": Published(
        teacher="opt-13b", student="opt-1.3b", learning_rate=5e-6, global_batch=64, epochs=10
    ),
    "opt/promptkd_2.7b": Published(
        teacher="opt-13b", student="opt-2.7b", learning_rate=5e-6, global_batch=64, epochs=10
    ),
    "opt/promptkd_6.7b": Published(
        teacher="opt-13b", student="opt-6.7b", learning_rate=5e-6, global_batch=64, epochs=10
    ),
    "llama/promptkd_7b": Published(
        teacher="llama-13b", student="llama-7b", learning_rate=5e-6, global_batch=64, epochs=10
    ),
}

# Learning rate and epochs. Teachers as published; students start after three epochs (paper, §4.1)
# with the learning rates of the authors' fine-tuning scripts.
SFT = {
    "gpt2/sft_xl": (5e-5, 10),
    "opt/sft_13b": (1e-5, 10),
    "llama/sft_13b": (1e-5, 10),
    "gpt2/sft_base": (5e-4, 3),
    "gpt2/sft_medium": (1e-4, 3),
    "gpt2/sft_large": (1e-4, 3),
    "opt/sft_1.3b": (5e-5, 3),
    "opt/sft_2.7b": (5e-5, 3),
    "opt/sft_6.7b": (1e-5, 3),
    "llama/sft_7b": (1e-5, 3),
}

# Width, layers, heads, and parameters in millions of the published checkpoints.
SIZES = {
    "gpt2-base": (768, 12, 12, 124.4),
    "gpt2-medium": (1024, 24, 16, 354.8),
    "gpt2-large": (1280, 36, 20, 774.0),
    "gpt2-xl": (1600, 48, 25, 1557.6),
    "opt-1.3b": (2048, 24, 32, 1315.8),
    "opt-2.7b": (2560, 32, 32, 2651.6),
    "opt-6.7b": (4096, 32, 32, 6658.5),
    "opt-13b": (5120, 40, 40, 12853.5),
    "llama-7b": (4096, 32, 32, 6738.4),
    "llama-13b": (5120, 40, 40, 13015.9),
}
# First generation: feed-forward width is not a multiple of the width.
LLAMA_FEED_FORWARD = {"llama-7b": 11008, "llama-13b": 13824}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def published_config(name: str) -> PretrainedConfig:
    width, layers, heads, _ = SIZES[name]
    if name.startswith("gpt2"):
        return AutoConfig.for_model("gpt2", n_embd=width, n_layer=layers, n_head=heads)
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    if name.startswith("opt"):
        return AutoConfig.for_model("opt", ffn_dim=4 * width, word_embed_proj_dim=width, vocab_size=50272, **shape)
    return AutoConfig.for_model(
        "llama", intermediate_size=LLAMA_FEED_FORWARD[name], vocab_size=32000, max_position_embeddings=2048, **shape
    )


def on_meta_device(name: str) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(published_config(name))


@pytest.mark.parametrize("path", PRESETS, ids=name_of)
def test_every_preset_loads_and_is_short(path: Path) -> None:
    read_config(path)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 25


@pytest.mark.parametrize("path", PAPER, ids=name_of)
def test_batches_of_the_paper_divide_over_one_host(path: Path) -> None:
    config = read_config(path)
    ranks = config.cluster.nodes * config.cluster.gpus_per_node
    assert config.schedule.global_batch % (config.schedule.micro_batch * ranks) == 0


def test_every_preset_has_a_run_directory_of_its_own() -> None:
    directories = [read_config(path).run.dir for path in PRESETS]
    assert len(set(directories)) == len(directories)


def test_the_tables_name_every_preset_of_the_paper() -> None:
    assert {name_of(path) for path in PAPER} == PROMPTKD.keys() | SFT.keys()


@pytest.mark.parametrize("name", PROMPTKD)
def test_promptkd_presets_have_the_published_hyper_parameters(name: str) -> None:
    config, published = load(name), PROMPTKD[name]
    assert config.method == "promptkd"
    assert config.optimizer.learning_rate == config.prompt.learning_rate == published.learning_rate
    assert config.schedule.global_batch == published.global_batch
    assert config.schedule.epochs == published.epochs
    assert (config.schedule.decay, config.schedule.warmup_steps) == ("constant", 100)
    assert (config.optimizer.name, config.optimizer.weight_decay, config.optimizer.grad_clip) == ("adamw", 0.01, 1.0)
    assert (config.prompt.length, config.prompt.init_text) == (7, "Suppose you are a student.")
    assert (config.data.max_prompt_tokens, config.data.max_sequence_tokens) == (256, 512)
    sampling = config.generation
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens) == (1.0, 1.0, 0, 256)
    assert config.model.teacher == f"runs/{published.teacher}-sft/best"
    assert config.model.student == f"runs/{published.student}-sft/final"


@pytest.mark.parametrize("name", SFT)
def test_sft_presets_have_the_published_hyper_parameters(name: str) -> None:
    config = load(name)
    learning_rate, epochs = SFT[name]
    assert config.method == "sft"
    assert config.optimizer.learning_rate == learning_rate
    assert config.schedule.epochs == epochs
    assert (config.schedule.decay, config.schedule.warmup_steps) == ("cosine", 0)
    assert config.schedule.global_batch == 32


@pytest.mark.parametrize("name", PROMPTKD)
def test_both_models_of_a_pair_are_made_by_other_presets(name: str) -> None:
    made = {load(other).run.dir for other in SFT}
    config = load(name)
    assert {str(Path(model).parent) for model in (config.model.student, str(config.model.teacher))} <= made


@pytest.mark.parametrize("name", SIZES)
def test_models_of_the_paper_have_their_size_on_the_meta_device(name: str) -> None:
    model = on_meta_device(name)
    millions = SIZES[name][-1]
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=0.02)
    view = CausalLM.of(model)
    width, vocabulary = SIZES[name][0], published_config(name).vocab_size
    assert view.head_weight.shape == (vocabulary, width)
    assert view.head_bias is None
    assert view.embed(torch.zeros(2, 3, dtype=torch.long, device="meta")).shape == (2, 3, width)


@pytest.mark.parametrize("name", PROMPTKD)
def test_pairs_share_a_vocabulary_and_have_room_for_the_prompt(name: str) -> None:
    config, published = load(name), PROMPTKD[name]
    student, teacher = published_config(published.student), published_config(published.teacher)
    assert student.vocab_size == teacher.vocab_size
    assert student.max_position_embeddings >= config.data.max_sequence_tokens
    assert teacher.max_position_embeddings >= config.data.max_sequence_tokens + config.prompt.length


def load(name: str) -> Config:
    return read_config(EXPERIMENTS / f"{name}.yaml")
