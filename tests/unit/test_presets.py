"""Every preset loads, stays short, and says what the paper says; its pair of models fits together."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from kd.config.load import read_config
from kd.config.schema import Config
from kd.models.causal_lm import CausalLM

DOLLY_ROWS = 11_435
"""For training, in the split of MiniLLM and PromptKD."""
EXPERIMENTS = Path(__file__).parents[2] / "launch" / "experiments"
# Files beside the folders are extended by others and no runs of their own.
SHARED = sorted(EXPERIMENTS.glob("*.yaml"))
PRESETS = sorted(EXPERIMENTS.glob("*/**/*.yaml"))
PAPER = [path for path in PRESETS if path.parent.name in ("gpt2", "opt", "llama")]
ABLATIONS = [path for path in PRESETS if path.parent.name == "ablations"]
METHODS = ("sft_full", "kd", "seqkd", "gkd", "minillm", "promptkd")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Hyper-parameters of the paper's appendix A and its run scripts for a student and its teacher."""

    teacher: str
    student: str
    published: str
    """Where the student starts without fine-tuning."""
    sft_rate: float
    """Of fine-tuning on Dolly, with batches of 32 rows."""
    learning_rate: float
    """Of PromptKD, for prompt and student."""
    global_batch: int
    """Of PromptKD."""
    epochs: int


def pair_of(teacher: str, student: str, published: str, **numbers: float) -> Pair:
    return Pair(teacher=teacher, student=student, published=published, **numbers)  # type: ignore[arg-type]


OPT = {"learning_rate": 5e-6, "global_batch": 64, "epochs": 10}
PAIRS = {
    "gpt2/base": pair_of("gpt2-xl", "gpt2-base", "gpt2", sft_rate=5e-4, learning_rate=5e-5, global_batch=32, epochs=20),
    "gpt2/medium": pair_of(
        "gpt2-xl", "gpt2-medium", "gpt2-medium", sft_rate=1e-4, learning_rate=1e-5, global_batch=8, epochs=20
    ),
    "gpt2/large": pair_of(
        "gpt2-xl", "gpt2-large", "gpt2-large", sft_rate=1e-4, learning_rate=5e-6, global_batch=8, epochs=15
    ),
    "opt/1.3b": pair_of("opt-13b", "opt-1.3b", "facebook/opt-1.3b", sft_rate=5e-5, **OPT),
    "opt/2.7b": pair_of("opt-13b", "opt-2.7b", "facebook/opt-2.7b", sft_rate=5e-5, **OPT),
    "opt/6.7b": pair_of("opt-13b", "opt-6.7b", "facebook/opt-6.7b", sft_rate=1e-5, **OPT),
    "llama/7b": pair_of("llama-13b", "llama-7b", "models/llama-7b", sft_rate=1e-5, **OPT),
}
TEACHERS = {"gpt2/sft_xl": 5e-5, "opt/sft_13b": 1e-5, "llama/sft_13b": 1e-5}
"""Learning rates of their fine-tuning, ten epochs each."""

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


def methods_of(name: str) -> list[str]:
    """Names of a pair's presets of all methods."""
    family, size = name.split("/")
    return [f"{family}/{method}_{size}" for method in METHODS]


RUNS = [(name, preset) for name in PAIRS for preset in methods_of(name)]


