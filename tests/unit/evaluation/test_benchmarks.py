"""Published benchmarks: every format by a small file of it, and every selection of rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from evaluation.benchmarks.__main__ import main
from evaluation.benchmarks.specs import SPECS
from kd.data.instructions import read_instructions
from tests.tiny_tokenizers import save_tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tiny_tokenizer(directory)
    return directory


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prepare(name: str, source: Path, out: Path, *extra: str | Path) -> int:
    return main(["prepare", "--name", name, "--source", str(source), "--out", str(out), *map(str, extra)])


def converted(name: str, source: Path, *extra: str | Path) -> list[dict[str, Any]]:
    """Rows of a source that is smaller than the published one."""
    out = source.parent / "out.jsonl"
    assert prepare(name, source, out, "--allow-mismatch", *extra) == 0
    # What is written is a benchmark.
    assert all(row.references for row in read_instructions(str(out)))
    return read_lines(out)


def test_dolly(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Who?", "context": "A text.\n", "response": "She.", "category": "closed_qa"},
        {"instruction": "Why?", "context": "", "response": " Because. ", "category": "open_qa"},
    ]
    assert converted("dolly_test", write_lines(tmp_path / "databricks-dolly-15k.jsonl", rows)) == [
        {"instruction": "Who?", "input": "A text.\n", "output": "She."},
        {"instruction": "Why?", "input": "", "output": " Because. "},
    ]


def test_self_instruct(tmp_path: Path) -> None:
    rows = [
        {
            "id": "user_oriented_task_0",
            "motivation_app": "Maps",
            "instruction": "Find a way.",
            "instances": [{"input": "From A to B", "output": "Left."}, {"input": "", "output": "Right."}],
        }
    ]
    assert converted("self_inst", write_lines(tmp_path / "user_oriented_instructions.jsonl", rows)) == [
        {"instruction": "Find a way.", "input": "From A to B", "output": "Left."},
        {"instruction": "Find a way.", "input": "", "output": "Right."},
    ]


VICUNA = [
    {"instruction": "How?", "input": "", "output": "So."},
    {"instruction": "When?", "input": "", "output": "Now."},
]


@pytest.mark.parametrize("layout", ["table", "llm_judge"])
def test_fastchat_in_both_of_its_layouts(layout: str, tmp_path: Path) -> None:
    if layout == "table":
        questions = [{"question_id": 1, "text": "How?", "category": "x"}, {"question_id": 2, "text": "When?"}]
        responses = [{"answer_id": "b", "question_id": 2, "text": "Now."}, {"question_id": 1, "text": "So."}]
    else:
        questions = [{"question_id": 1, "turns": ["How?", "And?"]}, {"question_id": 2, "turns": ["When?"]}]
        responses = [
            {"question_id": 1, "choices": [{"index": 0, "turns": ["So.", "More."]}, {"index": 1, "turns": ["No."]}]},
            {"question_id": 2, "choices": [{"index": 0, "turns": ["Now."]}]},
        ]
    source = write_lines(tmp_path / "question.jsonl", questions)
    companion = write_lines(tmp_path / "responses.jsonl", responses)
    assert converted("vicuna", source, "--companion", companion) == VICUNA


def write_tasks(directory: Path, tasks: dict[str, Any], *, tested: Sequence[str]) -> Path:
    """A directory of natural-instructions."""
    (directory / "splits" / "default").mkdir(parents=True)
    (directory / "splits" / "default" / "test_tasks.txt").write_text("".join(f"{name}\n" for name in tested))
    (directory / "tasks").mkdir()
    for name, task in tasks.items():
        (directory / "tasks" / f"{name}.json").write_text(json.dumps(task, indent=4), encoding="utf-8")
    return directory


def test_natural_instructions(tmp_path: Path, tokenizer: Path) -> None:
    long, longer = "a river of words that never ends at all", "a river of other words that never ends at all"
    tasks = {
        "task1_a": {
            "Definition": ["Name it."],
            "Positive Examples": [],
            # Test instances are the first 100.
            "Instances": [{"id": "a-0", "input": "this ", "output": [long, " ", longer]}] * 3
            + [{"input": "short", "output": ["no", longer]}] * 97
            + [{"input": "beyond", "output": [long]}] * 50,
        },
        "task2_b": {"Definition": "As one text.", "Instances": [{"input": "that", "output": [longer]}]},
        "task3_c": {"Definition": ["For training."], "Instances": [{"input": "x", "output": [long]}]},
    }
    source = write_tasks(tmp_path / "natural-instructions", tasks, tested=["task1_a", "task2_b"])
    rows = converted("s_ni", source, "--tokenizer", tokenizer)
    assert rows == [
        *[{"instruction": "Name it.", "input": "this ", "output": [long, longer]}] * 3,
        {"instruction": "As one text.", "input": "that", "output": longer},
    ]
    (tmp_path / "out.jsonl").unlink()
    listing = tmp_path / "mine.txt"
    listing.write_text("task3_c\n")
    rows = converted("s_ni", source, "--tokenizer", tokenizer, "--companion", listing)
    assert [row["instruction"] for row in rows] == ["For training."]


def core_row(instruction: str, output: str, *, input: str = "x") -> dict[str, Any]:
    both = f"{instruction}\n{input}"
    instance = {"instruction_with_input": both, "input": input, "constraints": "None.", "output": output}
    return {"instruction": instruction, "instances": [instance]}


def test_unnatural_instructions(tmp_path: Path, tokenizer: Path) -> None:
    kept = "one two three four five six seven"
    rows = [
        core_row("Say it.", kept),
        core_row("Short.", "Yes"),
        core_row("Empty.", " "),
        core_row("Long " * 300, kept),
        core_row("Last.", kept, input=""),
    ]
    source = write_lines(tmp_path / "core_data.jsonl", rows)
    assert converted("un_ni", source, "--tokenizer", tokenizer) == [
        {"instruction": "Say it.", "input": "x", "output": kept},
        {"instruction": "Last.", "input": "", "output": kept},
    ]


def test_dropped_rows_are_counted_by_reason(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = "one two three four five six seven"
    rows = [core_row("Say it.", kept), core_row("Short.", "Yes"), core_row("Empty.", ""), core_row("Long " * 300, kept)]
    converted("un_ni", write_lines(tmp_path / "core_data.jsonl", rows), "--tokenizer", tokenizer)
    assert capsys.readouterr().out.startswith(
        "4 rows read; 1 dropped without a reference; 1 dropped with a first reference of another length;"
        " 1 dropped with a longer prompt; 1 written to"
    )


def test_length_limits_are_exact_and_other_buckets_can_be_chosen(tmp_path: Path, tokenizer: Path) -> None:
    count = AutoTokenizer.from_pretrained(tokenizer)
    texts = ["7" * number for number in range(1, 40)]
    lengths = [len(count(text)["input_ids"]) for text in texts]
    source = write_lines(tmp_path / "core_data.jsonl", [core_row("Say it.", text) for text in texts])
    for number, (options, lowest, highest) in enumerate(
        [([], 11, 10**9), (["--response-tokens", "6-10"], 6, 10), (["--response-tokens", "0-5"], 0, 5)]
    ):
        out = tmp_path / f"{number}.jsonl"
        assert prepare("un_ni", source, out, "--allow-mismatch", "--tokenizer", tokenizer, *options) == 0
        expected = [text for text, length in zip(texts, lengths, strict=True) if lowest <= length <= highest]
        assert [row["output"] for row in read_lines(out)] == expected
    assert {5, 6, 10, 11} <= set(lengths)


def test_a_sample_is_seeded_and_keeps_the_order(tmp_path: Path) -> None:
    rows = [{"instruction": f"{number}", "output": "yes"} for number in range(200)]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    drawn = []
    for number, seed in enumerate(("1", "1", "2")):
        out = tmp_path / f"out-{number}.jsonl"
        assert prepare("vicuna", source, out, "--allow-mismatch", "--sample", "50", "--seed", seed) == 0
        drawn.append([int(row["instruction"]) for row in read_lines(out)])
    assert drawn[0] == drawn[1] == sorted(set(drawn[0])) != drawn[2]
    assert len(drawn[0]) == 50


def test_published_counts_are_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"instruction": f"{number}", "output": "yes"} for number in range(81)]
    out = tmp_path / "out.jsonl"
    assert prepare("vicuna", write_lines(tmp_path / "more.jsonl", rows), out) == 2
    assert "vicuna: 81 rows are left (81 rows read), 80 are published" in capsys.readouterr().err
    assert not out.exists()
    assert prepare("vicuna", write_lines(tmp_path / "all.jsonl", rows[:80]), out) == 0
    assert len(read_lines(out)) == 80


def mistakes(directory: Path, tokenizer: Path) -> dict[str, tuple[list[str | Path], str]]:
    core = write_lines(directory / "core.jsonl", [core_row("Say it.", "yes")])
    questions = write_lines(directory / "question.jsonl", [{"question_id": 1, "text": "How?"}])
    responses = write_lines(directory / "responses.jsonl", [{"question_id": 2, "text": "Now."}])
    silent = write_lines(directory / "silent.jsonl", [{"question_id": 1, "choices": []}])
    listing = directory / "tasks.txt"
    listing.write_bytes(b"t\xe4sk1\n")
    tasks = write_tasks(directory / "ni", {"task1": {"Instances": []}}, tested=["task1"])
    broken = write_tasks(directory / "broken", {"task1": ["no object"]}, tested=["task1"])
    missing = write_tasks(directory / "missing", {}, tested=["task1"])
    flat = write_lines(directory / "flat.jsonl", [{"instruction": "x", "instances": "none"}])
    return {
        "no tokenizer": (["un_ni", core], "give --tokenizer"),
        "another tokenizer": (["un_ni", core, "--tokenizer", tokenizer], "GPT-2's has 50257"),
        "no row left": (
            ["un_ni", core, "--tokenizer", tokenizer, "--allow-mismatch"],
            "no row is left (1 rows read; 1",
        ),
        "no responses": (["vicuna", questions], "come without responses"),
        "a response is missing": (["vicuna", questions, "--companion", responses], "has no response to question 1"),
        "a response without a choice": (["vicuna", questions, "--companion", silent], "`choices` is an empty list"),
        "a list of tasks in Latin-1": (["s_ni", tasks, "--companion", listing], "is no UTF-8 text"),
        "no benchmark": (["selfinst", core], "name is 'selfinst'; expected one of dolly_validation,"),
        "no range": (["self_inst", core, "--response-tokens", "9-3"], "expected LOWEST-HIGHEST, such as 6-10"),
        "no list of tasks": (["s_ni", directory], "test_tasks.txt: cannot be read"),
        "no definition": (["s_ni", tasks], "expected `Definition`"),
        "no task object": (["s_ni", broken], "expected a JSON object"),
        "no task file": (["s_ni", missing], "task1.json: cannot be read"),
        "no instances": (["self_inst", flat], "expected `instances`, a list of objects"),
        "no file": (["self_inst", directory / "nowhere.jsonl"], "cannot be read"),
        "too large a sample": (["self_inst", core, "--allow-mismatch", "--sample", "2"], "--sample 2: only 1 rows"),
    }


def test_every_mistake_is_one_line(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    for case, ((name, source, *extra), expected) in mistakes(tmp_path, tokenizer).items():
        assert prepare(str(name), Path(source), out, *extra) == 2, case
        message = capsys.readouterr().err
        assert message.startswith("error: "), case
        assert expected in message, case
        assert message.count("\n") == 1, case
    assert not out.exists()


def test_an_existing_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_lines(tmp_path / "rows.jsonl", [{"instruction": "x", "output": "y"}])
    assert prepare("vicuna", source, source, "--allow-mismatch") == 2
    assert "exists" in capsys.readouterr().err
    assert len(read_lines(source)) == 1


def test_list_names_every_benchmark_with_its_rows_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listing = capsys.readouterr().out
    for name, spec in SPECS.items():
        assert name in listing
        assert spec.licence in listing
    for count in ("1000", "500", "252 or 242", "80", "1694", "23916"):
        assert count in listing
