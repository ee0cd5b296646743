"""Tables 1, 3, 4 and 6: your numbers above the paper's."""

from collections.abc import Sequence

import pandas as pd

from evaluation.paper.published import (
    BENCHMARKS,
    PUBLISHED,
    column_of,
    published_table1,
    published_table4,
    published_table6,
)
from evaluation.report.findings import MEAN, Findings
from evaluation.report.page import ERROR, Section, Table
from evaluation.report.scores import best_students

OWN = "these runs"
"""Source of the numbers that are not the paper's."""
_REFERENCE = "promptkd"
"""Table 3 compares times with this method's."""


def table1(findings: Findings, *, families: Sequence[str]) -> Section:
    """ROUGE-L of the evaluated models and the paper's; means are over the benchmarks that both have."""
    own = findings.scores.drop(columns=[MEAN, MEAN + ERROR], errors="ignore")
    own = own.rename(columns=_columns(findings.benchmarks))
    own.insert(0, "source", OWN)
    paper = published_table1(families)
    frame = _ordered(pd.concat([own, paper], ignore_index=True))
    shared = [name for name in map(column_of, findings.shared_benchmarks) if name in BENCHMARKS]
    if len(shared) > 1:
        frame["mean"] = frame[shared].mean(axis=1, skipna=False)
    students = [model.is_student for model in findings.models] + list(paper["model"] == "student")
    return Section(
        key="table1",
        title="Table 1",
        tables=[
            Table(
                key="table1",
                title="ROUGE-L",
                frame=frame,
                note=f"Mean: over {', '.join(shared) or 'nothing'}. Bold: the best of a size. {PUBLISHED['source']}.",
                best=best_students(frame, students=students, by=["source", "parameters"]),
            )
        ],
    )


def _columns(benchmarks: Sequence[str]) -> dict[str, str]:
    """New names of a data frame's columns: those of Table 1, where no two benchmarks get the same."""
    new = {name: column_of(name) for name in benchmarks}
    new = {name: column for name, column in new.items() if list(new.values()).count(column) == 1}
    return new | {name + ERROR: column + ERROR for name, column in new.items()}


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """The benchmarks' columns in the order of Table 1, behind them those that it does not have."""
    texts = frame.select_dtypes(exclude="number").columns
    known = [column for name in BENCHMARKS for column in (name, name + ERROR) if column in frame]
    return frame[[*texts, *known, *frame.columns.drop([*texts, *known])]]


def table3(findings: Findings) -> Section:
    """Memory and time of the trainings, of the steps that evaluation.bench measured, and of the paper's trainings."""
    runs = [
        {
            "source": f"training {run.name}",
            "method": run.method,
            "MA [GB]": run.metrics["peak_memory_bytes"].max() / 1e9,
            "step [s]": run.seconds / run.num_steps,
            "time [h]": run.seconds / 3600,
        }
        for run in findings.outputs.trainings
        if run.seconds is not None
    ]
    steps = [
        {
            "source": f"steps of preset {output.results['preset_name']}",
            "method": entry["case"]["method"],
            "MA [GB]": entry["peak"]["allocated"] / 1e9,
            "CA [GB]": None if entry["peak"]["reserved"] is None else entry["peak"]["reserved"] / 1e9,
            "step [s]": entry["step_seconds"],
        }
        for output in findings.outputs.costs
        for entry in output.results["costs"]
    ]
    published = PUBLISHED["table3"]
    paper = [
        {
            "source": "paper",
            "method": method,
            "MA [GB]": cost["allocated_gb"],
            "CA [GB]": cost["cached_gb"],
            "time [h]": cost["hours"],
        }
        for method, cost in published["methods"].items()
    ]
    columns = ["source", "method", "MA [GB]", "CA [GB]", "step [s]", "time [h]"]
    numbers = dict.fromkeys(columns[2:], float)
    parts = [_relative(pd.DataFrame(rows, columns=columns).astype(numbers)) for rows in (runs, steps, paper) if rows]
    table = Table(
        key="table3",
        title="Memory and time",
        frame=pd.concat(parts, ignore_index=True),
        digits={"MA [GB]": 2, "CA [GB]": 2, "step [s]": 3, "time [h]": 4, "time ÷ PromptKD’s": 2},
        note=(
            "MA: most memory that one rank allocated, CA: most that its allocator reserved (GB = 10⁹ bytes); on a CPU,"
            f" MA is resident memory. Time of the optimizer steps. Paper: {published['setting']}. {published['remark']}"
        ),
    )
    return Section(key="table3", title="Table 3", tables=[table] if runs or steps else [])


def _relative(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the time of each row relative to PromptKD's, if one row is PromptKD's."""
    seconds = frame["time [h]"].fillna(frame["step [s]"])
    reference = seconds[frame["method"].str.lower() == _REFERENCE]
    return frame.assign(**{"time ÷ PromptKD’s": seconds / reference.iloc[0] if len(reference) == 1 else float("nan")})


def table4(findings: Findings, *, families: Sequence[str]) -> Section:
    """The teacher with and without its prompt."""
    names = {
        f"{rows}_{key}": f"{rows}: {title}"
        for rows in ("seen", "unseen")
        for key, title in (
            ("initial_kl", "KL, initial student"),
            ("final_kl", "KL, final student"),
            ("rouge_l", "ROUGE-L"),
        )
    }
    own = []
    for output in findings.outputs.friendliness:
        for direction, title in (("forward_kl", "KL(p‖q)"), ("reverse_kl", "KL(q‖p)")):
            for condition in ("without_prompt", "with_prompt"):
                row = {"source": f"{output.name}, {title}", "teacher": condition.replace("_", " ")}
                for rows, found in output.results["sets"].items():
                    column = found[condition]
                    row[f"{rows}_initial_kl"] = column["initial"][direction]["value"]
                    row[f"{rows}_final_kl"] = column["final"][direction]["value"]
                    row[f"{rows}_rouge_l"] = column["rougeL"]["value"]
                own.append(row)
    table = Table(
        key="table4",
        title="The teacher with and without its prompt",
        frame=pd.concat([pd.DataFrame(own), published_table4(families)], ignore_index=True).rename(columns=names),
        digits={name: 4 if "KL" in name else 1 for name in names.values()},
        note="Divergences in nats per token. The paper does not give the direction of its divergence.",
    )
    return Section(key="table4", title="Table 4", tables=[table] if own else [])


def table6(findings: Findings) -> Section:
    """Feedback scores; the paper's are of use beside scores on its benchmarks."""
    own = [
        {"source": f"judge {output.results['judge']['model']}", "model": model}
        | {column_of(name): score["score"] for name, score in scores.items()}
        for output in findings.outputs.judgements
        for model, scores in output.results["scores"].items()
    ]
    table = Table(
        key="table6",
        title="Feedback scores",
        frame=_ordered(pd.concat([pd.DataFrame(own), published_table6()], ignore_index=True)),
        note=f"Σ scores of the model / Σ scores of the references × 100. Paper: {PUBLISHED['table6']['setting']}.",
    )
    return Section(key="table6", title="Table 6", tables=[table] if own else [])
