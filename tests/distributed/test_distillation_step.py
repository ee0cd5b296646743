"""Steps of the methods with a plain teacher or none, on real ranks, equal a plain torch reference."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.distributed import harness
from tests.distributed.harness import NUM_STEPS, RATE, assert_same_on_all_ranks, make_batches, write_config
from tests.reference import plain_distillation as reference
from tests.reference import plain_promptkd
from tests.reference.plain_losses import PLAIN_DIVERGENCES, plain_jsd, plain_kl, plain_skew_kl
from tests.tiny_models import FAMILIES, save_tiny_model

VOCABULARY = 400
# With this seed: a batch of fresh responses, one from the buffer, one from the data.
DISTILLM = ["method=distillm", "distillm.buffer_rows=4", "distillm.initial_threshold=0.6", "run.seed=7"]
# Gradients of two losses meet in one global batch, in each stage of the student's engine.
ZERO_STAGES = {"gpt2": 3, "opt": 2, "llama": 3, "gpt_neox": 1}
# With this seed the second rank has no row for the student in two of three batches.
MIXED_GKD = ["method=gkd", "gkd.student_fraction=0.5", "run.seed=24", "generation.layout=zero3"]
MIXED_GKD += ["gkd.divergence=jsd", "gkd.beta=0.3", "gkd.sft_weight=0.6"]


class Pairs:
    """Teachers and students of different width, depth and padded vocabulary, and what training them gave."""

    def __init__(self, factory: pytest.TempPathFactory, ranks: Any) -> None:
        self._factory = factory
        self._ranks = ranks
        self._directories: dict[str, Path] = {}
        self._results: dict[tuple[Any, ...], list[dict[str, Any]]] = {}

    def directory(self, family: str) -> Path:
        if family not in self._directories:
            directory = self._factory.mktemp(family)
            save_tiny_model(directory / "teacher", family, seed=1, width=48, layers=3, padding=16)
            save_tiny_model(directory / "student", family, seed=2, width=32, layers=2, padding=3)
            self._directories[family] = directory
        return self._directories[family]

    def train(
        self, family: str, overrides: list[str], *, num_ranks: int = 2, stage: int = 3, teacher_stage: int = 3
    ) -> dict[str, Any]:
        """Three steps, once for each setting; the student must be the same on all ranks."""
        key = (family, *overrides, num_ranks, stage, teacher_stage)
        if key not in self._results:
            self._results[key] = self._ranks(num_ranks).run(
                harness.train,
                config_file=write_config(self.directory(family), stage=stage, teacher_stage=teacher_stage),
                overrides=["data.validation=unused", *overrides],
                rolls_out=True,
                batches=make_batches(vocabulary=VOCABULARY),
            )
        first, *others = self._results[key]
        assert_same_on_all_ranks([first, *others])
        return first


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, ranks: Any) -> Pairs:
    return Pairs(tmp_path_factory, ranks)


def models_of(pair: Path) -> dict[str, Any]:
    return {
        name: AutoModelForCausalLM.from_pretrained(pair / name, dtype=torch.float64).eval()
        for name in ("teacher", "student")
    }


def vocabulary_of(pair: Path) -> int:
    return len(AutoTokenizer.from_pretrained(pair / "student"))


def assert_equal_to_reference(result: dict[str, Any], pair: Path, *, loss: reference.Loss) -> None:
    """The updates and logged means of a run are those of the reference on the sequences that the run learned from."""
    models = models_of(pair)
    batches = [[reference.Row(prompt, response) for _, prompt, response in rows] for rows in result["sequences"]]
    data = [[reference.Row(*row) for row in rows] for rows in make_batches(vocabulary=VOCABULARY)]
    means = reference.train(
        models["teacher"],
        models["student"],
        batches,
        loss=loss,
        data=data if loss.data_weight else None,
        vocabulary=vocabulary_of(pair),
        rate=RATE,
    )
    for name, values in result["means"].items():
        assert values == pytest.approx(means[name], rel=1e-4), name
    assert_same_update(result, dict(models["student"].named_parameters()))


def assert_same_update(result: dict[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """A run ends with `weights`, but for a small part of what it changed."""
    before, after = result["before"]["student"], result["after"]["student"]
    harness.assert_same_updates(
        before, after, {name: value.detach().double() - before[name].double() for name, value in weights.items()}
    )


def data_sequences() -> list[list[tuple[int, list[int], list[int]]]]:
    batches = make_batches(vocabulary=VOCABULARY)
    return [sorted((index, *row) for index, row in enumerate(rows)) for rows in batches]


@pytest.mark.parametrize("family", FAMILIES)
def test_sft_equals_the_reference(family: str, pairs: Pairs) -> None:
    """Cross entropy on the data's responses, without a teacher."""
    result = pairs.train(family, ["method=sft", "model.teacher=null"], stage=ZERO_STAGES[family])
    assert result["sequences"] == data_sequences()
    assert set(result["means"]) == {"cross_entropy"}
    loss = reference.Loss(divergence=plain_kl, divergence_weight=0.0, likelihood_weight=1.0)
    assert_equal_to_reference(result, pairs.directory(family), loss=loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_kd_equals_the_reference(family: str, pairs: Pairs) -> None:
    """(1 - r)·CE + r·T²·KL(p‖q) on the data's responses."""
    result = pairs.train(family, ["method=kd", "kd.ratio=0.3", "kd.temperature=2.0"])
    assert result["sequences"] == data_sequences()
    assert set(result["means"]) == {"student_kd", "cross_entropy"}
    loss = reference.Loss(divergence=plain_kl, divergence_weight=0.3 * 4, likelihood_weight=0.7, temperature=2.0)
    assert_equal_to_reference(result, pairs.directory(family), loss=loss)


def test_seqkd_equals_the_reference(pairs: Pairs) -> None:
    """As KD, on the responses of data.responses."""
    overrides = ["method=seqkd", "data.train=null", "data.responses=unused", "seqkd.divergence=total_variation"]
    result = pairs.train("llama", overrides)
    assert result["sequences"] == data_sequences()
    divergence = PLAIN_DIVERGENCES["total_variation"]
    loss = reference.Loss(divergence=divergence, divergence_weight=0.5, likelihood_weight=0.5)
    assert_equal_to_reference(result, pairs.directory("llama"), loss=loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_gkd_on_mixed_data_equals_the_reference(family: str, pairs: Pairs) -> None:
    """JSD(β) on own and the data's responses, and cross entropy on all of the data's."""
    result = pairs.train(family, MIXED_GKD, stage=ZERO_STAGES[family])
    sampled = [
        [own != theirs for own, theirs in zip(*rows, strict=True)]
        for rows in zip(result["sequences"], data_sequences(), strict=True)
    ]
    assert 0 < sum(map(sum, sampled)) < 4 * NUM_STEPS
    loss = reference.Loss(divergence=partial(plain_jsd, beta=0.3), data_weight=0.6)
    assert_equal_to_reference(result, pairs.directory(family), loss=loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_distillm_equals_the_reference(family: str, pairs: Pairs) -> None:
    """Skew KL, whatever the responses are."""
    result = pairs.train(family, DISTILLM)
    fresh, stored, own = result["sequences"]
    assert fresh != data_sequences()[0]
    assert stored == fresh
    assert own == data_sequences()[2]
    loss = reference.Loss(divergence=partial(plain_skew_kl, alpha=0.1))
    assert_equal_to_reference(result, pairs.directory(family), loss=loss)


@pytest.mark.parametrize(
    ("overrides", "teacher_stage"), [([], 0), (["gkd.divergence=jsd", "gkd.beta=1.0"], 3)], ids=["default", "beta"]
)
def test_gkd_in_the_papers_setting_equals_promptkd_without_a_prompt(
    overrides: list[str], teacher_stage: int, pairs: Pairs
) -> None:
    """λ = 1 and JSD with β = 1, which is reverse KL, the default.

    The toolkit's PromptKD has no prompt where adapters take its place; they start as nothing, and stay so.
    """
    result = pairs.train("gpt2", ["method=gkd", *overrides], teacher_stage=teacher_stage)
    unmoved = ["teacher_lora.rank=1", "prompt.regularization=none", "prompt.learning_rate=1.0e-30"]
    prompt_kd = pairs.train("gpt2", ["method=promptkd", *unmoved], teacher_stage=teacher_stage)
    assert result["sequences"] == prompt_kd["sequences"]
    assert result["means"] == {"student_kd": pytest.approx(prompt_kd["means"]["student_kd"], rel=1e-4)}
    assert_same_update(result, prompt_kd["after"]["student"])

    models = models_of(pairs.directory("gpt2"))
    losses = plain_promptkd.train(
        models["teacher"],
        models["student"],
        torch.zeros(0, models["teacher"].config.hidden_size, dtype=torch.float64, requires_grad=True),
        [[reference.Row(prompt, response) for _, prompt, response in rows] for rows in result["sequences"]],
        num_steps=NUM_STEPS,
        vocabulary=vocabulary_of(pairs.directory("gpt2")),
        prompt_rate=RATE,
        student_rate=RATE,
    )
    assert result["means"] == {"student_kd": pytest.approx(losses["student_kd"], rel=1e-4)}
    assert_same_update(result, dict(models["student"].named_parameters()))


@pytest.mark.parametrize("method", [MIXED_GKD, DISTILLM], ids=["gkd", "distillm"])
def test_the_choice_of_responses_does_not_depend_on_the_split(method: list[str], pairs: Pairs) -> None:
    alone, together = pairs.train("llama", method, num_ranks=1), pairs.train("llama", method)
    assert alone["sequences"] == together["sequences"]
    assert alone["means"] == {name: pytest.approx(values, rel=1e-4) for name, values in together["means"].items()}


@pytest.mark.parametrize("method", [["method=sft", "model.teacher=null"], ["method=kd"]], ids=lambda value: value[0])
def test_a_global_batch_without_response_tokens_leaves_the_student_unchanged(
    method: list[str], pairs: Pairs, ranks: Any
) -> None:
    empty = [(list(range(3, 7)), [])] * 4
    result, _ = ranks(2).run(
        harness.train,
        config_file=write_config(pairs.directory("llama")),
        overrides=["data.validation=unused", *method],
        rolls_out=True,
        batches=[empty],
    )
    assert result["means"] == {}
    assert all(
        torch.equal(value, result["before"]["student"][name]) for name, value in result["after"]["student"].items()
    )
