"""What a judge is asked: a model's response beside the reference, for every row of an evaluation."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluation.results import evaluated_seeds, generations_file, read_generations
from kd.data.instructions import Instruction, read_instructions
from kd.errors import UserError

Order = Literal["model_first", "reference_first"]
"""Who is Assistant 1; the paper's is model_first."""

# Table 10 of the paper to the letter, because other words would give other scores.
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


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's --out directory of evaluate.py, under the name that the results give it."""

    name: str
    directory: Path

    def sources(self) -> dict[str, str]:
        """The file of rows of each of its benchmarks.

        Raises:
            UserError: no results there.
        """
        path = self.directory / "results.json"
        try:
            benchmarks = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
            return {name: str(content["source"]) for name, content in benchmarks.items()}
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); give an --out of evaluate.py") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path}: is no results.json of evaluate.py; evaluate again") from None

    def seeds(self, benchmark: str) -> list[int]:
        """Seeds with generations, in ascending order."""
        return evaluated_seeds(self.directory / "generations" / benchmark)


def read_comparisons(
    evaluation: Evaluation,
    *,
    benchmark: str,
    source: str,
    seeds: Sequence[int] | None,
    num_rows: int | None,
    orders: Sequence[Order],
) -> Iterator[Comparison]:
    """Yield a comparison for each seed (None: all), row (None: all, else the first so many) and order.

    Raises:
        UserError: no generations, or of other rows than `source` has.
    """
    rows = read_instructions(source)
    chosen = evaluation.seeds(benchmark) if seeds is None else seeds
    if not chosen:
        raise UserError(f"{evaluation.directory}: has no generations of {benchmark}; evaluate it first")
    for seed in chosen:
        path = generations_file(evaluation.directory / "generations" / benchmark, seed)
        for generation in read_generations(path)[:num_rows]:
            row = rows[generation.row] if generation.row < len(rows) else None
            if row is None or row.references != generation.references:
                raise UserError(
                    f"{path}: row {generation.row} is not that of {source}; name the rows it was evaluated on with"
                    f" --data {benchmark}=FILE"
                )
            for order in orders:
                yield Comparison(
                    model=evaluation.name,
                    benchmark=benchmark,
                    seed=seed,
                    row=generation.row,
                    order=order,
                    prompt=render(row, response=generation.response, order=order),
                )


def render(row: Instruction, *, response: str, order: Order) -> str:
    """The paper's prompt; the reference is the row's first, and a row without input leaves its place empty."""
    assistants = [response, row.references[0]]
    if order == "reference_first":
        assistants.reverse()
    return PROMPT.format(instruction=row.instruction, input=row.input, first=assistants[0], second=assistants[1])
