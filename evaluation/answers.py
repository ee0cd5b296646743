"""The responses to one benchmark: what an earlier run finished is kept, the rest is decoded by all ranks."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from rich.progress import Progress

from evaluation.journal import Finished, Journal, read_journals, remove_journals
from evaluation.model import EvaluatedModel
from evaluation.responses import SeededGeneration, generate, plan_batches
from evaluation.results import generations_file, write_generations
from kd.data.encoding import Example
from kd.distributed import World
from kd.rollout.sampling import DecodingSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """The seeds that a benchmark lacks."""

    directory: Path
    examples: tuple[Example, ...]
    seeds: tuple[int, ...]
    sampled: tuple[int, ...]
    """Those of `seeds` whose responses are decoded; the others repeat the first of them."""
    slots_per_row: int
    """Slots that a response takes beside its prompt."""
    max_batch_tokens: int

    def batches_without(self, finished: Set[tuple[int, int]]) -> list[list[Example]]:
        """Batches of rows, but those of which every (seed, row) is finished.

        A batch of which one is missing is decoded as a whole: in another batch its rounding errors would differ.
        """
        batches = plan_batches(
            self.examples,
            num_seeds=len(self.sampled),
            slots_per_row=self.slots_per_row,
            max_batch_tokens=self.max_batch_tokens,
        )
        return [
            batch for batch in batches if set(product(self.sampled, (example.row_id for example in batch))) - finished
        ]


def answer(work: Work, model: EvaluatedModel, *, settings: DecodingSettings, world: World, progress: Progress) -> None:
    """Write the generations of all seeds; all ranks call it together.

    Raises:
        UserError: on every rank, if a file cannot be read or written on one.
    """
    finished: Finished = {}
    with world.agreed():
        if world.is_main:
            finished = read_journals(work.directory)
    batches = work.batches_without(world.from_main(set(finished)))
    own = sum(map(len, batches[world.rank :: world.size])) * len(work.sampled)
    task = progress.add_task(work.directory.name, total=own)
    journal = Journal(work.directory, rank=world.rank)

    def on_batch(generations: Sequence[SeededGeneration]) -> None:
        journal.append(generations)
        progress.advance(task, len(generations))

    generated = generate(model, batches, seeds=work.sampled, settings=settings, world=world, on_batch=on_batch)
    finished = {(seed, generation.row): generation for seed, generation in generated} | finished
    all_written = False
    with world.agreed():
        if world.is_main:
            _write(work, finished)
            # What a call for other seeds left unfinished stays for it.
            all_written = all(generations_file(work.directory, seed).exists() for seed, _ in finished)
    if world.from_main(all_written):
        remove_journals(work.directory)


def _write(work: Work, finished: Finished) -> None:
    for seed in work.seeds:
        decoded = seed if seed in work.sampled else work.sampled[0]
        generations = [finished[decoded, example.row_id] for example in work.examples]
        write_generations(generations_file(work.directory, seed), generations)
