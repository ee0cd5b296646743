"""Ranks: which launcher started them, how they meet, their collective operations, and how they end."""

from kd.distributed.launcher import DEFAULT_PORT, RankInfo, find_rank, free_port, slurm_job
from kd.distributed.session import end_world, exit_with_user_error, on_gpu, start_world
from kd.distributed.world import ProcessGroup, World, ranks_by_host

__all__ = [
    "DEFAULT_PORT",
    "ProcessGroup",
    "RankInfo",
    "World",
    "end_world",
    "exit_with_user_error",
    "find_rank",
    "free_port",
    "on_gpu",
    "ranks_by_host",
    "slurm_job",
    "start_world",
]
