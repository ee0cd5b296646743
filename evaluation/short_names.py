"""Names for directories that can be told apart."""

import os
from collections.abc import Sequence
from pathlib import Path


def short_names(directories: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as it takes to tell it from the others."""
    parts = [Path(os.path.abspath(directory)).parts for directory in directories]
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        length = 1
        while length < len(own) and any(other[-length:] == own[-length:] for other in others):
            length += 1
        names.append("/".join(own[-length:]))
    return names
