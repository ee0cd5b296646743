"""One of two ranks fails alone, while the other one waits for it. Run as a script: the name of an entry point."""

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from evaluation.command import Command
from kd.distributed import World
from kd.distributed.session import joined_world


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration of a command."""

    number: int = field(default=1, metadata={"help": "any"})


def work(world: World) -> None:
    if world.is_main:
        world.sum_across_ranks(torch.ones(1))
    raise ValueError("known to one rank")


def wait_for_the_others(*_: Any) -> None:
    """As NCCL does, whose process group ends only after its collective operations."""
    print("destroys the process group", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    dist.destroy_process_group = wait_for_the_others
    if sys.argv[1] == "command":
        command = Command(config=Settings, program="job", description="fails")
        sys.exit(command.run_on_ranks(lambda _, world: work(world), []))
    with joined_world() as joined:
        work(joined)
