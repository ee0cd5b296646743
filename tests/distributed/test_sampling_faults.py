"""Sampling that ends early, late or not at all: every rank gets its responses, or every rank ends."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd.distributed import free_port
from tests.distributed import generation_jobs as jobs
from tests.distributed import sampling_fault_jobs as faults
from tests.distributed.harness import write_config
from tests.run_on_ranks import Ranks, forked_ranks
from tests.tiny_models import save_tiny_model

LAYOUTS = {
    "gathered": ["generation.layout=gathered"],
    "zero3": ["generation.layout=zero3", "engine.gather=layer"],
    "in place": ["generation.layout=zero3", "engine.gather=model"],
    "tensor_parallel": ["generation.layout=tensor_parallel", "generation.tensor_parallel_size=2"],
}
GREEDY = ["generation.top_k=1"]
PROMPTS = [np.random.default_rng(row).integers(1, 400, 5 + row).tolist() for row in range(6)]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OPT, whose table of positions ends with the 128th."""
    directory = tmp_path_factory.mktemp("faults")
    for name, seed in (("teacher", 1), ("student", 2)):
        save_tiny_model(directory / name, "opt", seed=seed)
    return directory


def alone(ranks: Any, student: Path, **arguments: Any) -> dict[int, list[int]]:
    """What one rank says in one batch."""
    config = write_config(student, stage=0)
    (result,) = ranks(1).run(jobs.sample, config_file=config, steps=[1], **arguments)
    return result[1]


def merged(results: list[Any], step: int = 1) -> dict[int, list[int]]:
    return {row: ids for result in results for row, ids in result[step].items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_whose_rows_end_at_once_waits_for_the_others(student: Path, ranks: Any, layout: str) -> None:
    """All rows of the second rank say the same, and its first word is the end."""
    prompts = [prompt if row % 2 == 0 else PROMPTS[1] for row, prompt in enumerate(PROMPTS)]
    said = alone(ranks, student, overrides=GREEDY, prompts=prompts)
    eos = said[1][0]
    expected = {row: ids[: ids.index(eos) + 1] if eos in ids else ids for row, ids in said.items()}
    assert expected[1] == expected[3] == expected[5] == [eos] and max(map(len, expected.values())) == 16
    results = ranks(2).run(
        jobs.sample,
        config_file=write_config(student),
        overrides=LAYOUTS[layout] + GREEDY,
        prompts=prompts,
        steps=[1],
        eos_id=eos,
    )
    assert merged(results) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompts_that_leave_just_room_for_the_response(student: Path, ranks: Any, layout: str) -> None:
    prompts = [np.random.default_rng(row).integers(1, 400, length).tolist() for row, length in enumerate((112, 1, 112))]
    expected = alone(ranks, student, overrides=[], prompts=prompts)
    assert {len(ids) for ids in expected.values()} == {16}
    results = ranks(2).run(
        jobs.sample, config_file=write_config(student), overrides=LAYOUTS[layout], prompts=prompts, steps=[1]
    )
    assert merged(results) == expected


def test_the_budget_is_halved_once_where_memory_runs_out(student: Path, ranks: Any) -> None:
    """Three rows of 16 tokens and a prompt of 10 fit 80 tokens, half of that holds one."""
    overrides = [*LAYOUTS["gathered"], "generation.max_batch_tokens=80"]
    results = ranks(2).run(
        faults.run_out_of_memory,
        config_file=write_config(student),
        overrides=overrides,
        prompts=PROMPTS,
        most_rows=[3, 2],
    )
    assert [result["rows"] for result in results] == [3, 1]
    for result in results:
        assert result["error"] is None
        assert result["said"] == [
            [
                "out of memory while decoding: ranks with this error decode 40 tokens together from now on,"
                " half of generation.max_batch_tokens=80"
            ],
            [],
        ]
    assert merged(results) == alone(ranks, student, overrides=[], prompts=PROMPTS)


def test_too_much_for_half_the_budget_is_one_line_on_all_ranks(student: Path, ranks: Any) -> None:
    results = ranks(2).run(
        faults.run_out_of_memory,
        config_file=write_config(student),
        overrides=LAYOUTS["gathered"],
        prompts=PROMPTS,
        most_rows=[3, 0],
    )
    for result in results:
        kind, message = result["error"]
        assert kind == "UserError" and result["training"] and result["gradients_on"]
        assert message.startswith("out of memory while decoding 8192 tokens together, half of")


@pytest.mark.parametrize("layout", ["zero3", "tensor_parallel"])
def test_ranks_that_decode_together_do_not_begin_again(student: Path, ranks: Any, layout: str) -> None:
    results = ranks(2).run(
        faults.run_out_of_memory,
        config_file=write_config(student),
        overrides=LAYOUTS[layout],
        prompts=PROMPTS,
        most_rows=[1, 1],
    )
    for rank, result in enumerate(results):
        kind, message = result["error"]
        assert kind == "LoneUserError" and result["training"] and result["gradients_on"]
        assert message.startswith(f"rank {rank} is out of memory while decoding ([enforce fail")
        assert message.endswith("lower generation.max_batch_tokens=16384")


def test_memory_that_really_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The allocator keeps nothing, so that every tensor counts.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    for name in ("teacher", "student"):
        save_tiny_model(tmp_path / name, "opt", seed=1, width=512, layers=1)
    prompts = [np.random.default_rng(row).integers(1, 400, 100).tolist() for row in range(128)]
    pool = Ranks(1, fresh=True)
    try:
        (result,) = pool.run(
            faults.run_out_of_real_memory,
            config_file=write_config(tmp_path, stage=0),
            prompts=prompts,
            # All rows together need 260 MB here, as many as fit half the budget 150 MB.
            spare_bytes=205_000_000,
        )
    finally:
        pool.stop()
    assert result["same"] and len(result["said"]) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_exception_on_one_rank_ends_all(student: Path, layout: str) -> None:
    context, port = forked_ranks(), free_port()
    arguments = (port, write_config(student), LAYOUTS[layout], PROMPTS)
    processes = [context.Process(target=faults.fail_alone, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=90)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    # gloo can abort a rank at its very end, when its connection broke.
    assert codes[1] == 1 and codes[0] in (1, -signal.SIGABRT)
