"""Checkpoints to resume from, and exports of the student for `from_pretrained`."""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from kd.config.schema import Config
from kd.distributed import World
from kd.errors import UserError
from kd.methods.base import Method
from kd.models.lora import adapter_writer, plain_parameters
from kd.models.student import STUDENT_ADAPTER
from kd.models.vocabulary import save_tokenizer
from kd.zero.config import student_deepspeed_config, zero_stage
from kd.zero.residency import gathered

_STATE_FILE = "trainer.json"
_STEP_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """The progress of a run. Data order, sampling and learning rates follow from the step alone."""

    step: int = 0
    best: float | None = None
    best_step: int | None = None


class Checkpoints:
    """The directory `checkpoints/` of a run: complete steps only, the latest few of them."""

    def __init__(self, run_dir: Path, *, config: Config, world: World) -> None:
        # The engines' state is divided into files, which only the same division can read.
        self._layout = {"num_ranks": world.size, "zero_stage": zero_stage(student_deepspeed_config(config))}
        self._directory = run_dir / "checkpoints"
        self._keep = config.checkpoints.keep
        self._world = world

    def latest(self) -> TrainerState:
        """State of the latest complete checkpoint, or of a run that has not begun.

        Raises:
            UserError: it was written by another number of ranks, or with another ZeRO stage.
        """
        steps = self._steps()
        if not steps:
            return TrainerState()
        path = self._path(steps[-1]) / _STATE_FILE
        values = json.loads(path.read_text(encoding="utf-8"))
        if (written := values["layout"]) != self._layout:
            then, now = (", ".join(f"{k}={v}" for k, v in layout.items()) for layout in (written, self._layout))
            raise UserError(
                f"{path.parent}: was written with {then}; now {now}: use the same, or choose another run.dir"
            )
        return TrainerState(**values["state"])

    def save(self, state: TrainerState, method: Method) -> None:
        """Write all state of a run; an interrupted write leaves the older checkpoints intact."""
        final, partial = self._path(state.step), self._directory / f"step-{state.step}.partial"
        if self._world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self._world.barrier()
        method.student.engine.save(partial / "student", with_frozen=not method.student.is_adapted)
        if method.trained_teacher is not None:
            method.trained_teacher.engine.save(partial / "teacher", with_frozen=False)
        torch.save(_random_states(self._world), partial / f"random-{self._world.rank}.pt")
        torch.save(method.state_dict(), partial / f"method-{self._world.rank}.pt")
        self._world.barrier()
        if self._world.is_main:
            values = {"state": asdict(state), "layout": self._layout}
            (partial / _STATE_FILE).write_text(json.dumps(values), encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            for step in self._steps()[: -self._keep]:
                shutil.rmtree(self._path(step))
        self._world.barrier()

    def restore(self, state: TrainerState, method: Method) -> None:
        """Load the state of the method and its models that was saved with `state`."""
        path = self._path(state.step)
        method.student.engine.load(path / "student", with_frozen=not method.student.is_adapted)
        if method.trained_teacher is not None:
            method.trained_teacher.engine.load(path / "teacher", with_frozen=False)
        state_dict = torch.load(path / f"method-{self._world.rank}.pt", weights_only=True, map_location="cpu")
        method.load_state_dict(state_dict)
        states = torch.load(path / f"random-{self._world.rank}.pt", weights_only=True)
        torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self._world.device)

    def _steps(self) -> list[int]:
        complete = (path.parent.name for path in self._directory.glob(f"*/{_STATE_FILE}"))
        names = (_STEP_NAME.fullmatch(name) for name in complete)
        return sorted(int(name[1]) for name in names if name is not None)

    def _path(self, step: int) -> Path:
        return self._directory / f"step-{step}"


def _random_states(world: World) -> dict[str, torch.Tensor]:
    # Only dropout uses these; sampling has streams of its own.
    states = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    return states


def export_student(directory: Path, method: Method) -> None:
    """Write the student (and its teacher's prompt or adapters) as a Hugging Face directory; all ranks call it together.

    A student with adapters is written merged, with the adapters beside it. Weights are gathered one by one; only
    the main rank holds all of them, in host memory.
    """
    student, world = method.student, method.world
    weights: dict[str, torch.Tensor] = {}
    for parameter in plain_parameters(student.model):
        with gathered(parameter.sources):
            if world.is_main:
                # A copy on a CPU too, where the gathered parameter is about to be partitioned.
                weights[parameter.name] = parameter.value().to("cpu", copy=True)
    writers = [] if method.trained_teacher is None else [method.trained_teacher.writer()]
    if student.is_adapted:
        writers.append(adapter_writer(student.model, folder=STUDENT_ADAPTER))
    if world.is_main:
        saved = student.model.state_dict().keys()
        weights |= {name: buffer.cpu() for name, buffer in student.model.named_buffers() if name in saved}
        partial = directory.with_name(directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _save_as_published(student.model, partial, weights=weights, published=student.published_settings)
        save_tokenizer(method.vocabulary.tokenizer, name=student.name, directory=partial)
        for write in writers:
            write(partial)
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(partial, directory)
    world.barrier()


def _save_as_published(
    model: PreTrainedModel, directory: Path, *, weights: dict[str, torch.Tensor], published: dict[str, object]
) -> None:
    """Save with the published values of the settings that training changes, such as dropout probabilities."""
    while_training = {setting: getattr(model.config, setting) for setting in published}
    try:
        for setting, value in published.items():
            setattr(model.config, setting, value)
        model.save_pretrained(directory, state_dict=weights)
    finally:
        for setting, value in while_training.items():
            setattr(model.config, setting, value)
