"""Does a soft prompt for each family of tasks teach better than one for all? python -m demo.group_study [--seeds 1,2,3]

Needs the student of `make demo`. From it, every training seed goes on in three ways, on the same rows: without a soft
prompt (GKD), with one, and with one for each of the demo's families. Finished steps are not repeated.
"""

import argparse
import json
import os
import sys
from itertools import islice
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Table

from demo.make_data import distinct_rows, split_sizes
from demo.plan import MODELS, RUNS
from demo.spread import Spread
from demo.steps import ROOT, evaluate, on_two_ranks, run
from demo.task_facts import DRAWS
from evaluation.results import write_results

FOLDER = f"{RUNS}/groups"
ROWS = f"{FOLDER}/prompts.jsonl"
SHIPPED_SIZES = (360, 200, 150, 10_000)
"""Test, validation, labelled and all other rows, in the order in which they were drawn."""
CONTESTANTS = {
    "no prompt": ("method=gkd",),
    "one prompt": (),
    "one for each family": ("data.group=family",),
}


def name_families(source: Path, target: Path) -> None:
    """Add the key `family` to rows of the shipped data, by drawing all of it again.

    Raises:
        KeyError: a row that is not in the shipped data.
    """
    rng = Random(1)
    family_of: dict[tuple[str, str], str] = {}
    for index, family in enumerate(DRAWS):
        # As many as `demo.make_data` draws, or the next family would get other rows.
        wanted = sum(split_sizes(size)[index] for size in SHIPPED_SIZES)
        for row in islice(distinct_rows(family, rng), wanted):
            family_of.setdefault((row.instruction, row.input), family)
    with source.open(encoding="utf-8") as rows, target.open("w", encoding="utf-8") as file:
        for line in rows:
            row = json.loads(line)
            file.write(json.dumps(row | {"family": family_of[row["instruction"], row["input"]]}) + "\n")


def train(contestant: str, seed: int) -> list[str]:
    """Command that trains one contestant on two ranks."""
    changed = [f"data.train={ROWS}", f"run.seed={seed}", f"run.dir={RUNS}/{name_of(contestant, seed)}"]
    return on_two_ranks("launch/train.py", "--config", "demo/promptkd.yaml", *CONTESTANTS[contestant], *changed)


def name_of(contestant: str, seed: int) -> str:
    """What the run and its evaluation are called below demo/runs."""
    return f"groups/{contestant.replace(' ', '-')}-{seed}"


def score_of(contestant: str, seed: int) -> float:
    """Mean test ROUGE-L over the sampling seeds."""
    path = Path(RUNS) / "evaluation" / name_of(contestant, seed) / "results.json"
    return float(json.loads(path.read_text())["benchmarks"]["test"]["rougeL"]["mean"])


def report(scores: dict[str, list[float]]) -> None:
    """Print means over the training seeds, and each contestant's difference to one prompt, seed by seed."""
    table = Table(title="Test ROUGE-L, means over training seeds ± standard errors")
    for heading in ("soft prompt", "ROUGE-L", "to one prompt"):
        table.add_column(heading, justify="left" if heading == "soft prompt" else "right")
    for name, values in scores.items():
        differences = [value - base for value, base in zip(values, scores["one prompt"], strict=True)]
        table.add_row(name, Spread.of(values).text(), Spread.of(differences).text(sign="+"))
    Console().print(table)


def main() -> int:
    """Do what the command line says, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3", help="training seeds [%(default)s]")
    seeds = [int(seed) for seed in parser.parse_args().seeds.split(",")]
    os.chdir(ROOT)
    if not Path(MODELS["start"]).exists():
        sys.exit(f"{MODELS['start']} does not exist: run `make demo` first")
    Path(FOLDER).mkdir(parents=True, exist_ok=True)
    name_families(Path("demo/data/prompts.jsonl"), Path(ROWS))
    for seed in seeds:
        for contestant in CONTESTANTS:
            name = name_of(contestant, seed)
            run(f"{contestant}, training seed {seed}", train(contestant, seed))
            run(
                "Score on the 360 test rows, five sampling seeds",
                evaluate(f"{RUNS}/{name}/final", out=f"{RUNS}/evaluation/{name}"),
            )
    rouge_l = {contestant: [score_of(contestant, seed) for seed in seeds] for contestant in CONTESTANTS}
    write_results(Path(FOLDER) / "results.json", {"seeds": seeds, "rougeL": rouge_l})
    report(rouge_l)
    return 0


if __name__ == "__main__":
    sys.exit(main())
