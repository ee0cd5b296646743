"""The world and process groups: collective operations of all ranks, and of some of them."""

import os
import socket
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from kd.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """The ranks of a run, seen from one of them."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_across_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values` (any shape, same on all ranks) over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def max_across_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Largest of `values` over the ranks, elementwise and in place."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def gather_counts(self, local: Sequence[int]) -> list[list[int]]:
        """The integers of every rank, by rank; the one host synchronisation of a step."""
        own = torch.tensor(local, dtype=torch.int64, device=self.device)
        gathered = [own.clone() for _ in range(self.size)]
        if self.size > 1:
            dist.all_gather(gathered, own)
        counts: list[list[int]] = torch.stack(gathered).tolist()
        return counts

    def gather_objects(self, local: T) -> list[T]:
        """One picklable object of every rank, by rank."""
        gathered: list[T] = [local] * self.size
        if self.size > 1:
            dist.all_gather_object(gathered, local)
        return gathered

    def from_main(self, value: T) -> T:
        """The main rank's value, on all ranks."""
        return self.gather_objects(value)[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def hosts(self) -> list[list[int]]:
        """The ranks of each host, in ascending order; all ranks call it together."""
        return ranks_by_host(self.gather_objects((socket.gethostname(), self.local_rank)))

    def new_process_group(self, groups: Sequence[Sequence[int]]) -> "ProcessGroup":
        """The one of `groups` that this rank is in; each rank is in one of them. All ranks call it together."""
        handle, _ = dist.new_subgroups_by_enumeration([list(ranks) for ranks in groups], timeout=collective_timeout())
        ranks = next(tuple(ranks) for ranks in groups if self.rank in ranks)
        return ProcessGroup(ranks=ranks, group_rank=ranks.index(self.rank), handle=handle)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Run local work after which all ranks continue, or all raise the UserError of the lowest rank that has one.

        Without this, a rank that alone reads a bad file leaves the others waiting in the next collective operation.
        """
        message = None
        try:
            yield
        except UserError as error:
            message = str(error)
        for found in self.gather_objects(message):
            if found is not None:
                raise UserError(found)


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """Some ranks of the world with collective operations of their own, seen from one of them."""

    ranks: tuple[int, ...]
    """Ranks in the world, by group rank."""
    group_rank: int
    handle: dist.ProcessGroup

    @property
    def size(self) -> int:
        return len(self.ranks)

    def sum_across_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values` (any shape, same on all ranks of the group) over the group, in place."""
        dist.all_reduce(values, group=self.handle)
        return values

    def from_first(self, values: torch.Tensor) -> torch.Tensor:
        """The first rank's `values` (any shape, same on all ranks of the group), in place."""
        dist.broadcast(values, src=self.ranks[0], group=self.handle)
        return values

    def gather_objects(self, local: T) -> list[T]:
        """One picklable object of every rank of the group, by group rank."""
        gathered: list[T] = [local] * self.size
        dist.all_gather_object(gathered, local, group=self.handle)
        return gathered


def ranks_by_host(locations: Sequence[tuple[str, int]]) -> list[list[int]]:
    """The ranks of each host, from the (host name, local rank) of every rank.

    A local rank that occurs twice under one name is on two hosts: not every cluster gives its hosts different names.
    """
    hosts = defaultdict(list)
    for rank, (name, local_rank) in enumerate(locations):
        hosts[name, locations[:rank].count((name, local_rank))].append(rank)
    return list(hosts.values())


def collective_timeout() -> timedelta:
    """The time that a collective operation waits for other ranks: DEEPSPEED_TIMEOUT minutes, or 30."""
    return timedelta(minutes=float(os.environ.get("DEEPSPEED_TIMEOUT", "30")))
