"""The lock of a run directory: held, waited for, taken over from the dead, and lost."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kd.errors import UserError
from kd.train.lock import locked

OTHER = {"token": "x", "host": "elsewhere", "pid": 7, "job": "31", "since": "2026-01-01 00:00:00"}


def silent(line: str) -> None:
    raise AssertionError(line)


def test_a_directory_that_is_in_use_is_refused(tmp_path: Path) -> None:
    said: list[str] = []
    with locked(tmp_path, say=silent):
        with pytest.raises(UserError) as caught, locked(tmp_path, say=said.append, wait_seconds=1.2):
            pass
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    assert str(caught.value).startswith(f"run.dir {tmp_path}: process {os.getpid()} on ")
    assert str(caught.value).endswith(", uses it; wait for it or end it, or choose another run.dir")
    assert len(said) == 1 and "waiting for process" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_is_waited_for(tmp_path: Path) -> None:
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path, say=silent):
            taken.set()
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(10)
    with locked(tmp_path, say=lambda _: release.set()):
        assert release.is_set()
    holder.join()


def test_a_dead_process_of_this_host_is_succeeded_at_once(tmp_path: Path) -> None:
    code = (
        f"import os; from pathlib import Path; from kd.train.lock import _Lock; _Lock(Path({str(tmp_path)!r}))._try()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "run.lock").exists()
    with locked(tmp_path, say=silent, wait_seconds=0):
        pass


@pytest.mark.parametrize("content", [json.dumps(OTHER), "", "[]"])
def test_another_host_is_dead_after_a_minute_without_a_heartbeat(tmp_path: Path, content: str) -> None:
    lock = tmp_path / "run.lock"
    lock.write_text(content)
    with pytest.raises(UserError, match="wait for it or end it"), locked(tmp_path, say=lambda _: None, wait_seconds=0):
        pass
    assert lock.read_text() == content
    os.utime(lock, (time.time() - 61, time.time() - 61))
    with locked(tmp_path, say=silent, wait_seconds=0):
        assert "token" in json.loads(lock.read_text()) and lock.read_text() != content
    assert list(tmp_path.iterdir()) == []


def test_a_holder_names_its_slurm_job(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text(json.dumps(OTHER))
    with pytest.raises(UserError) as caught, locked(tmp_path, say=lambda _: None, wait_seconds=0):
        pass
    assert "process 7 on elsewhere of Slurm job 31, since 2026-01-01 00:00:00, uses it" in str(caught.value)


def test_a_process_that_lost_its_lock_ends(tmp_path: Path) -> None:
    code = f"""
import json, time
from pathlib import Path
from kd.train import lock
lock._BEAT_SECONDS = 0.05
with lock.locked(Path({str(tmp_path)!r}), say=print):
    Path({str(tmp_path / "run.lock")!r}).write_text(json.dumps({OTHER}))
    time.sleep(30)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "process 7 on elsewhere of Slurm job 31" in ended.stderr and "has taken it over" in ended.stderr
    assert json.loads((tmp_path / "run.lock").read_text()) == OTHER


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = r"cannot be written \(Not a directory\); choose a writable directory"
    with pytest.raises(UserError, match=line), locked(tmp_path / "file" / "run", say=silent):
        pass
