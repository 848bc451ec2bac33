"""Finds and reads the two tables in which the OpenAI Agents SDK's SQLite sessions store their history.

These are the tables of ``agents.memory.sqlite_session`` and ``agents.extensions.memory.async_sqlite_session`` in
openai-agents 0.24. The SDK need not be installed.
"""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass

from ...errors import StorageError
from ..base import MAX_SESSION_ID_BYTES


@dataclass(frozen=True)
class SDKTables:
    """The names of the SDK's tables, as its session classes take them: as SQL identifiers, which may be quoted."""

    sessions: str = "agent_sessions"
    messages: str = "agent_messages"


BOOKMARKS = """
    CREATE TABLE agentmem_takeovers (
        source TEXT NOT NULL,  -- path of the file that the rows came from; empty for this one
        messages_table TEXT NOT NULL COLLATE NOCASE,
        last_id INTEGER NOT NULL,  -- its rows up to this one were taken over
        last_row TEXT NOT NULL,  -- a digest of that row, by which a file that was moved or replaced is told
        PRIMARY KEY (source, messages_table)
    )
"""
"""Creates the table in which a takeover stores how far it came; see ``takeover``."""

_SESSION_COLUMNS = {"session_id", "created_at", "updated_at"}
_MESSAGE_COLUMNS = {"id", "session_id", "message_data", "created_at"}

# The condition for a session id that agentmem accepts. It casts to BLOB because length() and instr() count the bytes of
# a BLOB, but stop at the first NUL of a text.
_VALID_ID = f"""
    typeof(session_id) = 'text' AND length(CAST(session_id AS BLOB)) BETWEEN 1 AND {MAX_SESSION_ID_BYTES}
    AND instr(CAST(session_id AS BLOB), x'00') = 0
"""

_NO_SESSIONS = "(SELECT NULL AS session_id, NULL AS created_at, NULL AS updated_at)"


