"""Finds the DeepSpeed configurations and presets that come with the toolkit, installed or in a checkout."""

import os
from collections.abc import Iterator
from pathlib import Path

from kd.errors import UserError

# The folders of the files in a checkout, by those below the package into which setup.py installs them.
_CHECKOUT_FOLDERS = {"ds_configs": "ds_configs", "presets": "launch/experiments"}


def find_ds_config(name: str | Path) -> Path:
    """Path of a DeepSpeed JSON: `name` itself if it exists, else the packaged file, such as ds_configs/zero3.json."""
    return _find(name, folder="ds_configs")


def find_preset(name: str | Path) -> Path:
    """Path of a run's YAML file: `name` itself if it exists, else the packaged preset of that name.

    A preset's name may begin with its folder in a checkout: opt/gkd_1.3b.yaml or launch/experiments/opt/gkd_1.3b.yaml.

    Raises:
        UserError: neither exists.
    """
    path = _find(name, folder="presets")
    if not os.path.exists(path):
        raise UserError(
            f"--config {name}: cannot be read (no such file or preset); give the path of a YAML file or the name of a"
            " preset (promptkd train --list-presets)"
        )
    return path


def list_presets() -> Iterator[tuple[str, str]]:
    """Yield name and description, its first line, of every preset that is a run of its own."""
    root = _root("presets")
    # Files directly in the root exist only to be extended.
    for path in sorted(root.glob("*/**/*.yaml")):
        first, *_ = path.read_text(encoding="utf-8").splitlines()
        yield path.relative_to(root).as_posix(), first.removeprefix("# ")


def _root(folder: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    installed = package / folder
    return installed if installed.is_dir() else package.parent / _CHECKOUT_FOLDERS[folder]


def _find(name: str | Path, *, folder: str) -> Path:
    path = Path(name)
    checkout = _CHECKOUT_FOLDERS[folder]
    packaged = _root(folder) / (path.relative_to(checkout) if path.is_relative_to(checkout) else path)
    # Unlike Path's methods, os.path has no error for names that the system refuses.
    return packaged if os.path.isfile(packaged) and not os.path.exists(path) else path
