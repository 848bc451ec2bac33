"""A reading that stops in the middle, in the connection's thread, until the test lets it go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from agentmem.engines.base import Reading


class HeldReading(Reading[None]):
    """Takes one row and returns nothing; a pop with it removes nothing.

    Attributes:
        go_on: it waits for this when it is fed.

    Args:
        on_begin: called in the connection's thread when it is fed, before it waits.
    """

    first = 1
    oldest = None

    def __init__(self, on_begin: Callable[[], object]) -> None:
        self.go_on = threading.Event()
        self._on_begin = on_begin

    def feed(self, rows: Sequence[tuple[int, bytes]], *, at_start: bool) -> int:
        self._on_begin()
        self.go_on.wait()
        return 0

    def restart(self) -> None:
        """Nothing was taken."""

    def result(self) -> None:
        """Nothing was read."""
