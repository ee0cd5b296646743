"""From a configuration to a finished run: the one place that knows how all parts fit together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import transformers

from kd.config.schema import Config
from kd.data.corpus import find_corpus, open_corpus, pack_corpus
from kd.data.encoding import Encoded, describe_duplicates, encode, find_duplicates, read_responses
from kd.data.instructions import Instruction, read_instructions
from kd.data.loader import BatchLoader
from kd.data.templates import load_template
from kd.distributed import World, end_world, start_deepspeed, start_world
from kd.errors import UserError
from kd.methods.choice import load_teacher, make_method
from kd.methods.method import Groundwork
from kd.models.student import Student
from kd.models.teacher import AdaptedTeacher, Teacher
from kd.models.vocabulary import SharedVocabulary, share_vocabulary
from kd.rollout.placement import InPlaceWeights, choose_placement
from kd.rollout.sampler import Sampler
from kd.rollout.teacher_mixed import TeacherMixedSampler
from kd.train.checkpoint import Checkpoints, StateLayout, TrainerState, export_student
from kd.train.console import RunConsole
from kd.train.metric_log import MetricLog, check_trackers
from kd.train.run_directory import LOG_FILE, prepare_run_directory
from kd.train.trainer import Trainer
from kd.train.validation import Validator, check_validation
from kd.zero.config import student_deepspeed_config, teacher_deepspeed_config, zero_stage
from kd.zero.residency import choose_gathering


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is read and checked before any weight is loaded."""

    config: Config
    vocabulary: SharedVocabulary
    train: Encoded
    validation: Encoded | None
    loader: BatchLoader
    corpus: list[Path]
    """Files of pre-training text, for methods that learn from it too."""
    notes: list[str]
    """What rows lost on the way, in one sentence each."""


def run(config: Config, *, command: Sequence[str]) -> None:
    """Train as `config` says, on all ranks that a launcher has started.

    Raises:
        UserError: on every rank alike, before anything heavy is loaded, wherever that is possible.
    """
    world = start_world()
    run_on(world, config, command=command)
    end_world()


def run_on(world: World, config: Config, *, command: Sequence[str]) -> None:
    """The same on ranks that have already met; goes on from the newest checkpoint in run.dir."""
    # Bars for loading and saving would break into the run's own progress line.
    transformers.utils.logging.disable_progress_bar()
    with world.agreed():
        inputs = read_inputs(config, world=world)
        run_dir = prepare_run_directory(inputs.config, command=command, world=world)
        layout = StateLayout(num_ranks=world.size, zero_stage=zero_stage(student_deepspeed_config(config)))
        checkpoints = Checkpoints(run_dir, keep=config.checkpoints.keep, layout=layout, world=world)
        state = checkpoints.newest() if world.is_main else TrainerState()
        num_steps = inputs.config.schedule.steps
        is_done = state.step == num_steps and (run_dir / "final").is_dir()
    # The main rank's view of the directory counts: a shared file system may show another to other hosts.
    state, is_done = world.from_main((state, is_done))
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
            checkpoints.restore(
                state, student=trainer.student, adapted_teacher=trainer.adapted_teacher, method=trainer.method
            )
            console.say(f"going on after step {state.step} of {num_steps}")
        else:
            # For dropout; after loading, which draws differently in different layouts.
            torch.manual_seed(config.run.seed + world.rank)
        state = trainer.train(state)
        if state.step == num_steps:
            console.say(f"done: the student is in {run_dir / 'final'}")


def read_inputs(config: Config, *, world: World) -> Inputs:
    """Tokenizers, model configurations and data, checked against each other.

    Raises:
        UserError: whatever of it cannot be used.
    """
    _check_batches(config, world=world)
    check_trackers(config)
    student_deepspeed_config(config)
    if config.model.teacher is not None:
        teacher_deepspeed_config(config)
    vocabulary = share_vocabulary(config)
    notes: list[str] = []
    train, instructions = _read_train(config, vocabulary=vocabulary)
    notes += train.report.lines()
    validation = None
    if config.data.validation is not None:
        rows = read_instructions(config.data.validation)
        template = load_template(config.data.template, tokenizer=vocabulary.tokenizer)
        validation = encode(
            rows, tokenizer=vocabulary.tokenizer, template=template, data=config.data, responses="required"
        )
        notes += validation.report.lines()
        check_validation(validation.examples, config=config, world=world)
        if duplicates := find_duplicates(instructions, validation=rows):
            notes.append(describe_duplicates(duplicates))
    loader = BatchLoader(
        train.examples,
        global_batch=config.schedule.global_batch,
        rank=world.rank,
        num_ranks=world.size,
        seed=config.run.seed,
    )
    if config.schedule.epochs is not None:
        steps = loader.steps_in(float(config.schedule.epochs))
        config = replace(config, schedule=replace(config.schedule, steps=steps))
        if config.schedule.warmup_steps > steps:
            raise UserError(
                f"schedule.epochs={config.schedule.epochs} are {steps} steps, fewer than"
                f" schedule.warmup_steps={config.schedule.warmup_steps}; lower the warm-up"
            )
    return Inputs(
        config=config,
        vocabulary=vocabulary,
        train=train,
        validation=validation,
        loader=loader,
        corpus=_find_corpus(config),
        notes=notes,
    )


