"""How far a student is from its teacher on fixed sequences, per response token.

python -m evaluation.divergence --teacher DIR --student DIR [--soft-prompt FILE] --data FILE --rows 64

The sequences are the rows' references, or with --responses a file of prompts and responses (such as the
generations of evaluate.py). Nothing is sampled, so two students can be compared on the same positions. An empty
response that ended is its end token alone; one that did not end has no token, and is left out.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedTokenizerBase

from evaluation.command_options import CommandParser, at_least, file_path
from evaluation.intervals import defined
from evaluation.limits import row_limits
from evaluation.model import EvaluatedModel, check_positions, load_model
from evaluation.ranks import run_on_ranks
from evaluation.results import write_results
from kd.data.batch import SequenceBatch, TokenSequence, cut_micro_batches
from kd.data.encoding import Encoded, encode, read_responses
from kd.data.instructions import read_instructions
from kd.data.templates import load_template
from kd.distributed import World
from kd.errors import UserError
from kd.losses.divergences import forward_kl, reverse_kl
from kd.losses.fused import chunk_rows, fused_loss
from kd.losses.likelihood import LikelihoodTerm
from kd.losses.terms import DivergenceTerm, Projection, Term
from kd.models.causal_lm import read_model_config
from kd.models.soft_prompt import SoftPrompt, load_soft_prompt
from kd.models.vocabulary import check_same_entries, load_tokenizer, vocabulary_size


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Means over all response tokens [nats]."""

    reverse_kl: float
    """KL(q‖p), what the student's training minimises (Eq. 4)."""
    forward_kl: float
    """KL(p‖q)."""
    student_cross_entropy: float
    """-log q of the sequences themselves."""
    num_sequences: int
    num_tokens: int


@torch.no_grad()
def measure_distance(
    teacher: EvaluatedModel,
    student: EvaluatedModel,
    sequences: Sequence[TokenSequence],
    *,
    micro_batch: int,
    world: World,
) -> Distance:
    """Mean divergences between q and p (with P in front where the teacher has one) over the response tokens.

    All ranks call it together, and get the same.
    """
    vocabulary = vocabulary_size(student.tokenizer)
    # Two divergences and a cross entropy, and how many tokens they are of.
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    for rows in cut_micro_batches(sequences, micro_batch=micro_batch)[world.rank :: world.size]:
        batch = SequenceBatch.collate(rows, pad_id=int(student.tokenizer.eos_token_id), device=world.device)
        target = _projection(teacher, batch)
        terms: list[Term] = [
            DivergenceTerm(divergence=reverse_kl, target=target),
            DivergenceTerm(divergence=forward_kl, target=target),
            LikelihoodTerm(labels=batch.labels),
        ]
        trained, chunk = _projection(student, batch), chunk_rows(vocabulary)
        sums[:3] += fused_loss(trained, terms, vocabulary_size=vocabulary, scale=1.0, chunk_size=chunk).term_sums
        sums[3] += batch.num_response_tokens
    reverse, forward, cross_entropy, num_tokens = world.sum_across_ranks(sums).tolist()
    return Distance(
        reverse_kl=reverse / num_tokens,
        forward_kl=forward / num_tokens,
        student_cross_entropy=cross_entropy / num_tokens,
        num_sequences=len(sequences),
        num_tokens=int(num_tokens),
    )


def _projection(model: EvaluatedModel, batch: SequenceBatch) -> Projection:
    return Projection(hidden=model.response_states(batch), weight=model.view.head_weight, bias=model.view.head_bias)


