"""The two tables in which the OpenAI Agents SDK's SQLite sessions keep their history: found, told from others, read.

Made like those of ``agents.memory.sqlite_session`` and ``agents.extensions.memory.async_sqlite_session`` of
openai-agents 0.24, which need not be installed.
"""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass

from ...errors import StorageError
from ..base import MAX_SESSION_ID_BYTES


@dataclass(frozen=True)
class SDKTables:
    """The tables of the SDK's sessions, named as in its constructors: as SQL writes them, in quotes if need be."""

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
"""The table in which a takeover notes how far it came; see ``takeover``."""

_SESSION_COLUMNS = {"session_id", "created_at", "updated_at"}
_MESSAGE_COLUMNS = {"id", "session_id", "message_data", "created_at"}

# What agentmem takes for a session id. length() and instr() count bytes of a BLOB, and stop at the first NUL of a text.
_FITS = f"""
    typeof(session_id) = 'text' AND length(CAST(session_id AS BLOB)) BETWEEN 1 AND {MAX_SESSION_ID_BYTES}
    AND instr(CAST(session_id AS BLOB), x'00') = 0
"""

_NO_SESSIONS = "(SELECT NULL AS session_id, NULL AS created_at, NULL AS updated_at)"


def is_sdk_file(raw: sqlite3.Connection) -> bool:
    """Whether the SDK's tables are all that the database holds, and nobody has marked it as theirs."""
    marks = raw.execute(
        "SELECT application_id, user_version FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if marks != (0, 0):
        return False
    layouts = {_layout(raw, name) if kind == "table" else None for kind, name in _objects(raw)}
    return "messages" in layouts and None not in layouts


def holds_sdk_tables(raw: sqlite3.Connection) -> bool:
    """Whether the SDK's tables are among those of the database."""
    return any(kind == "table" and _layout(raw, name) == "messages" for kind, name in _objects(raw))


def plain_name(name: str) -> str:
    """The name that SQL means by `name`, which may be in quotes (sqlite.org/lang_keywords.html)."""
    ends = name[:1] + name[-1:]
    if len(name) > 1 and ends in ('""', "''", "``"):
        return name[1:-1].replace(ends, ends[0])
    return name[1:-1] if ends == "[]" else name


@dataclass(frozen=True)
class Source:
    """The SDK's tables in a database, as it spells their names; None for a table that is not there."""

    connection: sqlite3.Connection
    sessions: str | None
    messages: str | None

    @classmethod
    def find(cls, connection: sqlite3.Connection, tables: SDKTables) -> Source:
        """Raises StorageError where a table of the name is not as the SDK makes it."""
        sessions = _named(connection, tables.sessions, "sessions")
        return cls(connection, sessions, _named(connection, tables.messages, "messages"))

    def fill(self, sql: str, **words: str) -> str:
        """`sql` with the tables' names, and the condition for a session id, in their places; `words` are more of these.

        The one place where a name is formatted into SQL, because no parameter can stand for a table. Each is one that
        a bound parameter has found in sqlite_master, quoted so that it is an identifier whatever it holds.
        """
        assert self.messages is not None
        sessions = _NO_SESSIONS if self.sessions is None else _quoted(self.sessions)
        return sql.format(sessions=sessions, messages=_quoted(self.messages), fits=_FITS, **words)

    def newest(self) -> int:
        """The id of the newest row, 0 where there is none."""
        return self._number("SELECT max(id) FROM {messages}")

    def count(self, up_to: int) -> int:
        """How many rows up to this id agentmem can take."""
        return self._number("SELECT count(*) FROM {messages} WHERE id <= ? AND {fits}", up_to)

    def digest(self, row_id: int) -> str:
        """Tells a row from any other; empty where it is gone."""
        row = self.connection.execute(
            self.fill(
                """
                SELECT CAST(session_id AS BLOB), CAST(created_at AS BLOB), CAST(message_data AS BLOB)
                FROM {messages} WHERE id = ?
                """
            ),
            (row_id,),
        ).fetchone()
        return "" if row is None else hashlib.sha256(repr(row).encode()).hexdigest()

    def has_reached(self, row_id: int) -> bool:
        """Whether the table has had a row of this id; no id is used twice."""
        issued = self.connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (self.messages,)).fetchone()
        return row_id == 0 or (issued is not None and issued[0] >= row_id)

    def refused(self, after: int) -> tuple[str, ...]:
        """The session ids in rows above `after` that agentmem refuses, as Python writes them, shortened."""
        found = self.connection.execute(
            self.fill(
                """
                SELECT DISTINCT typeof(session_id), CAST(session_id AS BLOB)
                FROM {messages} WHERE id > ? AND NOT ({fits})
                """
            ),
            (after,),
        ).fetchall()
        return tuple(repr(name.decode(errors="replace") if kind == "text" else name)[:80] for kind, name in found)

    def _number(self, sql: str, *parameters: int) -> int:
        number: int | None = self.connection.execute(self.fill(sql), parameters).fetchone()[0]
        return number or 0


def path_of(connection: sqlite3.Connection) -> str:
    """The path of the connection's database, as messages name it."""
    return str(connection.execute("PRAGMA database_list").fetchone()[2]) or ":memory:"


def _objects(raw: sqlite3.Connection) -> list[tuple[str, str]]:
    return raw.execute(
        r"SELECT type, name FROM sqlite_master WHERE type <> 'index' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'"
    ).fetchall()


def _layout(raw: sqlite3.Connection, table: str) -> str | None:
    """Whether a table is made as the SDK makes its "sessions" or its "messages"."""
    columns = {name for (name,) in raw.execute("SELECT name FROM pragma_table_info(?)", (table,))}
    if columns == _SESSION_COLUMNS:
        return "sessions"
    # The SDK's SQLAlchemySession makes the same columns, but its ids are used again.
    (sql,) = raw.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone()
    return "messages" if columns == _MESSAGE_COLUMNS and "AUTOINCREMENT" in sql.upper() else None


def _named(raw: sqlite3.Connection, name: str, layout: str) -> str | None:
    found = raw.execute(
        "SELECT type, name FROM sqlite_master WHERE type IN ('table', 'view') AND name = ? COLLATE NOCASE",
        (plain_name(name),),
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
