"""Finds the DeepSpeed configurations and presets that come with the toolkit, installed or in a checkout."""

from collections.abc import Iterator
from pathlib import Path, PurePath

from kd.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parent

# Where a checkout has the files; setup.py installs them below the package.
_DS_CONFIGS = PurePath("ds_configs")
_PRESETS = PurePath("launch", "experiments")


def find_ds_config(name: str | Path) -> Path:
    """Path of a DeepSpeed JSON: `name` itself if it exists, else the packaged file of that name.

    Args:
        name: a path, such as mine.json, or a packaged file, such as ds_configs/zero3.json.
    """
    return _find(name, folder=_DS_CONFIGS, root=_root(_DS_CONFIGS, installed="ds_configs"))


def find_preset(name: str | Path) -> Path:
    """Path of a run's YAML file: `name` itself if it exists, else the packaged preset of that name.

    Args:
        name: a path, or a preset with or without its folder in a checkout: opt/promptkd_1.3b.yaml or
            launch/experiments/opt/promptkd_1.3b.yaml.

    Raises:
        UserError: there is neither.
    """
    path = _find(name, folder=_PRESETS, root=_root(_PRESETS, installed="presets"))
    if not path.exists():
        raise UserError(
            f"--config {name}: cannot be read (no such file or preset); give the path of a YAML file or the name of a"
            " preset (promptkd train --list-presets)"
        )
    return path


def list_presets() -> Iterator[tuple[str, str]]:
    """Yield name and description, its first line, of every preset that is a run of its own."""
    root = _root(_PRESETS, installed="presets")
    # Files beside the folders are only extended by others.
    for path in sorted(root.glob("*/**/*.yaml")):
        first, *_ = path.read_text(encoding="utf-8").splitlines()
        yield path.relative_to(root).as_posix(), first.removeprefix("# ")


def _root(folder: PurePath, *, installed: str) -> Path:
    below = _PACKAGE / installed
    return below if below.is_dir() else _CHECKOUT / folder


def _find(name: str | Path, *, folder: PurePath, root: Path) -> Path:
    path = Path(name)
    if path.exists() or path.is_absolute():
        return path
    packaged = root / (path.relative_to(folder) if path.is_relative_to(folder) else path)
    return packaged if packaged.is_file() else path
