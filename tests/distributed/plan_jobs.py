"""Jobs of the tests of the byte account."""

from pathlib import Path

from evaluation.bench.memory import PhasePeaks
from kd.distributed import World
from kd.plan import Account, Machine
from tests.distributed.harness import FIXED_RESPONSES, Harness, Pair


def measured_and_planned(
    world: World, *, config_file: Path, overrides: list[str], batches: list[list[Pair]]
) -> dict[str, tuple[int, int]]:
    """Peak bytes of each phase of two steps, and the account's."""
    with PhasePeaks() as live:
        harness = Harness(world, config_file, [*FIXED_RESPONSES, *overrides], batches=batches)
        for step in (1, 2):
            harness.step(step)
    machine = Machine(num_gpus=world.size, gpu_bytes=2**40, gpus_per_host=world.size, on_gpu=False)
    phases = Account(config=harness.config, machine=machine).phases
    return {phase: (live.peaks[phase], sum(parts.values())) for phase, parts in phases.items()}
