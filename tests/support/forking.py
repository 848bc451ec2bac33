"""How scripts that the tests run fork: the child does its work and ends, and the parent waits for it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

HANGS_S = 100
"""Nothing but a deadlock takes a child that long."""


def fork(work: Callable[[], object]) -> None:
    """Do `work` in a child, and wait for its end; ends the script where the child fails or hangs."""
    wait_for(start(work))


def start(work: Callable[[], object]) -> int:
    """Begin `work` in a child, which then ends without a clean-up; returns its id for :func:`wait_for`."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        sys.stdout.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def wait_for(child: int) -> None:
    """Wait for the end of a child; ends the script where the child fails or hangs."""
    deadline = time.monotonic() + HANGS_S
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            sys.exit("the child hangs")
        time.sleep(0.002)
    if ended[1]:
        sys.exit(f"the child failed: {ended}")
