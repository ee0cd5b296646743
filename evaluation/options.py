"""The command line of `evaluation/evaluate.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluation.command_options import (
    CommandParser,
    DtypeName,
    Named,
    add_model_options,
    at_least,
    check_different,
    named,
    positive,
    probability,
    seed_list,
    share,
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to evaluate, how to decode, and where to write; each field is an option of the same name."""

    model: str
    soft_prompt: Path | None
    benchmarks: tuple[Named, ...]
    seeds: tuple[int, ...]
    max_new_tokens: int
    max_prompt_tokens: int
    template: str
    overlong: Literal["drop", "truncate"]
    greedy: bool
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    max_batch_tokens: int
    dtype: DtypeName
    trust_remote_code: bool
    rows: int | None
    out: Path


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """Read the command line (`sys.argv` if None).

    Raises:
        UserError: an option that is unknown, missing or out of range, or a benchmark named twice.
    """
    values = vars(_parser().parse_args(argv))
    del values["local_rank"]
    options = Options(**values | {"benchmarks": tuple(values["benchmarks"])})
    check_different("--benchmark", [benchmark.name for benchmark in options.benchmarks])
    return options


def _parser() -> CommandParser:
    parser = CommandParser(prog="evaluate.py", description="Sample a model's responses to benchmarks and score them.")
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="from_pretrained directory or hub name")
    add(
        "--soft-prompt", type=Path, metavar="FILE", help="soft_prompt.safetensors of a run; --model is then its teacher"
    )
    add(
        "--benchmark",
        dest="benchmarks",
        action="append",
        required=True,
        type=named,
        metavar="NAME=FILE",
        help="rows instruction, input, output (.jsonl, .json, .parquet, or a hub name); repeat it for more",
    )
    add(
        "--out", type=Path, required=True, metavar="DIR", help="gets generations/<name>/seed-<s>.jsonl and results.json"
    )
    add("--seeds", type=seed_list, default="10,20,30,40,50", metavar="A,B,…", help="seeds of the samples [%(default)s]")
    add("--rows", type=at_least(1), metavar="N", help="only the first N rows of each benchmark [all]")
    add("--max-new-tokens", type=at_least(1), default=256, metavar="N", help="longest response [%(default)s]")
    add("--max-prompt-tokens", type=at_least(1), default=256, metavar="N", help="longest prompt [%(default)s]")
    add("--overlong", choices=["drop", "truncate"], default="drop", help="rows with longer prompts [%(default)s]")
    add("--template", default="alpaca", help="alpaca, chat, or a Jinja file [%(default)s]")
    add("--greedy", action="store_true", help="take the most likely token; all seeds then agree")
    add("--temperature", type=positive, default=1.0, metavar="X", help="divides the logits [%(default)s]")
    add("--top-p", type=probability, default=1.0, metavar="X", help="smallest set with this probability; 1 is off")
    add("--top-k", type=at_least(0), default=0, metavar="N", help="the N most likely tokens; 0 is off")
    add("--min-p", type=share, default=0.0, metavar="X", help="least share of the largest probability; 0 is off")
    add("--repetition-penalty", type=positive, default=1.0, metavar="X", help="on tokens that were there; 1 is off")
    add("--no-repeat-ngram-size", type=at_least(0), default=0, metavar="N", help="no N tokens twice; 0 is off")
    add_model_options(parser)
    return parser
