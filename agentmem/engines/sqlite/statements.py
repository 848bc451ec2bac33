"""What is asked of an SQLite connection, as values that wait for it in batches; and how a batch is served.

Rules kept here:

- A group of writes is one transaction. When it fails, each write is tried in a transaction of its own, so
  that one that cannot succeed fails alone; only a lock held by somebody else fails all of them at once.
  A pop is always a transaction of its own, because what it reads with can be fed but once.
- Appends that stand together in a group share their statements, because each costs as much as four rows: 64 appends
  of two rows took 9 µs each, against 15 µs with statements of their own.
- Names and ids are bound as parameters, never formatted into SQL.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, cast

from ..base import Reading
from ..batching import Groups, Job
from . import takeover
from .connection import WorkerConnection
from .errors import BUSY, primary_code
from .schema import POSITION_BITS, Transaction, create_tables
from .sdk_tables import SDKTables

SHORT_BYTES = 128 * 1024
"""Most bytes of rows that are decoded on the event loop: a fraction of a millisecond's work."""

SLICE_BYTES = 256 * 1024
"""How many bytes of rows end a slice of them, so that one of long rows takes no more memory than it must."""

Joined = tuple[bytes, int, int]
"""What ``Reading.feed_joined`` takes."""

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
    ORDER BY item_key LIMIT :most
"""

_SET_END = "UPDATE agentmem_sessions SET next_position = ?, updated_at = ? WHERE session_key = ?"


def serve_writes(raw: WorkerConnection, jobs: list[Job[Any]]) -> None:
    """Serve a batch of writes: in one transaction, but for pops and where that fails."""
    groups = Groups(jobs, lambda work: None if work.alone else True)
    for group in groups:
        if not all(isinstance(job.work, Append) for job in group):
            raw.report()  # anything else may take long, and the batch before is waited for
        try:
            results = _together(raw, [job.work for job in group])
        except Exception as error:
            if isinstance(error, sqlite3.Error) and primary_code(error) == BUSY:
                groups.failed_for_all(group, error)  # each would wait for the same lock, one after the other
            else:
                groups.failed(group, error)
        else:
            groups.succeeded(group, results)


def _together(raw: WorkerConnection, works: list[Write]) -> list[object]:
    now = time.time()
    results: list[object] = []
    with Transaction(raw):
        for are_appends, run in groupby(works, lambda work: isinstance(work, Append)):
            if are_appends:
                appends = cast("list[Append]", list(run))
                _append(raw, appends, now)
                results += [None] * len(appends)
            else:
                results += [work.apply(raw, now) for work in run]
    if raw.checkpoints is not None:
        appended = (row for work in works if isinstance(work, Append) for row in work.rows)
        raw.checkpoints.wrote(len({work.session_id for work in works}), sum(map(len, appended)))
    return results


def _append(raw: WorkerConnection, appends: Sequence[Append], now: float) -> None:
    ends = _ends(raw, list({append.session_id for append in appends}))
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


def _ends(raw: WorkerConnection, session_ids: list[str]) -> dict[str, tuple[int, int]]:
    """The key and the next position of each of these sessions that there is."""
    # Filled up to a power of two, so that there are few different statements, which sqlite3 keeps prepared.
    wanted = session_ids + session_ids[-1:] * ((1 << (len(session_ids) - 1).bit_length()) - len(session_ids))
    marks = ", ".join("?" * len(wanted))
    found = raw.execute(
        f"SELECT session_id, session_key, next_position FROM agentmem_sessions WHERE session_id IN ({marks})",  # noqa: S608  nothing but marks
        wanted,
    )
    return {session_id: (key, position) for session_id, key, position in found}


def _add_session(raw: WorkerConnection, session_id: str, now: float) -> int:
    key: int = raw.execute(
        "INSERT INTO agentmem_sessions (session_id, next_position, created_at, updated_at) VALUES (?, 0, ?, ?)",
        (session_id, now, now),
    ).lastrowid
    return key


@dataclass(frozen=True, slots=True)
class Append:
    """Append rows to a session; the first append creates it."""

    alone: ClassVar[bool] = False
    session_id: str
    rows: Sequence[str]

    def apply(self, raw: WorkerConnection, now: float) -> None:
        _append(raw, [self], now)


@dataclass(frozen=True, slots=True)
class Pop:
    """Read, and remove the rows from the oldest one read on."""

    alone: ClassVar[bool] = True
    session_id: str
    reading: Reading[Any]

    def apply(self, raw: WorkerConnection, now: float) -> object:
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

    alone: ClassVar[bool] = False
    session_id: str

    def apply(self, raw: WorkerConnection, now: float) -> None:
        key = _session_key(raw, self.session_id)
        if key is not None:
            _delete_from(raw, key, 0)
            raw.execute("DELETE FROM agentmem_sessions WHERE session_key = ?", (key,))


@dataclass(frozen=True, slots=True)
class Import:
    """Take over by hand: from this file's SDK tables, or from another file's."""

    alone: ClassVar[bool] = True
    session_id: ClassVar[None] = None
    tables: SDKTables
    path: str | None = None

    def apply(self, raw: WorkerConnection, now: float) -> takeover.Takeover:
        create_tables(raw)
        if self.path is None:
            return takeover.take_over_and_count(raw, self.tables, now)
        return takeover.import_from(raw, self.path, self.tables, now)


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Take over what is new in the SDK's tables, then do a write that waits for it; both or none."""

    tables: SDKTables
    write: Append | Pop | Clear | None = None

    @property
    def alone(self) -> bool:
        return self.write is not None and self.write.alone

    @property
    def session_id(self) -> str | None:
        return None if self.write is None else self.write.session_id

    def apply(self, raw: WorkerConnection, now: float) -> tuple[takeover.Takeover, object]:
        create_tables(raw)
        done = takeover.take_over(raw, self.tables, now)
        return done, None if self.write is None else self.write.apply(raw, now)