def assemble(
    inputs: Inputs, *, run_dir: Path, checkpoints: Checkpoints, world: World, console: RunConsole, last_step: int
) -> Trainer:
    """Load the models and connect them with the method, the data and the outputs."""
    config, vocabulary = inputs.config, inputs.vocabulary
    corpus = _load_corpus(inputs, run_dir=run_dir, world=world, console=console)
    student = Student(config)
    teacher = load_teacher(config, vocabulary=vocabulary)
    adapted_teacher = teacher if isinstance(teacher, AdaptedTeacher) else None
    samples_validation = inputs.validation is not None and config.validation.generate
    samplers = _Samplers()
    engines = {"student": student.engine} | ({} if teacher is None else {"teacher": teacher.engine})
    for sentence in choose_gathering(engines, settings=config.engine, world=world):
        console.say(sentence)
    if config.samples_responses or samples_validation:
        samplers = _make_samplers(inputs, student=student, teacher=teacher, world=world, console=console)
    groundwork = Groundwork(
        config, vocabulary=vocabulary, world=world, shards_teacher=teacher is not None and teacher.runs_hooks
    )
    validator = None
    if inputs.validation is not None:
        validator = Validator(
            config,
            examples=inputs.validation.examples,
            student=student,
            sampler=samplers.plain if samples_validation else None,
            vocabulary=vocabulary,
            groundwork=groundwork,
            world=world,
        )
    return Trainer(
        config=config,
        world=world,
        run_dir=run_dir,
        student=student,
        adapted_teacher=adapted_teacher,
        method=make_method(
            config,
            student=student,
            teacher=teacher,
            sampler=samplers.mixed or samplers.plain,
            windows=inputs.loader.window,
            corpus=corpus,
            groundwork=groundwork,
        ),
        loader=inputs.loader,
        validator=validator,
        checkpoints=checkpoints,
        console=console,
        log=MetricLog(run_dir, config=config, world=world, last_step=last_step),
        export=partial(
            export_student, student=student, adapted_teacher=adapted_teacher, vocabulary=vocabulary, world=world
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Samplers:
    plain: Sampler | None = None
    mixed: Sampler | None = None
    """Of the student with the teacher's help, where the method asks for that."""


def _make_samplers(
    inputs: Inputs, *, student: Student, teacher: Teacher | None, world: World, console: RunConsole
) -> _Samplers:
    config, vocabulary = inputs.config, inputs.vocabulary
    weights, sentence = choose_placement(student, settings=config.generation, world=world)
    console.say(sentence)
    plain = Sampler(weights, settings=config.generation, vocabulary=vocabulary, world=world, say=console.say)
    if config.method != "minillm" or teacher is None or config.minillm.teacher_share == 0:
        return _Samplers(plain=plain)
    mixed = TeacherMixedSampler(
        weights,
        InPlaceWeights.of(teacher),
        teacher_share=config.minillm.teacher_share,
        settings=config.generation,
        vocabulary=vocabulary,
        world=world,
        say=console.say,
    )
    return _Samplers(plain=plain, mixed=mixed)


def _find_corpus(config: Config) -> list[Path]:
    source = config.minillm.corpus_source
    return find_corpus(source) if config.method == "minillm" and source is not None else []


def _load_corpus(inputs: Inputs, *, run_dir: Path, world: World, console: RunConsole) -> BatchLoader | None:
    """Windows of pre-training text, as many blocks as training rows in each; None where the method reads none."""
    if not inputs.corpus:
        return None
    data, schedule = inputs.config.data, inputs.config.schedule
    packed = None
    with world.agreed():
        if world.is_main:
            packed = pack_corpus(
                inputs.corpus,
                tokenizer=inputs.vocabulary.tokenizer,
                directory=run_dir,
                max_tokens=schedule.steps * schedule.global_batch * data.max_sequence_tokens,
            )
    packed = world.from_main(packed)
    assert packed is not None
    blocks = open_corpus(packed, block_tokens=data.max_sequence_tokens)
    console.say(f"{inputs.config.minillm.corpus}: {len(blocks)} blocks of {data.max_sequence_tokens} tokens")
    return BatchLoader(
        blocks, global_batch=schedule.global_batch, rank=world.rank, num_ranks=world.size, seed=inputs.config.run.seed
    )


def _read_train(config: Config, *, vocabulary: SharedVocabulary) -> tuple[Encoded, list[Instruction]]:
    if config.data.responses is not None:
        return read_responses(config.data.responses, tokenizer=vocabulary.tokenizer, data=config.data), []
    assert config.data.train is not None
    instructions = read_instructions(config.data.train)
    encoded = encode(
        instructions,
        tokenizer=vocabulary.tokenizer,
        template=load_template(config.data.template, tokenizer=vocabulary.tokenizer),
        data=config.data,
        responses="required" if config.needs_outputs else "optional",
    )
    return encoded, instructions


def _check_batches(config: Config, *, world: World) -> None:
    schedule = config.schedule
    if schedule.global_batch % (schedule.micro_batch * world.size):
        raise UserError(
            f"schedule.global_batch={schedule.global_batch} is not schedule.micro_batch={schedule.micro_batch}"
            f" × {world.size} ranks × an integer; change one of them"
        )
