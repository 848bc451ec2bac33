"""The history that the Agents SDK's SQLite sessions wrote, taken over into agentmem's tables.

Rules kept here:

- The SDK's tables are read and never written. Rows are copied as they are, in the order of their ids.
- What was taken over is bookmarked in the transaction that takes it, so that it is never taken twice, whatever becomes
  of it in agentmem. The SDK's ids are AUTOINCREMENT, so a row above the bookmark is one that it wrote later.
- What the SDK removes later stays in agentmem: a row that is gone does not tell whether it was popped or cleared.
- A session id that agentmem refuses stays with the SDK, and is reported.

All this runs inside the caller's transaction. What is in the file itself is copied by SQL alone, so that it holds up no
event loop; the window function needs SQLite 3.25, the SDK's own sessions need 3.35. Measured on 2 cores, with 1,000,000
rows (350 MB) in 10,000 sessions: the statements took 9 s, and a first get_items() 36 s while 7 other processes were at
work. Other writers wait meanwhile, as long as their busy_timeout_s allows. One later row then took 13 ms.
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
from .sdk_tables import SDKTables, Source, path_of, plain_name

_HERE = ""

_ADD_SESSIONS = """
    INSERT INTO agentmem_sessions (session_id, next_position, created_at, updated_at)
    SELECT
        m.session_id, m.items,
        coalesce(CAST(strftime('%s', s.created_at) AS INTEGER), CAST(strftime('%s', m.oldest) AS INTEGER), :now),
        coalesce(CAST(strftime('%s', s.updated_at) AS INTEGER), CAST(strftime('%s', m.newest) AS INTEGER), :now)
    FROM (
        SELECT session_id, count(*) AS items, min(created_at) AS oldest, max(created_at) AS newest
        FROM {messages} {by} WHERE id > :after AND {fits} GROUP BY session_id
    ) AS m LEFT JOIN {sessions} AS s ON s.session_id = m.session_id
    WHERE true  -- else ON CONFLICT would be read as a condition of the join
    ON CONFLICT (session_id) DO UPDATE SET
        next_position = next_position + excluded.next_position,
        created_at = min(created_at, excluded.created_at),
        updated_at = max(updated_at, excluded.updated_at)
"""

# _ADD_SESSIONS has moved the ends of the sessions, so positions are counted back from there. Only ids go through the
# window. CROSS JOIN keeps the order of the loops: by session and id, so that the table grows at its end.
_ADD_ITEMS = """
    INSERT INTO agentmem_items (item_key, created_at, item)
    SELECT
        (session_key << 32) + next_position - items + place - 1,
        coalesce(CAST(strftime('%s', m.created_at) AS INTEGER), :now),
        message_data
    FROM (
        SELECT
            id, session_id,
            row_number() OVER (PARTITION BY session_id ORDER BY id) AS place,
            count(*) OVER (PARTITION BY session_id) AS items
        FROM {messages} {by} WHERE id > :after AND {fits}
    ) AS p
    CROSS JOIN agentmem_sessions AS a ON a.session_id = p.session_id
    CROSS JOIN {messages} AS m ON m.id = p.id
"""


@dataclass(frozen=True)
class Takeover:
    """What a takeover did.

    Attributes:
        sessions: how many sessions got items by it.
        items: how many items they got.
        already_taken: how many of the SDK's rows had been taken over before, and are still there.
        skipped: the session ids that agentmem refuses (empty, longer than 1,024 bytes, with NUL, no text), as Python
            writes them; their rows are where they were.
    """

    sessions: int = 0
    items: int = 0
    already_taken: int = 0
    skipped: tuple[str, ...] = ()


def is_behind(raw: sqlite3.Connection, tables: SDKTables) -> bool:
    """Whether :func:`take_over` has something to do; only reads."""
    if raw.execute("PRAGMA user_version").fetchone() == (0,):
        return True  # agentmem's tables are still to be made
    source = Source.find(raw, tables)
    after = _taken_here(source, tables)
    return after is None or (source.messages is not None and source.newest() > after)


def take_over(raw: sqlite3.Connection, tables: SDKTables, now: float) -> Takeover:
    """Take over what is new in the SDK's tables in this file; without any, note only which ones the file goes on with.

    Raises:
        StorageError: the file goes on with the history of other tables, or these are not as the SDK makes them.
    """
    source = Source.find(raw, tables)
    after = _taken_here(source, tables)
    newest = source.newest() if source.messages is not None else 0
    if after is not None and newest <= after:
        return Takeover()
    if source.messages is None:
        _set_bookmark(raw, _HERE, plain_name(tables.messages), 0, "")
        return Takeover()
    done = _copy(raw, source, after or 0, now)
    _set_bookmark(raw, _HERE, source.messages, newest, source.digest(newest))
    return replace(done, skipped=source.refused(after or 0))


def take_over_and_count(raw: sqlite3.Connection, tables: SDKTables, now: float) -> Takeover:
    """As :func:`take_over`, and say what had been taken before, and all that is refused."""
    source = Source.find(raw, tables)
    before = source.count(_taken_here(source, tables) or 0)
    return replace(take_over(raw, tables, now), already_taken=before, skipped=source.refused(0))


def import_from(raw: sqlite3.Connection, path: str, tables: SDKTables, now: float) -> Takeover:
    """Take over what is new in another file, which is opened to read only."""
    with _reading(path, tables) as source:
        assert source.messages is not None
        with _blaming(path):
            after, newest = _taken_from(raw, path, source), source.newest()
            before = Takeover(already_taken=source.count(after), skipped=source.refused(0))
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
    """Raises StorageError where there is no file, no database, or none of the SDK's tables."""
    with _reading(path, tables):
        pass


