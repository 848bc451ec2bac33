"""Takes over the history of the Agents SDK's SQLite sessions into agentmem's tables.

Rules kept here:

- The SDK's tables are read, never written. Rows are copied as they are, in the order of their ids.
- A takeover copies rows and stores a bookmark, the id of the last row, in one transaction. So no row is taken over
  twice, even after it was removed in agentmem. The SDK's ids are AUTOINCREMENT: a row above the bookmark was written
  later.
- What the SDK removes later stays in agentmem, because a missing row does not say whether it was popped or cleared.
- Sessions whose ids agentmem refuses stay with the SDK, and are reported.
- Tables whose rows are not one conversation for each session, but branches of it, are refused.

Everything runs inside the caller's transaction. Rows in the same file are copied by SQL alone, without Python's
interpreter lock, so that no event loop is delayed. The window function needs SQLite 3.25; the SDK's own sessions need
3.35.

Measured on 2 cores, with 1,000,000 rows (350 MB) in 10,000 sessions: the statements took 9 s, and a first get_items()
took 36 s while 7 other processes were busy. Other writers wait meanwhile, for at most their busy_timeout_s. Taking over
one later row took 13 ms.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import StorageError
from .errors import map_error
from .sdk_tables import SDKTables, Source, path_of, unquoted

_THIS_FILE = ""
"""The source of a bookmark for the SDK's tables in agentmem's own file."""

CHECK_WAIT_S = 5.0
"""How long :func:`check_source` waits for a lock that others hold, in seconds."""

_ADD_SESSIONS = """
    INSERT INTO agentmem_sessions (session_id, length, created_at, updated_at, stored_at)
    SELECT
        m.session_id, m.items,
        coalesce(strftime('%s', s.created_at) * 1000000, strftime('%s', m.oldest) * 1000000, :now),
        coalesce(strftime('%s', s.updated_at) * 1000000, strftime('%s', m.newest) * 1000000, :now),
        :now
    FROM (
        SELECT session_id, count(*) AS items, min(created_at) AS oldest, max(created_at) AS newest
        FROM {messages} {index_hint} WHERE id > :after AND {valid_id} GROUP BY session_id
    ) AS m LEFT JOIN {sessions} AS s ON s.session_id = m.session_id
    WHERE true  -- without it, SQLite would parse ON CONFLICT as a condition of the join
    ON CONFLICT (session_id) DO UPDATE SET
        length = length + excluded.length,
        created_at = min(created_at, excluded.created_at),
        updated_at = max(updated_at, excluded.updated_at),
        stored_at = excluded.stored_at
"""

# _ADD_SESSIONS has already raised the lengths, so positions are counted back from there. Items are stored in the order
# of the SDK's ids, in which they arrived. Only ids pass through the window function. CROSS JOIN fixes the order of the
# loops, and the LIMIT keeps that of the subquery, so that the table grows at its end.
_ADD_ITEMS = """
    INSERT INTO agentmem_items (session_key, position, created_at, item)
    SELECT
        session_key, length - items + place - 1,
        coalesce(strftime('%s', m.created_at) * 1000000, :now),
        message_data
    FROM (
        SELECT
            id, session_id,
            row_number() OVER (PARTITION BY session_id ORDER BY id) AS place,
            count(*) OVER (PARTITION BY session_id) AS items
        FROM {messages} {index_hint} WHERE id > :after AND {valid_id} ORDER BY id LIMIT -1
    ) AS p
    CROSS JOIN agentmem_sessions AS a ON a.session_id = p.session_id
    CROSS JOIN {messages} AS m ON m.id = p.id
