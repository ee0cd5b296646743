"""Plans: tensors counted once, passes without storage like real ones, shapes of models to come, advice, the command."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from kd.cli import plan
from kd.config.packaged import find_preset, list_presets
from kd.config.schema import Config
from kd.errors import UserError
from kd.losses.fused import fused_loss
from kd.losses.outputs import chunk_rows
from kd.losses.terms import cross_entropy
from kd.methods import load_config
from kd.models.causal_lm import enable_checkpointing
from kd.models.student import StudentModule
from kd.plan import Account, LiveBytes, Machine
from kd.plan.advice import find_advice
from kd.plan.passes import FakeModel, Reduction
from kd.plan.shapes import model_shapes
from kd.plan.show import parse_memory
from tests.tiny_models import save_tiny_model, tiny_config

GIB = 2**30
KIB = 2**10


def test_live_bytes_count_a_storage_once_and_forget_it() -> None:
    with LiveBytes() as live:
        first = torch.zeros(KIB)
        view = first.view(2, -1)
        view *= 2
        assert live.now == 4 * KIB
        doubled = view + view
        assert live.now == 8 * KIB
        del first, view
        assert live.now == 4 * KIB
        del doubled
    assert (live.now, live.peak) == (0, 8 * KIB)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_passes_without_storage_take_what_real_ones_take(family: str, checkpointing: bool) -> None:
    rows, prompt, response = 2, 20, 12
    config = tiny_config(family, vocab_size=300, width=64, layers=3)
    fake = FakeModel(config, name="tiny", dtype="fp32", checkpointing=checkpointing, trust_remote_code=False)
    sizes = {"rows": rows, "prompt": prompt, "response": response}
    planned = fake.student_training(
        **sizes, loss_chunk_mib=1, target=None, reduction=Reduction(itemsize=0, bucket_elements=10**9)
    )
    model = type(fake.model)(fake.model.config)
    if checkpointing:
        enable_checkpointing(model)
    module = StudentModule(model.train(), vocabulary_size=300)
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    batch = fake.batch(**sizes, real=True)
    terms = [cross_entropy(batch.labels)]
    with LiveBytes() as live:
        loss = partial(fused_loss, terms=terms, scale=1.0, chunk_size=chunk_rows(300, byte_budget=2**20))
        module(batch, loss).loss.backward()
    assert planned == pytest.approx(live.peak, rel=0.05)


@pytest.mark.parametrize("name", [name for name, _ in list_presets() if not name.startswith(("your_own", "smollm2"))])
def test_every_model_of_the_papers_presets_has_known_shapes(name: str) -> None:
    config = load_config(find_preset(name))
    for model in (config.model.student, config.model.teacher):
        if model is not None:
            assert model_shapes(model, trust_remote_code=False).get_text_config().num_hidden_layers >= 12


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("gpt2", 0.124),
        ("gpt2-xl", 1.558),
        ("facebook/opt-1.3b", 1.316),
        ("runs/opt-13b-sft/best", 12.853),
        ("models/llama-7b", 6.738),
        ("meta-llama/Llama-2-70b-hf", 68.977),
    ],
)
def test_shapes_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    shapes = model_shapes(name, trust_remote_code=False)
    fake = FakeModel(shapes, name=name, dtype="bf16", checkpointing=False, trust_remote_code=False)
    found = sum(parameter.numel() for parameter in fake.model.parameters())
    assert found / 1e9 == pytest.approx(billions, abs=0.002)


def test_a_run_that_no_preset_writes_has_no_shapes() -> None:
    with pytest.raises(UserError, match=r"no such directory yet, and no preset writes it; name the model"):
        model_shapes("runs/mine/final", trust_remote_code=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plan")
    save_tiny_model(directory / "teacher", "llama", seed=1, width=128, layers=4)
    save_tiny_model(directory / "student", "llama", seed=2, width=64, layers=2)
    values = {
        "model": {"teacher": str(directory / "teacher"), "student": str(directory / "student")},
        "data": {"train": "unused.jsonl", "max_prompt_tokens": 64, "max_sequence_tokens": 128},
        "generation": {"max_new_tokens": 64},
        "schedule": {"global_batch": 16, "micro_batch": 4, "epochs": 2, "warmup_steps": 0},
        "run": {"dir": "runs/unused"},
    }
    (directory / "run.yaml").write_text(yaml.safe_dump(values))
    return directory


def account_of(tiny: Path, *, gpu_bytes: int, overrides: tuple[str, ...] = ()) -> Account:
    config: Config = load_config(tiny / "run.yaml", overrides=overrides)
    return Account(config=config, machine=Machine(num_gpus=2, gpu_bytes=gpu_bytes, gpus_per_host=2))


def test_advice_makes_a_run_fit(tiny: Path) -> None:
    roomy = account_of(tiny, gpu_bytes=80 * GIB)
    tight = account_of(tiny, gpu_bytes=80 * GIB - (roomy.machine.usable_bytes - roomy.peak) - 2**20)
    assert roomy.fits
    assert not tight.fits
    advice = find_advice(tight)
    assert advice is not None
    assert advice.changes
    # What the command prints is what a user gives to the training.
    assert account_of(tiny, gpu_bytes=tight.machine.gpu_bytes, overrides=advice.changes).fits


def test_the_13b_presets_validate_with_a_divided_copy() -> None:
    """Weights that are gathered for every token would make validation take days."""
    machine = Machine(num_gpus=4, gpu_bytes=parse_memory("80GB"), gpus_per_host=4)
    account = Account(config=load_config(find_preset("opt/sft_13b.yaml")), machine=machine)
    assert account.fits
    assert account.layout is not None
    assert account.layout.layout == "tensor_parallel"


def test_nothing_fits_without_memory(tiny: Path) -> None:
    assert find_advice(account_of(tiny, gpu_bytes=2 * GIB)) is None


def test_more_ranks_hold_less(tiny: Path) -> None:
    two = account_of(tiny, gpu_bytes=80 * GIB, overrides=("schedule.micro_batch=1",))
    four = replace(two, machine=replace(two.machine, num_gpus=4))
    assert four.student.master == pytest.approx(two.student.master / 2, rel=0.01)
    assert four.student.held < two.student.held


def test_the_command_prints_a_plan(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", str(tiny / "run.yaml"), "--gpus", "2", "--rows", "160"]
    assert plan(arguments) == 0
    shown = capsys.readouterr().out
    for expected in ("KV cache", "→", "fits: peak", "gathered once for each global batch: teacher, student"):
        assert expected in shown
    assert "GPU-hours for 20 steps (2 epochs of 160 rows)" in shown
    assert plan([*arguments, "--gpus-per-host", "1", "--gpu-memory", "2.1GiB"]) == 1
    shown = capsys.readouterr().out
    assert "does not fit" in shown
    assert "2 hosts: partitioned models are gathered across hosts" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "3"], "schedule.global_batch=16 is not schedule.micro_batch=4 × 3 ranks"),
        (["--gpus", "0"], "--gpus 0"),
        (["--gpu-memory", "lots"], "--gpu-memory lots: expected a size such as 80GB"),
        (["--gpu", "abacus"], "--gpu abacus: expected one of a100-40gb"),
        (["model.student=runs/mine/final"], "runs/mine/final: no such directory yet"),
    ],
)
def test_mistakes_are_one_line(
    tiny: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert plan(["--config", str(tiny / "run.yaml"), *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_memory_as_it_is_sold() -> None:
    assert parse_memory("80GB") == pytest.approx(79 * GIB, rel=0.01)
    assert parse_memory("79.5 GiB") == 79.5 * GIB
