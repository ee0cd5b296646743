"""Real ranks for tests: worker processes that join one process group and are shared by many tests."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any

from kd.distributed import World, free_port

Job = Callable[..., Any]
"""A function of a test module: job(world, **arguments) -> something picklable."""


class RankFailure(AssertionError):
    """A job raised on some rank; the message is its traceback."""


class Ranks:
    """`size` processes joined by gloo, each with one thread."""

    def __init__(self, size: int, *, fresh: bool = False) -> None:
        """`fresh` processes start from nothing, with this moment's environment; others are forked after the imports."""
        self.size = size
        context: ForkServerContext | SpawnContext = multiprocessing.get_context("spawn") if fresh else forked_ranks()
        port = free_port()
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, port, theirs), daemon=True)
            process.start()
            # The worker's end must be open in the worker only, or its death would go unnoticed here.
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def run(self, job: Job, *, timeout: float = 300, **arguments: Any) -> list[Any]:
        """Run job(world, **arguments) on all ranks; its results in the order of the ranks.

        Raises:
            RankFailure: on the first rank that raises, dies or takes longer than `timeout` seconds.
                The ranks are stopped then, since the others may wait for it.
        """
        for connection in self._connections:
            connection.send((job, arguments))
        results: dict[int, Any] = {}
        while len(results) < self.size:
            pending = {connection: rank for rank, connection in enumerate(self._connections) if rank not in results}
            ready = wait(list(pending), timeout=timeout)
            if not ready:
                self.stop()
                raise RankFailure(f"ranks {sorted(pending.values())} did not finish within {timeout} s")
            for connection in ready:
                rank = pending[connection]
                try:
                    succeeded, value = connection.recv()
                except EOFError:
                    succeeded, value = False, "the process died"
                if not succeeded:
                    self.stop()
                    raise RankFailure(f"rank {rank}: {value}")
                results[rank] = value
        return [results[rank] for rank in range(self.size)]

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def stop(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
            process.join()


def forked_ranks() -> ForkServerContext:
    """Makes processes that have imported the project, with the environment of the first call."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kd.train.assemble"])
    return context


def _serve(rank: int, size: int, port: int, connection: Connection) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    import torch

    from kd.distributed import start_world
    from kd.zero.engine import start_deepspeed

    torch.set_num_threads(1)
    world: World = start_world()
    start_deepspeed()
    while True:
        try:
            job, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, job(world, **arguments)))
        except BaseException:
            # Also what pytest raises, which is no Exception: the test that waits must fail in any case.
            connection.send((False, traceback.format_exc()))
            raise
