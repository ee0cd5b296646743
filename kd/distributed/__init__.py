"""Ranks: how a launcher places them, how they meet, count together and end together."""

from kd.distributed.world import (
    DEFAULT_PORT,
    Place,
    RankGroup,
    World,
    end_world,
    exit_with_user_error,
    find_place,
    free_port,
    ranks_by_host,
    select_accelerator,
    start_deepspeed,
    start_world,
)

__all__ = [
    "DEFAULT_PORT",
    "Place",
    "RankGroup",
    "World",
    "end_world",
    "exit_with_user_error",
    "find_place",
    "free_port",
    "ranks_by_host",
    "select_accelerator",
    "start_deepspeed",
    "start_world",
]
