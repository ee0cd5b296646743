"""One run in one directory: a lock file with a heartbeat, for file systems that several hosts share."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from kd.distributed import slurm_job
from kd.errors import UserError

FILE_NAME = "run.lock"
_BEAT_SECONDS = 5.0
_STALE_SECONDS = 60.0
_WAIT_SECONDS = 90.0
"""Longer than it takes to notice that another host's run is dead."""


@contextmanager
def locked(directory: Path, *, say: Callable[[str], None], wait_seconds: float = _WAIT_SECONDS) -> Iterator[None]:
    """Hold a directory's lock inside; waits for a run that is about to end, and takes over from one that is dead.

    Raises:
        UserError: another process holds it, or the directory cannot be written.
    """
    lock = _Lock(directory)
    lock.acquire(say=say, wait_seconds=wait_seconds)
    stopped = threading.Event()
    beat = threading.Thread(target=lock.beat, args=(stopped,), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stopped.set()
        beat.join()
        lock.release()


class _Lock:
    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self._token = uuid.uuid4().hex
        me = psutil.Process()
        self._own = {
            "token": self._token,
            "host": socket.gethostname(),
            "pid": me.pid,
            "process_started": me.create_time(),
            "job": slurm_job(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }

    def acquire(self, *, say: Callable[[str], None], wait_seconds: float) -> None:
        deadline = time.monotonic() + wait_seconds
        has_said = False
        while not self._try():
            holder = self._read()
            if holder is None:
                continue
            if self._is_dead(holder):
                self._remove(holder)
            elif time.monotonic() >= deadline:
                raise UserError(
                    f"run.dir {self._path.parent}: {_describe(holder)} uses it; wait for it or end it, or choose"
                    " another run.dir"
                )
            else:
                if not has_said:
                    say(f"run.dir {self._path.parent}: waiting for {_describe(holder)} to end")
                has_said = True
                time.sleep(0.5)

    def beat(self, stopped: threading.Event) -> None:
        """Touch the lock until `stopped`; end the process if another one has taken the lock over."""
        while not stopped.wait(_BEAT_SECONDS):
            holder = self._read()
            if holder is None or holder.get("token") == self._token:
                with suppress(OSError):
                    os.utime(self._path)
                continue
            # This host was suspended for a minute, or cut off from the file system.
            message = f"error: run.dir {self._path.parent}: {_describe(holder)} has taken it over; this run ends\n"
            os.write(2, message.encode())
            os._exit(1)

    def release(self) -> None:
        holder = self._read()
        if holder is not None and holder.get("token") == self._token:
            self._path.unlink(missing_ok=True)

    def _try(self) -> bool:
        """Create the lock with its content in one operation, which is atomic on network file systems, too."""
        own = self._path.with_name(f".{FILE_NAME}.{self._token}")
        try:
            own.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            own.write_text(json.dumps(self._own), encoding="utf-8")
            os.link(own, self._path)
        except FileExistsError:
            return False
        except OSError as error:
            raise self._unwritable(error) from None
        finally:
            with suppress(OSError):
                own.unlink()
        return True

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"run.dir {self._path.parent}: cannot be written ({error.strerror}); choose a writable directory"
        )

    def _read(self) -> dict[str, Any] | None:
        """The holder; None if there is none any more."""
        return _parse(self._path)

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        if holder.get("host") == socket.gethostname():
            with suppress(psutil.NoSuchProcess, KeyError, TypeError, ValueError):
                process = psutil.Process(holder["pid"])
                is_same = abs(process.create_time() - holder["process_started"]) < 1
                return not is_same or process.status() == psutil.STATUS_ZOMBIE
            return True
        # The file system's clock decides, which may differ from this host's.
        own = self._path.with_name(f".{FILE_NAME}.{self._token}")
        try:
            own.touch()
            return own.stat().st_mtime - self._path.stat().st_mtime > _STALE_SECONDS
        except OSError:
            return False
        finally:
            own.unlink(missing_ok=True)

    def _remove(self, holder: dict[str, Any]) -> None:
        """Remove a dead holder's lock, but not one that another process has taken over meanwhile."""
        aside = self._path.with_name(f".{FILE_NAME}.{self._token}.dead")
        with suppress(FileNotFoundError):
            os.replace(self._path, aside)
            if (_parse(aside) or {}).get("token") != holder.get("token"):
                with suppress(FileExistsError):
                    os.link(aside, self._path)
            aside.unlink()


def _parse(path: Path) -> dict[str, Any] | None:
    """The content of a lock, empty if it is damaged; None if the file is gone."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _describe(holder: dict[str, Any]) -> str:
    job = f" of Slurm job {holder['job']}" if holder.get("job") else ""
    return f"process {holder.get('pid')} on {holder.get('host')}{job}, since {holder.get('since')},"
