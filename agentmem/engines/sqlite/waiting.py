"""How a connection's thread waits for a lock that another connection holds.

Rules kept here:

- Connections have no busy timeout of SQLite's, which would know nothing of deadlines and of forks. What meets a lock
  is rolled back and tried again after a pause, until its deadline.
- Meanwhile the connection may be closed by whoever must close it: a fork, or the opening of another file at its path.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from typing import Protocol

from .. import deadlines

PAUSES_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.025, 0.025, 0.05, 0.05, 0.1)
"""The pauses between two attempts, in seconds; the last is repeated. SQLite's are the same."""


class Resting(Protocol):
    """What the lock is waited for with: a connection."""

    def rest(self, pause_s: float) -> None:
        """Do nothing for so long; raises where the connection was closed meanwhile."""


class LockWait:
    """One wait after the other, in the connection's thread.

    Args:
        connection: it rests in the pauses.
        tell: called with what was met when a wait begins, and with None when it is over.
    """

    def __init__(self, connection: Resting, tell: Callable[[Exception | None], object]) -> None:
        self._connection = connection
        self._tell = tell
        self._begin()

    def _begin(self) -> None:
        self._is_told = False
        self._pauses_s = chain(PAUSES_S, repeat(PAUSES_S[-1]))

    def pause(self, met: Exception, until: float) -> None:
        """Wait for a moment, at most until a deadline.

        Args:
            met: SQLite's error for the lock.

        Raises:
            ConnectionLost: the connection was closed meanwhile.
        """
        self.note(met)
        self._connection.rest(min(next(self._pauses_s), until - deadlines.now()))

    def note(self, met: Exception) -> None:
        """Tell that a wait begins, where that was not told."""
        if not self._is_told:
            self._is_told = True
            self._tell(met)

    def end(self) -> None:
        """The lock was free, or is not waited for any more."""
        if self._is_told:
            self._begin()
            self._tell(None)
