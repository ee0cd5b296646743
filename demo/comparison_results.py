"""What `demo.compare` found: results.json, a table and a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from demo.contestants import CONTESTANTS, Folder, Training, validation_curve
from demo.plan import SEEDS, clocked_metrics
from demo.spread import Spread
from evaluation.pictures import load_pyplot, save, styles
from evaluation.results import write_atomically, write_results
from kd.config_fields import MethodName

HEADINGS = ("method", "from", "rate", "test ROUGE-L", "exact match", "PromptKD leads", "step s", "training s")
Curve = list[tuple[float, float]]
"""Seconds of training and validation ROUGE-L."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one method came to; each value of a seed is the mean over the sampling seeds."""

    start: str
    learning_rate: float
    rougeL: Spread
    exact_match: Spread
    step_seconds: Spread
    training_seconds: Spread
    """Of its own steps, without those of the student that it starts from."""


def outcome_of(runs: Sequence[Training]) -> Outcome:
    """Read the scores and times of the runs of one method, one for each training seed."""
    scores = [test_scores(run.scores) for run in runs]
    seconds = [clocked_metrics(Path(run.directory))[-1][0] for run in runs]
    return Outcome(
        start=CONTESTANTS[runs[0].method].start,
        learning_rate=runs[0].learning_rate,
        rougeL=Spread.of([score["rougeL"]["mean"] for score in scores]),
        exact_match=Spread.of([score["exact_match"]["mean"] for score in scores]),
        step_seconds=Spread.of([passed / run.steps for passed, run in zip(seconds, runs, strict=True)]),
        training_seconds=Spread.of(seconds),
    )


def test_scores(directory: str) -> dict[str, Any]:
    """The scores of an evaluation on the test rows."""
    results = json.loads((Path(directory) / "results.json").read_text(encoding="utf-8"))
    scores: dict[str, Any] = results["benchmarks"]["test"]
    return scores


def table_rows(outcomes: Mapping[MethodName, Outcome], *, teacher: Mapping[str, Any]) -> list[list[str]]:
    """The cells below `HEADINGS`; the lead is over the same training seeds, one by one."""
    rows = [
        ["teacher", "", "", f"{teacher['rougeL']['mean']:.2f}", f"{teacher['exact_match']['mean']:.2f}", "", "", ""]
    ]
    for method, outcome in outcomes.items():
        lead = ""
        if method != "promptkd" and "promptkd" in outcomes:
            pairs = zip(outcomes["promptkd"].rougeL.per_seed, outcome.rougeL.per_seed, strict=True)
            lead = Spread.of([ours - theirs for ours, theirs in pairs]).text(sign="+", digits=1)
        cells = [
            outcome.rougeL.text(),
            outcome.exact_match.text(digits=1),
            lead,
            f"{outcome.step_seconds.mean:.3f}",
            f"{outcome.training_seconds.mean:.0f}",
        ]
        rows.append([CONTESTANTS[method].label, outcome.start, f"{outcome.learning_rate:g}", *cells])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The table for a page."""
    rules = ["---" if place < 2 else "---:" for place in range(len(HEADINGS))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [HEADINGS, rules, *rows])


def print_table(rows: Sequence[Sequence[str]], *, seeds: Sequence[int]) -> None:
    """The table on the terminal."""
    names = ", ".join(map(str, seeds))
    # Narrow: it fits 80 columns.
    table = Table(title=f"Training seeds {names}: means ± standard errors", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, heading in enumerate(HEADINGS):
        words = heading.replace(" ", "\n")
        table.add_column(words, justify="left" if place < 2 else "right", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    Console().print(table)


def curve_of(run: Training, *, trainings: Sequence[Training]) -> Curve:
    """Validation ROUGE-L over a run's own training, from the student of SFT at 0 s where it starts from that."""
    start: Curve = []
    if run.starts_from_sft:
        sft = next(other for other in trainings if other.student == run.start)
        start = [(0.0, validation_curve(sft)[-1][1])]
    return start + validation_curve(run)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean seconds and scores of several seeds, validation by validation."""
    return [
        (fmean(seconds for seconds, _ in points), fmean(score for _, score in points))
        for points in zip(*curves, strict=True)
    ]


def draw(curves: Mapping[MethodName, Sequence[Curve]], *, stem: Path) -> None:
    """One line for each method, the mean, over thin ones of the training seeds."""
    plt = load_pyplot()
    figure, axes = plt.subplots(figsize=(9, 5.2), constrained_layout=True)
    looks = styles([CONTESTANTS[method].label for method in curves])
    for (label, look), of_seeds in zip(looks.items(), curves.values(), strict=True):
        for curve in of_seeds if len(of_seeds) > 1 else ():
            axes.plot(*zip(*curve, strict=True), color=look["color"], alpha=0.35, linewidth=0.8)
        axes.plot(*zip(*mean_curve(of_seeds), strict=True), **look, markersize=5, linewidth=2, label=label)
    axes.set_xlabel("seconds of own optimizer steps (no start-up, validation or checkpoint)")
    axes.set_ylabel("validation ROUGE-L")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    save(figure, stem)
    plt.close(figure)


def report(trainings: Sequence[Training], *, methods: Sequence[MethodName], folder: Folder) -> None:
    """Write results.json, comparison.md, comparison.png and .svg, and print the table."""
    of_method = {method: [run for run in trainings if run.method == method] for method in methods}
    seeds = [run.seed for run in of_method[methods[0]]]
    outcomes = {method: outcome_of(runs) for method, runs in of_method.items()}
    teacher = test_scores(folder.teacher_scores)
    curves = {method: [curve_of(run, trainings=trainings) for run in runs] for method, runs in of_method.items()}
    place = Path(folder.path)
    write_results(
        place / "results.json",
        {
            "steps": trainings[0].steps,
            "seeds": seeds,
            "sampling_seeds": [int(seed) for seed in SEEDS.split(",")],
            "teacher": {name: teacher[name]["mean"] for name in ("rougeL", "exact_match")},
            "methods": {method: asdict(outcome) for method, outcome in outcomes.items()},
            "validation_curves": curves,
        },
    )
    rows = table_rows(outcomes, teacher=teacher)
    write_atomically(place / "comparison.md", markdown(rows))
    draw(curves, stem=place / "comparison")
    print_table(rows, seeds=seeds)
    print(f"results: {place}/results.json, comparison.md, comparison.png, comparison.svg")
