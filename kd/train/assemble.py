"""From a configuration to a finished run: loads the models and connects the parts."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from kd.config.schema import Config
from kd.data.global_batch import GlobalBatcher
from kd.data.loader import BatchLoader
from kd.distributed import World
from kd.methods import find_method
from kd.methods.base import Method, MethodContext
from kd.models.handle import ModelContext, ModelHandle
from kd.models.student import Student
from kd.models.teacher import AdaptedTeacher
from kd.models.vocabulary import SharedVocabulary
from kd.rollout.placement import InPlaceWeights, choose_placement
from kd.rollout.probe import check_finite, check_numbers
from kd.rollout.sampler import Sampler
from kd.train.checkpoint import Checkpoints, TrainerState, exported_step
from kd.train.console import RunConsole
from kd.train.inputs import Inputs, read_inputs
from kd.train.lock import locked
from kd.train.metric_log import MetricLog
from kd.train.run_directory import LOG_FILE, prepare_run_directory
from kd.train.stop import StopRequest
from kd.train.trainer import Trainer
from kd.train.validation import Validator
from kd.train.watch import Watch
from kd.zero.engine import start_deepspeed
from kd.zero.recorder import Recorder
from kd.zero.residency import choose_gathering, local_values


def run_on(world: World, config: Config, *, command: Sequence[str]) -> None:
    """Train on ranks that have already met; resumes from the latest checkpoint in run.dir.

    Raises:
        RunStopped: a signal or run.max_hours has stopped the run; its state is saved.
        UserError: on every rank, if something cannot be used.
    """
    # Bars for loading and saving would interrupt the run's own progress line.
    transformers.utils.logging.disable_progress_bar()
    stop = StopRequest(max_hours=config.run.max_hours, world=world)
    with stop.listening(), ExitStack() as lock:
        with world.agreed():
            inputs = read_inputs(config, world=world)
            if world.is_main:
                lock.enter_context(locked(Path(config.run.dir), say=lambda line: print(line, flush=True)))
            run_dir = prepare_run_directory(
                inputs.config,
                contents=inputs.contents() if world.is_main else {},
                command=command,
                world=world,
                say=inputs.notes.append,
            )
        _run(inputs, run_dir=run_dir, stop=stop, world=world)


def _run(inputs: Inputs, *, run_dir: Path, stop: StopRequest, world: World) -> None:
    num_steps = inputs.config.schedule.steps
    is_done = world.from_main(world.is_main and exported_step(run_dir / "final") == num_steps)
    checkpoints = Checkpoints(run_dir, config=inputs.config, world=world)
    state = TrainerState(step=num_steps) if is_done else checkpoints.latest(say=inputs.notes.append)
    if state.best is not None and not world.from_main(world.is_main and exported_step(run_dir / "best") is not None):
        inputs.notes.append(f"{run_dir / 'best'} is damaged or missing: the next validation writes it anew")
        state = replace(state, best=None, best_step=None)
    with RunConsole(run_dir / LOG_FILE, is_main=world.is_main, num_steps=num_steps, done=state.step) as console:
        for note in inputs.notes:
            console.say(note)
        if is_done:
            console.say(f"{run_dir}: all {num_steps} steps are done; the student is in {run_dir / 'final'}")
            return
        start_deepspeed()
        trainer = assemble(
            inputs, run_dir=run_dir, checkpoints=checkpoints, world=world, console=console, last_step=state.step
        )
        if state.step:
            checkpoints.restore(state, trainer.method)
            console.say(f"resuming after step {state.step} of {num_steps}")
        else:
            # For dropout; after loading, which draws differently in different layouts.
            torch.manual_seed(inputs.config.run.seed + world.rank)
        trainer.train(state, stop=stop)
        console.say(f"done: the student is in {run_dir / 'final'}")


def build_method(
    config: Config,
    *,
    vocabulary: SharedVocabulary,
    loader: BatchLoader,
    run_dir: Path,
    world: World,
    say: Callable[[str], None],
) -> tuple[Method, Sampler | None]:
    """Load the models and create the method; all ranks call it together.

    Returns:
        The method, and what rolls out its student, for the method or for validation.

    Raises:
        UserError: a checkpoint, a DeepSpeed JSON or a rollout layout cannot be used.
    """
    method, recorder = find_method(config.method), Recorder(world.device)
    needs = method.needs(config)
    shared = ModelContext(config=config, vocabulary=vocabulary, recorder=recorder)
    student = Student(shared)
    teacher = method.load_teacher(shared) if needs.teacher else None
    # The teacher first: it runs most passes of a step, and in MiniLLM's rollouts one for each token.
    engines = ({} if teacher is None else {"teacher": teacher.engine}) | {"student": student.engine}
    for sentence in choose_gathering(engines, settings=config.engine, world=world):
        say(sentence)
    _check_numbers(student, teacher, config=config, world=world)
    _share_memory(student, teacher)
    rolls_out = needs.rollouts and config.data.responses is None
    sampler = None
    if rolls_out or config.samples_validation:
        reserved_bytes = sum(engine.reserved_bytes for engine in engines.values())
        placement, sentence = choose_placement(
            student, settings=config.generation, world=world, reserved_bytes=reserved_bytes
        )
        say(sentence)
        sampler = Sampler(placement, settings=config.generation, vocabulary=vocabulary, world=world, say=say)
    is_collective = teacher is not None and teacher.engine.is_collective
    batcher = GlobalBatcher(
        micro_batch=config.schedule.micro_batch,
        micro_tokens=config.schedule.micro_tokens,
        packs=config.schedule.packing,
        inference_batch_tokens=config.engine.inference_batch_tokens if is_collective else None,
        pad_id=vocabulary.pad_id,
        world=world,
    )
    context = MethodContext(
        config=config,
        world=world,
        student=student,
        teacher=teacher,
        sampler=sampler if rolls_out else None,
        loader=loader,
        batcher=batcher,
        vocabulary=vocabulary,
        recorder=recorder,
        run_dir=run_dir,
        say=say,
    )
    return method.create(context), sampler


def assemble(
    inputs: Inputs, *, run_dir: Path, checkpoints: Checkpoints, world: World, console: RunConsole, last_step: int
) -> Trainer:
    """Connect the method with the data and the run directory."""
    config = inputs.config
    method, sampler = build_method(
        config, vocabulary=inputs.vocabulary, loader=inputs.loader, run_dir=run_dir, world=world, say=console.say
    )
    validator = None
    if inputs.validation is not None:
        sampler = sampler if config.samples_validation else None
        validator = Validator(inputs.validation.examples, method=method, sampler=sampler)
    return Trainer(
        run_dir=run_dir,
        method=method,
        loader=inputs.loader,
        validator=validator,
        checkpoints=checkpoints,
        console=console,
        log=MetricLog(run_dir, config=config, world=world, last_step=last_step),
        watch=Watch(run_dir, config=config, rolls_out=method.rolls_out, world=world),
    )


def _check_numbers(student: Student, teacher: ModelHandle | None, *, config: Config, world: World) -> None:
    """Refuse models that would train or roll out wrongly; all ranks call it together."""
    method = find_method(config.method)
    rolls_out = method.needs(config).rollouts or config.samples_validation
    for handle, name, decodes in (
        (student, config.model.student, rolls_out),
        (teacher, str(config.model.teacher), method.decodes_with_teacher(config)),
    ):
        if handle is None:
            continue
        check_finite(handle.model, name=name, world=world, values=local_values)
        with InPlaceWeights(handle).ready() as view:
            check_numbers(
                view,
                head=handle.current_head(),
                name=name,
                decodes=decodes,
                packs=config.schedule.packing,
                world=world,
            )
        handle.release()


def _share_memory(student: Student, teacher: ModelHandle | None) -> None:
    """Release one model's gathered parameters before the other one's backward pass."""
    if teacher is None:
        return
    student.before_backward(teacher.release)
    if isinstance(teacher, AdaptedTeacher):
        # The student is trained after the teacher: one that is gathered once for the global batch stays gathered.
        teacher.before_backward(student.pause)
