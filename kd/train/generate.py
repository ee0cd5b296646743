"""The teacher's responses to all training rows, from a configuration to the file from which method=seqkd learns."""

from pathlib import Path

import transformers

from kd.config.schema import Config
from kd.data.encoding import Encoded, encode
from kd.data.instructions import read_instructions
from kd.data.templates import load_template
from kd.distributed import World
from kd.errors import UserError
from kd.models.vocabulary import SharedVocabulary, share_vocabulary
from kd.train.response_file import ResponseFile, write_responses
from kd.zero.config import teacher_deepspeed_config
from kd.zero.engine import start_deepspeed


def check_responses(config: Config) -> Path:
    """Check that the configuration asks for responses, and return the file that they go to.

    Raises:
        UserError: another method, no training rows, or responses longer than training would read.
    """
    if config.method != "seqkd":
        raise UserError(
            f"method is {config.method}; promptkd generate writes the responses that method=seqkd learns from"
        )
    if config.data.train is None:
        raise UserError("set data.train, the rows that the teacher responds to")
    config.check_response_room()
    assert config.data.responses is not None, "method=seqkd requires it"
    return Path(config.data.responses)


def run_on(world: World, config: Config) -> None:
    """Write the responses on all ranks of `world` together, or complete an interrupted file.

    Raises:
        UserError: on every rank alike, before the teacher is loaded, wherever that is possible.
    """
    # Bars for loading would interrupt the lines of progress.
    transformers.utils.logging.disable_progress_bar()
    file = ResponseFile(config, rank=world.rank)
    with world.agreed():
        teacher_deepspeed_config(config)
        vocabulary = share_vocabulary(config)
        encoded = _read_rows(config, vocabulary=vocabulary)
        if world.is_main:
            file.begin()

    def say(line: str) -> None:
        if world.is_main:
            print(line, flush=True)

    if world.from_main(file.is_complete):
        say(f"{config.data.responses}: is complete")
        return
    for line in encoded.report.lines():
        say(line)
    start_deepspeed()
    write_responses(config, encoded.examples, file=file, vocabulary=vocabulary, world=world, say=say)
    say(f"{config.data.responses}: the teacher's responses; train with method=seqkd and this configuration")


def _read_rows(config: Config, *, vocabulary: SharedVocabulary) -> Encoded:
    assert config.data.train is not None
    template = load_template(config.data.template, tokenizer=vocabulary.tokenizer)
    return encode(
        read_instructions(config.data.train),
        tokenizer=vocabulary.tokenizer,
        template=template,
        data=config.data,
        responses="optional",
    )