def _read(arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    limits = row_limits(
        template=arguments.template,
        max_prompt_tokens=arguments.max_prompt_tokens,
        max_sequence_tokens=arguments.max_sequence_tokens,
    )
    if arguments.responses is not None:
        return read_responses(arguments.responses, tokenizer=tokenizer, data=limits, blank="allowed")
    template = load_template(limits.template, tokenizer=tokenizer)
    rows = read_instructions(arguments.data)
    return encode(rows, tokenizer=tokenizer, template=template, data=limits, responses="required")


def _sequences(encoded: Encoded) -> list[TokenSequence]:
    """The rows that have a response token.

    Raises:
        UserError: none has.
    """
    every = (example.with_response() for example in encoded.examples)
    sequences = [sequence for sequence in every if len(sequence.response_ids)]
    if not sequences:
        raise UserError(f"{encoded.report.name}: no row has a response token to measure on; give other rows")
    return sequences


def measure(arguments: argparse.Namespace, *, world: World) -> Distance:
    """Load both models in fp32 and measure; all ranks call it together.

    Raises:
        UserError: on every rank, if what the arguments name cannot be used together.
    """
    trust = arguments.trust_remote_code
    with world.agreed():
        tokenizer = load_tokenizer(arguments.student, trust_remote_code=trust)
        check_same_entries(tokenizer, load_tokenizer(arguments.teacher, trust_remote_code=trust))
        encoded = _read(arguments, tokenizer)
        soft_prompt = None if arguments.soft_prompt is None else load_soft_prompt(arguments.soft_prompt)[0]
        filled = _sequences(encoded)
        sequences = filled[: arguments.rows]
        longest = max(sequence.num_tokens for sequence in sequences)

        def load(name: str, prompt: SoftPrompt | None) -> EvaluatedModel:
            config = read_model_config(name, trust_remote_code=trust)
            check_positions(config, name=name, longest=longest + (0 if prompt is None else prompt.num_tokens))
            return load_model(
                name,
                config=config,
                soft_prompt=prompt,
                tokenizer=tokenizer,
                dtype="fp32",
                trust_remote_code=trust,
                world=world,
            )

        teacher, student = load(arguments.teacher, soft_prompt), load(arguments.student, None)
    if world.is_main:
        for line in encoded.report.lines():
            print(line, file=sys.stderr)
        if num_empty := len(encoded.examples) - len(filled):
            everyone = len(encoded.examples)
            print(f"{encoded.report.name}: left out {num_empty} of {everyone} rows: no response token", file=sys.stderr)
    return measure_distance(teacher, student, sequences, micro_batch=arguments.micro_batch, world=world)


def _report(arguments: argparse.Namespace, *, world: World) -> None:
    distance = measure(arguments, world=world)
    with world.agreed():
        if world.is_main and arguments.out is not None:
            values = asdict(distance)
            write_results(
                arguments.out,
                {name: defined(value) if isinstance(value, float) else value for name, value in values.items()},
            )
    if world.is_main:
        print(
            f"KL(q||p) {distance.reverse_kl:.4f}   KL(p||q) {distance.forward_kl:.4f}   student's cross entropy"
            f" {distance.student_cross_entropy:.4f} nats per token"
            f" ({distance.num_sequences} sequences, {distance.num_tokens} tokens)"
        )


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line (`sys.argv` if None).

    Raises:
        UserError: an option that is unknown, missing or out of range.
    """
    parser = CommandParser(
        prog="python -m evaluation.divergence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--teacher", required=True, metavar="DIR", help="p: from_pretrained directory or hub name")
    add("--student", required=True, metavar="DIR", help="q: from_pretrained directory or hub name")
    add("--soft-prompt", metavar="FILE", help="put this soft prompt in front of the teacher's input")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="FILE", help="rows whose references are the sequences")
    source.add_argument("--responses", metavar="FILE", help="JSON lines prompt, response, ended")
    add("--rows", type=at_least(1), default=64, metavar="N", help="the first so many rows [%(default)s]")
    add("--template", default="alpaca", help="as data.template [%(default)s]")
    add("--max-prompt-tokens", type=at_least(1), default=256, metavar="N", help="[%(default)s]")
    add("--max-sequence-tokens", type=at_least(2), default=512, metavar="N", help="[%(default)s]")
    add("--micro-batch", type=at_least(1), default=8, metavar="N", help="sequences in one forward pass [%(default)s]")
    add("--trust-remote-code", action="store_true", help="allow code that comes with a checkpoint")
    add("--out", type=file_path, metavar="FILE", help="also write the numbers as JSON")
    # DeepSpeed's launcher passes it; ranks are read from the environment.
    add("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code."""
    return run_on_ranks(lambda: parse_options(argv), lambda arguments, world: _report(arguments, world=world))


if __name__ == "__main__":
    sys.exit(main())
