"""The prompts of a judge: a model's response beside the reference, for every row of an evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.generations import evaluated_seeds, generations_file, read_generations
from evaluation.judge.config import Order
from evaluation.results import RESULTS_FILE, read_json
from kd.config.schema import ColumnRole
from kd.data.instructions import Instruction, read_instructions
from kd.errors import UserError

# Table 10 of the paper, verbatim: other words would give other scores.
PROMPT = """\
### Instruction:
{instruction}
### Input:
{input}
### Assistant 1:
{first}
### Assistant 2:
{second}

We would like to request your feedback on the performance of two AI assistants in response to the user instruction and \
input displayed above.

Please rate the helpfulness, relevance, accuracy, and level of detail of their responses. Each assistant receives an \
overall score on a scale of 1 to 10, where a higher score indicates better overall performance.

Please first output a single line containing only two values indicating the scores for Assistant 1 and 2, \
respectively. The two scores are separated by a space.

In the subsequent line, please provide a comprehensive explanation of your evaluation, avoiding any potential bias and \
ensuring that the order in which the responses were presented does not affect your judgment."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One response to be judged."""

    model: str
    benchmark: str
    seed: int
    row: int
    order: Order
    prompt: str


def read_sources(out: Path) -> dict[str, str]:
    """The file of rows of each benchmark in an `out` directory of evaluate.py.

    Raises:
        UserError: no results there.
    """
    path = out / RESULTS_FILE
    content = read_json(path, advice="give a directory of evaluate.py")
    try:
        return {name: str(entry["source"]) for name, entry in content["benchmarks"].items()}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: is no results.json of evaluate.py; evaluate again") from None


def read_comparisons(
    model: str,
    out: Path,
    *,
    benchmark: str,
    source: str,
    columns: Mapping[ColumnRole, str] | None,
    seeds: Sequence[int] | None,
    num_rows: int | None,
    orders: Sequence[Order],
) -> Iterator[Comparison]:
    """Yield a comparison for each seed (None: all), row (None: all, else the first so many) and order.

    The responses are in `out`, a directory of evaluate.py; `model` is their name in the results. The rows are read with
    `columns`, or with those of the evaluation.

    Raises:
        UserError: no responses, or responses to other rows than `source` has.
    """
    rows = read_instructions(source, columns=_evaluated_columns(out, benchmark) if columns is None else columns)
    chosen = evaluated_seeds(out, benchmark=benchmark) if seeds is None else seeds
    if not chosen:
        raise UserError(f"{out}: has no responses to {benchmark}; evaluate it first")
    for seed in chosen:
        path = generations_file(out, benchmark=benchmark, seed=seed)
        for response in read_generations(path)[:num_rows]:
            row = rows[response.row] if response.row < len(rows) else None
            if row is None or row.references != response.references:
                raise UserError(
                    f"{path}: row {response.row} is not that of {source}; name the rows it was evaluated on with"
                    f" --data {benchmark}=FILE"
                )
            for order in orders:
                yield Comparison(
                    model=model,
                    benchmark=benchmark,
                    seed=seed,
                    row=response.row,
                    order=order,
                    prompt=render(row, response=response.response, order=order),
                )


def _evaluated_columns(out: Path, benchmark: str) -> dict[ColumnRole, str] | None:
    path = out / RESULTS_FILE
    columns: Any = read_json(path, advice="evaluate again")["benchmarks"][benchmark].get("columns")
    if not isinstance(columns, dict | None):
        raise UserError(f"{path}: is no results.json of evaluate.py; evaluate again")
    return columns


def render(row: Instruction, *, response: str, order: Order) -> str:
    """The paper's prompt with the row's first reference; without an input, its line is empty.

    Raises:
        UserError: the row has other turns, which the prompt cannot show.
    """
    if row.earlier:
        raise UserError(
            f"{row.source}: a conversation with a system turn or several turns, and the judge's prompt shows one"
            " instruction; evaluate rows of one turn"
        )
    assistants = [response, row.references[0]]
    if order == "reference_first":
        assistants.reverse()
    return PROMPT.format(instruction=row.instruction, input=row.input, first=assistants[0], second=assistants[1])
