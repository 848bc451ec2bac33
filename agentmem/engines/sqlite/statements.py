"""The read and write operations on an SQLite database, and their SQL.

Rules kept here:

- Consecutive appends in a transaction share their statements, because a statement costs as much as four rows: 64
  appends of two rows took 9 µs each with shared statements, and 15 µs each with their own.
- Names and ids are bound as parameters, never formatted into SQL.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from .. import operations
from ..base import Reading
from ..readings import MAX_INLINE_BYTES, SLICE_BYTES, Joined, feed

_NEWEST_FIRST = """
    SELECT position, CAST(item AS BLOB) FROM agentmem_items
    WHERE session_key = (SELECT session_key FROM agentmem_sessions WHERE session_id = ?) ORDER BY position DESC
"""

# The rows come as one value, because sqlite3 releases and takes Python's interpreter lock for each row: 20 rows took
# 32 µs more than one row while the event loop ran on another core. group_concat keeps the order of a subquery that has
# a LIMIT. Rows of erased items are left out, because they cannot be told in the joined text.
_NEWEST_JOINED = """
    SELECT CAST(ifnull(group_concat(ifnull(item, '')), '') AS BLOB), count(*), min(position)
    FROM (
        SELECT position, item FROM agentmem_items
        WHERE session_key = (SELECT session_key FROM agentmem_sessions WHERE session_id = ?) AND item IS NOT ''
        ORDER BY position DESC LIMIT ?
    )
"""

# Ids are compared by their bytes in UTF-8, as they are stored. An id that is not a text, which only another program can
# have stored, is left out, because no caller can name it (sqlite.org/datatype3.html#sort_order).
_SESSIONS = """
    SELECT CAST(session_id AS BLOB), CAST(length AS INTEGER) FROM agentmem_sessions
    WHERE session_id > CAST(? AS TEXT) AND typeof(session_id) = 'text' ORDER BY session_id LIMIT ?
"""
_FIRST_SESSIONS = _SESSIONS.replace(">", ">=")

_OLDEST_FIRST = """
    SELECT position, CAST(item AS BLOB) FROM agentmem_items
    WHERE session_key = (SELECT session_key FROM agentmem_sessions WHERE session_id = ?) AND position >= ?
    ORDER BY position LIMIT ?
"""

_ADD_SESSION = """
    INSERT INTO agentmem_sessions (session_id, length, updated_at, stored_at, created_at) VALUES (?, ?, ?, ?, ?)