def is_sdk_file(raw: sqlite3.Connection) -> bool:
    """Return whether the database has only the SDK's tables, and no ``application_id`` and ``user_version``."""
    marks = raw.execute(
        "SELECT application_id, user_version FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if marks != (0, 0):
        return False
    layouts = {_layout(raw, name) if kind == "table" else None for kind, name in _objects(raw)}
    return "messages" in layouts and None not in layouts


def holds_sdk_tables(raw: sqlite3.Connection) -> bool:
    """Return whether the database has the SDK's table of messages, perhaps among other tables."""
    return any(kind == "table" and _layout(raw, name) == "messages" for kind, name in _objects(raw))


def unquoted(name: str) -> str:
    """Return an SQL identifier without its quotes, if it has any (sqlite.org/lang_keywords.html)."""
    ends = name[:1] + name[-1:]
    if len(name) > 1 and ends in ('""', "''", "``"):
        return name[1:-1].replace(ends, ends[0])
    return name[1:-1] if ends == "[]" else name


@dataclass(frozen=True)
class Source:
    """The SDK's tables in a database.

    Attributes:
        connection: a connection to the database.
        sessions: the name of the table of sessions, as the database spells it; None if there is none.
        messages: likewise for the table of messages.
    """

    connection: sqlite3.Connection
    sessions: str | None
    messages: str | None

    @classmethod
    def find(cls, connection: sqlite3.Connection, tables: SDKTables) -> Source:
        """Look up the tables.

        Raises:
            StorageError: a table or view has one of the names, but is not as the SDK makes it.
        """
        sessions = _find_table(connection, tables.sessions, "sessions")
        return cls(connection, sessions, _find_table(connection, tables.messages, "messages"))

    def refuse_branches(self) -> None:
        """Check that the rows of each session are one conversation.

        The SDK's ``AdvancedSQLiteSession`` stores the items of all branches of a session as rows of one session, and
        which of them make a branch in another table. Taken over by their ids, they would be a conversation that never
        was. So would be the rows that a deleted branch has left.

        Raises:
            StorageError: a session has branches, or rows that are not of its main branch.
        """
        if not self._has_branch_table():
            return
        found = self.connection.execute(
            self.format_sql(
                """
                SELECT CAST(session_id AS TEXT), (
                    SELECT group_concat(branch_id, ', ') FROM (
                        SELECT DISTINCT branch_id FROM message_structure AS s
                        WHERE s.session_id = a.session_id AND branch_id <> 'main' ORDER BY branch_id
                    )
                ) AS branches
                FROM (SELECT DISTINCT session_id FROM message_structure) AS a
                WHERE branches IS NOT NULL OR EXISTS (
                    SELECT 1 FROM {messages} AS m WHERE m.session_id = a.session_id AND m.id NOT IN (
                        SELECT message_id FROM message_structure WHERE branch_id = 'main'
                    )
                )
                ORDER BY session_id
                """
            )
        ).fetchall()
        if found:
            named = "; ".join(
                f"{session_id[:80]!r} ({branches[:200] if branches else 'what is left of a deleted one'})"
                for session_id, branches in found[:10]
            )
            raise StorageError(
                f"{path_of(self.connection)} has {len(found)} sessions with branches of the Agents SDK's "
                f"AdvancedSQLiteSession: {named}. Their items would become a conversation that never was, and nothing "
                "was taken over. To take over a branch, get its items from the SDK, and add them to a session: "
                "await AdvancedSQLiteSession(session_id=…, db_path=…).get_items(branch_id=…)"
            )

    def _has_branch_table(self) -> bool:
        """Return whether the file has the SDK's table of branches, and it is about these messages."""
        if self.messages is None:
            return False
        columns = self.connection.execute("SELECT name FROM pragma_table_info('message_structure')").fetchall()
        if not {("session_id",), ("message_id",), ("branch_id",)} <= set(columns):
            return False
        about = self.connection.execute(
            """SELECT "table" FROM pragma_foreign_key_list('message_structure')"""
        ).fetchall()
        return not about or self.messages.lower() in [name.lower() for (name,) in about]

    def format_sql(self, sql: str, **fragments: str) -> str:
        """Put the names of the tables and the condition for a valid session id into an SQL text.

        This is the only place that formats names into SQL, because a parameter cannot stand for a table. Each name was
        found in ``sqlite_master`` with a bound parameter, and is quoted so that it is an identifier whatever it holds.

        Args:
            sql: has ``{messages}`` and perhaps ``{sessions}`` and ``{valid_id}`` in the places of these.
            fragments: further parts of the SQL, by the names of their places.
        """
        assert self.messages is not None
        sessions = _NO_SESSIONS if self.sessions is None else _quoted(self.sessions)
        return sql.format(sessions=sessions, messages=_quoted(self.messages), valid_id=_VALID_ID, **fragments)

    def newest_id(self) -> int:
        """Return the id of the newest row; 0 if there is none."""
        return self._number("SELECT max(id) FROM {messages}")

    def count(self, up_to: int) -> int:
        """Return how many rows up to the id `up_to` have a valid session id."""
        return self._number("SELECT count(*) FROM {messages} WHERE id <= ? AND {valid_id}", up_to)

    def digest(self, row_id: int) -> str:
        """Return a digest that differs between rows; empty if the row does not exist any more."""
        row = self.connection.execute(
            self.format_sql(
                """
                SELECT CAST(session_id AS BLOB), CAST(created_at AS BLOB), CAST(message_data AS BLOB)
                FROM {messages} WHERE id = ?
                """
            ),
            (row_id,),
        ).fetchone()
        return "" if row is None else hashlib.sha256(repr(row).encode()).hexdigest()

    def has_issued(self, row_id: int) -> bool:
        """Return whether the table has issued an id to a row. AUTOINCREMENT issues no id twice."""
        issued = self.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (self.messages,)).fetchone()
        return row_id == 0 or (issued is not None and issued[0] >= row_id)

    def invalid_ids(self, after: int) -> tuple[str, ...]:
        """Return the session ids in rows after the id `after` that agentmem refuses: their ``repr``, shortened."""
        found = self.connection.execute(
            self.format_sql(
                """
                SELECT DISTINCT typeof(session_id), CAST(session_id AS BLOB)
                FROM {messages} WHERE id > ? AND NOT ({valid_id})
                """
            ),
            (after,),
        ).fetchall()
        return tuple(repr(name.decode(errors="replace") if kind == "text" else name)[:80] for kind, name in found)

    def _number(self, sql: str, *parameters: int) -> int:
        number: int | None = self.connection.execute(self.format_sql(sql), parameters).fetchone()[0]
        return number or 0


def path_of(connection: sqlite3.Connection) -> str:
    """Return the path of a connection's database, for messages."""
    return str(connection.execute("PRAGMA database_list").fetchone()[2]) or ":memory:"


def _objects(raw: sqlite3.Connection) -> list[tuple[str, str]]:
    """Return the type and name of each table, view and trigger, without SQLite's own."""
    return raw.execute(
        r"SELECT type, name FROM sqlite_master WHERE type <> 'index' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'"
    ).fetchall()


def _layout(raw: sqlite3.Connection, table: str) -> str | None:
    """Return "sessions" or "messages" if a table is as the SDK makes its table of these; None for any other table."""
    columns = {name for (name,) in raw.execute("SELECT name FROM pragma_table_info(?)", (table,))}
    if columns == _SESSION_COLUMNS:
        return "sessions"
    # The SDK's SQLAlchemySession makes a table with the same columns, but without AUTOINCREMENT: it reuses ids.
    (sql,) = raw.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone()
    return "messages" if columns == _MESSAGE_COLUMNS and "AUTOINCREMENT" in sql.upper() else None


def _find_table(raw: sqlite3.Connection, name: str, layout: str) -> str | None:
    """Return the name of a table as the database spells it; None if there is none.

    Raises:
        StorageError: it is a view, or does not have this layout.
    """
    found = raw.execute(
        "SELECT type, name FROM sqlite_master WHERE type IN ('table', 'view') AND name = ? COLLATE NOCASE",
        (unquoted(name),),
    ).fetchone()
    if found is None:
        return None
    if found[0] == "view" or _layout(raw, found[1]) != layout:
        raise StorageError(
            f"the table {name!r} in {path_of(raw)} is not as the Agents SDK's SQLiteSession makes its {layout}; "
            "give the names that the session was made with"
        )
    return str(found[1])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
