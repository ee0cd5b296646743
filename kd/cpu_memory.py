"""Memory of a CPU that stays with the process from step to step, as torch keeps a GPU's by itself."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
_HEAP_BYTES = 2**25
"""Tensors up to this size come from the heap, which is the most that glibc allows; larger ones would break it up."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let what tensors of middling size free inside serve the next ones, and give it back at the end.

    glibc gives much of it back to the system at once and takes it anew, page by page and filled with zeros, at every
    step. Another C library keeps its own ways.
    """
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _HEAP_BYTES)
    library.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        # glibc's own proportion.
        library.mallopt(_TRIM_THRESHOLD, 2 * _HEAP_BYTES)
        library.malloc_trim(0)
