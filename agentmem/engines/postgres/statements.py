"""The SQL of all reads and writes, and the values for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Where the server is set up not to flush commits, agentmem's are flushed nevertheless. Any other value is stronger.
SETTINGS = """
    set_config('lock_timeout', $1, true), set_config('idle_in_transaction_session_timeout', $2, true),
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
"""

CLAIM = f"""
    INSERT INTO agentmem.agentmem_writers AS w (writer, number)
    SELECT $3, $4 FROM (SELECT {SETTINGS}) AS settings
    ON CONFLICT (writer) DO UPDATE SET number = excluded.number, updated_at = now() WHERE w.number < excluded.number
    RETURNING true
"""  # noqa: S608  made of the constants above
"""Take a transaction's number: no row, where it was committed before."""

APPEND = f"""
    WITH claimed AS ({CLAIM}),
    ends AS (
        INSERT INTO agentmem.agentmem_sessions AS s (session_id, next_position)
        SELECT session_id, size FROM claimed, unnest($5::text[], $6::text::bigint[]) AS asked (session_id, size)
        ORDER BY session_id COLLATE "C"
        ON CONFLICT (session_id)
            DO UPDATE SET next_position = s.next_position + excluded.next_position, updated_at = now()
        RETURNING s.session_id, s.next_position
    )
    INSERT INTO agentmem.agentmem_items (session_id, position, item)
    SELECT session_id, next_position - before_end, item
    FROM ends
        JOIN unnest($7::text[], $8::text::bigint[], $9::text[]) AS row (session_id, before_end, item) USING (session_id)
"""  # noqa: S608  likewise

FORGET_WRITERS = """
    DELETE FROM agentmem.agentmem_writers WHERE writer IN (
        SELECT writer FROM agentmem.agentmem_writers WHERE updated_at < now() - interval '7 days' FOR UPDATE SKIP LOCKED
    )
"""

LOCK = """
    SELECT session_id FROM agentmem.agentmem_sessions WHERE session_id = ANY($1::text[]) ORDER BY session_id FOR UPDATE
"""

HELD = """
    WITH free AS (
        SELECT session_id FROM agentmem.agentmem_sessions WHERE session_id = ANY($1::text[]) FOR UPDATE SKIP LOCKED
    )
    SELECT session_id FROM agentmem.agentmem_sessions WHERE session_id = ANY($1::text[])
    EXCEPT SELECT session_id FROM free
"""
"""Which of these sessions other connections hold. One that is just being made is not seen."""

CUT = """
    WITH removed AS (DELETE FROM agentmem.agentmem_items WHERE session_id = $1 AND position >= $2)
    UPDATE agentmem.agentmem_sessions SET next_position = $2, updated_at = now() WHERE session_id = $1
"""

CLEAR = """
    WITH removed AS (DELETE FROM agentmem.agentmem_items WHERE session_id = ANY($1::text[]))
    DELETE FROM agentmem.agentmem_sessions WHERE session_id = ANY($1::text[])
"""

# One row for each reading, because each costs the event loop as much as decoding it.
NEWEST_JOINED = """
    SELECT CASE WHEN size <= $3 THEN convert_to(texts, 'UTF8') END, count, oldest
    FROM unnest($1::text[], $2::text::bigint[]) WITH ORDINALITY AS asked (id, most, place),
        LATERAL (
            SELECT
                string_agg(item, ',' ORDER BY position DESC) AS texts, sum(octet_length(item)) AS size,
                count(*) AS count, min(position) AS oldest
            FROM (
                SELECT position, item FROM agentmem.agentmem_items WHERE session_id = id
                ORDER BY position DESC LIMIT most
            ) AS newest
        ) AS joined
    ORDER BY place
"""

# Each slice ends with the row that makes it long.
BELOW = """
    SELECT position, convert_to(item, 'UTF8')
    FROM (
        SELECT position, item, sum(octet_length(item)) OVER (ORDER BY position DESC) - octet_length(item) AS before
        FROM (
            SELECT position, item FROM agentmem.agentmem_items WHERE session_id = $1 AND position < $2
            ORDER BY position DESC LIMIT $3
        ) AS slice
    ) AS measured
    WHERE before < $4 ORDER BY position DESC
"""

FROM = """
    SELECT position, convert_to(item, 'UTF8')
    FROM (
        SELECT position, item, sum(octet_length(item)) OVER (ORDER BY position) - octet_length(item) AS before
        FROM (
            SELECT position, item FROM agentmem.agentmem_items WHERE session_id = $1 AND position >= $2
            ORDER BY position LIMIT $3
        ) AS slice
    ) AS measured
    WHERE before < $4 ORDER BY position
"""

SESSIONS = """
    SELECT session_id, next_position FROM agentmem.agentmem_sessions WHERE session_id > $1 ORDER BY session_id LIMIT $2
"""

PAGE_OF_SESSIONS = """
    SELECT session_id, next_position FROM agentmem.agentmem_sessions
    WHERE session_id > $1 AND ($2::text IS NULL OR session_id <= $2) ORDER BY session_id
"""

PAGE_OF_ITEMS = """
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

LAST_POSITION = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Append:
    """Add rows to a session."""

    session_id: str
    rows: Sequence[str]


def append_values(appends: Sequence[Append]) -> tuple[list[str], str, list[str], str, list[str]]:
    """The sessions, how many rows each gets; and for each row its session, its place before the new end, its text."""
    sizes: dict[str, int] = {}
    for append in appends:
        sizes[append.session_id] = sizes.get(append.session_id, 0) + len(append.rows)
    left = dict(sizes)
    of: list[str] = []
    before_end: list[int] = []
    texts: list[str] = []
    for append in appends:
        end, size = left[append.session_id], len(append.rows)
        left[append.session_id] = end - size
        of += [append.session_id] * size
        before_end += range(end, end - size, -1)
        texts += append.rows
    return list(sizes), array(sizes.values()), of, array(before_end), texts


def array(numbers: Iterable[int]) -> str:
    """An array of numbers as PostgreSQL reads it.

    As a list, asyncpg would first ask the server what ``bigint[]`` is, with each new connection, and leave a setting
    behind on it (``jit``), which behind PgBouncer may be another client's next.
    """
    return "{" + ",".join(map(str, numbers)) + "}"


def milliseconds(seconds: float) -> str:
    """A time limit as PostgreSQL's settings take it."""
    return f"{max(1, int(seconds * 1000))}ms"  # 0 would mean for ever
