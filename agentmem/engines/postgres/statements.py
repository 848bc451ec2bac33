"""The SQL of all reads and writes, and the values for it.

Names and ids are bound as parameters. Only the name of the schema cannot be bound; it is quoted into the SQL.

No statement leaves a setting behind on its connection, so that PgBouncer may give each transaction another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

LAST_POSITION = 2**63 - 1
"""The largest ``bigint``; above every position."""

# A server that is set up not to flush commits must flush agentmem's; any other value is at least as safe as "on".
_SETTINGS = """
    set_config('lock_timeout', $1, true), set_config('idle_in_transaction_session_timeout', $2, true),
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
"""

# The one row of that table. Without the limit, the planner takes it for thousands of rows, and what is joined to it for
# so costly that the server compiles it first (jit), which took 2 s for a group of 512 appends.
_TABLES = "SELECT version FROM agentmem.agentmem_schema LIMIT 1"

_CLAIM = f"""
    INSERT INTO agentmem.agentmem_writers AS w (writer, number)
    SELECT $3, $4 FROM (SELECT {_SETTINGS}) AS settings, ({_TABLES}) AS tables WHERE version <= $5
    ON CONFLICT (writer) DO UPDATE SET number = excluded.number, updated_at = now() WHERE w.number < excluded.number
    RETURNING true
"""  # noqa: S608  made of the constants above
"""Store a transaction's number. Returns no row where that transaction was committed before, and where the tables have a
newer version than $5."""

_BEGIN = f"""
    WITH claimed AS ({_CLAIM}) SELECT version, EXISTS (SELECT FROM claimed) FROM agentmem.agentmem_schema
"""  # noqa: S608  made of the constants above
"""The same as the first statement of a transaction; returns the version of the tables, and whether it stored it."""

_APPEND = f"""
    WITH claimed AS ({_CLAIM}),
    ends AS (
        INSERT INTO agentmem.agentmem_sessions AS s (session_id, length)
        SELECT session_id, size FROM claimed, unnest($6::text[], $7::text::bigint[]) AS wanted (session_id, size)
        ORDER BY session_id COLLATE "C"
        ON CONFLICT (session_id)
            DO UPDATE SET length = s.length + excluded.length, updated_at = now(), stored_at = now()
        RETURNING s.session_id, s.length
    ),
    added AS (
        INSERT INTO agentmem.agentmem_items (session_id, position, item)
        SELECT session_id, length - before_end, item
        FROM ends JOIN unnest($8::text[], $9::text::bigint[], $10::text[]) WITH ORDINALITY
            AS row (session_id, before_end, item, place) USING (session_id)
        ORDER BY place
    )
    SELECT version FROM agentmem.agentmem_schema
"""  # noqa: S608  made of the constants above
"""Append rows to any number of sessions, and return the version of the tables. Writes nothing where that is newer.

Sequences are issued in the order of the rows: unsorted, the join may return a session's rows in any order."""

_FORGET_OLD_WRITERS = """
    WITH looked_at AS (
        (SELECT writer, updated_at FROM agentmem.agentmem_writers WHERE writer >= $1 ORDER BY writer LIMIT 256)
        UNION ALL
        (SELECT writer, updated_at FROM agentmem.agentmem_writers WHERE writer < $1 ORDER BY writer LIMIT 256)
    )
    DELETE FROM agentmem.agentmem_writers WHERE writer IN (
        SELECT writer FROM agentmem.agentmem_writers
        WHERE writer IN (SELECT writer FROM looked_at WHERE updated_at < now() - interval '7 days')
            AND updated_at < now() - interval '7 days'
        FOR UPDATE SKIP LOCKED
    ) AND (SELECT version FROM agentmem.agentmem_schema) <= $2
"""
"""Remove what killed processes have left, where it is among the rows that follow a random writer: so it costs the same
for any number of rows, and in the long run each of them is looked at."""

# Without a flush: where a crash of the server undoes it, the row is removed after a week.
_FORGET_WRITERS = """
    DELETE FROM agentmem.agentmem_writers WHERE writer IN (
        SELECT writer FROM agentmem.agentmem_writers WHERE writer = ANY($1::text[]::uuid[]) FOR UPDATE SKIP LOCKED
    ) AND (SELECT version FROM agentmem.agentmem_schema) <= $2
        AND set_config('synchronous_commit', 'off', true) IS NOT NULL
"""
"""Remove writers that will send nothing more and wait for no answer."""

_LOCK = """
    SELECT session_id FROM agentmem.agentmem_sessions WHERE session_id = ANY($1::text[]) ORDER BY session_id FOR UPDATE
"""

