"""Pictures for pages and papers: matplotlib without a display, and one look for all of them."""

import importlib.util
from pathlib import Path
from typing import Any

from kd.errors import UserError

# Okabe and Ito's, told apart by colour-blind readers too.
COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def check_matplotlib() -> None:
    """Check that pictures can be drawn, before hours of work end in one.

    Raises:
        UserError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError('matplotlib is not installed; pip install -e ".[report]"')


def load_pyplot() -> Any:
    """matplotlib.pyplot, drawing into files.

    Raises:
        UserError: matplotlib is missing.
    """
    check_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, stem: Path) -> None:
    """Write `figure` as .png and, for papers, as .svg.

    Raises:
        UserError: a file cannot be written.
    """
    for suffix in (".png", ".svg"):
        write_picture(figure, stem.with_suffix(suffix), dpi=150)


def write_picture(figure: Any, path: Path, *, dpi: int) -> None:
    """Write `figure` in the format of the file's extension.

    Raises:
        UserError: the file cannot be written, or its extension is no format.
    """
    try:
        figure.savefig(path, dpi=dpi)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose a writable --out") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be written ({error}); end its name with .png, .pdf or .svg") from None
