"""How the commands that work on several ranks begin and end."""

from collections.abc import Callable
from typing import TypeVar

from kd.distributed import World, end_world, exit_with_user_error, start_world
from kd.errors import UserError

T = TypeVar("T")


def run_on_ranks(parse: Callable[[], T], work: Callable[[T, World], None]) -> int:
    """Do `work` with what `parse` returns on all ranks of the launcher together, and return the exit code.

    A user error of `parse` on one rank, such as a file that only this rank cannot read, ends all of them.
    """
    try:
        world = start_world()
        with world.agreed():
            options = parse()
        work(options, world)
    except UserError as error:
        return exit_with_user_error(error)
    finally:
        end_world()
    return 0
