"""Responses of a model to the rows of a benchmark: sampled by all ranks together, scored, written and read again."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from evaluation.models import EvaluatedModel
from kd.data.batch import PromptBatch, TokenIds, split_prompts
from kd.data.encoding import Example
from kd.data.rows import Row, read_json_lines
from kd.distributed import World
from kd.errors import UserError
from kd.files import write_atomically
from kd.rollout.decode import decode, row_streams
from kd.rollout.sampling import DecodingSettings
from kd.text_metrics import Metric

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Response:
    """One line of a generations file: a response with its row and its scores."""

    row: int
    """Index among the rows of the benchmark's source, from 0."""
    prompt: str
    response: str
    references: tuple[str, ...]
    response_tokens: int
    """Tokens of the response, its end-of-sequence token included."""
    ended: bool
    """Whether the response reached its end-of-sequence token."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """×100, by the name of the metric."""

    def scored(self, metrics: Mapping[str, Metric]) -> "Response":
        """This response with the scores of `metrics`, beside those of other metrics."""
        found = {name: 100 * metric(self.response, self.references) for name, metric in metrics.items()}
        return replace(self, scores={**self.scores, **found})


_OWN_KEYS = frozenset(entry.name for entry in fields(Response)) - {"scores"}


def sample_responses(
    model: EvaluatedModel,
    examples: Sequence[Example],
    *,
    seed: int,
    settings: DecodingSettings,
    max_batch_tokens: int,
    label: str,
) -> list[TokenIds]:
    """Sample a response to each row; all ranks return all of them, in the order of `examples`.

    A response depends on (seed, row, model), except for rounding errors in its batch. Batches do not depend on the
    number of ranks. `label` is shown beside the progress bar.
    """
    batches = split_prompts(
        examples, slots_per_row=settings.max_new_tokens + model.num_soft_tokens, max_batch_tokens=max_batch_tokens
    )
    streams, world = row_streams(seed=seed, step=0), model.world
    own: dict[int, TokenIds] = {}
    for batch in tracked(batches[world.rank :: world.size], label=f"{label}, seed {seed}", world=world):
        prompts = PromptBatch.collate(batch, pad_id=model.eos_id, device=world.device)
        with torch.no_grad():
            found = decode(model.view, prompts, settings=settings, streams=streams, soft_prompt=model.soft_prompt)
        for example, response in zip(batch, found, strict=True):
            own[example.row_id] = np.array(response.token_ids, dtype=np.int32)
    gathered = {row_id: ids for share in world.gather_objects(own) for row_id, ids in share.items()}
    return [gathered[example.row_id] for example in examples]


def tracked(items: Sequence[T], *, label: str, world: World) -> Iterator[T]:
    """`items`, with a progress bar on the main rank's terminal."""
    console = Console(stderr=True)
    hidden = not (world.is_main and console.is_terminal)
    yield from track(items, description=label, console=console, disable=hidden)


def generations_file(out: Path, *, benchmark: str, seed: int) -> Path:
    """The file of a benchmark's responses of one seed, in an `out` directory of evaluate.py."""
    return generations_directory(out, benchmark=benchmark) / f"seed-{seed}.jsonl"


def generations_directory(out: Path, *, benchmark: str) -> Path:
    """The directory of a benchmark's responses in an `out` directory of evaluate.py."""
    return out / "generations" / benchmark


def evaluated_seeds(out: Path, *, benchmark: str) -> list[int]:
    """Seeds whose responses are in an `out` directory of evaluate.py, in ascending order."""
    directory = generations_directory(out, benchmark=benchmark)
    names = (path.stem.removeprefix("seed-") for path in directory.glob("seed-*.jsonl"))
    return sorted(int(name) for name in names if name.isdecimal())


def write_generations(path: Path, responses: Sequence[Response]) -> None:
    """Write one JSON object per line: the fields of the response, and each score under its metric's name.

    Raises:
        UserError: the file cannot be written.
    """
    write_atomically(path, "".join(f"{_line(response)}\n" for response in responses))


def _line(response: Response) -> str:
    values = asdict(response)
    scores = values.pop("scores")
    # As in files of earlier versions: true or false.
    scores |= {name: bool(score) for name, score in scores.items() if name == "exact_match"}
    return json.dumps(values | scores, ensure_ascii=False)


def read_generations(path: Path) -> list[Response]:
    """Read what `write_generations` wrote.

    Raises:
        UserError: no such file, or a line of another kind.
    """
    return [_response(row) for row in read_json_lines(path)]


def _response(row: Row) -> Response:
    values: dict[str, Any] = dict(row.fields)
    scores = {name: values.pop(name) for name in list(values) if name not in _OWN_KEYS}
    try:
        if not isinstance(values["row"], int) or values["row"] < 0 or not isinstance(values["response"], str):
            raise ValueError
        return Response(
            **values | {"references": tuple(values["references"])},
            scores={name: 100.0 * score if isinstance(score, bool) else float(score) for name, score in scores.items()},
        )
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{row.source}: not a line of evaluate.py; delete the file and evaluate again") from None
