"""Whether the sessions of a database are whole: an engine feeds in what it finds, a report comes out. No I/O here.

Rules: positions go from 0 to the session's end without a gap, none lies at or past the end, and each row is the JSON
text of an object. What is kept of the problems is bounded, so that a database of any size can be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .items import decode_item

MOST_PROBLEMS = 100
"""How many problems a report describes. It counts the others."""

Progress = Callable[[int, int], None]
"""Told from time to time how many items were dealt with, and about how many there are."""

_TELL_EVERY_ITEMS = 1024


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be; as a text it is one line.

    Attributes:
        what: what it is.
        session_id: in which session; None where it is in no session, but in the database itself.
        position: of the item, or of the first of several; None where it is not about items.
    """

    what: str
    session_id: str | None = None
    position: int | None = None

    def __str__(self) -> str:
        where = [] if self.session_id is None else [f"session {self.session_id[:80]!r}"]
        where += [] if self.position is None else [f"position {self.position}"]
        return ": ".join([", ".join(where), self.what] if where else [self.what])


@dataclass(frozen=True)
class CheckReport:
    """What a check found in one state of a database.

    Attributes:
        sessions, items: how many of them could be found, whole or not.
        problem_count: how many problems there are; more than SQLite's own integrity check lists are not counted.
        problems: the first 100 of them.
    """

    sessions: int
    items: int
    problem_count: int
    problems: tuple[Problem, ...]


class Checking:
    """Takes sessions, one after the other, each with its rows by rising position.

    Args:
        progress: told from time to time how far it is; in the thread that feeds.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._expected_items = 0
        self._sessions = self._items = self._problem_count = 0
        self._problems: list[Problem] = []
        self._session_id: str | None = None
        self._end: int | None = None  # of the session under way, where it has one
        self._next = 0  # the position that is to come
        self._past_end: int | None = None  # the first position at or past the end

    def expect(self, items: int) -> None:
        """Say how many items there will be, for the progress alone."""
        self._expected_items = items
        self._tell()

    def damage(self, what: str) -> None:
        """Note a problem of the database itself."""
        self._note(Problem(what))

    def begin_session(self, session_id: str, end: int | None) -> None:
        """The rows that follow are of this session; `end` is its next position, None where that is no number."""
        self._sessions += 1
        self._session_id, self._end, self._next, self._past_end = session_id, end, 0, None
        if end is None or end < 0:
            self._note(Problem(f"its next position is {'no whole number' if end is None else end}", session_id))

    def row(self, position: int, data: bytes) -> None:
        """Take a row of the session."""
        self._miss_before(position)
        self._next = position + 1
        if self._past_end is None and self._end is not None and position >= self._end:
            self._past_end = position
        self.count_item()
        try:
            decode_item(data)
        except ValueError as error:
            self._note(Problem(f"cannot be read: {error}", self._session_id, position))

    def unreadable(self, first: int, last: int, why: str) -> None:
        """The database does not give the session's rows at these positions; some of them may never have been."""
        if self._end is not None:
            last = min(last, self._end - 1)
        if first <= last:
            self._miss_before(first)
            self._next = last + 1
            self._note(Problem(f"cannot be read{_up_to(first, last)}: {why}", self._session_id, first))

    def end_session(self) -> None:
        """The session has no more rows."""
        if self._end is not None:
            self._miss_before(self._end)
        if self._past_end is not None:
            what = f"not below the session's next position, {self._end}{_up_to(self._past_end, self._next - 1)}"
            self._note(Problem(what, self._session_id, self._past_end))

    def count_item(self) -> None:
        """Count an item, and nothing more."""
        self._items += 1
        if self._items % _TELL_EVERY_ITEMS == 0:
            self._tell()

    def report(self) -> CheckReport:
        """What was found."""
        self._expected_items = self._items
        self._tell()
        return CheckReport(self._sessions, self._items, self._problem_count, tuple(self._problems))

    def _miss_before(self, position: int) -> None:
        stop = position if self._end is None else min(position, self._end)
        if self._next < stop:
            self._note(Problem(f"missing{_up_to(self._next, stop - 1)}", self._session_id, self._next))

    def _note(self, problem: Problem) -> None:
        self._problem_count += 1
        if len(self._problems) < MOST_PROBLEMS:
            self._problems.append(problem)

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._items, max(self._items, self._expected_items))


class Walk:
    """Goes through a database's sessions and items, both by the bytes of rising ids, and tells a :class:`Checking`."""

    def __init__(self, checking: Checking) -> None:
        self._checking = checking
        self._open: str | None = None
        self._stray = ""  # the id of items that no session has

    def take(self, sessions: Sequence[tuple[str, int]], items: Sequence[tuple[str, int, bytes]]) -> None:
        """Take the next items, and all sessions up to the last of them."""
        waiting = iter(sessions)
        next_session = next(waiting, None)
        for session_id, position, data in items:
            while next_session is not None and next_session[0] <= session_id:
                self._begin(*next_session)
                next_session = next(waiting, None)
            if session_id == self._open:
                self._checking.row(position, data)
            else:
                self._checking.count_item()
                if session_id != self._stray:
                    self._stray = session_id
                    self._checking.damage(f"items of session {session_id[:80]!r}, which does not exist")
        for session in (next_session, *waiting):
            if session is not None:
                self._begin(*session)

    def end(self) -> None:
        """There is nothing more."""
        if self._open is not None:
            self._checking.end_session()

    def _begin(self, session_id: str, length: int) -> None:
        self.end()
        self._open = session_id
        self._checking.begin_session(session_id, length)


def _up_to(first: int, last: int) -> str:
    return f", up to position {last}" if last > first else ""
