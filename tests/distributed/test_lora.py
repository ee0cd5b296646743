"""LoRA on the teacher in the place of the prompt, and on the student: steps on real ranks equal plain torch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.distributed import generation_jobs
from tests.distributed import lora_jobs as jobs
from tests.distributed.harness import RATE, Pair, make_batches, write_config
from tests.reference import plain_lora as reference
from tests.tiny_models import save_tiny_model

RANK, ALPHA = 4, 8
TEACHER_LORA = [f"teacher_lora.rank={RANK}", f"teacher_lora.alpha={ALPHA}", "prompt.regularization=none"]
STUDENT_LORA = [f"student_lora.rank={RANK}", f"student_lora.alpha={ALPHA}"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of different width, depth and padded vocabulary; GPT-2 stores its matrices the other way round."""
    directory = tmp_path_factory.mktemp(request.param)
    save_tiny_model(directory / "teacher", request.param, seed=1, width=48, layers=3, padding=16)
    save_tiny_model(directory / "student", request.param, seed=2, width=32, layers=2, padding=3)
    return directory


def reference_adapters(values: dict[str, torch.Tensor], *, family: str) -> reference.Adapters:
    adapters = reference.Adapters(scale=ALPHA / RANK, stored_transposed=family == "gpt2")
    for name, value in values.items():
        if ".lora_A." in name:
            b = values[name.replace(".lora_A.", ".lora_B.")]
            place = name.split(".lora_A.")[0]
            adapters.matrices[f"{place}.weight"] = tuple(  # type: ignore[assignment]
                matrix.double().clone().requires_grad_() for matrix in (value, b)
            )
    return adapters


def adapter_updates(before: dict[str, torch.Tensor], adapters: reference.Adapters) -> dict[str, torch.Tensor]:
    updates = {}
    for name, value in before.items():
        place, _, rest = name.partition(".lora_")
        trained = adapters.matrices[f"{place}.weight"][rest.startswith("B")]
        updates[name] = trained.detach() - value.double()
    return updates


def assert_moved_alike(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], updates: dict[str, torch.Tensor]
) -> None:
    assert before.keys() == after.keys() == updates.keys()
    largest = max(update.abs().max().item() for update in updates.values())
    assert largest >= 1e-3
    for name, update in updates.items():
        ours = after[name].double() - before[name].double()
        assert (ours - update).abs().max().item() <= 1e-4 * largest, name


def run_reference(pair: Path, batches: list[list[Pair]], **adapters: reference.Adapters | None) -> Any:
    models = [
        AutoModelForCausalLM.from_pretrained(pair / name, dtype=torch.float64).eval() for name in ("teacher", "student")
    ]
    start = {name: value.detach().clone() for name, value in models[1].named_parameters()}
    losses = reference.train(
        *models,
        [[reference.Row(*row) for row in rows] for rows in batches],
        vocabulary=len(AutoTokenizer.from_pretrained(pair / "student")),
        rate=RATE,
        **adapters,
    )
    return {name: value.detach() - start[name] for name, value in models[1].named_parameters()}, losses


@pytest.fixture(scope="module", params=["layer", "model"])
def adapted_teacher(pair: Path, request: pytest.FixtureRequest, ranks: Any) -> Any:
    """Three steps against a teacher with adapters: its ZeRO stage and checkpointing differ between the families."""
    stage, checkpointing = (3, "true") if pair.name.startswith("gpt2") else (0, "false")
    config = write_config(pair, teacher_stage=stage)
    overrides = [*TEACHER_LORA, f"model.gradient_checkpointing={checkpointing}", f"engine.gather={request.param}"]
    batches = make_batches(vocabulary=400)
    trained = ranks(2).run(jobs.train, config_file=config, overrides=overrides, batches=batches)
    plain = ranks(2).run(jobs.plain_states, config_file=config, overrides=overrides, rows=batches[0])
    return batches, trained, plain


