"""What the page does not show, and the commands that would measure it."""

import shlex
from collections.abc import Iterator, Set
from dataclasses import dataclass

from evaluation.report.findings import Findings
from evaluation.report.training import TrainingRun
from kd.config.schema import Config, DataConfig, GenerationConfig

_LATER = "after evaluating that student too"
_NAMES = {
    "table1": "Table 1",
    "figure1": "Figure 1",
    "trainings": "training curves",
    "figure3a": "Figure 3(a)",
    "figure3b": "Figure 3(b), of a training with checkpoints.export_every",
    "table4": "Table 4",
    "table6": "Table 6",
    "table3": "Table 3",
    "figure4": f"Figure 4, {_LATER}",
    "table9": f"Table 9, {_LATER}",
    "table11": f"Table 11, {_LATER}",
    "table12": f"Table 12, {_LATER}",
}
_OVERRIDES = {
    "figure4": ("prompt.length=5",),
    "table9": ("teacher_lora.rank=4", "prompt.regularization=none"),
    "table11": ("prompt.regularization=none",),
    "table12": ("prompt.kd_divergence=forward_kl",),
}
"""The decision that a second training makes otherwise."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A part that no directory provides."""

    what: str
    command: str


def missing_parts(findings: Findings, *, keys: Set[str]) -> Iterator[Missing]:
    """The paper's tables and figures that are not among `keys`; commands name the runs that are there."""
    runs = findings.outputs.trainings
    distilled = next((run for run in runs if run.config.method == "promptkd"), None)
    run = distilled or next(iter(runs), None)
    place = "runs/NAME" if run is None else str(run.directory)
    commands = {
        ("table1", "figure1"): _evaluation(run, place),
        ("trainings",): ["deepspeed", "launch/train_promptkd.py", "--config", "FILE"],
        ("figure3a",): _exposure_bias(run, "--student", f"NAME={place}/final", out=f"{place}/exposure_bias"),
        ("figure3b",): _exposure_bias(run, "--run", f"NAME={place}", out=f"{place}/exposure_bias_progress"),
        ("table3",): ["deepspeed", "--module", "evaluation.bench", "--out", "runs/cost"],
        ("table6",): [
            *("python", "-m", "evaluation.judge", "--judge", "gpt-4"),
            *("--evaluation", f"NAME={_evaluation_directory(findings, place)}", "--out", "runs/judge"),
        ],
        **_of_promptkd(distilled),
    }
    for wanted, command in commands.items():
        lacking = [key for key in wanted if not any(found == key or found.startswith(f"{key}-") for found in keys)]
        if lacking:
            yield Missing(what=" and ".join(_NAMES[key] for key in lacking), command=shlex.join(command))


def _evaluation(run: TrainingRun | None, place: str) -> list[str]:
    return [
        *("deepspeed", "evaluation/evaluate.py", "--model", f"{place}/final", "--benchmark", f"NAME={_data(run)}"),
        *(*_limits(run), *_overlong(run), "--out", f"{place}/evaluation"),
    ]


def _evaluation_directory(findings: Findings, place: str) -> str:
    students = findings.students
    return str(students[-1].evaluations[0].directory) if students else f"{place}/evaluation"


def _exposure_bias(run: TrainingRun | None, *models: str, out: str) -> list[str]:
    teacher = "TEACHER" if run is None or run.config.model.teacher is None else run.config.model.teacher
    return [
        *("deepspeed", "--module", "evaluation.exposure_bias", "--teacher", teacher, "--data", _data(run)),
        *(*models, *_limits(run), "--out", out),
    ]


def _of_promptkd(run: TrainingRun | None) -> dict[tuple[str, ...], list[str]]:
    """What needs a PromptKD run, or another one beside it."""
    place = "runs/NAME" if run is None else str(run.directory)
    friendliness = ["deepspeed", "--module", "evaluation.student_friendliness", "--run", place]
    commands: dict[tuple[str, ...], list[str]] = {
        ("table4",): [*friendliness, "--out", f"{place}/student_friendliness"]
    }
    for key, overrides in _OVERRIDES.items():
        commands[key,] = [
            *("deepspeed", "launch/train_promptkd.py", "--config", "FILE" if run is None else f"{place}/config.yaml"),
            *(*overrides, f"run.dir={place}-{key}"),
        ]
    return commands


def _data(run: TrainingRun | None) -> str:
    return "ROWS.jsonl" if run is None or run.config.data.validation is None else run.config.data.validation


def _limits(run: TrainingRun | None) -> list[str]:
    """Options for template and lengths that differ from the commands' defaults, which are the configuration's."""
    if run is None:
        return []
    config: Config = run.config
    options = []
    if config.data.template != DataConfig().template:
        options += ["--template", config.data.template]
    if config.data.max_prompt_tokens != DataConfig().max_prompt_tokens:
        options += ["--max-prompt-tokens", str(config.data.max_prompt_tokens)]
    if config.generation.max_new_tokens != GenerationConfig().max_new_tokens:
        options += ["--max-new-tokens", str(config.generation.max_new_tokens)]
    return options


def _overlong(run: TrainingRun | None) -> list[str]:
    """What becomes of longer prompts, where it is not the default; evaluate.py alone has a choice."""
    differs = run is not None and run.config.data.overlong != DataConfig().overlong
    return ["--overlong", run.config.data.overlong] if run is not None and differs else []
