"""Jobs of the tests of the byte account."""

from pathlib import Path

from evaluation.bench.memory import PhasePeaks, account_of
from kd.distributed import World
from tests.distributed.harness import FIXED_RESPONSES, Harness, Pair


def measured_and_planned(
    world: World, *, config_file: Path, overrides: list[str], batches: list[list[Pair]]
) -> dict[str, tuple[int, int]]:
    """Peak bytes of each phase of two steps, and the account's."""
    with PhasePeaks() as live:
        harness = Harness(world, config_file, [*FIXED_RESPONSES, *overrides], batches=batches)
        for step in (1, 2):
            harness.step(step)
    phases = account_of(harness.config, world=world).phases
    return {phase: (live.peaks[phase], sum(parts.values())) for phase, parts in phases.items()}
