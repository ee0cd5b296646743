"""An evaluation to be judged, and what the judge made of it."""

import json
import sys
from pathlib import Path
from typing import Any

from evaluation.generations import generations_file, write_generations
from tests.integration.tiny_run import launcher_environment
from tests.judge_server import Behavior, Request, Script
from tests.unit.evaluation.generations import generation

KEY = "sk-test-0123456789abcdef"
SOON = {"retry-after-ms": "5"}


def write_evaluation(directory: Path, *, name: str, num_rows: int = 3, seeds: tuple[int, ...] = (10, 20)) -> Path:
    """What evaluate.py writes: responses "NAME says ROW SEED" to rows with the reference "truth ROW"."""
    rows = [
        {"instruction": f"Ask {row}.", "input": "{it}" if row else "", "output": f"truth {row}"}
        for row in range(num_rows)
    ]
    source = directory / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = directory / name
    for seed in seeds:
        generations = [
            generation(row, reference=f"truth {row}", response=f"{name} says {row} {seed}") for row in range(num_rows)
        ]
        write_generations(generations_file(out, benchmark="dolly", seed=seed), generations)
    (out / "results.json").write_text(json.dumps({"benchmarks": {"dolly": {"source": str(source)}}}))
    return out


def arguments(directory: Path, url: str, *extra: str) -> list[str]:
    fixed = ["--judge", "gpt-4", "--base-url", url, "--out", str(directory / "out"), "--requests-per-minute", "60000"]
    return [*fixed, "--evaluation", f"kd={directory / 'kd'}", "--timeout-seconds", "5", *extra]


def read(directory: Path) -> Any:
    return json.loads((directory / "out" / "judge.json").read_text())


def score_of(directory: Path) -> Any:
    return read(directory)["scores"]["kd"]["dolly"]


def judgements(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "out" / "judgements" / "kd" / "dolly.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def always(behavior: Behavior) -> Script:
    """The same to every request."""

    def script(request: Request) -> Behavior:
        return behavior

    return script


def by_seed(request: Request) -> Behavior:
    """7 of 8 for seed 10, 4 of 5 for seed 20, the model first."""
    return Behavior(text="7 8\nbecause" if " 10\n" in request.prompt else "4 5")


def command(directory: Path, url: str, *extra: str) -> list[str]:
    return [sys.executable, "-m", "evaluation.judge", *arguments(directory, url, *extra)]


def command_environment() -> dict[str, str]:
    """For the judge in a process of its own."""
    return launcher_environment() | {"OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
