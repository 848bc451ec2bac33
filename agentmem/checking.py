"""Checks whether the sessions of a database are whole: an engine feeds rows in, and a report comes out. No I/O here.

Rules of a whole session: its positions go from 0 to its length without a gap, no row is at or above its length, and
each row is the JSON text of an object, or empty where its item was erased. The report keeps a bounded number of
problems, so that a database of any size can be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .items import ERASED, decode_item

MAX_PROBLEMS = 100
"""How many problems a report describes; the others are only counted."""

Progress = Callable[[int, int], None]
"""A function that is called from time to time with the number of items that are done, and about how many there are."""

_PROGRESS_EVERY_ITEMS = 1024

_ERASED = ERASED.encode()


@dataclass(frozen=True)
class Problem:
    """One problem of a database or a session. ``str()`` of it is one line.

    Attributes:
        what: a description.
        session_id: the session that has the problem; None if it is a problem of the database itself.
        position: the position of the item, or of the first of several; None if the problem is not about items.
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
    """The result of a check of one state of a database.

    Attributes:
        sessions: the number of sessions that were found, whole or not.
        items: the number of items that were found, whole or not; erased ones are not counted.
        problem_count: the number of problems. Of the damage that SQLite's own integrity check finds, only as much is
            counted as it lists.
        problems: the first 100 problems.
    """

    sessions: int
    items: int
    problem_count: int
    problems: tuple[Problem, ...] = field(repr=False)


class Checker:
    """Checks the sessions that an engine feeds to it, one after the other, each with its rows by ascending position.

    Args:
        progress: called in the thread that feeds the checker.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._expected_items = 0
        self._sessions = self._rows = self._items = self._problem_count = 0
        self._problems: list[Problem] = []
        # Of the session that is being fed:
        self._session_id: str | None = None
        self._length: int | None = None  # None if the database holds no number for it
        self._next_position = 0
        self._first_above_length: int | None = None  # the first position at or above the length

    def expect_items(self, count: int) -> None:
        """Set how many items there will be. It is used for the progress only."""
        self._expected_items = count
        self._report_progress()

    def add_damage(self, what: str) -> None:
        """Add a problem of the database itself."""
        self._add_problem(Problem(what))

    def begin_session(self, session_id: str, length: int | None) -> None:
        """Begin a session; the rows that follow are its rows.

        Args:
            session_id: the session.
            length: its length as it is stored; None if what is stored is not a number.
        """
        self._sessions += 1
        self._session_id, self._length, self._next_position, self._first_above_length = session_id, length, 0, None
        if length is None or length < 0:
            stored = "not a whole number" if length is None else length
            self._add_problem(Problem(f"its next position is {stored}", session_id))

    def add_row(self, position: int, data: bytes) -> None:
        """Check a row of the session."""
        self._add_missing_below(position)
        self._next_position = position + 1
        if self._first_above_length is None and self._length is not None and position >= self._length:
            self._first_above_length = position
        is_erased = data == _ERASED
        self.count_item(is_erased=is_erased)
        if is_erased:
            return
        try:
            decode_item(data)
        except ValueError as error:
            self._add_problem(Problem(f"cannot be read: {error}", self._session_id, position))

    def add_unreadable_rows(self, first: int, last: int, why: str) -> None:
        """Add that the database cannot read the session's rows from position `first` to `last`.

        There need not be a row at each of these positions. Those at or above the session's length are not reported.
        """
        if self._length is not None:
            last = min(last, self._length - 1)
        if first <= last:
            self._add_missing_below(first)
            self._next_position = last + 1
            self._add_problem(Problem(f"cannot be read{_up_to(first, last)}: {why}", self._session_id, first))

    def end_session(self) -> None:
        """End the session: it has no more rows."""
        if self._length is not None:
            self._add_missing_below(self._length)
        if self._first_above_length is not None:
            rows = _up_to(self._first_above_length, self._next_position - 1)
            what = f"not below the session's next position, {self._length}{rows}"
            self._add_problem(Problem(what, self._session_id, self._first_above_length))

    def count_item(self, *, is_erased: bool = False) -> None:
        """Count an item's row without checking it."""
        self._rows += 1
        self._items += not is_erased
        if self._rows % _PROGRESS_EVERY_ITEMS == 0:
            self._report_progress()

    def report(self) -> CheckReport:
        """Return what was found."""
        self._expected_items = self._rows
        self._report_progress()
        return CheckReport(self._sessions, self._items, self._problem_count, tuple(self._problems))

    def _add_missing_below(self, position: int) -> None:
        stop = position if self._length is None else min(position, self._length)
        if self._next_position < stop:
            what = f"missing{_up_to(self._next_position, stop - 1)}"
            self._add_problem(Problem(what, self._session_id, self._next_position))

    def _add_problem(self, problem: Problem) -> None:
        self._problem_count += 1
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(problem)

    def _report_progress(self) -> None:
        if self._progress is not None:
            self._progress(self._rows, max(self._rows, self._expected_items))


class SortedFeed:
    """Feeds a checker from two lists, sessions and items, both in the order of the bytes of the session ids.

    Items of a session that does not exist are a problem of the database.
    """

    def __init__(self, checker: Checker) -> None:
        self._checker = checker
        self._current_id: str | None = None  # of the session that is being fed
        self._orphan_id = ""  # of the items without a session that were reported last

    def add(self, sessions: Sequence[tuple[str, int]], items: Sequence[tuple[str, int, bytes]]) -> None:
        """Feed the next part of both lists.

        Args:
            sessions: ``(session_id, length)`` of all sessions that follow those fed before, at least up to that of the
                last item.
            items: ``(session_id, position, text)`` of the items that follow those fed before.
        """
        remaining = iter(sessions)
        next_session = next(remaining, None)
        for session_id, position, data in items:
            while next_session is not None and next_session[0] <= session_id:
                self._begin_session(*next_session)
                next_session = next(remaining, None)
            if session_id == self._current_id:
                self._checker.add_row(position, data)
            else:
                self._checker.count_item()
                if session_id != self._orphan_id:
                    self._orphan_id = session_id
                    self._checker.add_damage(f"items of session {session_id[:80]!r}, which does not exist")
        for session in (next_session, *remaining):
            if session is not None:
                self._begin_session(*session)

    def finish(self) -> None:
        """End the last session: there are no more sessions and items."""
        if self._current_id is not None:
            self._checker.end_session()

    def _begin_session(self, session_id: str, length: int) -> None:
        self.finish()
        self._current_id = session_id
        self._checker.begin_session(session_id, length)


def _up_to(first: int, last: int) -> str:
    return f", up to position {last}" if last > first else ""