"""


@dataclass(frozen=True)
class Takeover:
    """What a takeover did.

    Attributes:
        sessions: the number of sessions that got items.
        items: the number of items that they got.
        already_taken: the number of rows that had been taken over before and that the SDK still has.
        skipped: the ``repr`` of each session id that agentmem refuses because it is empty, longer than 1,024 bytes,
            not a text, or has a NUL. The rows of these sessions stay with the SDK.
    """

    sessions: int = 0
    items: int = 0
    already_taken: int = 0
    skipped: tuple[str, ...] = ()


def has_new_rows(raw: sqlite3.Connection, tables: SDKTables) -> bool:
    """Return whether :func:`take_over` has something to do. Only reads.

    Raises:
        StorageError: as in :func:`take_over`.
    """
    if raw.execute("PRAGMA user_version").fetchone() == (0,):
        return True  # agentmem's tables do not exist yet
    source = Source.find(raw, tables)
    after = _last_id_from_this_file(source, tables)
    return after is None or (source.messages is not None and source.newest_id() > after)


def take_over(raw: sqlite3.Connection, tables: SDKTables, now: int) -> Takeover:
    """Take over the new rows of the SDK's tables in this file.

    If there is no table of messages, only a bookmark is stored, so that the file is bound to their names.

    Raises:
        StorageError: the file's history came from tables of other names.
        StorageError: the tables are not as the SDK makes them, or have branches.
    """
    source = Source.find(raw, tables)
    after = _last_id_from_this_file(source, tables)
    newest = source.newest_id() if source.messages is not None else 0
    if after is not None and newest <= after:
        return Takeover()
    if source.messages is None:
        _set_bookmark(raw, _THIS_FILE, unquoted(tables.messages), 0, "")
        return Takeover()
    source.refuse_branches()
    done = _copy(raw, source, after or 0, now)
    _set_bookmark(raw, _THIS_FILE, source.messages, newest, source.digest(newest))
    return replace(done, skipped=source.invalid_ids(after or 0))


def take_over_and_count(raw: sqlite3.Connection, tables: SDKTables, now: int) -> Takeover:
    """Do :func:`take_over`, and also report what was taken over before and every session id that is refused.

    The table of messages must exist; see :func:`check_source`.

    Raises:
        StorageError: as in :func:`take_over`.
    """
    source = Source.find(raw, tables)
    already_taken = source.count(_last_id_from_this_file(source, tables) or 0)
    return replace(take_over(raw, tables, now), already_taken=already_taken, skipped=source.invalid_ids(0))


def import_from(raw: sqlite3.Connection, path: str, tables: SDKTables, now: int) -> Takeover:
    """Take over the new rows of the SDK's tables in another file, which is opened read-only.

    Raises:
        StorageError: there is no file, SQLite cannot read it, or it has no such tables.
        StorageError: the file was taken over before and now ends before its bookmark.
    """
    # Without a wait for locks: the transaction around this is tried again instead, which lets a fork pass.
    with _open_source(path, tables, wait_s=0) as source:
        assert source.messages is not None
        with _errors_of(path):
            after, newest = _last_id_from_other_file(raw, path, source), source.newest_id()
            before = Takeover(already_taken=source.count(after), skipped=source.invalid_ids(0))
            digest = source.digest(newest)
        if newest <= after:
            return before
        copied = _copy_into_temp(raw, path, source, after)
    done = _copy(raw, copied, after, now)
    raw.execute("DROP TABLE temp.agentmem_sdk_sessions")
    raw.execute("DROP TABLE temp.agentmem_sdk_messages")
    _set_bookmark(raw, path, source.messages, newest, digest)
    return replace(before, sessions=done.sessions, items=done.items)


def check_source(path: str, tables: SDKTables) -> None:
    """Check that a file has the SDK's tables.

    Raises:
        StorageError: there is no file, SQLite cannot read it, it has no such tables, or they have branches.
    """
    with _open_source(path, tables, wait_s=CHECK_WAIT_S):
        pass


def _copy(raw: sqlite3.Connection, source: Source, after: int, now: int) -> Takeover:
    """Copy the rows after the id `after` into agentmem's tables."""
    values = {"after": after, "now": now}
    # The SDK's index has the rows by session. The first time, this saves sorting all of them. Later, all of it would be
    # read to find a few new rows: NOT INDEXED makes SQLite search by id instead (sqlite.org/lang_indexedby.html).
    index_hint = "NOT INDEXED" if after else ""
    sessions = raw.execute(source.format_sql(_ADD_SESSIONS, index_hint=index_hint), values).rowcount
    items = raw.execute(source.format_sql(_ADD_ITEMS, index_hint=index_hint), values).rowcount
    return Takeover(sessions, items)


def _last_id_from_this_file(source: Source, tables: SDKTables) -> int | None:
    """Return the id up to which the SDK's tables in this file were taken over; None if they never were.

    Raises:
        StorageError: the file's history came from tables of other names.
    """
    found = source.connection.execute(
        "SELECT messages_table, last_id, last_row, messages_table = ? FROM agentmem_takeovers WHERE source = ?",
        (unquoted(tables.messages), _THIS_FILE),
    ).fetchone()
    if found is None:
        return None
    name, last_id, last_row, is_this = found
    if not is_this:
        # Two conversations with the same session id would become one.
        raise StorageError(
            f"{path_of(source.connection)} goes on with the history in {name!r}, not in {tables.messages!r}; "
            "give each pair of tables a file: agentmem import-sdk FILE --into ANOTHER --messages-table NAME"
        )
    if source.messages is not None and not (source.digest(last_id) in ("", last_row) and source.has_issued(last_id)):
        return 0  # the table was dropped and created again
    return int(last_id)


