"""Where ranks meet: ports that nobody else takes."""

import random
import socket
from contextlib import suppress

from kd.errors import UserError

DEFAULT_PORT = 29500
"""Slurm's jobs meet at this one and above."""
_PORTS = range(20000, DEFAULT_PORT)


def free_port() -> int:
    """A TCP port of this host that nobody uses at the moment.

    It is below the ports that systems give to outgoing connections (RFC 6335; from 32768 in Linux): ranks need
    many seconds until they listen, and a connection of anybody could be given the port meanwhile.

    Raises:
        UserError: hundreds of tries met a port in use.
    """
    for port in random.SystemRandom().sample(_PORTS, k=500):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise UserError(f"no free TCP port found from {_PORTS.start} to {_PORTS.stop - 1}; end what listens on them")
