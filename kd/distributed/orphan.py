"""A rank whose launcher is gone stops: it would hold its port, its GPU and its run directory."""

import os
import signal
import threading
import time
from contextlib import suppress

import psutil

_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish", "csh", "tcsh"}
_CHECK_SECONDS = 1.0
_GRACE_SECONDS = 300.0
"""For a step and a checkpoint. A rank that waits for one that is dead would need DEEPSPEED_TIMEOUT."""


def end_with_launcher() -> None:
    """Send SIGTERM to this process if the launcher that started it has been killed.

    A training saves its state then; other commands end at once. A rank that a shell has started may outlive it.
    """
    parent = psutil.Process().parent()
    if parent is None or parent.name() in _SHELLS:
        return
    watched = [parent]
    grandparent = parent.parent()
    # The command `deepspeed` starts a launcher on each host, which starts the ranks.
    if grandparent is not None and _is_deepspeed(parent) and _is_deepspeed(grandparent):
        watched.append(grandparent)
    threading.Thread(target=_watch, args=(watched,), daemon=True).start()


def _watch(watched: list[psutil.Process]) -> None:
    while all(map(_is_alive, watched)):
        time.sleep(_CHECK_SECONDS)
    with suppress(OSError):
        os.write(2, b"the launcher of this rank is gone: the rank stops\n")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_deepspeed(process: psutil.Process) -> bool:
    try:
        return any("deepspeed" in argument for argument in process.cmdline()[:5])
    except psutil.Error:
        return False
