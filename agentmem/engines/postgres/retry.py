"""Whether a call whose attempt failed is tried again on a new connection, and after which pause. No I/O.

Rules kept here:

- Work that has begun and lost its connection is tried again for as long as a call may wait, counted from that loss.
- Once an attempt may have been committed, only an answer of the server's settles it: until then every error is retried.
- Nothing is tried again where waiting is in vain: the server refuses, or nothing has ever answered at the address.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

ANSWER_TIMEOUT_S = 30.0
"""How long a statement may take beyond ``busy_timeout_s`` before its connection counts as lost, in seconds. A server or
a network that died silently gives no other sign. Locks on whole tables are waited for as long, too."""

FIRST_PAUSE_S = 0.01
"""The pause before the second attempt, in seconds; each later one is twice as long, up to `MAX_PAUSE_S`."""

MAX_PAUSE_S = 0.25


@dataclass(frozen=True)
class Failure:
    """How an attempt failed.

    Attributes:
        had_connection: whether there was a connection, so that the work was begun.
        is_connection_lost: whether another connection may succeed.
        is_rolled_back: whether the server rolled it back and may accept the same now.
        may_be_committed: whether the connection was lost after the commit was sent.
        is_unreachable: whether nothing has ever answered at the address, and the error says at once that nothing will.
    """

    had_connection: bool
    is_connection_lost: bool = False
    is_rolled_back: bool = False
    may_be_committed: bool = False
    is_unreachable: bool = False


class Decision(Enum):
    """What follows from a failed attempt."""

    RAISE = auto()
    """The error is the outcome of the call."""

    GIVE_UP = auto()
    """No connection could do it in time, or none can be made."""

    TRY_AGAIN = auto()
    """On a new connection, after :meth:`Retries.next_pause_s`."""


class Retries:
    """The attempts at one call.

    Args:
        now: the event loop's time.
        busy_timeout_s: how long the call may wait for a connection.

    Attributes:
        in_doubt: whether one of the attempts may have been committed.
        statement_limit_s: how long a statement of the next attempt may take.
    """

    def __init__(self, now: float, busy_timeout_s: float) -> None:
        self.in_doubt = False
        self.statement_limit_s = busy_timeout_s + ANSWER_TIMEOUT_S
        self._busy_timeout_s = busy_timeout_s
        self._deadline = now + busy_timeout_s
        self._has_begun = False
        self._pause_s = FIRST_PAUSE_S

    def left_s(self, now: float) -> float:
        """How long the call may still wait for a connection; negative where its time is over."""
        return self._deadline - now

    def decide(self, failure: Failure, now: float) -> Decision:
        """What follows from a failed attempt; takes down what the next one needs."""
        self.in_doubt = self.in_doubt or failure.may_be_committed
        may_succeed_later = failure.is_connection_lost or failure.is_rolled_back or self.in_doubt
        if failure.had_connection and not may_succeed_later:
            return Decision.RAISE
        if failure.had_connection and not self._has_begun:
            self._has_begun = True
            self._deadline = now + self._busy_timeout_s
        if not may_succeed_later or failure.is_unreachable or now >= self._deadline:
            return Decision.GIVE_UP
        if self._has_begun:
            self.statement_limit_s = min(self.statement_limit_s, max(1.0, self.left_s(now)))
        return Decision.TRY_AGAIN

    def next_pause_s(self) -> float:
        """How long to wait before the next attempt."""
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, MAX_PAUSE_S)
        return pause_s
