"""Tables 1, 3, 4 and 6: your numbers above the paper's."""

import math
from collections.abc import Sequence

import pandas as pd

from evaluation.paper.published import BENCHMARKS, PUBLISHED, column_of, published
from evaluation.report.analyses import costs_section, judge_section
from evaluation.report.findings import MEAN, Findings
from evaluation.report.page import ERROR, Section, Table
from evaluation.report.scores import best_students
from evaluation.report.trainings import runs_table

OWN = "these runs"
"""Source of the numbers that are not the paper's."""
_COSTS = {
    "run": "source",
    "preset": "source",
    "peak memory [GB]": "MA [GB]",
    "allocated [GB]": "MA [GB]",
    "reserved [GB]": "CA [GB]",
    "s per step": "step [s]",
}


def table1(findings: Findings, *, families: Sequence[str]) -> Section:
    """ROUGE-L of the evaluated models and the paper's; means are over the benchmarks that both have."""
    own = findings.scores.drop(columns=[MEAN, MEAN + ERROR], errors="ignore")
    own = own.rename(columns=_columns(findings.benchmarks))
    own.insert(0, "source", OWN)
    paper = published("table1", families=families)
    frame = _ordered(pd.concat([own, paper], ignore_index=True))
    shared = [name for name in map(column_of, findings.shared_benchmarks) if name in BENCHMARKS]
    if len(shared) > 1:
        frame["mean"] = frame[shared].mean(axis=1, skipna=False)
    students = [model.is_student for model in findings.models] + list(paper["model"] == "student")
    table = Table(
        key="table1",
        title="ROUGE-L",
        frame=frame,
        note=f"Mean: over {', '.join(shared) or 'nothing'}. Bold: the best of a size. {PUBLISHED['source']}.",
        best=best_students(frame, students=students, by=["source", "parameters"]),
    )
    return Section(key="table1", title="Table 1", tables=[table])


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
    runs = runs_table(findings).frame if findings.outputs.trainings else pd.DataFrame()
    paper = PUBLISHED["table3"]
    own = [frame for frame in (runs, *(table.frame for table in costs_section(findings).tables)) if len(frame)]
    table = Table(
        key="table3",
        title="Memory and time",
        frame=pd.concat([_costs(frame) for frame in (*own, published("table3"))], ignore_index=True),
        digits={"MA [GB]": 2, "CA [GB]": 2, "step [s]": 3, "time [h]": 4, "time ÷ PromptKD’s": 2},
        note=(
            "MA: most memory that one rank allocated, CA: most that its allocator reserved (GB = 10⁹ bytes); on a CPU,"
            f" MA is resident memory. Time of the optimizer steps. Paper: {paper['setting']}. {paper['remark']}"
        ),
    )
    return Section(key="table3", title="Table 3", tables=[table] if own else [])


def _costs(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of Table 3, with the time of each row relative to PromptKD's if one row is PromptKD's."""
    hours = {"time [h]": frame["minutes"] / 60} if "minutes" in frame else {}
    numbers = ["MA [GB]", "CA [GB]", "step [s]", "time [h]"]
    frame = frame.assign(**hours).rename(columns=_COSTS).reindex(columns=["source", "method", *numbers])
    frame = frame.astype(dict.fromkeys(numbers, float))
    times = frame["time [h]"].fillna(frame["step [s]"])
    reference = times[frame["method"].str.lower() == "promptkd"]
    return frame.assign(**{"time ÷ PromptKD’s": times / reference.iloc[0] if len(reference) == 1 else math.nan})


def table4(findings: Findings, *, families: Sequence[str]) -> Section:
    """The teacher with and without its prompt."""
    own = []
    for output in findings.outputs.results["student_friendliness"]:
        for direction, title in (("forward_kl", "KL(p‖q)"), ("reverse_kl", "KL(q‖p)")):
            for condition in ("without_prompt", "with_prompt"):
                row = {"source": f"{output.name}, {title}", "teacher": condition.replace("_", " ")}
                for rows, found in output.results["sets"].items():
                    for student in ("initial", "final"):
                        row[f"{rows}: KL, {student} student"] = found[condition][student][direction]["value"]
                    row[f"{rows}: ROUGE-L"] = found[condition]["rougeL"]["value"]
                own.append(row)
    frame = pd.concat([pd.DataFrame(own), published("table4", families=families)], ignore_index=True)
    table = Table(
        key="table4",
        title="The teacher with and without its prompt",
        frame=frame,
        digits={name: 4 for name in frame if "KL" in name},
        note="Divergences in nats per token. The paper does not give the direction of its divergence.",
    )
    return Section(key="table4", title="Table 4", tables=[table] if own else [])


def table6(findings: Findings) -> Section:
    """Feedback scores; the paper's are of use beside scores on its benchmarks."""
    tables = []
    for judged in judge_section(findings).tables:
        own = judged.frame.pivot_table("score", ["judge", "model"], "benchmark", sort=False).reset_index()
        own = own.rename(columns=column_of).rename(columns={"judge": "source"})
        frame = _ordered(pd.concat([own, published("table6")], ignore_index=True))
        note = f"{judged.note} Scores of one judge for one model are averaged. Paper: {PUBLISHED['table6']['setting']}."
        tables.append(Table(key="table6", title=judged.title, frame=frame, note=note))
    return Section(key="table6", title="Table 6", tables=tables)