"""
_ADD_ITEMS = "INSERT INTO agentmem_items (session_key, position, created_at, item) VALUES (?, ?, ?, ?)"
_SET_LENGTH = "UPDATE agentmem_sessions SET length = ?, updated_at = ?, stored_at = ? WHERE session_key = ?"
_CUT = "UPDATE agentmem_sessions SET length = ?, updated_at = ?, stored_at = ?, edits = edits + 1 WHERE session_key = ?"

CLEARED_AT_ONCE = 256
"""How many items a session may have whose clear removes them all in its transaction. Those of a longer one go in slices
of as many; see ``removal``, also for what this number comes from."""


def append_all(raw: sqlite3.Connection, appends: Sequence[Append], now: int) -> None:
    """Do several appends, in order, with shared statements; inside the caller's transaction.

    Args:
        raw: the connection.
        appends: the appends; several may be to one session.
        now: the time to store, in microseconds since 1970.
    """
    added: dict[str, int] = {}
    for append in appends:
        added[append.session_id] = added.get(append.session_id, 0) + len(append.rows)
    places = _find_sessions(raw, list(added))
    raw.executemany(_SET_LENGTH, [(position + added[name], now, now, key) for name, (key, position) in places.items()])
    for session_id in [name for name in added if name not in places]:
        # With its length at once: one change of the row and of its indexes.
        key = raw.execute(_ADD_SESSION, (session_id, added[session_id], now, now, now)).lastrowid
        assert key is not None  # an INSERT always sets it
        places[session_id] = (key, 0)
    rows: list[tuple[int, int, int, str]] = []
    for append in appends:
        key, position = places[append.session_id]
        rows += [(key, position + index, now, item) for index, item in enumerate(append.rows)]
        places[append.session_id] = (key, position + len(append.rows))
    raw.executemany(_ADD_ITEMS, rows)


def _find_sessions(raw: sqlite3.Connection, session_ids: list[str]) -> dict[str, tuple[int, int]]:
    """Return the key and the length of each of these sessions that exists."""
    # The last id is repeated up to a power of two, so that there are few different statements: sqlite3 caches them.
    wanted = session_ids + session_ids[-1:] * ((1 << (len(session_ids) - 1).bit_length()) - len(session_ids))
    marks = ", ".join("?" * len(wanted))
    found = raw.execute(
        f"SELECT session_id, session_key, length FROM agentmem_sessions WHERE session_id IN ({marks})",  # noqa: S608  the marks are only "?"
        wanted,
    )
    return {session_id: (key, position) for session_id, key, position in found}


class Write(Protocol):
    """One write operation."""

    @property
    def session_id(self) -> str | None:
        """The session that is written, for messages; None if it is the whole database."""

    @property
    def is_alone(self) -> bool:
        """Whether the write needs a transaction of its own."""

    @property
    def removes_sessions(self) -> bool:
        """Whether the write may leave items of sessions that are gone; see ``removal``."""

    def apply(self, raw: sqlite3.Connection, now: int) -> object:
        """Do the write, inside the caller's transaction.

        Args:
            raw: the connection.
            now: the time to store, in microseconds since 1970.

        Returns:
            The result of the engine's method.
        """


class Read(Protocol):
    """One read operation. It is one statement, so that it sees one state of the database."""

    @property
    def session_id(self) -> str | None:
        """The session that is read, for messages; None if it is the whole database."""

    def apply(self, raw: sqlite3.Connection) -> object:
        """Do the read, and return the result of the engine's method."""


class Append(operations.Append):
    """An append, and how SQLite does it."""

    __slots__ = ()
    is_alone: ClassVar[bool] = False
    removes_sessions: ClassVar[bool] = False

    def apply(self, raw: sqlite3.Connection, now: int) -> None:
        append_all(raw, [self], now)


class Pop(operations.Pop):
    """A pop, and how SQLite does it."""

    __slots__ = ()
    is_alone: ClassVar[bool] = True
    removes_sessions: ClassVar[bool] = False

    def apply(self, raw: sqlite3.Connection, now: int) -> object:
        _feed_newest_first(raw, self.session_id, self.reading)
        oldest = self.reading.oldest
        key, _ = _find_sessions(raw, [self.session_id]).get(self.session_id, (None, 0))
        if oldest is not None and key is not None:
            raw.execute("DELETE FROM agentmem_items WHERE session_key = ? AND position >= ?", (key, oldest))
            # A key of an append stays: the append is not to be done again because its items were removed.
            raw.execute(
                "DELETE FROM agentmem_notes WHERE session_key = ? AND position >= ? AND kind <> 'key'", (key, oldest)
            )
            raw.execute(_CUT, (oldest, now, now, key))
        return self.reading.result()


class Clear(operations.Clear):
    """A clear, and how SQLite does it."""

    __slots__ = ()
    is_alone: ClassVar[bool] = False
    removes_sessions: ClassVar[bool] = True

    def apply(self, raw: sqlite3.Connection, now: int) -> None:
        # Also where there is no session yet: whoever holds the lock must not store what was begun before the clear.
        raw.execute("DELETE FROM agentmem_locks WHERE session_id = ?", (self.session_id,))
        found = raw.execute(
            "SELECT session_key, CAST(length AS INTEGER) - first_position FROM agentmem_sessions WHERE session_id = ?",
            (self.session_id,),
        ).fetchone()
        if found is None:
            return
        key, count = found
        if count > CLEARED_AT_ONCE:
            raw.execute("INSERT INTO agentmem_removed (session_key) VALUES (?)", (key,))
        else:
            raw.execute("DELETE FROM agentmem_items WHERE session_key = ?", (key,))
            raw.execute("DELETE FROM agentmem_notes WHERE session_key = ?", (key,))
        raw.execute("DELETE FROM agentmem_sessions WHERE session_key = ?", (key,))


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Feed a session's rows to a reading, newest first."""

    session_id: str
    reading: Reading[Any]

    def apply(self, raw: sqlite3.Connection) -> object:
        _feed_newest_first(raw, self.session_id, self.reading)
        return self.reading.result()


