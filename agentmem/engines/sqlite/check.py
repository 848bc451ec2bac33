"""Checks an SQLite file: runs SQLite's own integrity check, then reads every session and every row.

Rules kept here:

- The tables of sessions and items are read side by side, each row once: by session, and items by position. So a check
  takes the memory of one row, whatever the size of the database.
- A page that cannot be read does not end the check. It searches for the next key that can be read and continues there.
- What a cleared session has left, and is still being removed, is no problem and no item.
- A file of an older version, which only opening upgrades, is checked as it is.

A check of 1,200,000 items (1.2 GB) that lie across each other took 6.1 s on 2 cores, in a process of at most 44 MB.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

from ...checking import MAX_PROBLEMS, Checker, CheckReport, Progress
from .errors import primary_code
from .schema import require_tables, schema_version
from .snapshot import Snapshot

_POSITION_BITS = 63
"""How many low bits of an item's key, as it is counted here, are its position. The others are its session's key."""

_LAST_POSITION = (1 << _POSITION_BITS) - 1

_DAMAGE_CODES = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT)
"""SQLite's result codes where tables are not as agentmem made them, and where a page is damaged."""

_NEAR_KEYS = 1_000
"""How many keys after a damaged page are tried one by one: more than a page has rows."""

_NEAR_SESSIONS = 8
"""In how many sessions after a damaged page the keys of single items are tried."""