_HELD = """
    WITH free AS (
        SELECT session_id FROM agentmem.agentmem_sessions WHERE session_id = ANY($1::text[]) FOR UPDATE SKIP LOCKED
    )
    SELECT session_id FROM agentmem.agentmem_sessions WHERE session_id = ANY($1::text[])
    EXCEPT SELECT session_id FROM free
"""
"""Which of these sessions other connections hold. A session that another connection is just creating is not seen."""

_CUT = """
    WITH removed AS (DELETE FROM agentmem.agentmem_items WHERE session_id = $1 AND position >= $2),
    forgotten AS (DELETE FROM agentmem.agentmem_notes WHERE session_id = $1 AND position >= $2 AND kind <> 'key')
    UPDATE agentmem.agentmem_sessions SET length = $2, edits = edits + 1, updated_at = now(), stored_at = now()
    WHERE session_id = $1
"""
"""Remove a session's items from a position on, and the notes about them. The keys of appends stay: an append that is
repeated after its items were removed must not add them again."""

_CLEAR = """
    WITH removed AS (DELETE FROM agentmem.agentmem_items WHERE session_id = ANY($1::text[])),
    forgotten AS (DELETE FROM agentmem.agentmem_notes WHERE session_id = ANY($1::text[])),
    unlocked AS (DELETE FROM agentmem.agentmem_locks WHERE session_id = ANY($1::text[]))
    DELETE FROM agentmem.agentmem_sessions WHERE session_id = ANY($1::text[])
"""

# One row for each reading: a row costs the event loop as much as decoding its items does. Erased items, whose text is
# empty, are passed over: they would be holes between the commas, and are not counted.
_NEWEST_JOINED = f"""
    SELECT version, CASE WHEN size <= $3 THEN convert_to(texts, 'UTF8') END, count, oldest
    FROM ({_TABLES}) AS tables,
        unnest($1::text[], $2::text::bigint[]) WITH ORDINALITY AS wanted (id, max_count, place),
        LATERAL (
            SELECT
                string_agg(item, ',' ORDER BY position DESC) AS texts, sum(octet_length(item)) AS size,
                count(*) AS count, min(position) AS oldest
            FROM (
                SELECT position, item FROM agentmem.agentmem_items WHERE session_id = id AND item <> ''
                ORDER BY position DESC LIMIT max_count
            ) AS newest
        ) AS joined
    ORDER BY place
"""  # noqa: S608  made of the constants above

# Each row has the version of the tables first; where there are none, there is one with the version alone.
_WITH_VERSION = f"""
    SELECT version, found.* FROM ({_TABLES}) AS tables LEFT JOIN (%s) AS found ON true ORDER BY %s
"""  # noqa: S608  made of the constants above

# The last row of a slice is the one with which its length passes the limit.
_ROWS_BELOW = """
    SELECT position, convert_to(item, 'UTF8')
    FROM (
        SELECT position, item, sum(octet_length(item)) OVER (ORDER BY position DESC) - octet_length(item) AS before
        FROM (
            SELECT position, item FROM agentmem.agentmem_items
            WHERE session_id = $1 AND position < $2 AND item <> ''
            ORDER BY position DESC LIMIT $3
        ) AS slice
    ) AS measured
    WHERE before < $4
"""

_ROWS_FROM = """
    SELECT position, convert_to(item, 'UTF8')
    FROM (
        SELECT position, item, sum(octet_length(item)) OVER (ORDER BY position) - octet_length(item) AS before
        FROM (
            SELECT position, item FROM agentmem.agentmem_items WHERE session_id = $1 AND position >= $2
            ORDER BY position LIMIT $3
        ) AS slice
    ) AS measured
    WHERE before < $4
"""

_SESSIONS = """
    SELECT session_id, length FROM agentmem.agentmem_sessions WHERE session_id > $1 ORDER BY session_id LIMIT $2
"""

_COUNT_ITEMS = "SELECT sum(length - first_position)::bigint FROM agentmem.agentmem_sessions"

_PAGE_OF_SESSIONS = """
    SELECT session_id, length FROM agentmem.agentmem_sessions
    WHERE session_id > $1 AND ($2::text IS NULL OR session_id <= $2) ORDER BY session_id LIMIT $3
"""

