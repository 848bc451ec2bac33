"""The read and write operations on an SQLite database, and their SQL.

Rules kept here:

- Appends that stand together in a transaction share their statements, because each costs as much as four rows: 64
  appends of two rows took 9 µs each, against 15 µs with statements of their own.
- Names and ids are bound as parameters, never formatted into SQL.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ..base import Reading
from ..readings import MAX_INLINE_BYTES, SLICE_BYTES, Joined, feed
from .schema import POSITION_BITS

_NEWEST_FIRST = """
    SELECT item_key & 0xFFFFFFFF, CAST(item AS BLOB) FROM agentmem_items
    WHERE item_key >= (SELECT session_key << 32 FROM agentmem_sessions WHERE session_id = :session_id)
      AND item_key < (SELECT (session_key + 1) << 32 FROM agentmem_sessions WHERE session_id = :session_id)
    ORDER BY item_key DESC
"""

# One value, because with each row SQLite gives up Python's interpreter lock and takes it again: 20 rows took 32 µs more
# than one where the event loop runs on another core. group_concat keeps its subquery's order where that has a LIMIT.
_NEWEST_JOINED = """
    SELECT CAST(ifnull(group_concat(ifnull(item, '')), '') AS BLOB), count(*), min(position)
    FROM (
        SELECT item_key & 0xFFFFFFFF AS position, item FROM agentmem_items
        WHERE item_key >= (SELECT session_key << 32 FROM agentmem_sessions WHERE session_id = ?)
          AND item_key < (SELECT (session_key + 1) << 32 FROM agentmem_sessions WHERE session_id = ?)
        ORDER BY item_key DESC LIMIT ?
    )
"""

# The ids are compared as bytes in UTF-8, as they are stored. One that is no text, as only another program can store it,
# is a session that nobody can name; see sqlite.org/datatype3.html#sort_order.
_SESSIONS = """
    SELECT CAST(session_id AS BLOB), CAST(next_position AS INTEGER) FROM agentmem_sessions
    WHERE session_id > CAST(? AS TEXT) AND typeof(session_id) = 'text' ORDER BY session_id LIMIT ?
"""
_FIRST_SESSIONS = _SESSIONS.replace(">", ">=")

_OLDEST_FIRST = """
    SELECT item_key & 0xFFFFFFFF, CAST(item AS BLOB) FROM agentmem_items
    WHERE item_key >= (SELECT (session_key << 32) + :start FROM agentmem_sessions WHERE session_id = :session_id)
      AND item_key < (SELECT (session_key + 1) << 32 FROM agentmem_sessions WHERE session_id = :session_id)
    ORDER BY item_key LIMIT :max_rows
"""

_SET_END = "UPDATE agentmem_sessions SET next_position = ?, updated_at = ? WHERE session_key = ?"


def append_all(raw: sqlite3.Connection, appends: Sequence[Append], now: float) -> None:
    """Do several appends, in order, with shared statements."""
    ends = _session_ends(raw, list({append.session_id for append in appends}))
    rows: list[tuple[int, float, str]] = []
    for append in appends:
        if append.session_id not in ends:
            ends[append.session_id] = (_add_session(raw, append.session_id, now), 0)
        key, position = ends[append.session_id]
        first = (key << POSITION_BITS) + position
        rows += [(first + place, now, item) for place, item in enumerate(append.rows)]
        ends[append.session_id] = (key, position + len(append.rows))
    raw.executemany("INSERT INTO agentmem_items (item_key, created_at, item) VALUES (?, ?, ?)", rows)
    raw.executemany(_SET_END, [(position, now, key) for key, position in ends.values()])


def _session_ends(raw: sqlite3.Connection, session_ids: list[str]) -> dict[str, tuple[int, int]]:
    """The key and the next position of each of these sessions that there is."""
    # Filled up to a power of two, so that there are few different statements, which sqlite3 keeps prepared.
    wanted = session_ids + session_ids[-1:] * ((1 << (len(session_ids) - 1).bit_length()) - len(session_ids))
    marks = ", ".join("?" * len(wanted))
    found = raw.execute(
        f"SELECT session_id, session_key, next_position FROM agentmem_sessions WHERE session_id IN ({marks})",  # noqa: S608  nothing but marks
        wanted,
    )
    return {session_id: (key, position) for session_id, key, position in found}


def _add_session(raw: sqlite3.Connection, session_id: str, now: float) -> int:
    key = raw.execute(
        "INSERT INTO agentmem_sessions (session_id, next_position, created_at, updated_at) VALUES (?, 0, ?, ?)",
        (session_id, now, now),
    ).lastrowid
    assert key is not None  # what an INSERT leaves
    return key


class Write(Protocol):
    """One write operation."""

    @property
    def session_id(self) -> str | None:
        """The session that it is about, for messages; None where it is about the database."""

    @property
    def is_alone(self) -> bool:
        """Whether it needs a transaction of its own."""

    def apply(self, raw: sqlite3.Connection, now: float) -> object:
        """Do it, inside the caller's transaction; `now` is in seconds since 1970. Returns what the caller gets."""