class _Table(NamedTuple):
    """How a table is read. A key here is one number, also where it is a session's key and a position.

    Attributes:
        rows: the statement for all rows from a key on, by ascending key. What the key is made of comes first.
        keys: the same statement for the keys alone.
        position_bits: how many low bits of a key are a position. Keys that differ only in these are close together;
            others may be far apart.
        key_bits: how many bits the session's key has.
    """

    rows: str
    keys: str
    position_bits: int
    key_bits: int = 63

    @property
    def first_key(self) -> int:
        """The lowest key that there may be."""
        return -(1 << self.key_bits + self.position_bits)

    @property
    def last_key(self) -> int:
        """The highest key that there may be."""
        return (1 << self.key_bits + self.position_bits) - 1

    def parameters(self, key: int) -> tuple[int, ...]:
        """A key as the statements take it."""
        return (key >> self.position_bits, key & _LAST_POSITION) if self.position_bits else (key,)

    def keyed(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """A row with its key as one number."""
        return ((row[0] << self.position_bits) + row[1], *row[2:]) if self.position_bits else row


class _Layout(NamedTuple):
    """The tables of a schema version."""

    sessions: _Table
    items: _Table
    length: str


def _layout(
    *, length: str, items: str, place: str, start: str, order: str, key_bits: int, of_items: str = ""
) -> _Layout:
    # Texts are read as bytes, because a damaged one may not be UTF-8.
    sessions = "FROM agentmem_sessions WHERE session_key >= ? ORDER BY session_key"
    found = f"FROM agentmem_items WHERE {start} {of_items} ORDER BY {order}"
    return _Layout(
        _Table(
            f"SELECT session_key, CAST(session_id AS BLOB), CASE typeof({length}) WHEN 'integer' THEN {length} END "
            + sessions,
            f"SELECT session_key {sessions}",
            0,
        ),
        _Table(f"SELECT {place}, {items} {found}", f"SELECT {place} {found}", _POSITION_BITS, key_bits),
        length,
    )


_LAYOUTS = {
    1: _layout(
        length="next_position",
        items="CAST(item AS BLOB)",
        place="item_key >> 32, item_key & 0xFFFFFFFF",
        start="item_key >= (? << 32) + min(?, 0x100000000)",
        order="item_key",
        key_bits=31,
    ),
    2: _layout(
        length="length",
        items="CAST(item AS BLOB)",
        place="session_key, position",
        start="(session_key, position) >= (?, ?)",
        # What another program may have stored there is found by _check_the_rest.
        of_items="AND typeof(session_key) = 'integer' AND typeof(position) = 'integer'",
        order="session_key, position",
        key_bits=63,
    ),
}


class _Unreadable(NamedTuple):
    """A range of keys whose rows cannot be read. There need not be a row at each of them."""

    first: int
    last: int
    why: str

    def follows(self, before: _Unreadable) -> bool:
        """Whether the range continues one of the same session's."""
        is_next = self.first == before.last + 1 and self.first >> _POSITION_BITS == before.first >> _POSITION_BITS
        return is_next and self.why == before.why


def check(snapshot: Snapshot, path: str, progress: Progress | None) -> CheckReport:
    """Check the database in the snapshot's state, and report what is wrong with it.

    Args:
        snapshot: the state to check.
        path: the path of the database, for messages.
        progress: called in this thread.

    Raises:
        StorageError: the database is not one of agentmem's, or is empty.
        SchemaVersionError: a newer agentmem wrote the database.
        sqlite3.Error: the database could not be read for another reason than damage, such as a lock.
        Halted: the snapshot was halted, or its file changed.
        Exception: what `progress` raises.
    """
    connection = snapshot.connection
    checker = Checker(progress)
    if _has_tables(connection, path, checker):
        layout = _LAYOUTS[schema_version(connection)]
        checker.expect_items(_expected_items(connection, layout))
        _run_integrity_check(connection, checker)
        _check_sessions(connection, layout, checker)
        if layout is not _LAYOUTS[1]:
            _check_the_rest(connection, checker)
    snapshot.require_valid()
    return checker.report()


def _has_tables(connection: sqlite3.Connection, path: str, checker: Checker) -> bool:
    """Return whether agentmem's tables can be found, in a damaged file, too."""
    try:
        require_tables(connection, path)
    except sqlite3.DatabaseError as error:
        _raise_unless_damage(error)
        checker.add_damage(f"the file is damaged, or a part of it is missing: {error}")
        try:
            # With this, SQLite also reads a file that is shorter than its header says, and what it can of a damaged
            # schema (sqlite.org/pragma.html#pragma_writable_schema). The connection is read-only: nothing is written.
            connection.execute("PRAGMA writable_schema = ON")
            require_tables(connection, path)
        except sqlite3.DatabaseError as again:
            _raise_unless_damage(again)
            return False
    return True


def _expected_items(connection: sqlite3.Connection, layout: _Layout) -> int:
    """Return about how many items there are; 0 if that cannot be read."""
    try:
        (count,) = connection.execute(f"SELECT total({layout.length}) FROM agentmem_sessions").fetchone()  # noqa: S608  a column's name
        return int(count)
    except sqlite3.DatabaseError as error:
        _raise_unless_damage(error)
        return 0


def _run_integrity_check(connection: sqlite3.Connection, checker: Checker) -> None:
    """Run SQLite's own check of pages, rows and indexes (sqlite.org/pragma.html#pragma_integrity_check)."""
    try:
        with closing(connection.execute(f"PRAGMA integrity_check({MAX_PROBLEMS})")) as cursor:
            for (text,) in cursor:
                for line in text.splitlines():
                    if line != "ok" and not line.startswith("***"):  # a headline above the problems
                        checker.add_damage(f"SQLite: {line}")
    except sqlite3.DatabaseError as error:
        _raise_unless_damage(error)
        checker.add_damage(f"SQLite's integrity check did not get to its end: {error}")


def _check_sessions(connection: sqlite3.Connection, layout: _Layout, checker: Checker) -> None:
    def is_removed(session_key: int) -> bool:
        if layout is _LAYOUTS[1]:
            return False
        try:
            found = connection.execute(
                "SELECT 1 FROM agentmem_removed WHERE session_key = ?", (session_key,)
            ).fetchone()
        except sqlite3.DatabaseError as error:
            _raise_unless_damage(error)
            return False
        return found is not None

    items = _ItemFeed(_merged(_scan(connection, layout.items)), checker, is_removed)
    for session in _scan(connection, layout.sessions):
        if isinstance(session, _Unreadable):
            items.report_orphans_before(session.first << _POSITION_BITS)
            first = "" if session.first == layout.sessions.first_key else f" from key {session.first} on"
            last = "" if session.last == layout.sessions.last_key else f" up to key {session.last}"
            checker.add_damage(f"no session{first}{last} can be read: {session.why}")
            items.report_orphans_before((session.last + 1) << _POSITION_BITS, "that cannot be read")
        else:
            key, session_id, end = session
            items.report_orphans_before(key << _POSITION_BITS)
            checker.begin_session((session_id or b"").decode(errors="replace"), end)
            items.feed_session(key << _POSITION_BITS)
            checker.end_session()
    items.report_orphans_before(layout.items.last_key + 1)


_REST = {
    """
    SELECT count(*) FROM agentmem_items WHERE typeof(session_key) <> 'integer' OR typeof(position) <> 'integer'
    """: "{} items whose session key or position is not a whole number",
    """
    SELECT count(*) FROM agentmem_notes
    WHERE session_key NOT IN (SELECT session_key FROM agentmem_sessions)
    AND session_key NOT IN (SELECT session_key FROM agentmem_removed)
    """: "{} notes of sessions that are missing",
    "SELECT count(*) FROM agentmem_removed WHERE session_key IN (SELECT session_key FROM agentmem_sessions)": (
        "{} sessions whose items are being removed, although they were not cleared"
    ),
}
"""Statements that count what should not be, and what is said of it. A lock of no session is no problem."""


def _check_the_rest(connection: sqlite3.Connection, checker: Checker) -> None:
    for statement, what in _REST.items():
        try:
            (count,) = connection.execute(statement).fetchone()
        except sqlite3.DatabaseError as error:
            _raise_unless_damage(error)
            checker.add_damage(f"not all tables can be read: {error}")
            return
        if count:
            checker.add_damage(what.format(count))


class _ItemFeed:
    """Feeds the rows of items to a checker, session by session.

    Args:
        scan: the rows and the unreadable ranges, by ascending key; see :func:`_scan`.
        checker: is fed.
        is_removed: whether what a session of this key has left is still being removed.
    """

    def __init__(self, scan: Iterator[Any], checker: Checker, is_removed: Callable[[int], bool]) -> None:
        self._scan = scan
        self._checker = checker
        self._is_removed = is_removed
        self._next = next(scan, None)  # a row or a range; None at the end

    def feed_session(self, first: int) -> None:
        """Feed the rows of one session.

        Args:
            first: the first key that the session may have.
        """
        last = first + _LAST_POSITION
        while self._next is not None and self._next[0] <= last:
            if not isinstance(self._next, _Unreadable):
                key, data = self._next
                self._checker.add_row(key - first, data or b"")
            else:
                self._checker.add_unreadable_rows(
                    max(self._next.first, first) - first, min(self._next.last, last) - first, self._next.why
                )
                if self._next.last > last:
                    return  # the range continues in the next session
            self._next = next(self._scan, None)

    def report_orphans_before(self, stop: int, whose: str = "that is missing") -> None:
        """Report the rows below the key `stop`, which belong to no session that could be read.

        Args:
            stop: the first key that is not reported.
            whose: what is wrong with their session, for the message.
        """
        while (found := self._next_key_before(stop)) is not None:
            session_key, first, count = found >> _POSITION_BITS, found & _LAST_POSITION, 0
            is_removed = self._is_removed(session_key)
            while found is not None and found >> _POSITION_BITS == session_key:
                self._checker.count_item(is_erased=is_removed)
                count, last = count + 1, found & _LAST_POSITION
                self._next = next(self._scan, None)
                found = self._next_key_before(stop)
            if is_removed:
                continue
            several = f"{count} items, up to position {last}," if count > 1 else "an item"
            self._checker.add_damage(f"session key {session_key}, position {first}: {several} of a session {whose}")

    def _next_key_before(self, stop: int) -> int | None:
        """Return the key of the next row if it is below `stop`. Skips unreadable ranges that end below it."""
        while isinstance(self._next, _Unreadable) and self._next.last < stop:
            self._next = next(self._scan, None)
        if self._next is None or isinstance(self._next, _Unreadable):
            return None
        key: int = self._next[0]
        return key if key < stop else None


def _scan(connection: sqlite3.Connection, table: _Table) -> Iterator[Any]:
    """Yield the rows of a table by ascending key, and an ``_Unreadable`` in place of those that cannot be read."""
    start = table.first_key
    while start <= table.last_key:
        try:
            with closing(connection.execute(table.rows, table.parameters(start))) as cursor:
                for found in cursor:
                    yield (row := table.keyed(found))
                    start = row[0] + 1
            return
        except sqlite3.DatabaseError as error:
            _raise_unless_damage(error)
            why = str(error)
        row = _first_row(connection, table, table.rows, start)
        if row is None:
            first, stop = _find_damage(connection, table, start)
            yield _Unreadable(first, stop - 1, why)
            start = stop
        elif row[0] <= table.last_key:  # Python's sqlite3 reads one row ahead, so the next row's error hid this one
            yield row
            start = row[0] + 1
        else:
            return


def _merged(scan: Iterator[Any]) -> Iterator[Any]:
    """Yield the same, with one range in the place of those of a session that follow each other."""
    last: _Unreadable | None = None
    for found in scan:
        if last is not None and isinstance(found, _Unreadable) and found.follows(last):
            last = last._replace(last=found.last)
            continue
        if last is not None:
            yield last
        last = found if isinstance(found, _Unreadable) else None
        if last is None:
            yield found
    if last is not None:
        yield last


def _find_damage(connection: sqlite3.Connection, table: _Table, start: int) -> tuple[int, int]:
    """Return the first key from `start` on whose row cannot be read, and a key after it from which reading works."""
    found = _first_row(connection, table, table.keys, start)
    if found is not None:  # only this row is damaged, in its page or in its overflow pages
        return found[0], found[0] + 1
    bad = start
    for good in _keys_to_try(start, table):
        if _first_row(connection, table, table.keys, good) is not None:
            break
        bad = good
    else:
        return start, table.last_key + 1
    while good - bad > 1:  # binary search
        middle = (good + bad) // 2
        if _first_row(connection, table, table.keys, middle) is None:
            bad = middle
        else:
            good = middle
    return start, good


def _keys_to_try(start: int, table: _Table) -> Iterator[int]:
    """Yield keys after a damaged page from which to try reading on.

    The steps between them are small at first, so that no row soon after the page is skipped, and then grow.
    """
    start = max(start, 0)  # agentmem has no negative keys
    position_bits = table.position_bits
    for session_key in _growing_steps(start >> position_bits, table.last_key >> position_bits):
        first = session_key << position_bits
        if first > start:
            yield first
        if session_key - (start >> position_bits) < _NEAR_SESSIONS:
            yield from _growing_steps(max(first, start) + 1, first + (1 << position_bits) - 1)


def _growing_steps(first: int, last: int) -> Iterator[int]:
    """Yield the numbers from `first` to `last`: ``_NEAR_KEYS`` in steps of one, then in steps that double."""
    number, step = first, 1
    while number <= last:
        yield number
        step = 1 if number - first < _NEAR_KEYS else step * 2
        number += step


def _first_row(connection: sqlite3.Connection, table: _Table, statement: str, start: int) -> Any:
    """Return the first row from the key `start` on; None if it cannot be read.

    If there is no row, the result is one with a key above the highest one.
    """
    try:
        with closing(connection.execute(f"{statement} LIMIT 1", table.parameters(start))) as cursor:
            found = cursor.fetchone()
            return (table.last_key + 1,) if found is None else table.keyed(found)
    except sqlite3.DatabaseError as error:
        _raise_unless_damage(error)
        return None


def _raise_unless_damage(error: sqlite3.Error) -> None:
    """Raise an error that does not mean damage, such as a lock or an interrupt."""
    if primary_code(error) not in _DAMAGE_CODES:
        raise error
