"""A private Slurm of two nodes on the loopback interface, for tests; it needs neither systemd nor cgroups."""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from kd.distributed import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
# Ranks connect to the first node by the name that Slurm gives: it must resolve.
NODES = (socket.gethostname(), f"{socket.gethostname()}-second")

# A requeued job starts when the credentials of its first start have expired: after two minutes by default.
_CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PartitionName=main Nodes={nodes} Default=YES State=UP
{node_lines}
"""


class SlurmDidNotStart(Exception):
    """A daemon died or the nodes did not become idle; the message is the logs."""


@dataclass(frozen=True, kw_only=True)
class SlurmCluster:
    """A running cluster; commands reach it through `environment`."""

    environment: dict[str, str]
    directory: Path

    def logs(self) -> str:
        """The logs of the daemons, for the message of a test that fails."""
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.directory.glob("*.log")))


def missing_programs() -> list[str]:
    """Programs of Slurm and munge that are not installed."""
    with_sbin = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return [program for program in PROGRAMS if shutil.which(program, path=with_sbin) is None]


def host_resolves() -> bool:
    """Whether this machine's own name resolves."""
    with suppress(OSError):
        return bool(socket.gethostbyname(socket.gethostname()))
    return False


@contextmanager
def loopback_cluster(*, timeout: float = 30) -> Iterator[SlurmCluster]:
    """Start munged, slurmctld and two slurmd with files in a new temporary folder; stop them at the end.

    Raises:
        SlurmDidNotStart: a daemon does not start here, or the nodes are not idle after `timeout` seconds.
    """
    # Not in pytest's folder: a slurmd makes a socket per step, and a socket's path has at most 107 characters.
    with TemporaryDirectory(prefix="slurm-") as name:
        # munged refuses a socket in a folder that others may write to.
        Path(name).chmod(0o755)
        yield from _running_cluster(Path(name), timeout=timeout)


def _running_cluster(directory: Path, *, timeout: float) -> Iterator[SlurmCluster]:
    environment = {
        "SLURM_CONF": str(_write_files(directory)),
        "PATH": os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]),
    }
    cluster = SlurmCluster(environment=environment, directory=directory)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in _daemon_commands(directory):
            log = (directory / f"daemon-{len(daemons)}.log").open("wb")
            # In the foreground, so that they are children which can be stopped and waited for.
            daemons.append(
                subprocess.Popen(
                    command, env=os.environ | environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
                )
            )
            log.close()
            if command[0] == "munged":
                _wait_until((directory / "munge.sock").exists, timeout=timeout, daemons=daemons, cluster=cluster)
        _wait_until(lambda: _num_idle(environment) == len(NODES), timeout=timeout, daemons=daemons, cluster=cluster)
        yield cluster
    finally:
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                ["scancel", "--full", f"--user={getpass.getuser()}"],
                env=os.environ | environment,
                timeout=10,
                capture_output=True,
            )
        for daemon in reversed(daemons):
            _stop(daemon)


def _write_files(directory: Path) -> Path:
    key = directory / "munge.key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o600)
    (directory / "state").mkdir()
    node_lines = []
    for name in NODES:
        (directory / f"spool-{name}").mkdir()
        address = f"NodeHostname=localhost NodeAddr=127.0.0.1 Port={free_port()}"
        node_lines.append(f"NodeName={name} {address} CPUs=1 State=UNKNOWN")
    conf = directory / "slurm.conf"
    conf.write_text(
        _CONF.format(
            directory=directory,
            controller_port=free_port(),
            user=getpass.getuser(),
            nodes=",".join(NODES),
            node_lines="\n".join(node_lines),
        ),
        encoding="utf-8",
    )
    return conf


def _daemon_commands(directory: Path) -> Iterator[list[str]]:
    yield [
        "munged",
        "--foreground",
        "--force",
        f"--key-file={directory}/munge.key",
        f"--socket={directory}/munge.sock",
        f"--pid-file={directory}/munged.pid",
        f"--log-file={directory}/munged.log",
        f"--seed-file={directory}/munge.seed",
    ]
    yield ["slurmctld", "-D", "-i"]
    for name in NODES:
        yield ["slurmd", "-D", "-N", name]


def _num_idle(environment: dict[str, str]) -> int:
    listing = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%T"], env=os.environ | environment, capture_output=True, text=True
    )
    return listing.stdout.split().count("idle")


def _wait_until(
    condition: Callable[[], bool],
    *,
    timeout: float,
    daemons: list[subprocess.Popen[bytes]],
    cluster: SlurmCluster,
) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
            raise SlurmDidNotStart(cluster.logs())
        time.sleep(0.2)


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    if daemon.poll() is None:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
