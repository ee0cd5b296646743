"""The distance of a student from its teacher, against a plain calculation."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.analysis.divergence import COMMAND, Distance, main, measure
from evaluation.generations import write_generations
from kd.distributed import World
from kd.models.soft_prompt import FILE_NAME, SoftPromptOrigin, save_soft_prompt
from tests.run_on_ranks import Ranks
from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import NUM_ENTRIES
from tests.unit.evaluation.generations import generation

ROWS = [("Name a fruit.", "apple"), ("Count to two.", "one, two"), ("Which is odd?", "the spoon, of course")]
PROMPT = torch.randn(3, 32, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("distance")
    save_tiny_model(directory / "teacher", "gpt2", seed=1, padding=20)
    save_tiny_model(directory / "student", "gpt2", seed=2, layers=1)
    save_tiny_model(directory / "wide", "gpt2", seed=2, layers=1, width=48)
    save_soft_prompt(PROMPT, directory / FILE_NAME, origin=SoftPromptOrigin(teacher="t", init="random", init_text=""))
    (directory / "template.jinja").write_text("{{ instruction }}: ")
    lines = [json.dumps({"instruction": instruction, "output": output}) for instruction, output in ROWS]
    (directory / "rows.jsonl").write_text("\n".join(lines) + "\n")
    lines = [json.dumps({"prompt": f"{instruction}: ", "response": output}) for instruction, output in ROWS]
    (directory / "responses.jsonl").write_text("\n".join(lines) + "\n")
    return directory


def arguments(inputs: Path, *extra: str) -> list[str]:
    models = ["--teacher", inputs / "teacher", "--student", inputs / "student", "--template", inputs / "template.jinja"]
    return [str(word) for word in [*models, "--micro-batch", 2, *extra]]


def measure_on_ranks(world: World, *, argv: list[str]) -> Distance:
    return measure(COMMAND.read(argv), world=world)


@torch.no_grad()
def plain(inputs: Path, *, prompt: Tensor | None) -> tuple[float, float, float]:
    """KL(q‖p), KL(p‖q) and -log q, the mean over all response tokens; a row at a time, in float64."""
    tokenizer = AutoTokenizer.from_pretrained(inputs / "student")
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(inputs / name, dtype=torch.float64).eval()
        for name in ("teacher", "student")
    )
    parts = []
    for instruction, output in ROWS:
        request = tokenizer(f"{instruction}: ", add_special_tokens=False)["input_ids"]
        response = [*tokenizer(output, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        log_probs = []
        for model, prefix in ((teacher, prompt), (student, None)):
            embeds = model.get_input_embeddings()(torch.tensor(request + response))
            if prefix is not None:
                embeds = torch.cat([prefix.double(), embeds])
            logits = model(inputs_embeds=embeds[None]).logits[0, -len(response) - 1 : -1, :NUM_ENTRIES]
            log_probs.append(logits.log_softmax(-1))
        p, q = log_probs
        reverse, forward = (
            functional.kl_div(b, a, reduction="none", log_target=True).sum(-1) for a, b in ((q, p), (p, q))
        )
        parts.append(torch.stack([reverse, forward, -q[range(len(response)), response]]))
    reverse, forward, cross_entropy = torch.cat(parts, dim=1).mean(dim=1).tolist()
    return reverse, forward, cross_entropy


@pytest.mark.parametrize("source", ["--data=rows.jsonl", "--responses=responses.jsonl"])
@pytest.mark.parametrize("prompted", [False, True])
def test_means_equal_a_plain_calculation(
    inputs: Path, ranks: Callable[[int], Ranks], source: str, prompted: bool
) -> None:
    argv = arguments(inputs, source.replace("=", f"={inputs}/"))
    argv += ["--soft-prompt", str(inputs / FILE_NAME)] if prompted else []
    (found,) = ranks(1).run(measure_on_ranks, argv=argv)
    expected = plain(inputs, prompt=PROMPT if prompted else None)
    assert (found.reverse_kl, found.forward_kl, found.student_cross_entropy) == pytest.approx(expected, rel=1e-4)
    assert found.num_sequences == len(ROWS)


def test_two_ranks_measure_what_one_does(inputs: Path, ranks: Callable[[int], Ranks]) -> None:
    argv = arguments(inputs, "--data", str(inputs / "rows.jsonl"))
    (alone,) = ranks(1).run(measure_on_ranks, argv=argv)
    first, second = ranks(2).run(measure_on_ranks, argv=argv)
    assert first == second
    assert vars(first) == pytest.approx(vars(alone), rel=1e-6)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--rows", "0"], "data.rows is 0; input should be greater than or equal to 1"),
        (["--out", "/dev/null/distance.json"], "/dev/null/distance.json: cannot be written"),
        (["--teacher", "wide", "--soft-prompt", FILE_NAME], "its vectors have 32 numbers, the embeddings of"),
        (["--data", "long.jsonl"], "has 128 positions"),
        (["--responses", "responses.jsonl"], "give exactly one of data.file and data.responses"),
        (["--out", "."], "out .: is a directory; give the path of a file"),
        (
            ["--max-prompt-tokens", "100", "--max-sequence-tokens", "100"],
            "data.max_prompt_tokens is 100, which leaves no room for a response in data.max_sequence_tokens=100;",
        ),
    ],
)
def test_mistakes_are_one_line(
    inputs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, extra: list[str], message: str
) -> None:
    monkeypatch.chdir(inputs)
    row = {"instruction": "Go.", "output": "the fox " * 200}
    (inputs / "long.jsonl").write_text(json.dumps(row) + "\n")
    assert main(arguments(inputs, "--data", "rows.jsonl", *extra)) == 2
    shown = capfd.readouterr().err
    assert "Traceback" not in shown
    [line] = [line for line in shown.splitlines() if line.startswith("error:")]
    assert message in line


def write_responses(path: Path, responses: list[tuple[str, bool]]) -> Path:
    """Generations of evaluate.py: text, and whether it ended."""
    rows = [replace(generation(row, response=text), ended=ended) for row, (text, ended) in enumerate(responses)]
    write_generations(path, rows)
    return path


@pytest.mark.parametrize(
    ("responses", "num_sequences", "num_tokens"),
    [
        # An end token each.
        ([("", True), ("", True)], 2, 2),
        ([(" ", True), ("", False)], 1, 2),
        # Two tokens; one that met the limit of its generation has no end token.
        ([("apple", True)], 1, 3),
        ([("apple", False)], 1, 2),
    ],
)
def test_generations_of_an_evaluation_may_be_empty(
    inputs: Path,
    ranks: Callable[[int], Ranks],
    tmp_path: Path,
    responses: list[tuple[str, bool]],
    num_sequences: int,
    num_tokens: int,
) -> None:
    path = write_responses(tmp_path / "seed-10.jsonl", responses)
    (found,) = ranks(1).run(measure_on_ranks, argv=arguments(inputs, "--responses", str(path)))
    assert (found.num_sequences, found.num_tokens) == (num_sequences, num_tokens)
    assert math.isfinite(found.reverse_kl)


def test_responses_are_cut_at_the_limit(inputs: Path, ranks: Callable[[int], Ranks], tmp_path: Path) -> None:
    path = write_responses(tmp_path / "seed-10.jsonl", [("one, two, three, four", True)])
    # Of 12 and the end token; the prompt has 6.
    limits = ["--max-prompt-tokens", "6", "--max-sequence-tokens", "10"]
    (found,) = ranks(1).run(measure_on_ranks, argv=arguments(inputs, "--responses", str(path), *limits))
    assert found.num_tokens == 4


@pytest.mark.usefixtures("alone")
def test_responses_without_tokens_are_counted(inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_responses(tmp_path / "seed-10.jsonl", [("", False), ("apple", True)])
    assert main(arguments(inputs, "--responses", str(path))) == 0
    assert f"{path}: left out 1 of 2 rows: no response token" in capfd.readouterr().err
    write_responses(path, [("", False)])
    assert main(arguments(inputs, "--responses", str(path))) == 2
    assert f"error: {path}: no row has a response token to measure on" in capfd.readouterr().err


@pytest.mark.usefixtures("alone")
def test_the_numbers_are_printed_and_written(inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(inputs, "--data", str(inputs / "rows.jsonl"), "--out", str(tmp_path / "d.json"))) == 0
    written = json.loads((tmp_path / "d.json").read_text())
    assert f"KL(q||p) {written['reverse_kl']:.4f}" in capfd.readouterr().out
