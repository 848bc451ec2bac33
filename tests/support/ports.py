"""Ports of loopback that a test may close and open again, without another program taking them meanwhile."""

from __future__ import annotations

import os
import random
import socket
import tempfile

HOST = "127.0.0.1"

# Below the ports that systems give to outgoing connections (from 32768 on Linux, from 49152 elsewhere). A client that
# tries again and again to reach a closed port among those would in the end be given that very port, and be connected
# to itself.
_PORTS = range(15_000, 32_000)

_taken: set[int] = set()
"""Those that this process was given. It keeps them to its end."""

if os.name == "posix":
    import fcntl

    # One byte for each port, locked by the process that was given it: tests run in several processes at once. Never
    # closed, because that would let go of all of them; not inherited by a forked child.
    _locks = os.open(f"{tempfile.gettempdir()}/agentmem-tests-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT, 0o600)

    def _take(port: int) -> bool:
        """Whether no other process of the tests has it."""
        try:
            fcntl.lockf(_locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        return True

else:

    def _take(port: int) -> bool:
        """Whether no other process of the tests has it, as far as this system tells."""
        return True


def free_port() -> int:
    """A port that nobody listens on now, that no other test is given, and that no system gives away by itself."""
    for port in random.sample(_PORTS, 1000):
        if port in _taken or not _take(port):
            continue
        _taken.add(port)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just been closed is free
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise OSError(f"none of 1,000 ports of {HOST} is free")