_PAGE_OF_ITEMS = """
    SELECT session_id, position, convert_to(item, 'UTF8')
    FROM (
        SELECT
            session_id, position, item,
            sum(octet_length(item)) OVER (ORDER BY session_id, position) - octet_length(item) AS before
        FROM (
            SELECT session_id, position, item FROM agentmem.agentmem_items WHERE (session_id, position) > ($1, $2)
            ORDER BY session_id, position LIMIT $3
        ) AS slice
    ) AS measured
    WHERE before < $4 ORDER BY session_id, position
"""


# One for each session that the notes speak of and that does not exist.
_PAGE_OF_LOST_NOTES = """
    SELECT DISTINCT session_id FROM agentmem.agentmem_notes AS n
    WHERE session_id > $1 AND NOT EXISTS (SELECT FROM agentmem.agentmem_sessions AS s WHERE s.session_id = n.session_id)
    ORDER BY session_id LIMIT $2
"""


class CheckStatements(NamedTuple):
    """The SQL of a check.

    Attributes:
        count_items: how many items there should be.
        page_of_sessions, page_of_items: the next ones.
        page_of_lost_notes: the next sessions that notes speak of and that do not exist; None where there are no notes.
    """

    count_items: str
    page_of_sessions: str
    page_of_items: str
    page_of_lost_notes: str | None


class Statements:
    """The SQL of all reads and writes, on the tables in one schema."""

    def __init__(self, schema: str) -> None:
        self._schema = quoted(schema)
        # Writes
        self.append = self.in_schema(_APPEND)
        self.begin = self.in_schema(_BEGIN)
        self.forget_old_writers = self.in_schema(_FORGET_OLD_WRITERS)
        self.forget_writers = self.in_schema(_FORGET_WRITERS)
        self.lock = self.in_schema(_LOCK)
        self.held = self.in_schema(_HELD)
        self.cut = self.in_schema(_CUT)
        self.clear = self.in_schema(_CLEAR)
        # Reads
        self.newest_joined = self.in_schema(_NEWEST_JOINED)
        self.rows_below = self.in_schema(_WITH_VERSION % (_ROWS_BELOW, "position DESC"))
        self.rows_from = self.in_schema(_WITH_VERSION % (_ROWS_FROM, "position"))
        self.sessions = self.in_schema(_WITH_VERSION % (_SESSIONS, "session_id"))

    def of_check(self, version: int) -> CheckStatements:
        """The statements of a check, for tables of this version."""
        count_items, page_of_sessions = _COUNT_ITEMS, _PAGE_OF_SESSIONS
        if version == 1:
            count_items = "SELECT sum(next_position)::bigint FROM agentmem.agentmem_sessions"
            page_of_sessions = _PAGE_OF_SESSIONS.replace("length", "next_position")
        return CheckStatements(
            self.in_schema(count_items),
            self.in_schema(page_of_sessions),
            self.in_schema(_PAGE_OF_ITEMS),
            None if version == 1 else self.in_schema(_PAGE_OF_LOST_NOTES),
        )

    def in_schema(self, sql: str) -> str:
        """SQL that names the tables as ``agentmem.agentmem_…``, with the schema's own name."""
        return sql.replace("agentmem.", f"{self._schema}.")


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def append_values(appends: Iterable[tuple[str, Sequence[str]]]) -> tuple[list[str], str, list[str], str, list[str]]:
    """The values of the ``append`` statement, after those of ``begin``.

    Args:
        appends: session id and rows of each; a session may come more than once.

    Returns:
        The sessions, and how many rows each gets; then of each row its session, its distance from the session's new
        end, and its text.
    """
    appends = list(appends)
    sizes: dict[str, int] = {}
    for session_id, rows in appends:
        sizes[session_id] = sizes.get(session_id, 0) + len(rows)
    left = dict(sizes)
    session_ids: list[str] = []
    before_end: list[int] = []
    texts: list[str] = []
    for session_id, rows in appends:
        end, size = left[session_id], len(rows)
        left[session_id] = end - size
        session_ids += [session_id] * size
        before_end += range(end, end - size, -1)
        texts += rows
    return list(sizes), array(sizes.values()), session_ids, array(before_end), texts


def array(numbers: Iterable[int]) -> str:
    """An array of numbers as PostgreSQL reads it.

    For a list, asyncpg would first ask the server what ``bigint[]`` is, on each new connection, and leave a setting
    behind on it (``jit``), which behind PgBouncer may be another client's next.
    """
    return "{" + ",".join(map(str, numbers)) + "}"


def milliseconds(seconds: float) -> str:
    """A time limit as PostgreSQL's settings take it; at least 1 ms, because 0 would mean no limit."""
    return f"{max(1, int(seconds * 1000))}ms"