def _last_id_from_other_file(raw: sqlite3.Connection, path: str, source: Source) -> int:
    """Return the id up to which another file's tables were taken over, also if the file had another path then.

    Raises:
        StorageError: the file was taken over before and now ends before its bookmark.
    """
    bookmarks = raw.execute(
        "SELECT source, last_id, last_row FROM agentmem_takeovers WHERE messages_table = ? AND source <> ?",
        (source.messages, _THIS_FILE),
    ).fetchall()
    last_ids = [0]
    for bookmarked_path, last_id, last_row in bookmarks:
        digest = source.digest(last_id)
        if digest == last_row or (bookmarked_path == path and not digest and source.has_issued(last_id)):
            last_ids.append(last_id)
        elif bookmarked_path == path and not digest:
            raise StorageError(
                f"{path} was taken over up to row {last_id}, and now ends before it: it is an older copy, or another "
                "file. To take over all of it, import it into another database, or from another path"
            )
    return max(last_ids)


def _set_bookmark(raw: sqlite3.Connection, source: str, messages: str, last_id: int, last_row: str) -> None:
    raw.execute(
        """
        INSERT INTO agentmem_takeovers (source, messages_table, last_id, last_row) VALUES (?, ?, ?, ?)
        ON CONFLICT (source, messages_table) DO UPDATE SET last_id = excluded.last_id, last_row = excluded.last_row
        """,
        (source, messages, last_id, last_row),
    )


@contextmanager
def _open_source(path: str, tables: SDKTables, *, wait_s: float) -> Iterator[Source]:
    """Open another file read-only and find the SDK's tables, in one read transaction.

    Args:
        wait_s: how long to wait for a lock that others hold, in seconds.

    Raises:
        StorageError: there is no file, SQLite cannot read it, or it has no such tables.
    """
    if not os.path.isfile(path):
        raise StorageError(f"there is no file {path}; give the one that the Agents SDK's session was made with")
    with _errors_of(path):
        connection = sqlite3.connect(f"{Path(path).as_uri()}?mode=ro", uri=True, timeout=wait_s, isolation_level=None)
    with closing(connection):
        with _errors_of(path):
            connection.execute("BEGIN")
            source = Source.find(connection, tables)
        if source.messages is None:
            raise StorageError(
                f"{path} has no table {tables.messages!r} of the Agents SDK's; give the names that its session was "
                "made with (--sessions-table, --messages-table)"
            )
        with _errors_of(path):
            source.refuse_branches()
        yield source


@contextmanager
def _errors_of(path: str) -> Iterator[None]:
    """Map SQLite's errors in the block to errors that name the file at `path`.

    Raises:
        StorageError: SQLite raised an error in the block.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise map_error(error, path) from error


def _copy_into_temp(raw: sqlite3.Connection, path: str, source: Source, after: int) -> Source:
    """Copy the rows after the id `after` into temporary tables with the SDK's columns."""

    def rows(sql: str, *parameters: int) -> Iterator[tuple[bytes, ...]]:
        with _errors_of(path):
            yield from source.connection.execute(source.format_sql(sql), parameters)

    source.connection.text_factory = bytes  # unchanged, even if they are not valid UTF-8
    raw.execute(
        "CREATE TEMP TABLE agentmem_sdk_sessions (session_id TEXT PRIMARY KEY, created_at TEXT, updated_at TEXT)"
    )
    raw.execute(
        """
        CREATE TEMP TABLE agentmem_sdk_messages (
            id INTEGER PRIMARY KEY, session_id TEXT, message_data TEXT, created_at TEXT
        )
        """
    )
    raw.executemany(
        "INSERT INTO temp.agentmem_sdk_sessions VALUES (CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT))",
        rows("SELECT session_id, created_at, updated_at FROM {sessions} WHERE {valid_id}"),
    )
    raw.executemany(
        "INSERT INTO temp.agentmem_sdk_messages VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT))",
        rows("SELECT id, session_id, message_data, created_at FROM {messages} WHERE id > ? AND {valid_id}", after),
    )
    return Source(raw, "agentmem_sdk_sessions", "agentmem_sdk_messages")
