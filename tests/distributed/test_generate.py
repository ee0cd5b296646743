"""SeqKD's data: written by the teacher, on any number of ranks, interrupted or not, and what training then reads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd.data.batch import PromptBatch
from kd.distributed import World
from kd.errors import UserError
from kd.methods import load_config
from kd.models.causal_lm import CausalLM
from kd.rollout.decode import decode, row_streams
from kd.rollout.sampling import DecodingSettings
from kd.train.generate import check_responses
from kd.train.inputs import read_inputs
from tests.distributed import generate_jobs as jobs
from tests.distributed.harness import write_config
from tests.tiny_models import save_tiny_model

NUM_ROWS, NUM_SAMPLES = 7, 2
# Three rows on both ranks together: three blocks for each sample, of which the last has no row for the second rank.
BLOCKS = "generation.max_batch_tokens=150"


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pseudo_data")
    save_tiny_model(directory / "teacher", "gpt2", seed=1, width=48, layers=3, padding=16)
    save_tiny_model(directory / "student", "gpt2", seed=2)
    rows = [{"instruction": "Name a word. " * (1 + i % 3), "output": f"ground truth {i}"} for i in range(NUM_ROWS)]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = write_config(directory)
    values = yaml.safe_load(path.read_text())
    values["method"] = "seqkd"
    values["seqkd"] = {"samples": NUM_SAMPLES}
    values["data"] |= {
        "train": str(directory / "train.jsonl"),
        "responses": str(directory / "straight" / "teacher.jsonl"),
        "max_prompt_tokens": 100,
        "max_sequence_tokens": 116,
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def straight(setting: Path, ranks: Any) -> Path:
    """Responses that were written without interruption."""
    assert ranks(2).run(jobs.write, config_file=setting, overrides=[]) == [None, None]
    return setting.parent / "straight" / "teacher.jsonl"


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_responses_are_the_teachers(straight: Path, setting: Path) -> None:
    """As the unsharded teacher decodes them alone, row by row."""
    directory = setting.parent
    model = AutoModelForCausalLM.from_pretrained(directory / "teacher").eval()
    tokenizer = AutoTokenizer.from_pretrained(directory / "teacher")
    settings = DecodingSettings(
        max_new_tokens=16, vocabulary_size=len(tokenizer), end_ids=(tokenizer.eos_token_id,), temperature=1.0
    )
    lines = read_lines(straight)
    assert [(line["source"], line["sample"]) for line in lines] == [
        (f"{directory / 'train.jsonl'}:{row + 1}", sample) for row in range(NUM_ROWS) for sample in range(NUM_SAMPLES)
    ]
    examples = read_inputs(
        load_config(setting, overrides=["method=sft", "model.teacher=null", "data.responses=null"]), world=alone()
    ).train.examples
    for line in lines:
        (example,) = [row for row in examples if row.source == line["source"]]
        prompts = PromptBatch.collate([example], pad_id=0, device=torch.device("cpu"))
        streams = row_streams(seed=42, step=line["sample"])
        with torch.no_grad():
            (response,) = decode(CausalLM.of(model), prompts, settings=settings, streams=streams)
        assert line["response"] == tokenizer.decode(response.token_ids, skip_special_tokens=True)
        assert line["ended"] == (response.token_ids[-1] == tokenizer.eos_token_id)
        assert line["prompt"] == example.prompt


def test_seqkd_trains_on_the_teachers_text_and_not_on_the_ground_truth(straight: Path, setting: Path) -> None:
    config = load_config(setting)
    assert config.data.train is not None, "the ground truth is at hand"
    inputs = read_inputs(config, world=alone())
    tokenizer = inputs.vocabulary.tokenizer
    lines = read_lines(straight)
    assert len(inputs.train.examples) == len(lines) == NUM_ROWS * NUM_SAMPLES
    for example, line in zip(inputs.train.examples, lines, strict=True):
        sequence = example.with_response()
        assert tokenizer.decode(sequence.prompt_ids) == line["prompt"]
        end = tokenizer.eos_token if line["ended"] else ""
        assert tokenizer.decode(sequence.response_ids) == line["response"] + end
        assert "ground truth" not in line["response"]


@pytest.mark.parametrize("layout", ["gathered", "zero3"])
def test_an_interrupted_file_is_finished_as_if_nothing_had_happened(
    layout: str, straight: Path, setting: Path, ranks: Any
) -> None:
    """Killed on two ranks in the middle of a line, once more on one rank, and then finished."""
    path = setting.parent / layout / "teacher.jsonl"
    overrides = [f"data.responses={path}", f"generation.layout={layout}", BLOCKS]
    done = ranks(2).run(jobs.write_until_killed, config_file=setting, overrides=overrides, num_blocks=2)
    assert 0 < sum(done) < NUM_ROWS * NUM_SAMPLES
    assert not path.exists()
    with (path.parent / "teacher.jsonl.rank-0.partial").open("a") as part:
        part.write('{"row": 3, "prompt": "Bel')
    (more,) = ranks(1).run(jobs.write_until_killed, config_file=setting, overrides=overrides, num_blocks=1)
    assert 0 < sum(done) + more < NUM_ROWS * NUM_SAMPLES
    assert ranks(2).run(jobs.write, config_file=setting, overrides=overrides) == [None, None]
    assert path.read_bytes() == straight.read_bytes()
    assert {file.name for file in path.parent.iterdir()} == {"teacher.jsonl", "teacher.jsonl.settings.json"}


def test_finished_responses_are_left_alone(straight: Path, setting: Path, ranks: Any) -> None:
    before = straight.stat().st_mtime_ns
    assert ranks(2).run(jobs.write, config_file=setting, overrides=[]) == [None, None]
    assert straight.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generation.temperature=0.5", "was started with generation.temperature=1.0, now it is 0.5; restore it"),
        ("run.seed=1", "was started with run.seed=42, now it is 1"),
        ("seqkd.samples=1", "was started with seqkd.samples=2, now it is 1"),
    ],
)
def test_responses_of_other_settings_are_refused(
    override: str, message: str, straight: Path, setting: Path, ranks: Any
) -> None:
    for answer in ranks(2).run(jobs.write, config_file=setting, overrides=[override]):
        assert message in answer


def test_a_file_of_unknown_origin_is_not_overwritten(setting: Path, ranks: Any) -> None:
    mine = setting.parent / "mine.jsonl"
    mine.write_text("{}\n")
    messages = ranks(2).run(jobs.write, config_file=setting, overrides=[f"data.responses={mine}"])
    assert all("exists already and was not written by this script" in message for message in messages)
    assert mine.read_text() == "{}\n"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=kd", "data.responses=null"], "method is kd; promptkd generate writes the responses"),
        (["data.train=null"], "set data.train, the rows"),
        (["generation.max_new_tokens=17"], "is 117, more than data.max_sequence_tokens=116"),
    ],
)
def test_a_configuration_without_responses_to_write_is_refused(
    overrides: list[str], message: str, setting: Path
) -> None:
    with pytest.raises(UserError, match=message):
        check_responses(load_config(setting, overrides=overrides))


def alone() -> World:
    return World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def test_only_validated_references_are_checked_for_rouge_l(setting: Path) -> None:
    """The line counts the rows that a validation measures, not those after them."""
    path = setting.parent / "chinese.jsonl"
    rows = [{"instruction": "Name a word.", "output": text} for text in ("word", "北京", "上海")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    overrides = ["method=sft", "model.teacher=null", "data.responses=null", f"data.validation={path}"]
    found = {}
    for num_rows in (1, 2, 3):
        config = load_config(setting, overrides=[*overrides, f"validation.rows={num_rows}"])
        found[num_rows] = [note for note in read_inputs(config, world=alone()).notes if "rougeL_unicode" in note]
    assert found[1] == []
    assert ["1 of 2 rows" in note for note in found[2]] == ["2 of 3 rows" in note for note in found[3]] == [True]
    config = load_config(setting, overrides=[*overrides, "validation.generate=false"])
    assert not any("rougeL_unicode" in note for note in read_inputs(config, world=alone()).notes)
