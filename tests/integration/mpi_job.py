"""One rank of a run under mpirun: starts, reduces over gloo, and writes what it found to FOLDER/<process id>.json."""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from kd.distributed import end_world, exit_with_user_error, find_rank, start_world
from kd.errors import UserError
from kd.zero.engine import start_deepspeed


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--deepspeed", action="store_true")
    parser.add_argument("--fail", action="store_true", help="rank 1 exits while rank 0 waits for it")
    parser.add_argument("--own-mpi", action="store_true", help="use MPI here too, before and after the start")
    arguments = parser.parse_args()
    if arguments.own_mpi:
        from mpi4py import MPI
    try:
        if arguments.fail and find_rank().rank == 1:
            return 3
        world = start_world()
    except UserError as error:
        return exit_with_user_error(error)
    if arguments.own_mpi:
        MPI.COMM_WORLD.Barrier()
    if arguments.deepspeed:
        start_deepspeed()
    found = {
        "rank": [world.rank, world.size, world.local_rank],
        "sum": world.sum_across_ranks(torch.tensor([world.rank + 1.0])).item(),
        "address": os.environ["MASTER_ADDR"],
        "mpi4py": "mpi4py" in sys.modules,
    }
    (arguments.folder / f"{os.getpid()}.json").write_text(json.dumps(found), encoding="utf-8")
    world.barrier()
    end_world()
    return 0


if __name__ == "__main__":
    sys.exit(main())
