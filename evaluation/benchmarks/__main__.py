"""The instruction sets of the paper's Table 1, converted from the files their authors published.

python -m evaluation.benchmarks list
python -m evaluation.benchmarks prepare --name s_ni --source DIR --tokenizer DIR --out s_ni.jsonl

`prepare` writes a benchmark for evaluate.py, like any other file of rows.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from evaluation.benchmarks.formats import Original
from evaluation.benchmarks.preparation import check_counts_as_published, prepare, sample, write_rows
from evaluation.benchmarks.specs import SPECS, RowFilter
from evaluation.command import Command
from evaluation.display import results_console
from kd.config.fields import Count, NonNegativeInt, Section, option, required
from kd.errors import EXIT_CODE, UserError
from kd.models.vocabulary import load_tokenizer

_TOKEN_RANGE = re.compile(r"(\d+)-(\d*)")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Section):
    name: str = required(help=f"one of {', '.join(SPECS)}")
    source: str = required(help="the authors' file or directory, or rows of the project's format")
    companion: Path | None = option(None, help="vicuna: the reference responses; s_ni: another list of tasks")
    out: Path = required(help="new .jsonl file of rows")
    tokenizer: str | None = option(None, help="GPT-2's tokenizer, where rows are selected by their length")
    response_tokens: str | None = option(
        None, help="another length of the first reference, LOWEST-HIGHEST: 0-5, 6-10, 11-"
    )
    max_prompt_tokens: Count | None = option(None, help="drop rows with a longer prompt (template alpaca)")
    sample: Count | None = option(None, help="number of rows to draw; null for all")
    seed: NonNegativeInt = option(10, help="seed of the draw")
    allow_mismatch: bool = option(False, help="accept another number of rows, or another tokenizer, than published")

    def __post_init__(self) -> None:
        if self.name not in SPECS:
            raise UserError(f"name is {self.name!r}; expected one of {', '.join(SPECS)}")

    def row_filter(self) -> RowFilter:
        """The rows to keep: those of the published subset, unless the configuration has others.

        Raises:
            UserError: `response_tokens` is not a range.
        """
        keep = SPECS[self.name].rows
        if self.response_tokens is not None:
            match = _TOKEN_RANGE.fullmatch(self.response_tokens)
            if match is None or (match[2] and int(match[2]) < int(match[1])):
                raise UserError(f"response_tokens is {self.response_tokens!r}; expected LOWEST-HIGHEST, such as 6-10")
            keep = replace(keep, response_tokens=(int(match[1]), int(match[2]) if match[2] else None))
        if self.max_prompt_tokens is not None:
            keep = replace(keep, max_prompt_tokens=self.max_prompt_tokens)
        return keep


PREPARE = Command(config=PrepareConfig, program="python -m evaluation.benchmarks prepare", description=__doc__)


def print_specs() -> None:
    """Print what is known about each published benchmark."""
    for name, spec in SPECS.items():
        table = Table(title=f"{name} ({spec.column})", show_header=False, title_justify="left", min_width=80)
        table.add_row("original", spec.original)
        table.add_row("processed", f"huggingface.co/datasets/{spec.processed}")
        table.add_row("fields", spec.fields)
        if spec.companion:
            table.add_row("companion", spec.companion)
        table.add_row("keeps", str(spec.rows))
        table.add_row("rows", spec.counts)
        table.add_row("licence", spec.licence)
        results_console().print(table)


def run_prepare(config: PrepareConfig) -> None:
    """Convert the published files of one benchmark.

    Raises:
        UserError: unusable input, or another number of rows than published.
    """
    spec, keep = SPECS[config.name], config.row_filter()
    tokenizer = None
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(config.tokenizer, trust_remote_code=False)
        if not config.allow_mismatch:
            check_counts_as_published(tokenizer)
    original = Original(source=config.source, companion=config.companion)
    prepared = prepare(spec, original, keep=keep, tokenizer=tokenizer)
    rows = prepared.rows
    # Only the published selection of responses has a published number of rows.
    is_published = keep.response_tokens == spec.rows.response_tokens
    if is_published and len(rows) not in spec.num_rows and not config.allow_mismatch:
        raise UserError(
            f"{config.name}: {len(rows)} rows are left ({prepared}), {spec.counts} are published; get the complete"
            f" source ({spec.original}; {spec.processed} on the hub), or --allow-mismatch"
        )
    if config.sample is not None:
        rows = sample(rows, size=config.sample, seed=config.seed)
    write_rows(config.out, rows)
    print(f"{prepared}; {len(rows)} written to {config.out} ({spec.licence})")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that the command line names, and return the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    match words[:1]:
        case ["list"]:
            print_specs()
            return 0
        case ["prepare"]:
            return PREPARE.run(run_prepare, words[1:])
        case ["--help"] | ["-h"]:
            print(__doc__, end="")
            return 0
    print(f"error: expected list or prepare, found {' '.join(words[:1]) or 'nothing'}; see --help", file=sys.stderr)
    return EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
