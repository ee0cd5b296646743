"""What a run reads and checks before any weights are loaded."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from kd.config.schema import Config
from kd.data.encoding import Encoded, describe_duplicates, encode, find_duplicates, read_responses
from kd.data.instructions import Instruction, read_rows_of
from kd.data.loader import BatchLoader
from kd.data.templates import template_of
from kd.distributed import World
from kd.errors import UserError
from kd.methods import find_method
from kd.models.adapter_folder import describe_adapter
from kd.models.vocabulary import SharedVocabulary, share_vocabulary
from kd.text_metrics import describe_unread
from kd.train.metric_log import check_trackers
from kd.train.validation import check_validation
from kd.zero.config import student_deepspeed_config, teacher_deepspeed_config


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is read and checked before any weights are loaded."""

    config: Config
    vocabulary: SharedVocabulary
    train: Encoded
    validation: Encoded | None
    loader: BatchLoader
    notes: list[str]
    """Rows that were dropped or truncated, one sentence for each reason."""

    def contents(self) -> dict[str, str]:
        """Checksums of what the run learns from, since a file may change under its name."""
        sources = {"data.responses" if self.config.data.responses is not None else "data.train": self.train}
        if self.validation is not None:
            sources["data.validation"] = self.validation
        texts = {name: encoded.text_checksum() for name, encoded in sources.items()}
        tokens = {f"the tokens of {name}": encoded.token_checksum() for name, encoded in sources.items()}
        return texts | tokens


def read_inputs(config: Config, *, world: World) -> Inputs:
    """Read tokenizers, model configurations and data, and check them against each other.

    Raises:
        UserError: the first of them that cannot be used.
    """
    method = find_method(config.method)
    check_trackers(config)
    student_deepspeed_config(config)
    if config.model.teacher is not None:
        teacher_deepspeed_config(config)
    vocabulary = share_vocabulary(config, teacher_slots=method.teacher_slots(config))
    method.check_files(config)
    adapters = [*describe_adapter(config.model.student), *describe_adapter(config.model.teacher)]
    notes = [*adapters, vocabulary.describe_ends()]
    references = method.needs(config).references
    train, instructions = _read_train(config, vocabulary=vocabulary, references=references, say=notes.append)
    notes += train.report.lines()
    validation = None
    if config.data.validation is not None:
        rows = read_rows_of(config.data.validation, config.data, say=notes.append)
        template = template_of(config.data, tokenizer=vocabulary.tokenizer)
        validation = encode(
            rows, tokenizer=vocabulary.tokenizer, template=template, data=config.data, responses="required"
        )
        notes += validation.report.lines()
        check_validation(validation.examples, config=config, world=world)
        unread = describe_unread(example.references for example in validation.examples[: config.validation.rows])
        if unread is not None and config.validation.generate:
            notes.append(unread)
        if duplicates := find_duplicates(instructions, validation=rows):
            notes.append(describe_duplicates(duplicates))
    loader = _make_loader(train, config=config, world=world)
    if config.schedule.epochs is not None:
        steps = loader.steps_in(float(config.schedule.epochs))
        config = replace(config, schedule=replace(config.schedule, steps=steps))
        if config.schedule.warmup_steps > steps:
            raise UserError(
                f"schedule.epochs={config.schedule.epochs} are {steps} steps, fewer than"
                f" schedule.warmup_steps={config.schedule.warmup_steps}; lower the warm-up"
            )
    return Inputs(config=config, vocabulary=vocabulary, train=train, validation=validation, loader=loader, notes=notes)


def _make_loader(train: Encoded, *, config: Config, world: World) -> BatchLoader:
    schedule = config.schedule
    if not schedule.divides(num_ranks=world.size):
        raise UserError(schedule.refusal(num_ranks=world.size))
    return BatchLoader(
        train.examples, global_batch=schedule.global_batch, rank=world.rank, num_ranks=world.size, seed=config.run.seed
    )


def _read_train(
    config: Config, *, vocabulary: SharedVocabulary, references: bool, say: Callable[[str], None]
) -> tuple[Encoded, list[Instruction]]:
    if config.data.responses is not None:
        return read_responses(config.data.responses, tokenizer=vocabulary.tokenizer, data=config.data), []
    assert config.data.train is not None
    instructions = read_rows_of(config.data.train, config.data, say=say)
    encoded = encode(
        instructions,
        tokenizer=vocabulary.tokenizer,
        template=template_of(config.data, tokenizer=vocabulary.tokenizer, say=say),
        data=config.data,
        responses="required" if references else "optional",
    )
    return encoded, instructions
