"""A teacher in 4 or 8 bits gives the targets and the prompt's gradient of its weights, dequantized."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from evaluation.scoring import COMMAND, evaluate_model
from kd.distributed import World
from kd.errors import UserError
from kd.models.causal_lm import load_causal_lm, read_model_config
from kd.models.handle import EngineModule
from tests.distributed import generate_jobs, harness, loading_jobs
from tests.distributed.harness import assert_same_updates, make_batches, write_config
from tests.distributed.test_lora import TEACHER_LORA
from tests.integration.evaluated import ROWS, arguments, contents, write_rows
from tests.tiny_models import save_tiny_model

pytest.importorskip("bitsandbytes", reason="quantized teachers need bitsandbytes")

VOCABULARY = 400
SETTINGS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "fp4-double": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_compute_dtype": torch.float32,
        "bnb_4bit_use_double_quant": True,
    },
    "int8": {"load_in_8bit": True},
}
TOLERANCES = {"nf4": 1e-4, "fp4-double": 1e-4, "int8": 0.1}
"""Of the largest update. In 8 bits, bitsandbytes also rounds activations."""


def quantize(base: Path, directory: Path, **settings: Any) -> Path:
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(**settings), device_map={"": "cpu"}, dtype=torch.float32
    )
    model.save_pretrained(directory)
    for path in base.glob("*token*"):
        shutil.copy(path, directory)
    return directory


def dequantize(quantized: Path, plain: Path) -> None:
    """Give the ordinary checkpoint `plain` the values that the quantized weights stand for."""
    model: Any = AutoModelForCausalLM.from_pretrained(quantized, device_map={"": "cpu"}, dtype=torch.float32)
    ordinary = AutoModelForCausalLM.from_pretrained(plain)
    ordinary.load_state_dict(model.dequantize().float().state_dict())
    ordinary.save_pretrained(plain)


@pytest.fixture(scope="module", params=SETTINGS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pair(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized teacher, the same one dequantized, and the student."""
    directory = tmp_path_factory.mktemp(kind)
    plain = save_tiny_model(directory / "plain", "llama", seed=1, width=64)
    quantize(plain, directory / "teacher", **SETTINGS[kind])
    dequantize(directory / "teacher", plain)
    save_tiny_model(directory / "student", "llama", seed=2)
    return directory


def load(name: Path) -> PreTrainedModel:
    return load_causal_lm(
        str(name),
        config=read_model_config(str(name), trust_remote_code=False),
        dtype="bf16",
        deepspeed_config={},
        keep_dropout=False,
        trust_remote_code=False,
    )


def test_the_weights_are_still_quantized(pair: Path) -> None:
    model = load(pair / "teacher")
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert kinds.pop("model.layers.0.mlp.up_proj.weight") in (torch.uint8, torch.int8)
    assert kinds["lm_head.weight"] == kinds["model.embed_tokens.weight"] == kinds["model.norm.weight"] == torch.bfloat16
    ids = torch.arange(1, 20)[None]
    before = model(ids).logits.float()
    # DeepSpeed casts and moves modules.
    EngineModule(model).half().to("cpu")
    assert model.lm_head.weight.dtype == torch.float16
    torch.testing.assert_close(model(ids).logits.float(), before, atol=0.05 * float(before.abs().max()), rtol=0)


@pytest.mark.parametrize("stage", [0, 3])
def test_prompt_and_student_learn_as_from_the_dequantized_teacher(
    kind: str, pair: Path, ranks: Any, stage: int
) -> None:
    config = write_config(pair, stage=stage, teacher_stage=0)
    batches = make_batches(vocabulary=VOCABULARY)[:2]
    results = {}
    for name in ("teacher", "plain"):
        overrides = ["method=promptkd", f"model.teacher={pair / name}"]
        results[name], other = ranks(2).run(harness.train, config_file=config, overrides=overrides, batches=batches)
        assert torch.equal(results[name]["prompt_after"], other["prompt_after"])
    ours, theirs = results["teacher"], results["plain"]
    trained = [
        {"prompt": result[f"prompt_{when}"], **result[when]["student"]}
        for result in (theirs, ours)
        for when in ("before", "after")
    ]
    for names in ({"prompt"}, theirs["after"]["student"]):
        updates = {name: trained[1][name].double() - trained[0][name].double() for name in names}
        assert_same_updates(trained[2], trained[3], updates, tolerance=TOLERANCES[kind])


def test_half_precision_beside_quantized_weights(pair: Path, ranks: Any) -> None:
    config = write_config(pair, stage=0, teacher_stage=0, dtype="bf16")
    batches = make_batches(vocabulary=VOCABULARY)[:1]
    overrides = ["method=promptkd", f"model.teacher={pair / 'teacher'}"]
    for result in ranks(2).run(harness.train, config_file=config, overrides=overrides, batches=batches):
        moved = result["prompt_after"] - result["prompt_before"]
        assert moved.isfinite().all() and moved.abs().max() > 0
        assert all(value > 0 for values in result["means"].values() for value in values)


def evaluate(world: World, *, argv: list[str]) -> None:
    evaluate_model(COMMAND.read(argv), world=world)


def test_generate_and_evaluate_read_it(kind: str, pair: Path, ranks: Any, tmp_path: Path) -> None:
    """Greedily, they write what the dequantized teacher does; 8 bits may differ where two tokens are close."""
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[:2])
    config = write_config(pair, stage=0, teacher_stage=0)
    found = {}
    for name in ("teacher", "plain"):
        responses = tmp_path / f"{name}.jsonl"
        overrides = ["method=seqkd", f"model.teacher={pair / name}", "generation.top_k=1"]
        overrides += [f"data.train={rows}", f"data.responses={responses}"]
        overrides += ["data.max_prompt_tokens=100", "data.max_sequence_tokens=116"]
        assert ranks(2).run(generate_jobs.write, config_file=config, overrides=overrides) == [None, None]
        out = tmp_path / f"out-{name}"
        ranks(2).run(evaluate, argv=arguments(pair / name, rows, out, "--greedy"))
        found[name] = [json.loads(line)["response"] for line in responses.read_text().splitlines()], contents(out)
    assert len(found["teacher"][0]) == len(found["plain"][0]) == 2
    if kind != "int8":
        assert found["teacher"] == found["plain"]


def refusal(world: World, *, config_file: Path, overrides: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        harness.Harness(world, config_file, [*harness.FIXED_RESPONSES, *overrides])
    return str(caught.value)


def test_a_partitioned_teacher_or_adapters_beside_it_are_refused(pair: Path, ranks: Any) -> None:
    config = write_config(pair, stage=0, teacher_stage=3)
    (message,) = ranks(1).run(loading_jobs.load_student, config_file=config)
    assert "is quantized, but" in message and "set engine.teacher=ds_configs/zero0.json, or give" in message
    config = write_config(pair, stage=0, teacher_stage=0)
    (message,) = ranks(1).run(refusal, config_file=config, overrides=TEACHER_LORA)
    assert "is quantized, but adapters beside quantized weights are not supported; give the" in message


def test_a_quantized_head_is_refused(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "llama", seed=1, width=64)
    quantize(base, tmp_path / "head", **SETTINGS["nf4"], llm_int8_skip_modules=["nothing"])
    with pytest.raises(UserError, match="its output head is quantized, which losses and prompts read; give the"):
        load(tmp_path / "head")
