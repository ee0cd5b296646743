"""Figure 4 and Tables 9, 11 and 12: PromptKD's students whose trainings differ in one decision."""

from collections.abc import Iterator, Sequence

import pandas as pd

from evaluation.paper.published import PUBLISHED, published
from evaluation.paper.tables import OWN
from evaluation.report.findings import Findings, size
from evaluation.report.models import count_values
from evaluation.report.page import ERROR, Axes, Picture, Section, Table, draw
from evaluation.report.training import Flat, TrainingRun
from evaluation.report.trainings import shown
from kd.models.soft_prompt import FILE_NAME
from kd.train.run_directory import RESUMABLE_FIELDS, RESUMABLE_SECTIONS

_PROMPT, _LORA = "prompt.", "teacher_lora."
# A teacher with adapters has neither these tokens nor L_reg.
_OF_TOKENS = ("length", "init", "init_text", "regularization", "regularization_divergence")
_MEASURED = ("ROUGE-L", "parameters", "trained values", "time [h]")
_ADAPTATION = "adaptation"
_LACKING = shown(None)
_TITLES = {
    "prompt.regularization": "regularization",
    "prompt.kd_divergence": "L_kd",
    "prompt.regularization_divergence": "L_reg",
}


def ablations_section(findings: Findings) -> Section:
    """The comparisons that the runs allow; empty if they allow none."""
    students = promptkd_students(findings)
    divergences = ["prompt.kd_divergence", "prompt.regularization_divergence"]
    tables = [
        _table("table9", "How the teacher adapts", _adaptations(students)),
        _table("table11", "Regularization of the prompt", compare(students, ["prompt.regularization"])),
        _table("table12", "Divergences of the prompt’s loss", compare(students, divergences)),
    ]
    return Section(
        key="ablations",
        title="Figure 4 and Tables 9, 11 and 12",
        text=(
            f"ROUGE-L of PromptKD’s students, mean over {', '.join(findings.shared_benchmarks)}, where their trainings"
            " differ in this decision alone. Trainings of one setting, such as with other seeds, are averaged; ±:"
            " standard error over them."
        ),
        pictures=[
            _figure4(found, key=f"figure4-{index}")
            for index, found in enumerate(compare(students, ["prompt.init", "prompt.length"]), start=1)
        ],
        tables=[table for table in tables if table is not None],
    )


def promptkd_students(findings: Findings) -> pd.DataFrame:
    """A row for each PromptKD run with an evaluated student: what was measured, and the settings of its training.

    The student is the best one if that was evaluated, as in the paper, else the last.
    """
    rows = []
    scores = findings.scores.set_index("model")[findings.shared_benchmarks].mean(axis=1)
    for run in findings.outputs.trainings:
        parts = {model.part: model for model in findings.students if model.run is run}
        part = "best" if "best" in parts else "final"
        if run.method != "promptkd" or part not in parts or not findings.shared_benchmarks:
            continue
        rows.append(
            {
                "ROUGE-L": scores[parts[part].name],
                "parameters": size(parts[part].num_parameters),
                "trained values": _trained_values(run, part),
                "time [h]": None if run.seconds is None else run.seconds / 3600,
                **_effective(run.settings),
            }
        )
    frame = pd.DataFrame(rows, columns=None if rows else list(_MEASURED))
    return frame.fillna({name: _LACKING for name in frame if name not in _MEASURED})


def _trained_values(run: TrainingRun, part: str) -> int:
    """Numbers in the prompt or in the teacher's adapters."""
    directory = run.directory / part
    return sum(map(count_values, (directory / FILE_NAME, *sorted(directory.glob("teacher_adapter/*.safetensors")))))


def _effective(settings: Flat) -> dict[str, str]:
    """The settings that decide the course of a training, as text; those without effect are left out."""
    rank = settings.get(f"{_LORA}rank") or 0
    unused = tuple(_PROMPT + name for name in _OF_TOKENS) if rank else (_LORA,)
    adaptation = f"LoRA ({rank}/{shown(settings.get(f'{_LORA}alpha'))})" if rank else "prompt tuning"
    return {_ADAPTATION: adaptation} | {
        name: shown(value)
        for name, value in settings.items()
        if name.split(".")[0] not in RESUMABLE_SECTIONS and name not in RESUMABLE_FIELDS and not name.startswith(unused)
    }


def compare(students: pd.DataFrame, decision: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Groups of students that are equal in all settings but `decision`, averaged for each value of it.

    Yields:
        A row for each value: the columns of `decision`, those of what was measured, and the standard error of ROUGE-L.
    """
    if students.empty:
        return
    students = students.assign(**{name: _LACKING for name in decision if name not in students})
    fixed = [name for name in students if name not in (*_MEASURED, *decision)]
    for _, group in students.groupby(fixed, sort=False):
        found = group.groupby(list(decision), sort=False)
        if found.ngroups > 1:
            averaged = found.agg(
                {"parameters": "first", "ROUGE-L": "mean", "trained values": "first", "time [h]": "mean"}
            )
            averaged.insert(2, f"ROUGE-L{ERROR}", found["ROUGE-L"].sem())
            yield averaged.reset_index()


def _adaptations(students: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Comparisons of a prompt with adapters; what else differs in them follows the kind of adaptation."""
    decision = [name for name in students if name == _ADAPTATION or name.startswith((_PROMPT, _LORA))]
    for found in compare(students, decision):
        if found[_ADAPTATION].nunique() < 2:
            continue
        for name in (name for name in decision if name.startswith(_PROMPT)):
            values = found[name][found[name] != _LACKING]
            if values.nunique() > 1:
                found[_ADAPTATION] += values.radd(f", {name.removeprefix(_PROMPT)} ").reindex(
                    found.index, fill_value=""
                )
        yield found.drop(columns=[name for name in decision if name != _ADAPTATION])


def _table(key: str, title: str, found: Iterator[pd.DataFrame]) -> Table | None:
    """Comparisons above the paper's; None if there is no comparison."""
    own = [one.assign(source=OWN).rename(columns=_TITLES) for one in found]
    if not own:
        return None
    frame = pd.concat([*own, published(key)], ignore_index=True)[["source", *own[0].columns.drop("source")]]
    if key != "table9":
        frame = frame.drop(columns=["trained values", "time [h]"])
    return Table(
        key=key,
        title=f"{key.replace('table', 'Table ')}: {title}",
        frame=frame,
        digits={"ROUGE-L": 2, "trained values": 0, "time [h]": 2},
        note=f"Paper: {PUBLISHED[key]['setting']}.",
    )


def _figure4(found: pd.DataFrame, *, key: str) -> Picture:
    """ROUGE-L over the prompt's length, a line for each initialization."""
    lengths = pd.to_numeric(found["prompt.length"], errors="coerce")
    found = found.assign(length=lengths, error=found[f"ROUGE-L{ERROR}"].fillna(0)).sort_values("length")

    def paint(axes: Axes) -> None:
        for init, line in found.groupby("prompt.init"):
            axes.errorbar("length", "ROUGE-L", yerr="error", data=line, marker="o", capsize=2, label=init)
        axes.set_xlabel("length of the prompt m [tokens]")
        axes.set_ylabel("ROUGE-L")

    student = f"student of {found['parameters'].iloc[0]}"
    return draw(key, paint, description=f"Figure 4: ROUGE-L by length and initialization of the prompt, {student}.")
