"""What `demo.compare` compares: where each method's student starts, what it learns from, and the runs that follow."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from demo.plan import clocked_metrics
from demo.steps import ROOT, train
from evaluation.results import write_atomically
from kd.config import Config
from kd.config_fields import MethodName
from kd.config_file import read_config, to_yaml
from kd.errors import UserError

STEPS = 300
WARMUP_STEPS = 10
CONFIG = "comparison"
LABELLED = "demo/data/labelled.jsonl"
PROMPTS = "demo/data/prompts.jsonl"
NEEDED = ("demo/teacher/model.safetensors", PROMPTS, LABELLED, "demo/data/validation.jsonl", "demo/data/test.jsonl")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A method as the paper runs it."""

    label: str
    start: Literal["raw", "sft"]
    """What its student starts from: random weights, or the student that SFT made of them with the same seed."""
    data: Literal["labelled rows", "prompts", "teacher's responses"]


CONTESTANTS: dict[MethodName, Contestant] = {
    "sft": Contestant(label="SFT", start="raw", data="labelled rows"),
    "kd": Contestant(label="KD", start="raw", data="labelled rows"),
    "seqkd": Contestant(label="SeqKD", start="raw", data="teacher's responses"),
    "gkd": Contestant(label="GKD", start="sft", data="prompts"),
    "minillm": Contestant(label="MiniLLM", start="sft", data="prompts"),
    "distillm": Contestant(label="DistiLLM", start="sft", data="teacher's responses"),
    "promptkd": Contestant(label="PromptKD", start="sft", data="prompts"),
}
"""In the order of the paper's Table 1, which has no DistiLLM."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """Where a comparison keeps its files."""

    path: str

    @property
    def responses(self) -> str:
        """The teacher's responses as `launch/generate_pseudo_data.py` writes them."""
        return f"{self.path}/teacher_responses.jsonl"

    @property
    def answered(self) -> str:
        """The same responses as rows with an answer, for methods that mix them with the student's own."""
        return f"{self.path}/answered.jsonl"

    @property
    def teacher_scores(self) -> str:
        """Directory of the teacher's evaluation."""
        return f"{self.path}/teacher/evaluation"

    def raw_student(self, seed: int) -> str:
        """The student with random weights from `seed`."""
        return f"{self.path}/raw-{seed}"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run of a contestant."""

    method: MethodName
    seed: int
    """Of the data's order, of sampling and of the random weights in the beginning."""
    learning_rate: float
    steps: int
    folder: Folder
    name: str
    """Directory of the run in `folder`."""
    fine_tuned: str
    """SFT's student of the same seed, for those that start from it."""

    @property
    def start(self) -> str:
        """The student that it starts from."""
        return self.fine_tuned if self.starts_from_sft else self.folder.raw_student(self.seed)

    @property
    def starts_from_sft(self) -> bool:
        return CONTESTANTS[self.method].start == "sft"

    @property
    def directory(self) -> str:
        return f"{self.folder.path}/{self.name}"

    @property
    def student(self) -> str:
        """The student after the last step, which is the one that is scored."""
        return f"{self.directory}/final"

    @property
    def scores(self) -> str:
        """Directory of its evaluation."""
        return f"{self.directory}/evaluation"

    @property
    def overrides(self) -> tuple[str, ...]:
        """What differs from demo/comparison.yaml."""
        return (
            f"method={self.method}",
            *(("model.teacher=null",) if self.method == "sft" else ()),
            f"model.student={self.start}",
            *self._data(),
            f"optimizer.learning_rate={self.learning_rate}",
            f"schedule.steps={self.steps}",
            f"schedule.warmup_steps={min(WARMUP_STEPS, self.steps)}",
            f"run.seed={self.seed}",
            f"run.dir={self.directory}",
        )

    def _data(self) -> tuple[str, ...]:
        if self.method == "seqkd":
            return (f"data.train={PROMPTS}", f"data.responses={self.folder.responses}")
        files = {"labelled rows": LABELLED, "prompts": PROMPTS, "teacher's responses": self.folder.answered}
        return (f"data.train={files[CONTESTANTS[self.method].data]}",)

    def config(self) -> Config:
        """The whole configuration."""
        return read_config(ROOT / "demo" / f"{CONFIG}.yaml", overrides=self.overrides)

    def command(self) -> list[str]:
        """The command that trains, or goes on after it was killed."""
        return train(CONFIG, *self.overrides)

    def is_finished(self) -> bool:
        """Whether its last step has been done.

        Raises:
            UserError: its directory has a finished run of other settings.
        """
        if not Path(self.student).exists():
            return False
        found = Path(self.directory) / "config.yaml"
        if read_config(found) != self.config():
            lines = set(to_yaml(read_config(found)).splitlines())
            wanted = next(line.strip() for line in to_yaml(self.config()).splitlines() if line not in lines)
            raise UserError(
                f"{self.directory}: was trained with other settings, this call has {wanted}; delete"
                f" {self.folder.path} to begin again, or use another --out"
            )
        return True


def validation_curve(training: Training) -> list[tuple[float, float]]:
    """Seconds of optimizer steps and ROUGE-L of each validation of a finished run."""
    return [
        (seconds, float(record["validation/rougeL"]))
        for seconds, record in clocked_metrics(Path(training.directory))
        if "validation/rougeL" in record
    ]


def check_needed() -> None:
    """Check that the demo's teacher and data are there.

    Raises:
        UserError: the first that is missing.
    """
    for name in NEEDED:
        if not Path(name).is_file():
            raise UserError(f"{name} does not exist; it is part of the project: restore it (git checkout {name})")


def write_answered(folder: Folder) -> None:
    """Make rows with an answer of the teacher's responses, but for those cut off at the limit of new tokens."""
    requests = Path(PROMPTS).read_text(encoding="utf-8").splitlines()
    rows = []
    for line in Path(folder.responses).read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        if answer["ended"]:
            request = json.loads(requests[int(answer["source"].rpartition(":")[2]) - 1])
            rows.append(json.dumps(request | {"output": answer["response"]}, ensure_ascii=False))
    write_atomically(Path(folder.answered), "".join(f"{row}\n" for row in rows))
