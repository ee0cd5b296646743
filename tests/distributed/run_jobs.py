"""Job of the tests of whole runs."""

from pathlib import Path

from kd.distributed import World
from kd.errors import RunStopped, UserError
from kd.methods import load_config
from kd.train.assemble import run_on


def run(world: World, *, config_file: Path, overrides: list[str]) -> str | None:
    """Run or resume; the message of a user error or the reason of a stop, if there was one."""
    try:
        run_on(world, load_config(config_file, overrides=overrides), command=["train.py"])
    except (RunStopped, UserError) as error:
        return str(error)
    return None
