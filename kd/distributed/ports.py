"""TCP ports at which the ranks of a run meet."""

import random
import socket
from contextlib import suppress

from kd.errors import UserError

DEFAULT_PORT = 29500
"""The port of a run of several ranks without MASTER_PORT; Slurm jobs use this one and above."""
_PORTS = range(20000, DEFAULT_PORT)


def free_port() -> int:
    """A TCP port of this host that is free at the moment.

    It is below the ephemeral ports (RFC 6335; from 32768 in Linux): ranks need many seconds until they listen, and
    any outgoing connection could be given the port meanwhile.

    Raises:
        UserError: hundreds of ports were tried and all are in use.
    """
    for port in random.SystemRandom().sample(_PORTS, k=500):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise UserError(f"no free TCP port found from {_PORTS.start} to {_PORTS.stop - 1}; end what listens on them")
