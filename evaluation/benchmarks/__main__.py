"""The instruction sets of the paper's Table 1, converted from the files their authors published.

python -m evaluation.benchmarks list
python -m evaluation.benchmarks prepare --name s_ni --source DIR --tokenizer DIR --out s_ni.jsonl

What `prepare` writes is a benchmark for evaluate.py, as is any other file of rows.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from evaluation.benchmarks.formats import Original
from evaluation.benchmarks.preparation import check_counts_as_published, prepare, sample, write_rows
from evaluation.benchmarks.specs import SPECS, BenchmarkSpec, TokenRange
from evaluation.command_options import CommandParser, at_least, file_path, run_command
from evaluation.terminal import results_console
from kd.errors import UserError
from kd.models.vocabulary import load_tokenizer


def print_specs() -> None:
    """What is known of each published benchmark."""
    for name, spec in SPECS.items():
        table = Table(title=f"{name} ({spec.column})", show_header=False, title_justify="left", min_width=80)
        table.add_row("original", spec.original)
        table.add_row("processed", f"huggingface.co/datasets/{spec.processed}")
        table.add_row("fields", spec.fields)
        if spec.companion:
            table.add_row("companion", spec.companion)
        table.add_row("keeps", str(spec.rows))
        table.add_row("rows", _counts(spec))
        table.add_row("licence", spec.licence)
        results_console().print(table)


def run_prepare(arguments: argparse.Namespace) -> None:
    """Convert the published files of one benchmark as the command line says.

    Raises:
        UserError: unusable input, or another number of rows than published.
    """
    spec = SPECS[arguments.name]
    keep = spec.rows
    if arguments.response_tokens is not None:
        keep = replace(keep, response_tokens=arguments.response_tokens)
    if arguments.max_prompt_tokens is not None:
        keep = replace(keep, max_prompt_tokens=arguments.max_prompt_tokens)
    tokenizer = None
    if arguments.tokenizer is not None:
        tokenizer = load_tokenizer(arguments.tokenizer, trust_remote_code=False)
        if not arguments.allow_mismatch:
            check_counts_as_published(tokenizer)
    original = Original(source=arguments.source, companion=arguments.companion)
    prepared = prepare(spec, original, keep=keep, tokenizer=tokenizer)
    # Only the published choice of responses has a published number of rows.
    if keep.response_tokens == spec.rows.response_tokens and not arguments.allow_mismatch:
        _check_count(arguments.name, spec, num_rows=len(prepared.rows), summary=str(prepared))
    rows = prepared.rows
    if arguments.sample is not None:
        rows = sample(rows, size=arguments.sample, seed=arguments.seed)
    write_rows(arguments.out, rows)
    print(f"{prepared}; {len(rows)} written to {arguments.out} ({spec.licence})")


def _counts(spec: BenchmarkSpec) -> str:
    return " or ".join(map(str, spec.num_rows))


def _check_count(name: str, spec: BenchmarkSpec, *, num_rows: int, summary: str) -> None:
    if num_rows not in spec.num_rows:
        raise UserError(
            f"{name}: {num_rows} rows are left ({summary}), {_counts(spec)} are published; get the complete source"
            f" ({spec.original}; {spec.processed} on the hub), or --allow-mismatch"
        )


def _token_range(text: str) -> TokenRange:
    match = re.fullmatch(r"(\d+)-(\d*)", text)
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        raise argparse.ArgumentTypeError(f"{text!r} is not LOWEST-HIGHEST, such as 6-10, or LOWEST- without an end")
    return TokenRange(lowest=int(match[1]), highest=int(match[2]) if match[2] else None)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="python -m evaluation.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the published benchmarks: sources, licences, what is kept, numbers of rows")
    add = commands.add_parser("prepare", help="convert the published files of one of them").add_argument
    add("--name", choices=list(SPECS), required=True, help="benchmark, see list")
    add("--source", required=True, metavar="PATH", help="the authors' file or directory, or rows of the project's form")
    add("--companion", type=Path, metavar="FILE", help="vicuna: the reference answers; s_ni: another list of tasks")
    add("--out", type=file_path, required=True, metavar="FILE", help="new .jsonl file of rows")
    add("--tokenizer", metavar="DIR", help="GPT-2's tokenizer, where rows are chosen by their length")
    add("--response-tokens", type=_token_range, metavar="A-B", help="another length of the first reference: 0-5, 6-10")
    add("--max-prompt-tokens", type=at_least(1), metavar="N", help="drop rows with a longer prompt (template alpaca)")
    add("--sample", type=at_least(1), metavar="N", help="draw so many of the rows [all]")
    add("--seed", type=at_least(0), default=10, help="of the drawing [%(default)s]")
    add("--allow-mismatch", action="store_true", help="another number of rows, or another tokenizer, than published")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.command == "list":
        print_specs()
    else:
        run_prepare(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code."""
    return run_command(lambda: _run(argv))


if __name__ == "__main__":
    sys.exit(main())
