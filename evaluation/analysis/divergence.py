"""How far a student is from its teacher on fixed sequences, per response token.

python -m evaluation.analysis.divergence --teacher DIR --student DIR [--soft-prompt FILE] --data FILE --rows 64

The sequences are the rows' references, or with --responses a file of prompts and responses (such as those of
evaluate.py). Nothing is sampled, so two students can be compared on the same positions. An empty response that ended
is its end token alone; one that did not end has no token, and is left out.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from evaluation.analysis.tokens import score_tokens
from evaluation.command import Command
from evaluation.examples import print_report, read_examples, row_limits
from evaluation.models import find_models
from evaluation.results import write_json
from evaluation.settings import RUN_HELP, DtypeName, Loading, Prompts, run_values
from evaluation.statistics import finite
from kd.config.fields import Count, Section, option, required
from kd.data.batch import TokenSequence
from kd.data.encoding import read_responses
from kd.distributed import World
from kd.errors import UserError
from kd.losses.divergences import forward_kl, reverse_kl
from kd.models.soft_prompt import load_soft_prompt
from kd.models.vocabulary import load_tokenizer

_MEANS = ("reverse_kl", "forward_kl", "student_cross_entropy")


@dataclass(frozen=True, kw_only=True)
class ModelSection(Loading):
    teacher: str = required(help="p: from_pretrained directory or hub name")
    student: str = required(help="q: from_pretrained directory or hub name")
    soft_prompt: Path | None = option(None, help="soft prompt in front of the teacher's input")
    dtype: DtypeName = option("fp32", help="precision; auto is the checkpoint's own")


@dataclass(frozen=True, kw_only=True)
class DataSection(Prompts):
    file: str | None = option(None, help="rows whose references are the sequences")
    responses: Path | None = option(None, help="instead: JSON lines prompt, response, ended")
    rows: Count = option(64, help="number of sequences, from the start")
    max_sequence_tokens: Count = option(512, help="longest prompt and response together")

    def __post_init__(self) -> None:
        if (self.file is None) == (self.responses is None):
            raise UserError("give exactly one of data.file and data.responses (--data, --responses)")


@dataclass(frozen=True, kw_only=True)
class DivergenceConfig(Section):
    run: Path | None = option(None, help=RUN_HELP)
    model: ModelSection
    data: DataSection
    micro_batch: Count = option(8, help="sequences in one forward pass")
    out: Path | None = option(None, help="also write the numbers to this JSON file")

    def __post_init__(self) -> None:
        if self.out is not None and self.out.is_dir():
            raise UserError(f"out {self.out}: is a directory; give the path of a file")


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


COMMAND = Command(
    config=DivergenceConfig,
    program="python -m evaluation.analysis.divergence",
    description=__doc__,
    flags={"data.file": "--data"},
    run_values=run_values,
)


def measure(config: DivergenceConfig, *, world: World) -> Distance:
    """Mean divergences between q and p (with P in front where the teacher has one); all ranks call it together.

    Raises:
        UserError: on every rank, if the inputs cannot be used together.
    """
    with world.agreed():
        models = find_models([config.model.teacher, config.model.student], loading=config.model, world=world)
        sequences = _read(config, world=world)
        prompt = None if config.model.soft_prompt is None else load_soft_prompt(config.model.soft_prompt)[0]
        longest = max(sequence.num_tokens for sequence in sequences)
        models.check_lengths(longest + (0 if prompt is None else prompt.num_tokens))
    scores = score_tokens(
        models.load(config.model.student, decodes=False),
        [models.load(config.model.teacher, soft_prompt=prompt, decodes=False)],
        sequences,
        divergences=[reverse_kl, forward_kl],
        micro_batch=config.micro_batch,
        label="divergence",
    )
    reverse, forward = np.concatenate([one.divergences[0] for one in scores], axis=1).mean(axis=1).tolist()
    cross_entropy = np.concatenate([one.cross_entropy for one in scores])
    return Distance(
        reverse_kl=reverse,
        forward_kl=forward,
        student_cross_entropy=float(cross_entropy.mean()),
        num_sequences=len(sequences),
        num_tokens=len(cross_entropy),
    )


def _read(config: DivergenceConfig, *, world: World) -> list[TokenSequence]:
    """The sequences that have a response token; the main rank reports what is left out."""
    data = config.data
    tokenizer = load_tokenizer(config.model.student, trust_remote_code=config.model.trust_remote_code)
    limit = data.max_sequence_tokens
    if data.responses is not None:
        limits = row_limits(data, max_sequence_tokens=limit)
        encoded = read_responses(str(data.responses), tokenizer=tokenizer, data=limits, blank="allowed")
    else:
        assert data.file is not None
        encoded = read_examples(
            data.file, tokenizer=tokenizer, prompts=data, max_sequence_tokens=limit, responses="required"
        )
    name, every = encoded.report.name, [example.with_response() for example in encoded.examples]
    sequences = [sequence for sequence in every if len(sequence.response_ids)]
    if not sequences:
        raise UserError(f"{name}: no row has a response token to measure on; give other rows")
    if world.is_main:
        print_report(encoded)
        if num_empty := len(every) - len(sequences):
            print(f"{name}: left out {num_empty} of {len(every)} rows: no response token", file=sys.stderr)
    return sequences[: data.rows]


def _report(config: DivergenceConfig, *, world: World) -> None:
    distance = measure(config, world=world)
    with world.agreed():
        if world.is_main and config.out is not None:
            values = asdict(distance)
            write_json(config.out, values | {name: finite(values[name]) for name in _MEANS})
    if world.is_main:
        print(
            f"KL(q||p) {distance.reverse_kl:.4f}   KL(p||q) {distance.forward_kl:.4f}   student's cross entropy"
            f" {distance.student_cross_entropy:.4f} nats per token"
            f" ({distance.num_sequences} sequences, {distance.num_tokens} tokens)"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit code."""
    return COMMAND.run_on_ranks(lambda config, world: _report(config, world=world), argv)


if __name__ == "__main__":
    sys.exit(main())
