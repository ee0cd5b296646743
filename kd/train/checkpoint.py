"""Checkpoints to resume from, and exports of the student for `from_pretrained`."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from kd.config.schema import Config
from kd.distributed import World
from kd.errors import LoneUserError, UserError
from kd.manifest import DamageError, list_files, publish, read_manifest, retire, store_files, verify
from kd.methods.base import Method
from kd.models.lora import adapter_writer, plain_parameters
from kd.models.student import STUDENT_ADAPTER
from kd.models.vocabulary import save_tokenizer
from kd.zero.config import student_deepspeed_config, zero_stage
from kd.zero.residency import gathered

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

    def latest(self, *, say: Callable[[str], None]) -> TrainerState:
        """State of the latest checkpoint that is whole, or of a run that has not begun; all ranks call it together.

        Each rank verifies its share of the files. A damaged checkpoint is renamed, and the one before it used: `say`
        receives a line.

        Raises:
            UserError: it was written by another number of ranks, or with another ZeRO stage; or all are damaged.
        """
        # The main rank's view decides: a shared file system may differ on other hosts.
        steps = self._world.from_main(self._steps())
        for step in reversed(steps):
            path = self._path(step)
            damage = self._find_damage(step)
            found = next((text for text in self._world.gather_objects(damage) if text is not None), None)
            if found is None:
                return self._read_state(path)
            say(f"{path} is damaged: {found}; it is renamed to {_damaged(path).name}")
            if self._world.is_main:
                shutil.rmtree(_damaged(path), ignore_errors=True)
                os.replace(path, _damaged(path))
        if steps:
            raise UserError(
                f"{self._directory}: no checkpoint is whole; restore one from a copy, or remove the directory to train"
                " from the beginning"
            )
        return TrainerState()

    def _find_damage(self, step: int) -> str | None:
        try:
            manifest = verify(self._path(step), rank=self._world.rank, num_ranks=self._world.size)
        except DamageError as error:
            return str(error)
        written = manifest.facts["state"]["step"]
        return None if written == step else f"it is the checkpoint after step {written}"

    def _read_state(self, path: Path) -> TrainerState:
        facts = self._world.from_main(read_manifest(path).facts)
        if (written := facts["layout"]) != self._layout:
            then, now = (", ".join(f"{k}={v}" for k, v in layout.items()) for layout in (written, self._layout))
            raise UserError(f"{path}: was written with {then}; now {now}: use the same, or choose another run.dir")
        return TrainerState(**facts["state"])

    def save(self, state: TrainerState, method: Method) -> None:
        """Write all state of a run; an interrupted write leaves the older checkpoints intact."""
        final, partial = self._path(state.step), self._directory / f"step-{state.step}.partial"
        with _written(partial):
            if self._world.is_main:
                for interrupted in self._directory.glob("*.partial"):
                    shutil.rmtree(interrupted)
                partial.mkdir(parents=True)
            self._world.barrier()
            method.student.engine.save(partial / "student", with_frozen=not method.student.is_adapted)
            if method.trained_teacher is not None:
                method.trained_teacher.engine.save(partial / "teacher", with_frozen=False)
            torch.save(_random_states(self._world), partial / f"random-{self._world.rank}.pt")
            torch.save(method.state_dict(), partial / f"method-{self._world.rank}.pt")
            self._world.barrier()
            names = self._world.from_main(list_files(partial))
            shares = self._world.gather_objects(store_files(partial, names[self._world.rank :: self._world.size]))
            if self._world.is_main:
                files = {name: file for share in shares for name, file in share.items()}
                publish(partial, final, files=files, state=asdict(state), layout=self._layout)
                for step in self._steps()[: -self._keep]:
                    retire(self._path(step))
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
        names = (_STEP_NAME.fullmatch(path.name) for path in self._directory.glob("step-*"))
        return sorted(int(name[1]) for name in names if name is not None)

    def _path(self, step: int) -> Path:
        return self._directory / f"step-{step}"


def _damaged(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")


@contextmanager
def _written(partial: Path) -> Iterator[None]:
    """Name the reason if a directory cannot be written, on the rank that notices: the others may wait for it.

    Raises:
        LoneUserError: the disk is full, or the directory is gone.
    """
    try:
        yield
    # torch's writer of archives raises RuntimeError.
    except (OSError, RuntimeError) as error:
        if not partial.parent.is_dir() or isinstance(error, OSError) or "inline_container" in str(error):
            reason = error.strerror if isinstance(error, OSError) else "the file system is full or gone"
            raise LoneUserError(
                f"{partial}: cannot be written ({reason}); make room, then start the same command: it resumes from the"
                " latest complete checkpoint"
            ) from None
        raise


def _random_states(world: World) -> dict[str, torch.Tensor]:
    # Only dropout uses these; sampling has streams of its own.
    states = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(world.device)
    return states


def export_student(directory: Path, method: Method, *, step: int) -> None:
    """Write the student after `step` (and its teacher's prompt or adapters) as a Hugging Face directory.

    All ranks call it together.

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
        with _written(partial):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _save_as_published(student.model, partial, weights=weights, published=student.published_settings)
            save_tokenizer(method.vocabulary.tokenizer, name=student.name, directory=partial)
            for write in writers:
                write(partial)
            files = store_files(partial, list_files(partial))
            publish(partial, directory, files=files, step=step)
    world.barrier()


def exported_step(directory: Path) -> int | None:
    """The step after which an export was written; None if it is missing or damaged."""
    try:
        return int(verify(directory).facts["step"])
    except DamageError:
        return None


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
