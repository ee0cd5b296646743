"""Jobs of the tests of the teacher's responses."""

from pathlib import Path

from kd.distributed import World
from kd.errors import UserError
from kd.methods import load_config
from kd.train.generate import ResponseFile, run_on


def write(world: World, *, config_file: Path, overrides: list[str]) -> str | None:
    """Write or resume; the message of a user error, if there was one."""
    try:
        run_on(world, load_config(config_file, overrides=overrides))
    except UserError as error:
        return str(error)
    return None


class Killed(Exception):
    """Stands for a kill between two blocks."""


def write_until_killed(world: World, *, config_file: Path, overrides: list[str], num_blocks: int) -> int:
    """The same, but all ranks end after some blocks; the number of this rank's finished responses."""
    num_responses: list[int] = []
    append = ResponseFile.append

    def append_or_die(file: ResponseFile, responses: dict[tuple[int, int], dict[str, object]]) -> None:
        if len(num_responses) == num_blocks:
            raise Killed
        num_responses.append(len(responses))
        append(file, responses)

    ResponseFile.append = append_or_die  # type: ignore[method-assign]
    try:
        run_on(world, load_config(config_file, overrides=overrides))
    except Killed:
        return sum(num_responses)
    finally:
        ResponseFile.append = append  # type: ignore[method-assign]
    raise AssertionError("there were fewer blocks")
