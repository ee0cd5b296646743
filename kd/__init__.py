"""PromptKD: distillation of large language models with a prompt-tuned teacher (arXiv 2402.12842).

The Python API: `load_config`, `train` and `generate`. Importing it loads neither torch nor DeepSpeed.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd.errors import RunStopped, UserError

if TYPE_CHECKING:
    from kd.config.schema import Config

__all__ = ["RunStopped", "UserError", "generate", "load_config", "train"]
__version__ = "0.1.0"

# The function `train` below has the name of a subpackage. Python sets a subpackage as an attribute of its parent when
# it is first imported: here, before the function is defined, and never again.
importlib.import_module("kd.train")


def load_config(path: str | Path, *, overrides: Sequence[str] = ()) -> "Config":
    """Read the configuration of a run.

    Args:
        path: YAML file, or the name of a packaged preset, such as opt/promptkd_1.3b.yaml.
        overrides: `section.field=value`, each value in YAML notation; they take precedence over the file.

    Raises:
        UserError: an unreadable file, an unknown key, or a value of the wrong type or range.
    """
    from kd.config.packaged import find_preset
    from kd.methods import load_config as load

    return load(find_preset(path), overrides=overrides)


def train(config: "Config") -> Path:
    """Train a student, and return its run directory; its weights are in the directory's `final`.

    Runs on one rank, or, if a launcher started this process, on all of its ranks. An interrupted run resumes from the
    latest checkpoint in the run directory.

    Raises:
        RunStopped: a signal or run.max_hours has stopped the run, and its state is saved.
        UserError: on every rank, if the configuration, the data or a model cannot be used.
    """
    from kd.distributed.session import joined_world

    with joined_world() as world:
        # After the ranks have met, when DeepSpeed's accelerator is selected.
        from kd.train.assemble import run_on

        run_on(world, config, command=sys.argv)
    return Path(config.run.dir)


def generate(config: "Config") -> Path:
    """Write the teacher's responses to data.train, from which method=seqkd learns, and return their file.

    Runs on one rank, or, if a launcher started this process, on all of its ranks. An interrupted file is completed.

    Raises:
        UserError: on every rank, if the configuration, the data or the teacher cannot be used.
    """
    from kd.distributed.session import joined_world

    with joined_world() as world:
        from kd.train.generate import run_on

        return run_on(world, config)
