"""The tables: their version, and how they are created and upgraded, whole or not at all.

A newer agentmem may upgrade them while this one is connected. So each statement looks at their version, too: nothing is
written where it is newer, and nothing that was read is returned. An upgrade first locks ``agentmem_schema``, so that no
statement of an older agentmem is under way beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zlib import crc32

from ...errors import SchemaVersionError, StorageCorruptError, StorageError
from .connection import BoundedConnection
from .database import Database
from .errors import sqlstate_of
from .statements import Statements, milliseconds, quoted

SCHEMA_VERSION = 1

_STEPS = (
    # To version 1. With this collation, ids are equal where their bytes are equal, and are ordered by their bytes.
    """
    CREATE TABLE agentmem.agentmem_sessions (
        session_id text COLLATE "C" PRIMARY KEY,
        next_position bigint NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE agentmem.agentmem_items (
        session_id text COLLATE "C" NOT NULL,
        position bigint NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        item text NOT NULL,  -- JSON
        PRIMARY KEY (session_id, position)
    );
    CREATE TABLE agentmem.agentmem_writers (
        writer uuid PRIMARY KEY,
        number bigint NOT NULL,  -- of its newest transaction
        updated_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE agentmem.agentmem_schema (version int NOT NULL);
    INSERT INTO agentmem.agentmem_schema VALUES (0);
    """,
)
"""The steps of an upgrade: the first brings an empty schema to version 1, and so on."""

_OTHER_TABLES = frozenset({"0A", "22", "23", "42", "P0"})
"""Classes of the SQLSTATEs that statements may meet on tables of another version: a column is gone, a rule is new."""

_HAS_TABLES = """
    SELECT EXISTS (
        SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE nspname = $1 AND relname = 'agentmem_schema'
    ), current_setting('server_encoding')
"""


class Schema:
    """The tables of one database. Keeps no state."""

    def __init__(self, database: Database, statements: Statements) -> None:
        self._database = database
        self._statements = statements

    async def version(self, connection: BoundedConnection) -> int:
        """The version of the tables, 0 where there are none.

        Raises:
            SchemaVersionError: the version is newer than this agentmem.
            StorageError: the database is not in UTF-8, so that it cannot hold every text.
        """
        name = self._database.name
        has_tables, encoding = await connection.fetchrow(_HAS_TABLES, self._database.schema)
        if encoding != "UTF8":
            raise StorageError(f"{name} is in {encoding}; items need a database in UTF8")
        if not has_tables:
            return 0
        version = await connection.fetchval(self._in_schema("SELECT version FROM agentmem.agentmem_schema")) or 0
        self.refuse_newer(version)
        return int(version)

    def refuse_newer(self, version: int | None) -> None:
        """Refuse what a statement found or did, by the version of the tables that it saw.

        Raises:
            SchemaVersionError: the version is newer than this agentmem; nothing was written.
            StorageCorruptError: there is no version any more; likewise.
        """
        if version is None:
            raise StorageCorruptError(f"{self._database.name}: agentmem_schema has lost its row; restore a backup")
        if version > SCHEMA_VERSION:
            raise SchemaVersionError(
                f"{self._database.name} has schema version {version}, this agentmem knows up to {SCHEMA_VERSION}; "
                "upgrade agentmem"
            )

    def without_version(self, found: Sequence[Any]) -> list[Any]:
        """The rows of a statement that has the version of the tables in its first column, without it.

        Raises:
            SchemaVersionError, StorageCorruptError: as :meth:`refuse_newer` does.
        """
        self.refuse_newer(found[0][0] if found else None)
        return [row[1:] for row in found if row[1] is not None]

    async def explain(self, connection: BoundedConnection, error: Exception) -> Exception:
        """What to raise for an error of the server's: itself, or that a newer agentmem has upgraded the tables."""
        if (sqlstate_of(error) or "")[:2] in _OTHER_TABLES:
            try:
                await self.version(connection)
            except SchemaVersionError as newer:
                return newer
            except Exception:  # noqa: S110  then `error` is what the caller gets
                pass
        return error

    async def require_tables(self, connection: BoundedConnection) -> None:
        """Do nothing where there are tables of agentmem's.

        Raises:
            StorageError: there are none.
            SchemaVersionError: their version is newer than this agentmem.
        """
        if not await self.version(connection):
            raise StorageError(f"{self._database.name} holds no sessions of agentmem's; check the URL and the schema")

    async def create_or_upgrade(self, connection: BoundedConnection) -> None:
        """Bring the tables to the newest version, in one transaction, while other processes wait.

        Raises:
            StorageError, SchemaVersionError: as :meth:`version` does.
        """
        if await self.version(connection) == SCHEMA_VERSION:
            return
        async with connection.transaction("READ COMMITTED"):
            lock_timeout = milliseconds(connection.wait_s)
            await connection.execute("SELECT set_config('lock_timeout', $1, true)", lock_timeout)
            schema = self._database.schema
            await connection.execute("SELECT pg_advisory_xact_lock($1)", crc32(schema.encode()))
            # Looked at again under the lock: another process may have done it meanwhile.
            if not await connection.fetchval("SELECT true FROM pg_namespace WHERE nspname = $1", schema):
                await connection.execute(f"CREATE SCHEMA {quoted(schema)}")
            version = await self.version(connection)
            if version:  # writers of older versions look at it in their statements: they end before, or wait
                await connection.execute(self._in_schema("LOCK agentmem.agentmem_schema IN ACCESS EXCLUSIVE MODE"))
            for step in _STEPS[version:]:
                await connection.execute(self._in_schema(step))
            set_version = self._in_schema("UPDATE agentmem.agentmem_schema SET version = $1")
            await connection.execute(set_version, SCHEMA_VERSION)

    def _in_schema(self, sql: str) -> str:
        return self._statements.in_schema(sql)
