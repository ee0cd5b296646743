"""An evaluation that is killed at any row goes on where it was, and writes what it would have written."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.options import parse_options
from evaluation.scoring import evaluate, main
from kd.distributed import World, free_port
from tests.integration.test_evaluate import contents, start_rank, write_rows
from tests.run_on_ranks import Ranks
from tests.tiny_models import save_tiny_model

NUM_ROWS = 60
SEEDS = (10, 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), "gpt2", seed=3)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[dict[str, object]] = [
        {"instruction": f"Say {'apple ' * (number % 7)}{number}.", "output": "yes"} for number in range(NUM_ROWS)
    ]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)


def arguments(model: Path, benchmark: Path, out: Path, *extra: str) -> list[str]:
    fixed = ["--max-new-tokens", "8", "--seeds", ",".join(map(str, SEEDS)), "--max-prompt-tokens", "120"]
    # Two rows in a batch, so that half of the work takes long enough to be caught at it.
    sizes = ["--max-batch-tokens", "400"]
    return ["--model", str(model), "--benchmark", f"test={benchmark}", "--out", str(out), *fixed, *sizes, *extra]


def evaluate_on_ranks(world: World, *, argv: list[str]) -> None:
    evaluate(parse_options(argv), world=world)


@pytest.fixture(scope="module")
def uninterrupted(
    ranks: Callable[[int], Ranks], model: Path, benchmark: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    out = tmp_path_factory.mktemp("uninterrupted")
    ranks(1).run(evaluate_on_ranks, argv=arguments(model, benchmark, out))
    files = contents(out)
    assert sorted(files) == [f"generations/test/seed-{seed}.jsonl" for seed in SEEDS]
    return files


@pytest.fixture
def chance() -> random.Random:
    """Other numbers in each run; to repeat one, put the seed that its failure shows in the place of the random one."""
    seed = random.randrange(2**32)
    print(f"random numbers of seed {seed}")
    return random.Random(seed)


def num_lines(directory: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in directory.glob("unfinished-*"))


@pytest.mark.parametrize("resumed_with", [1, 2])
def test_kill_at_a_random_row(
    resumed_with: int,
    ranks: Callable[[int], Ranks],
    model: Path,
    benchmark: Path,
    uninterrupted: dict[str, str],
    tmp_path: Path,
    chance: random.Random,
) -> None:
    directory = tmp_path / "generations" / "test"
    argv = arguments(model, benchmark, tmp_path)
    enough = chance.randrange(1, NUM_ROWS // 2)
    process = start_rank(0, size=1, port=free_port(), argv=argv)
    try:
        deadline = time.monotonic() + 120
        while num_lines(directory) < enough and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
    assert 0 < num_lines(directory) < len(SEEDS) * NUM_ROWS, f"killed after {enough} lines, and too late"
    # The system may have been writing a line.
    (journal,) = directory.glob("unfinished-*")
    content = journal.read_bytes()
    journal.write_bytes(content[: -chance.randrange(1, 60)])
    assert not (tmp_path / "results.json").exists()

    ranks(resumed_with).run(evaluate_on_ranks, argv=argv)
    assert contents(tmp_path) == uninterrupted


def write_journals(out: Path, files: dict[str, str], *, shares: list[int], chance: random.Random) -> None:
    """What as many ranks would have left after these numbers of lines; no line is in two files."""
    lines = [
        json.dumps({"seed": seed} | json.loads(line), ensure_ascii=False)
        for seed in SEEDS
        for line in files[f"generations/test/seed-{seed}.jsonl"].split("\n")[:-1]
    ]
    chance.shuffle(lines)
    for rank, share in enumerate(shares):
        own, lines = lines[:share], lines[share:]
        path = out / "generations" / "test" / f"unfinished-rank-{rank}.jsonl"
        path.write_text("".join(f"{line}\n" for line in own), encoding="utf-8")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (names | {"MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("alone")
def test_rows_of_all_ranks_are_kept_and_finished_batches_are_not_decoded_again(
    model: Path,
    benchmark: Path,
    uninterrupted: dict[str, str],
    tmp_path: Path,
    chance: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = arguments(model, benchmark, tmp_path)
    assert main([*argv, "--seeds", "99", "--rows", "60"]) == 0
    # A response that no model gave shows where it comes from.
    marked = {name: text.replace('"response": "', '"response": "kept: ') for name, text in uninterrupted.items()}
    write_journals(tmp_path, marked, shares=[30, 50, 20], chance=chance)
    assert main(argv) == 0
    files = contents(tmp_path)
    assert sum(files[name].count("kept: ") for name in marked) == 100
    decoded = "".join(files[name] for name in marked).replace("kept: ", "")
    assert decoded == "".join(uninterrupted.values())

    monkeypatch.setattr("evaluation.responses.decode", None)
    for name in marked:
        (tmp_path / name).unlink()
    write_journals(tmp_path, marked, shares=[len(SEEDS) * NUM_ROWS], chance=chance)
    assert main(argv) == 0
    assert {name: contents(tmp_path)[name] for name in marked} == marked


@pytest.mark.usefixtures("alone")
def test_what_other_seeds_left_unfinished_stays_for_them(
    model: Path, benchmark: Path, uninterrupted: dict[str, str], tmp_path: Path, chance: random.Random
) -> None:
    argv = arguments(model, benchmark, tmp_path)
    assert main([*argv, "--seeds", "99"]) == 0
    write_journals(tmp_path, uninterrupted, shares=[100], chance=chance)
    assert main([*argv, "--seeds", "10"]) == 0
    assert num_lines(tmp_path / "generations" / "test") >= 100
    assert main(argv) == 0
    assert num_lines(tmp_path / "generations" / "test") == 0
    files = contents(tmp_path)
    assert {name: files[name] for name in uninterrupted} == uninterrupted


@pytest.mark.usefixtures("alone")
def test_other_settings_do_not_continue_unfinished_rows(
    model: Path,
    benchmark: Path,
    uninterrupted: dict[str, str],
    tmp_path: Path,
    chance: random.Random,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = arguments(model, benchmark, tmp_path)
    assert main(argv) == 0
    write_journals(tmp_path, uninterrupted, shares=[30], chance=chance)
    for name in uninterrupted:
        (tmp_path / name).unlink()
    capsys.readouterr()
    assert main([*argv, "--temperature", "0.5"]) == 2
    assert "was made with temperature=1.0" in capsys.readouterr().err
    assert num_lines(tmp_path / "generations" / "test") == 30
