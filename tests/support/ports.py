"""Ports of loopback that a test may close and open again, without another program taking them meanwhile."""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"

# Below the ports that systems give to outgoing connections (from 32768 on Linux, from 49152 elsewhere). A client that
# tries again and again to reach a closed port among those would in the end be given that very port, and be connected
# to itself.
_PORTS = range(15_000, 32_000)


def free_port() -> int:
    """A port that nobody listens on now, and that no system gives away by itself."""
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just been closed is free
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise OSError(f"none of 100 ports of {HOST} is free")