class Read(Protocol):
    """One read operation: one statement, so that it sees one state of the database."""

    @property
    def session_id(self) -> str | None:
        """As of a :class:`Write`."""

    def apply(self, raw: sqlite3.Connection) -> object:
        """Do it. Returns what the caller gets."""


@dataclass(frozen=True, slots=True)
class Append:
    """Append rows to a session; the first append creates it."""

    is_alone: ClassVar[bool] = False
    session_id: str
    rows: Sequence[str]

    def apply(self, raw: sqlite3.Connection, now: float) -> None:
        append_all(raw, [self], now)


@dataclass(frozen=True, slots=True)
class Pop:
    """Read, and remove the rows from the oldest one read on. Alone: what it reads with can be fed but once."""

    is_alone: ClassVar[bool] = True
    session_id: str
    reading: Reading[Any]

    def apply(self, raw: sqlite3.Connection, now: float) -> object:
        _feed(raw, self.session_id, self.reading)
        oldest = self.reading.oldest
        key = _session_key(raw, self.session_id)
        if oldest is not None and key is not None:
            _delete_from(raw, key, oldest)
            raw.execute(_SET_END, (oldest, now, key))
        return self.reading.result()


@dataclass(frozen=True, slots=True)
class Clear:
    """Remove a session."""

    is_alone: ClassVar[bool] = False
    session_id: str

    def apply(self, raw: sqlite3.Connection, now: float) -> None:
        key = _session_key(raw, self.session_id)
        if key is not None:
            _delete_from(raw, key, 0)
            raw.execute("DELETE FROM agentmem_sessions WHERE session_key = ?", (key,))


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Feed a session's rows to a reading."""

    session_id: str
    reading: Reading[Any]

    def apply(self, raw: sqlite3.Connection) -> object:
        _feed(raw, self.session_id, self.reading)
        return self.reading.result()


@dataclass(frozen=True, slots=True)
class ReadJoined:
    """Read the rows that a short reading begins with."""

    session_id: str
    reading: Reading[Any]

    def apply(self, raw: sqlite3.Connection) -> Joined | None:
        """The rows, for the event loop to feed; None where they were fed here, because they are many bytes."""
        joined = _newest(raw, self.session_id, self.reading.first) if _joins_whole(raw) else None
        if joined is None or len(joined[0]) > MAX_INLINE_BYTES:
            _feed(raw, self.session_id, self.reading)
            return None
        return joined


@dataclass(frozen=True, slots=True)
class ListSessions:
    """List the sessions after an id."""

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
    """Read a session's rows from a position on."""

    session_id: str
    start: int
    max_rows: int

    def apply(self, raw: sqlite3.Connection) -> list[tuple[int, bytes]]:
        values = {"session_id": self.session_id, "start": self.start, "max_rows": self.max_rows}
        rows: list[tuple[int, bytes]] = []
        size_bytes = 0
        with closing(raw.execute(_OLDEST_FIRST, values)) as cursor:  # ends the statement where rows are left
            for row in cursor:
                rows.append(row)
                size_bytes += len(row[1])
                if size_bytes >= SLICE_BYTES:
                    break
        return rows


def _session_key(raw: sqlite3.Connection, session_id: str) -> int | None:
    found = raw.execute("SELECT session_key FROM agentmem_sessions WHERE session_id = ?", (session_id,)).fetchone()
    return None if found is None else found[0]


def _delete_from(raw: sqlite3.Connection, key: int, position: int) -> None:
    raw.execute(
        "DELETE FROM agentmem_items WHERE item_key >= ? AND item_key < ?",
        ((key << POSITION_BITS) + position, (key + 1) << POSITION_BITS),
    )


_joins_nul: bool | None = None
"""Whether the SQLite of this process joins texts that hold NUL; None before that was tried."""


def _joins_whole(raw: sqlite3.Connection) -> bool:
    """Whether this SQLite joins texts that hold NUL, which older ones cut there: only corrupt rows do."""
    global _joins_nul
    if _joins_nul is None:
        ((length,),) = raw.execute("SELECT length(CAST(group_concat('a' || char(0) || 'b') AS BLOB))")
        _joins_nul = length == 3
    return _joins_nul


def _newest(raw: sqlite3.Connection, session_id: str, max_rows: int) -> Joined | None:
    """The newest rows, newest first; None where they are longer together than a value can be."""
    try:
        joined: Joined = raw.execute(_NEWEST_JOINED, (session_id, session_id, max_rows)).fetchone()
    except sqlite3.DataError:
        return None
    return joined


def _feed(raw: sqlite3.Connection, session_id: str, reading: Reading[Any]) -> None:
    wanted = reading.first
    if not wanted:
        return
    cursor = raw.execute(_NEWEST_FIRST, {"session_id": session_id})
    try:
        while wanted:
            rows = cursor.fetchmany(wanted)
            wanted = feed(reading, rows, at_start=len(rows) < wanted)
    finally:
        cursor.close()  # ends the statement, and with it the read transaction
