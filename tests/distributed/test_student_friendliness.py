"""The teacher with and without its prompt, from a run directory to the files, against a plain calculation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.analysis.student_friendliness.__main__ import COMMAND, measure
from evaluation.scoring import main as evaluate
from kd.distributed import World, free_port
from kd.errors import UserError
from kd.models.soft_prompt import FILE_NAME, SoftPromptOrigin, save_soft_prompt
from tests.run_on_ranks import Ranks
from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import NUM_ENTRIES

PROMPT = torch.randn(3, 32, generator=torch.Generator().manual_seed(4))
SETS = {
    "seen": [("Name a fruit.", "apple"), ("Count to two.", "one, two"), ("Which is odd?", "spoon"), ("Say it.", "it")],
    "unseen": [("Name a stone.", "the river stone"), ("Say <|em|> | `that`.", "that"), ("Repeat:  ", "fox fox fox")],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left of a PromptKD run: its configuration, its last student with the prompt, and what it read."""
    directory = tmp_path_factory.mktemp("run")
    save_tiny_model(directory / "teacher", "gpt2", seed=1, padding=20)
    save_tiny_model(directory / "start", "gpt2", seed=2, layers=1)
    save_tiny_model(directory / "final", "gpt2", seed=3, layers=1)
    origin = SoftPromptOrigin(teacher="t", init="random", init_text="")
    save_soft_prompt(PROMPT, directory / "final" / FILE_NAME, origin=origin)
    for name, rows in SETS.items():
        lines = [json.dumps({"instruction": instruction, "output": output}) for instruction, output in rows]
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (directory / "template.jinja").write_text("{{ instruction }}: ")
    config = {
        "model": {"teacher": str(directory / "teacher"), "student": str(directory / "start")},
        "data": {
            "train": str(directory / "seen.jsonl"),
            "validation": str(directory / "unseen.jsonl"),
            "template": str(directory / "template.jinja"),
            "max_prompt_tokens": 40,
            "max_sequence_tokens": 80,
        },
        "generation": {"max_new_tokens": 12},
        "run": {"dir": str(directory)},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    return directory


def arguments(run: Path, out: Path, *extra: str) -> list[str]:
    return ["--run", str(run), "--out", str(out), "--seeds", "5,6", "--examples", "2", "--micro-batch", "2", *extra]


def measure_on_ranks(world: World, *, argv: list[str]) -> None:
    measure(COMMAND.read(argv), world=world)


@pytest.fixture(scope="module")
def measured(run: Path, tmp_path_factory: pytest.TempPathFactory, ranks: Callable[[int], Ranks]) -> Path:
    out = tmp_path_factory.mktemp("one")
    ranks(1).run(measure_on_ranks, argv=arguments(run, out))
    return out


def read(out: Path) -> Any:
    return json.loads((out / "student_friendliness.json").read_text())


@torch.no_grad()
def plain_divergences(run: Path, *, rows: str, student: str, prompt: Tensor | None) -> tuple[float, float]:
    """Mean KL(p‖q) and KL(q‖p) over the tokens of the outputs and their ends, one row at a time in float64."""
    tokenizer = AutoTokenizer.from_pretrained(run / "teacher")
    models = [AutoModelForCausalLM.from_pretrained(run / name, dtype=torch.float64) for name in ("teacher", student)]
    nats = [torch.zeros(()), torch.zeros(())]
    num_tokens = 0
    for instruction, output in SETS[rows]:
        request = tokenizer(f"{instruction}: ", return_tensors="pt").input_ids[0]
        response = torch.tensor([*tokenizer(output).input_ids, tokenizer.eos_token_id])
        log_probs = []
        for model, prefix in zip(models, (prompt, None), strict=True):
            embeds = model.get_input_embeddings()(torch.cat([request, response]))
            if prefix is not None:
                embeds = torch.cat([prefix.double(), embeds])
            logits = model.eval()(inputs_embeds=embeds[None]).logits[0, :, :NUM_ENTRIES]
            log_probs.append(logits.log_softmax(-1)[-len(response) - 1 : -1])
        p, q = log_probs
        nats[0] = nats[0] + functional.kl_div(q, p, reduction="sum", log_target=True)
        nats[1] = nats[1] + functional.kl_div(p, q, reduction="sum", log_target=True)
        num_tokens += len(response)
    return float(nats[0] / num_tokens), float(nats[1] / num_tokens)


@pytest.mark.parametrize("rows", ["seen", "unseen"])
def test_divergences_equal_a_plain_calculation(run: Path, measured: Path, rows: str) -> None:
    found = read(measured)["sets"][rows]
    expected: dict[str, dict[str, tuple[float, float]]] = {}
    for column, prompt in (("without_prompt", None), ("with_prompt", PROMPT)):
        for role, student in (("initial", "start"), ("final", "final")):
            values = plain_divergences(run, rows=rows, student=student, prompt=prompt)
            expected.setdefault(role, {})[column] = values
            distances = found[column][role]
            assert distances["forward_kl"]["value"] == pytest.approx(values[0], rel=1e-4)
            assert distances["reverse_kl"]["value"] == pytest.approx(values[1], rel=1e-4)
            assert distances["forward_kl"]["low"] <= distances["forward_kl"]["value"] <= distances["forward_kl"]["high"]
    for role, columns in expected.items():
        change = columns["with_prompt"][0] - columns["without_prompt"][0]
        assert abs(change) > 1e-3
        assert found["difference"][role]["forward_kl"]["value"] == pytest.approx(change, abs=1e-4)


def test_scores_are_those_of_evaluate(
    run: Path, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same seeds draw the same responses there."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    settings = ["--template", run / "template.jinja", "--max-new-tokens", 12, "--seeds", "5,6"]
    for column, extra in (("without_prompt", []), ("with_prompt", ["--soft-prompt", run / "final" / FILE_NAME])):
        out = tmp_path / column
        argv = ["--model", run / "teacher", "--benchmark", f"test={run / 'unseen.jsonl'}", "--out", out, *extra]
        assert evaluate([str(word) for word in [*argv, *settings]]) == 0
        score = json.loads((out / "results.json").read_text())["benchmarks"]["test"]["rougeL"]["mean"]
        assert read(measured)["sets"]["unseen"][column]["rougeL"]["value"] == pytest.approx(score)
        lines = (out / "generations" / "test" / "seed-5.jsonl").read_text().split("\n")[:2]
        shown = [example[f"teacher_{column}"] for example in read(measured)["examples"]]
        assert [json.loads(line)["response"] for line in lines] == shown


def test_one_and_two_ranks_write_the_same(
    run: Path, measured: Path, tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    ranks(2).run(measure_on_ranks, argv=arguments(run, tmp_path))
    one, two = read(measured), read(tmp_path)
    assert (one.pop("num_ranks"), two.pop("num_ranks")) == (1, 2)
    assert one == two


def test_the_page_shows_the_table_and_all_responses(run: Path, measured: Path) -> None:
    text = (measured / "student_friendliness.md").read_text()
    results = read(measured)
    table = [line for line in text.split("\n") if line.startswith("|")]
    assert len(table) == 8
    assert len({line.replace("KL(p‖q)", "").count("|") for line in table}) == 1
    value = results["sets"]["seen"]["with_prompt"]["final"]["forward_kl"]["value"]
    assert f"{value:.4g} [" in next(line for line in table if line.startswith("| seen | with prompt"))
    example = results["examples"][1]
    assert (example["row"], example["reference"]) == (1, "that")
    assert "    Say <|em|> | `that`.: " in text
    assert text.count("**Final student**") == 2
    assert f"`{run / 'final'}`" in text


def test_rows_without_outputs_are_refused_on_every_rank(
    run: Path, tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"instruction": "Say it."}\n')
    messages = ranks(2).run(refusal, argv=arguments(run, tmp_path / "out", "--seen", str(rows)))
    assert all("prompts.jsonl:1: expected `output`" in message for message in messages)


def test_limits_without_room_for_outputs_are_refused(run: Path, tmp_path: Path, ranks: Callable[[int], Ranks]) -> None:
    argv = arguments(run, tmp_path / "out", "--max-sequence-tokens", "40")
    [message] = ranks(1).run(refusal, argv=argv)
    assert "data.max_prompt_tokens is 40, which leaves no room for a response in data.max_sequence_tokens=40" in message


def refusal(world: World, *, argv: list[str]) -> str:
    try:
        measure(COMMAND.read(argv), world=world)
    except UserError as error:
        return str(error)
    return "nothing was refused"
