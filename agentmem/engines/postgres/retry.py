"""Whether a call whose attempt failed is tried again on a new connection, and after which pause. No I/O.

Rules kept here:

- A call is tried again until its deadline, which counts from when it was made. Where its work took longer and then lost
  its connection, there is one more attempt.
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
    """The attempts at one call, or at several calls that are carried out together.

    Args:
        now: the time on the clock of deadlines.
        deadline: until when the call may wait for a connection; of several calls the earliest.
        settle_by: until when it is tried to find out whether an attempt was committed; of several calls the latest
            deadline. Default: `deadline`.

    Attributes:
        in_doubt: whether one of the attempts may have been committed.
        statement_limit_s: how long a statement of the next attempt may take.
    """

    def __init__(self, now: float, deadline: float, settle_by: float | None = None) -> None:
        self.in_doubt = False
        self.statement_limit_s = max(0.0, deadline - now) + ANSWER_TIMEOUT_S
        self._deadline = deadline
        self._settle_by = deadline if settle_by is None else settle_by
        self._has_one_more = now < deadline
        self._has_begun = False
        self._pause_s = FIRST_PAUSE_S

    def left_s(self, now: float) -> float:
        """How long the call may still wait for a connection or a lock; negative where its time is over."""
        return self._deadline - now

    def decide(self, failure: Failure, now: float) -> Decision:
        """What follows from a failed attempt; takes down what the next one needs."""
        self.in_doubt = self.in_doubt or failure.may_be_committed
        may_succeed_later = failure.is_connection_lost or failure.is_rolled_back or self.in_doubt
        if failure.had_connection and not may_succeed_later:
            return Decision.RAISE
        is_first_loss = failure.had_connection and not self._has_begun
        self._has_begun = self._has_begun or failure.had_connection
        is_over = now >= (self._settle_by if self.in_doubt else self._deadline) and not (
            is_first_loss and self._has_one_more
        )
        if not may_succeed_later or failure.is_unreachable or is_over:
            return Decision.GIVE_UP
        if self._has_begun:
            self.statement_limit_s = min(self.statement_limit_s, max(1.0, self.left_s(now)))
        return Decision.TRY_AGAIN

    def next_pause_s(self) -> float:
        """How long to wait before the next attempt."""
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, MAX_PAUSE_S)
        return pause_s
