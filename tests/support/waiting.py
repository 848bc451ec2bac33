"""Waiting for what others do by themselves. Needs the standard library alone."""

from __future__ import annotations

import time
from collections.abc import Callable

WAIT_S = 200
"""How long others may take before the test fails, on the slowest machine; decides nothing else."""


def wait_until(condition: Callable[[], object]) -> None:
    """For what other threads and processes do by themselves; fails when it takes them far too long."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