def test_three_steps_with_an_adapted_teacher_equal_the_reference(pair: Path, adapted_teacher: Any) -> None:
    batches, results, _ = adapted_teacher
    before, after = results[0]["before"], results[0]["after"]
    adapters = reference_adapters(before["teacher"], family=pair.name[:4])
    updates, losses = run_reference(pair, batches, teacher_adapters=adapters, student_adapters=None)
    assert_moved_alike(before["teacher"], after["teacher"], adapter_updates(before["teacher"], adapters))
    assert_moved_alike(before["student"], after["student"], updates)
    assert results[0]["means"].keys() == losses.keys(), "no L_reg beside LoRA"
    for name, values in losses.items():
        assert results[0]["means"][name] == pytest.approx(values, rel=1e-4), name
    for name, value in after["teacher"].items():
        assert torch.equal(value, results[1]["after"]["teacher"][name]), name


def test_with_its_adapters_off_the_teacher_equals_the_plain_one_bit_exactly(adapted_teacher: Any) -> None:
    _, trained, plain = adapted_teacher
    for rank, states in enumerate(plain):
        for moment in ("before", "after"):
            assert torch.equal(states, trained[rank][moment]["plain"]), moment
    for name, value in trained[0]["before"]["teacher_base"].items():
        assert torch.equal(value, trained[0]["after"]["teacher_base"][name]), name


def test_three_steps_of_an_adapted_student_equal_the_reference(pair: Path, ranks: Any) -> None:
    """Alone under ZeRO-3, and under ZeRO-2 beside an adapted teacher."""
    stage, method = (3, "gkd") if pair.name.startswith("gpt2") else (2, "promptkd")
    batches = make_batches(vocabulary=400)
    config = write_config(pair, stage=stage)
    overrides = [*STUDENT_LORA, f"method={method}", *(TEACHER_LORA if method == "promptkd" else [])]
    results = ranks(2).run(jobs.train, config_file=config, overrides=overrides, batches=batches)
    before, after = results[0]["before"], results[0]["after"]
    student = reference_adapters(before["student"], family=pair.name[:4])
    teacher = None
    if method == "promptkd":
        teacher = reference_adapters(before["teacher"], family=pair.name[:4])
    _, losses = run_reference(pair, batches, teacher_adapters=teacher, student_adapters=student)
    assert_moved_alike(before["student"], after["student"], adapter_updates(before["student"], student))
    assert results[0]["means"]["student_kd"] == pytest.approx(losses["student_kd"], rel=1e-4)
    published = AutoModelForCausalLM.from_pretrained(pair / "student").state_dict()
    for name, value in after["student_base"].items():
        assert torch.equal(value, published[name]), f"{name} is the base's and must not move"


def test_every_decoding_layout_samples_from_the_adapted_student(tmp_path: Path, ranks: Any) -> None:
    for name, seed in (("teacher", 1), ("student", 2)):
        save_tiny_model(tmp_path / name, "llama", seed=seed, heads=4, num_key_value_heads=2)
    config = write_config(tmp_path)
    prompts = [list(range(1 + row, 30 + 7 * row, 5)) for row in range(5)]
    results = ranks(2).run(jobs.sample, config_file=config, overrides=STUDENT_LORA, prompts=prompts)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    for name, weight in reference_adapters(results[0]["adapters"], family="llama").merged(model).items():
        model.get_parameter(name).data.copy_(weight)
    model.save_pretrained(tmp_path / "student")
    whole = write_config(tmp_path, stage=0)
    wanted = ranks(2).run(generation_jobs.sample, config_file=whole, overrides=[], prompts=prompts, steps=[1])
    for result, other in zip(results, wanted, strict=True):
        for layout in ("zero3", "gathered", "tensor_parallel"):
            assert result[layout] == other[1], result[f"{layout} is"]
        assert "each group of 2 ranks" in result["tensor_parallel is"]


def test_adapters_of_the_teacher_stay_fp32_beside_bf16_weights(pair: Path, ranks: Any) -> None:
    overrides = [*TEACHER_LORA, *STUDENT_LORA]
    (found, _) = ranks(2).run(jobs.dtypes, config_file=write_config(pair, dtype="bf16"), overrides=overrides)
    assert found == {
        "teacher_adapters": {torch.float32},
        "teacher_base": {torch.bfloat16},
        "student_adapters": {torch.bfloat16},
    }
