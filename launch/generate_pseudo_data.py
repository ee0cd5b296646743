"""Write the teacher's responses for SeqKD: deepspeed launch/generate_pseudo_data.py --config FILE [s.field=value …]

Answers every request of data.train, seqkd.samples times each, and writes data.responses, from which method=seqkd
learns: one configuration serves both. The same command goes on after an interruption.
"""

import argparse
import sys
from collections.abc import Sequence

import transformers

from kd.config.load import read_config
from kd.config.schema import Config
from kd.data.encoding import Encoded, encode
from kd.data.instructions import read_instructions
from kd.data.templates import load_template
from kd.distributed import World, end_world, exit_with_user_error, start_deepspeed, start_world
from kd.errors import UserError
from kd.models.vocabulary import SharedVocabulary, share_vocabulary
from kd.train.response_file import ResponseFile, write_responses
from kd.zero.config import teacher_deepspeed_config


def main(argv: Sequence[str] | None = None) -> int:
    """Read the configuration, write the responses, and return the exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        config = read_config(arguments.config, overrides=arguments.overrides)
        check(config)
        world = start_world()
        run_on(world, config)
        end_world()
    except UserError as error:
        return exit_with_user_error(error)
    return 0


def check(config: Config) -> None:
    """Check that the configuration asks for responses.

    Raises:
        UserError: another method, no requests, or responses longer than training would read.
    """
    if config.method != "seqkd":
        raise UserError(f"method is {config.method}; generate_pseudo_data.py writes what method=seqkd learns from")
    if config.data.train is None:
        raise UserError("set data.train, the requests that the teacher shall answer")
    longest = config.data.max_prompt_tokens + config.generation.max_new_tokens
    if longest > config.data.max_sequence_tokens:
        raise UserError(
            f"data.max_prompt_tokens + generation.max_new_tokens is {longest}, more than"
            f" data.max_sequence_tokens={config.data.max_sequence_tokens}; lower one or raise the last"
        )


def run_on(world: World, config: Config) -> None:
    """Write the responses on ranks that have already met.

    Raises:
        UserError: on every rank alike, before the teacher is loaded, wherever that is possible.
    """
    transformers.utils.logging.disable_progress_bar()
    file = ResponseFile(config, rank=world.rank)
    with world.agreed():
        teacher_deepspeed_config(config)
        vocabulary = share_vocabulary(config)
        encoded = _read_requests(config, vocabulary=vocabulary)
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


def _read_requests(config: Config, *, vocabulary: SharedVocabulary) -> Encoded:
    assert config.data.train is not None
    template = load_template(config.data.template, tokenizer=vocabulary.tokenizer)
    return encode(
        read_instructions(config.data.train),
        tokenizer=vocabulary.tokenizer,
        template=template,
        data=config.data,
        responses="optional",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of the SeqKD run")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="fields that differ from the file")
    # DeepSpeed's launcher passes it; ranks are read from the environment.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