@pytest.mark.parametrize("path", PRESETS, ids=name_of)
def test_every_preset_loads_and_is_short(path: Path) -> None:
    config = read_config(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 25
    assert max(len(line) for line in lines) <= 120
    assert lines[0].startswith("# ")
    if path in PAPER:
        # So that the folder's list of files says what they are.
        assert config.method == path.stem.split("_")[0]


@pytest.mark.parametrize("path", SHARED, ids=lambda path: path.name)
def test_what_presets_share_is_extended_by_some(path: Path) -> None:
    extended = [yaml.safe_load(other.read_text(encoding="utf-8")).get("extends") for other in [*PRESETS, *SHARED]]
    assert {path.name, f"../{path.name}"} & set(extended)


@pytest.mark.parametrize("path", [*PAPER, *ABLATIONS], ids=name_of)
def test_batches_of_the_paper_divide_over_one_host(path: Path) -> None:
    """With one, two or four GPUs the global batch is the paper's; more need a smaller schedule.micro_batch."""
    schedule = read_config(path).schedule
    for num_ranks in (1, 2, 4):
        assert schedule.global_batch % (schedule.micro_batch * num_ranks) == 0


def test_every_preset_has_a_run_directory_of_its_own() -> None:
    directories = [read_config(path).run.dir for path in PRESETS]
    assert len(set(directories)) == len(directories)


def test_the_tables_name_every_preset_of_the_paper() -> None:
    starts = {f"{name.split('/')[0]}/sft_{name.split('/')[1]}" for name in PAIRS}
    assert {name_of(path) for path in PAPER} == TEACHERS.keys() | starts | {preset for _, preset in RUNS}


@pytest.mark.parametrize(("name", "preset"), RUNS, ids=lambda value: str(value))
def test_what_all_runs_of_a_pair_have_in_common(name: str, preset: str) -> None:
    config, pair = load(preset), PAIRS[name]
    assert (config.data.max_prompt_tokens, config.data.max_sequence_tokens) == (256, 512)
    assert (config.optimizer.name, config.optimizer.weight_decay, config.optimizer.grad_clip) == ("adamw", 0.01, 1.0)
    assert config.model.teacher == (None if config.method == "sft" else f"runs/{pair.teacher}-sft/best")
    # MiniLLM, GKD and PromptKD go on from three epochs of fine-tuning (paper, §4.1).
    starts_tuned = config.method in ("minillm", "gkd", "promptkd")
    assert config.model.student == (f"runs/{pair.student}-sft/final" if starts_tuned else pair.published)


@pytest.mark.parametrize(("name", "preset"), RUNS, ids=lambda value: str(value))
def test_presets_have_the_published_hyper_parameters(name: str, preset: str) -> None:
    config, pair = load(preset), PAIRS[name]
    schedule, rates = config.schedule, (config.optimizer.learning_rate, config.prompt.learning_rate)
    if config.method in ("sft", "kd", "seqkd"):
        assert (schedule.decay, schedule.warmup_steps) == ("cosine", 0)
        assert (rates[0], schedule.global_batch, schedule.epochs) == (pair.sft_rate, 32, pair.epochs)
        assert config.kd.ratio == config.seqkd.ratio == 0.5
        assert config.kd.divergence == config.seqkd.divergence == "forward_kl"
        return
    assert (schedule.decay, schedule.warmup_steps) == ("constant", 100)
    sampling = config.generation
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens) == (1.0, 1.0, 0, 256)
    if config.method == "minillm":
        assert (rates[0], schedule.epochs, schedule.steps, config.validation.every) == (5e-6, None, 5000, 100)
        minillm = config.minillm
        assert (minillm.teacher_share, minillm.reward_scale, minillm.ratio_clip) == (0.2, 0.5, 0.2)
        assert (minillm.rollouts, minillm.inner_epochs, minillm.rollouts % schedule.global_batch) == (256, 4, 0)
        return
    assert (rates[0], schedule.global_batch, schedule.epochs) == (pair.learning_rate, pair.global_batch, pair.epochs)
    assert config.validation.every == DOLLY_ROWS // schedule.global_batch, "once in an epoch"
    if config.method == "gkd":
        assert (config.gkd.student_fraction, config.gkd.divergence, config.gkd.sft_weight) == (1.0, "reverse_kl", 0.0)
    else:
        assert rates[1] == pair.learning_rate
        assert (config.prompt.length, config.prompt.init_text) == (7, "Suppose you are a student.")


@pytest.mark.parametrize("name", PAIRS)
def test_seqkd_learns_from_one_file_for_all_students_of_a_teacher(name: str) -> None:
    family, size = name.split("/")
    config = load(f"{family}/seqkd_{size}")
    assert config.data.responses == f"runs/{PAIRS[name].teacher}-sft/dolly_responses.jsonl"
    assert config.data.train == "data/dolly/train.jsonl", "the requests that the teacher answers"


