"""How much memory a piece of work takes at its worst."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

_STATUS = Path("/proc/self/status")


@contextmanager
def watched() -> Iterator[SimpleNamespace]:
    """`peak` of what it gives is this process's largest growth of anonymous memory inside the context [bytes]."""
    start = _anonymous()
    growth = SimpleNamespace(peak=0)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            growth.peak = max(growth.peak, _anonymous() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield growth
    finally:
        done.set()
        watcher.join()


def _anonymous() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024