@dataclass(frozen=True, slots=True)
class ReadJoined:
    """Read the newest rows of a session as one text, for a reading that is short."""

    session_id: str
    reading: Reading[Any]

    def apply(self, raw: sqlite3.Connection) -> Joined | None:
        """Return the rows for the event loop to feed; None if they were fed here.

        They are fed here if they are more than ``MAX_INLINE_BYTES`` or SQLite cannot join them.
        """
        joined = read_newest_joined(raw, self.session_id, self.reading.first) if _can_join_nul(raw) else None
        if joined is None:
            _feed_newest_first(raw, self.session_id, self.reading)
            return None
        return joined


@dataclass(frozen=True, slots=True)
class ListSessions:
    """List the sessions after an id, with their lengths; from the first one on if `after` is None."""

    session_id: ClassVar[None] = None
    after: str | None
    max_rows: int

    def apply(self, raw: sqlite3.Connection) -> list[tuple[str, int]]:
        found = raw.execute(
            _FIRST_SESSIONS if self.after is None else _SESSIONS,
            ((self.after or "").encode(errors="surrogateescape"), self.max_rows),
        )
        return [(session_id.decode(errors="surrogateescape"), length) for session_id, length in found]


@dataclass(frozen=True, slots=True)
class ReadSlice:
    """Read a session's rows from a position on, oldest first. Stops early after ``SLICE_BYTES``."""

    session_id: str
    start: int
    max_rows: int

    def apply(self, raw: sqlite3.Connection) -> list[tuple[int, bytes]]:
        values = (self.session_id, self.start, self.max_rows)
        rows: list[tuple[int, bytes]] = []
        size_bytes = 0
        with closing(raw.execute(_OLDEST_FIRST, values)) as cursor:  # ends the statement if rows are left
            for row in cursor:
                rows.append(row)
                size_bytes += len(row[1])
                if size_bytes >= SLICE_BYTES:
                    break
        return rows


_joins_nul: bool | None = None
"""Whether this process's SQLite joins texts that have a NUL; None before it was tried."""


def _can_join_nul(raw: sqlite3.Connection) -> bool:
    """Return whether SQLite joins texts that have a NUL. Older versions cut them there. Only corrupt rows have one."""
    global _joins_nul
    if _joins_nul is None:
        ((length,),) = raw.execute("SELECT length(CAST(group_concat('a' || char(0) || 'b') AS BLOB))")
        _joins_nul = length == 3
    return _joins_nul


def read_newest_joined(raw: sqlite3.Connection, session_id: str, max_rows: int) -> Joined | None:
    """Return the newest rows as one text, newest first; None if it would be longer than ``MAX_INLINE_BYTES``.

    Args:
        raw: the connection.
        session_id: the session.
        max_rows: how many rows.
    """
    # SQLite itself stops at the row that is too long, before it loads it, so that long rows are read only once, by what
    # feeds them one by one (sqlite.org/c3ref/c_limit_attached.html#sqlitelimitlength).
    limit = raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_INLINE_BYTES)
    try:
        joined: Joined = raw.execute(_NEWEST_JOINED, (session_id, max_rows)).fetchone()
    except sqlite3.DataError:
        return None
    finally:
        raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)
    return joined


def _feed_newest_first(raw: sqlite3.Connection, session_id: str, reading: Reading[Any]) -> None:
    wanted = reading.first
    if not wanted:
        return
    cursor = raw.execute(_NEWEST_FIRST, (session_id,))
    try:
        while wanted:
            rows = cursor.fetchmany(wanted)
            wanted = feed(reading, rows, at_start=len(rows) < wanted)
    finally:
        cursor.close()  # ends the statement, and the read transaction with it