@pytest.mark.parametrize("name", PAIRS)
def test_students_start_from_three_epochs_of_fine_tuning(name: str) -> None:
    family, size = name.split("/")
    config, pair = load(f"{family}/sft_{size}"), PAIRS[name]
    assert (config.method, config.model.student, config.run.dir) == ("sft", pair.published, f"runs/{pair.student}-sft")
    assert (config.optimizer.learning_rate, config.schedule.epochs, config.schedule.global_batch) == (
        pair.sft_rate,
        3,
        32,
    )


@pytest.mark.parametrize("preset", TEACHERS)
def test_teachers_are_fine_tuned_for_ten_epochs(preset: str) -> None:
    config = load(preset)
    assert (config.method, config.optimizer.learning_rate) == ("sft", TEACHERS[preset])
    assert (config.schedule.epochs, config.schedule.global_batch) == (10, 32)
    assert (config.schedule.decay, config.schedule.warmup_steps) == ("cosine", 0)


@pytest.mark.parametrize("name", PAIRS)
def test_both_models_of_a_pair_are_made_by_other_presets(name: str) -> None:
    family, size = name.split("/")
    made = {load(other).run.dir for other in (*TEACHERS, f"{family}/sft_{size}")}
    config = load(f"{family}/promptkd_{size}")
    assert {str(Path(model).parent) for model in (config.model.student, str(config.model.teacher))} <= made


def test_ablations_change_what_their_tables_say_and_nothing_else() -> None:
    found = {}
    for path in ABLATIONS:
        config, base = read_config(path), read_config(path.parent / yaml.safe_load(path.read_text())["extends"])
        differing = {
            f"{section}.{field}": value
            for section, values in vars(config).items()
            for field, value in (vars(values).items() if hasattr(values, "__dict__") else [("", values)])
            if (getattr(getattr(base, section), field) if field else getattr(base, section)) != value
        }
        assert "run.dir" in differing
        found[path.stem] = (base.run.dir, {key: value for key, value in differing.items() if key != "run.dir"})
    base, large = "runs/gpt2-base-promptkd", "runs/gpt2-large-promptkd"
    lora = {"prompt.regularization": "none"}
    # alpha is 32 where nothing is said.
    assert found.pop("lora_4_32") == (base, lora | {"teacher_lora.rank": 4})
    assert found.pop("lora_8_16") == (base, lora | {"teacher_lora.rank": 8, "teacher_lora.alpha": 16.0})
    for size in ("base", "medium", "large"):
        without = {"prompt.regularization": "none"}
        assert found.pop(f"without_regularization_{size}") == (f"runs/gpt2-{size}-promptkd", without)
    forward = {"kd": "prompt.kd_divergence", "reg": "prompt.regularization_divergence"}
    assert found.pop("reverse_forward") == (base, {forward["reg"]: "forward_kl"})
    assert found.pop("forward_reverse") == (base, {forward["kd"]: "forward_kl"})
    assert found.pop("forward_forward") == (base, dict.fromkeys(forward.values(), "forward_kl"))
    for init in ("text", "padding", "random"):
        for length in (5, 7, 10):
            changed = ({} if init == "text" else {"prompt.init": init}) | (
                {} if length == 7 else {"prompt.length": length}
            )
            if changed:
                assert found.pop(f"prompt_{init}_{length}") == (large, changed)
    assert not found, "every ablation is in a table or a figure"


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


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_share_a_vocabulary_and_have_room_for_the_prompt(name: str) -> None:
    family, size = name.split("/")
    config, pair = load(f"{family}/promptkd_{size}"), PAIRS[name]
    student, teacher = published_config(pair.student), published_config(pair.teacher)
    assert student.vocab_size == teacher.vocab_size
    assert student.max_position_embeddings >= config.data.max_sequence_tokens
    assert teacher.max_position_embeddings >= config.data.max_sequence_tokens + config.prompt.length


def load(name: str) -> Config:
    return read_config(EXPERIMENTS / f"{name}.yaml")