Write = Append | Pop | Clear | Import | TakeOver


@dataclass(frozen=True, slots=True)
class Read:
    """Feed a session's rows to a reading."""

    session_id: str
    reading: Reading[Any]

    def apply(self, raw: WorkerConnection) -> object:
        _feed(raw, self.session_id, self.reading)
        return self.reading.result()


@dataclass(frozen=True, slots=True)
class ReadShort:
    """Read the rows that a short reading begins with."""

    session_id: str
    reading: Reading[Any]

    def apply(self, raw: WorkerConnection) -> Joined | None:
        """The rows, for the event loop to feed; None where they were fed here, because they are many bytes."""
        joined = _newest(raw, self.session_id, self.reading.first) if _joins_whole(raw) else None
        if joined is None or len(joined[0]) > SHORT_BYTES:
            _feed(raw, self.session_id, self.reading)
            return None
        return joined


@dataclass(frozen=True, slots=True)
class ListSessions:
    """List the sessions after an id."""

    session_id: ClassVar[None] = None
    after: str | None
    most: int

    def apply(self, raw: WorkerConnection) -> list[tuple[str, int]]:
        found = raw.execute(
            _FIRST_SESSIONS if self.after is None else _SESSIONS,
            ((self.after or "").encode(errors="surrogateescape"), self.most),
        )
        return [(session_id.decode(errors="surrogateescape"), length) for session_id, length in found]


@dataclass(frozen=True, slots=True)
class Slice:
    """Read a session's rows from a position on."""

    session_id: str
    start: int
    most: int

    def apply(self, raw: WorkerConnection) -> list[tuple[int, bytes]]:
        values = {"session_id": self.session_id, "start": self.start, "most": self.most}
        rows: list[tuple[int, bytes]] = []
        size_bytes = 0
        with closing(raw.execute(_OLDEST_FIRST, values)) as cursor:  # ends the statement where rows are left
            for row in cursor:
                rows.append(row)
                size_bytes += len(row[1])
                if size_bytes >= SLICE_BYTES:
                    break
        return rows


@dataclass(frozen=True, slots=True)
class IsBehind:
    """Ask whether a takeover has something to do."""

    session_id: ClassVar[None] = None
    tables: SDKTables

    def apply(self, raw: WorkerConnection) -> bool:
        return takeover.is_behind(raw, self.tables)


def _session_key(raw: WorkerConnection, session_id: str) -> int | None:
    found = raw.execute("SELECT session_key FROM agentmem_sessions WHERE session_id = ?", (session_id,)).fetchone()
    return None if found is None else found[0]


def _delete_from(raw: WorkerConnection, key: int, position: int) -> None:
    raw.execute(
        "DELETE FROM agentmem_items WHERE item_key >= ? AND item_key < ?",
        ((key << POSITION_BITS) + position, (key + 1) << POSITION_BITS),
    )


def serve_reads(raw: WorkerConnection, jobs: list[Job[Any]]) -> None:
    """Serve a batch of reads; each is one statement, so it sees one state of the database."""
    for job in jobs:
        try:
            job.result = job.work.apply(raw)
        except Exception as error:
            job.error = error


def _joins_whole(raw: WorkerConnection) -> bool:
    """Whether this SQLite joins texts that hold NUL, which older ones cut there: only corrupt rows do."""
    if raw.joins_whole is None:
        ((length,),) = raw.execute("SELECT length(CAST(group_concat('a' || char(0) || 'b') AS BLOB))")
        raw.joins_whole = length == 3
    return raw.joins_whole


def _newest(raw: WorkerConnection, session_id: str, most: int) -> Joined | None:
    """The newest rows, newest first; None where they are longer together than a value can be."""
    try:
        joined: Joined = raw.execute(_NEWEST_JOINED, (session_id, session_id, most)).fetchone()
    except sqlite3.DataError:
        return None
    return joined


def _feed(raw: WorkerConnection, session_id: str, reading: Reading[Any]) -> None:
    wanted = reading.first
    if not wanted:
        return
    cursor = raw.execute(_NEWEST_FIRST, {"session_id": session_id})
    try:
        while wanted:
            rows = cursor.fetchmany(wanted)
            wanted = reading.feed(rows, at_start=len(rows) < wanted)
    finally:
        cursor.close()  # ends the statement, and with it the read transaction