def _copy(raw: sqlite3.Connection, source: Source, after: int, now: float) -> Takeover:
    values = {"after": after, "now": now}
    # The SDK's index has the rows by session, which the first time saves sorting them all; later it would be read from
    # end to end to find the few that are new. NOT INDEXED leaves the search by id (sqlite.org/lang_indexedby.html).
    by = "NOT INDEXED" if after else ""
    sessions = raw.execute(source.fill(_ADD_SESSIONS, by=by), values).rowcount
    return Takeover(sessions, raw.execute(source.fill(_ADD_ITEMS, by=by), values).rowcount)


def _taken_here(source: Source, tables: SDKTables) -> int | None:
    """The id up to which the SDK's tables in this file were taken over; None if they never were."""
    found = source.connection.execute(
        "SELECT messages_table, last_id, last_row, messages_table = ? FROM agentmem_takeovers WHERE source = ?",
        (plain_name(tables.messages), _HERE),
    ).fetchone()
    if found is None:
        return None
    name, last_id, last_row, is_this = found
    if not is_this:
        # Two conversations of the same id would become one.
        raise StorageError(
            f"{path_of(source.connection)} goes on with the history in {name!r}, not in {tables.messages!r}; "
            "give each pair of tables a file: agentmem import-sdk FILE --into ANOTHER --messages-table NAME"
        )
    if source.messages is not None and not (source.digest(last_id) in ("", last_row) and source.has_reached(last_id)):
        return 0  # the table was dropped and made anew
    return int(last_id)


def _taken_from(raw: sqlite3.Connection, path: str, source: Source) -> int:
    """The id up to which the SDK's tables in another file were taken over, also where that file was elsewhere then."""
    marks = raw.execute(
        "SELECT source, last_id, last_row FROM agentmem_takeovers WHERE messages_table = ? AND source <> ?",
        (source.messages, _HERE),
    ).fetchall()
    known = [0]
    for where, last_id, last_row in marks:
        digest = source.digest(last_id)
        if digest == last_row or (where == path and not digest and source.has_reached(last_id)):
            known.append(last_id)
        elif where == path and not digest:
            raise StorageError(
                f"{path} was taken over up to row {last_id}, and now ends before it: it is an older copy, or another "
                "file. To take over all of it, import it into another database, or from another path"
            )
    return max(known)


def _set_bookmark(raw: sqlite3.Connection, source: str, messages: str, last_id: int, last_row: str) -> None:
    raw.execute(
        """
        INSERT INTO agentmem_takeovers (source, messages_table, last_id, last_row) VALUES (?, ?, ?, ?)
        ON CONFLICT (source, messages_table) DO UPDATE SET last_id = excluded.last_id, last_row = excluded.last_row
        """,
        (source, messages, last_id, last_row),
    )


@contextmanager
def _reading(path: str, tables: SDKTables) -> Iterator[Source]:
    """The SDK's tables of another file, in one state and to read only."""
    if not os.path.isfile(path):
        raise StorageError(f"there is no file {path}; give the one that the Agents SDK's session was made with")
    with _blaming(path):
        connection = sqlite3.connect(f"{Path(path).as_uri()}?mode=ro", uri=True, isolation_level=None)
    with closing(connection):
        with _blaming(path):
            connection.execute("BEGIN")
            source = Source.find(connection, tables)
        if source.messages is None:
            raise StorageError(
                f"{path} has no table {tables.messages!r} of the Agents SDK's; give the names that its session was "
                "made with (--sessions-table, --messages-table)"
            )
        yield source


@contextmanager
def _blaming(path: str) -> Iterator[None]:
    """What SQLite reports in here is about that file, not about the one that takes it over."""
    try:
        yield
    except sqlite3.Error as error:
        raise map_error(error, path) from error


def _copy_into_temp(raw: sqlite3.Connection, path: str, source: Source, after: int) -> Source:
    """The new rows, in tables that are as the SDK's."""

    def rows(sql: str, *parameters: int) -> Iterator[tuple[bytes, ...]]:
        with _blaming(path):
            yield from source.connection.execute(source.fill(sql), parameters)

    source.connection.text_factory = bytes  # as they are, also where they are no text in UTF-8
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
        rows("SELECT session_id, created_at, updated_at FROM {sessions} WHERE {fits}"),
    )
    raw.executemany(
        "INSERT INTO temp.agentmem_sdk_messages VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT))",
        rows("SELECT id, session_id, message_data, created_at FROM {messages} WHERE id > ? AND {fits}", after),
    )
    return Source(raw, "agentmem_sdk_sessions", "agentmem_sdk_messages")
