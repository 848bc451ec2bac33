"""The tables: their version, and how they are created and upgraded, whole or not at all.

A newer agentmem may upgrade them while this one is connected. So each statement looks at their version, too: nothing is
written where it is newer, and nothing that was read is returned. An upgrade first locks ``agentmem_schema``, so that no
statement of an older agentmem is under way beside it.

``sequence`` is issued before the commit, so a smaller one may appear later than a larger one. Nothing has to be stored
for who asks what is new since. A write locks ``agentmem_items`` before its sequences are issued, and holds that until
all see its commit. So one asks, one after the other: for the largest sequence; for the transactions that hold such a
lock (``RowExclusiveLock`` in ``pg_locks``); and, once none of these holds it any more, for the rows up to that
sequence, which are complete. Transaction ids do not tell it. Of two writes that are under way, the younger one may have
the smaller sequence and commit last. ``pg_snapshot_xmax`` may be below the id of a write that is under way, and
``pg_snapshot_xmin`` waits for the writes to all databases of the server. A stored id means nothing after a restore.
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

SCHEMA_VERSION = 2

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
    # To version 2. The rows are updated in place: a table that is rewritten looks empty to a transaction that took its
    # snapshot before and waits for the upgrade.
    """
    ALTER TABLE agentmem.agentmem_sessions RENAME next_position TO length;
    ALTER TABLE agentmem.agentmem_sessions
        ADD first_position bigint NOT NULL DEFAULT 0,  -- above 0 where turns were pruned
        ADD edits bigint NOT NULL DEFAULT 0,  -- changes other than appends
        ADD owner text COLLATE "C",
        ADD title text,
        ADD metadata text,  -- JSON
        ADD stored_at timestamptz NOT NULL DEFAULT now(),  -- latest append, edit, or arrival in this database
        ADD expires_at timestamptz,
        ADD forked_from text COLLATE "C",  -- a session id
        ADD forked_length bigint;
    UPDATE agentmem.agentmem_sessions SET stored_at = updated_at;
    CREATE INDEX agentmem_sessions_owner ON agentmem.agentmem_sessions (owner, updated_at, session_id);
    CREATE INDEX agentmem_sessions_forked_from ON agentmem.agentmem_sessions (forked_from)
        WHERE forked_from IS NOT NULL;

    ALTER TABLE agentmem.agentmem_items ADD sequence bigint;
    -- A merge join updates the rows as they lie in the table. In another order, each page is written to the WAL again
    -- and again: for 2,000,000 items in the order of their sequences, 13 GB in 75 s, against 2.8 GB in 51 s.
    SET LOCAL enable_hashjoin = off;
    SET LOCAL enable_nestloop = off;
    UPDATE agentmem.agentmem_items AS i SET sequence = numbered.sequence
    FROM (
        SELECT place, row_number() OVER (ORDER BY arrived_at, session_id, position) AS sequence
        FROM (
            SELECT
                ctid AS place, session_id, position,
                -- A clock may have been set back: later positions are never before earlier ones.
                max(created_at) OVER (PARTITION BY session_id ORDER BY position) AS arrived_at
            FROM agentmem.agentmem_items
        ) AS arrived
    ) AS numbered
    WHERE i.ctid = place;
    SET LOCAL enable_hashjoin = on;
    SET LOCAL enable_nestloop = on;
    ALTER TABLE agentmem.agentmem_items
        ALTER sequence SET NOT NULL, ALTER sequence ADD GENERATED ALWAYS AS IDENTITY (CACHE 1);
    SELECT setval(pg_get_serial_sequence(tableoid::regclass::text, 'sequence'), sequence)
    FROM (SELECT tableoid, sequence FROM agentmem.agentmem_items ORDER BY sequence DESC LIMIT 1) AS newest;
    CREATE UNIQUE INDEX agentmem_items_sequence ON agentmem.agentmem_items (sequence);

    CREATE TABLE agentmem.agentmem_notes (
        session_id text COLLATE "C" NOT NULL,
        kind text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        position bigint,  -- of the item that it speaks of; removed with it, unless its kind is 'key'
        value text NOT NULL,  -- JSON
        PRIMARY KEY (session_id, kind, name)
    );
    CREATE TABLE agentmem.agentmem_locks (
        session_id text COLLATE "C" PRIMARY KEY,
        token text NOT NULL,
        holder text NOT NULL,  -- for messages
        since timestamptz NOT NULL,
        renewed_at timestamptz NOT NULL,
        until timestamptz NOT NULL
    );
    """,
)
"""The steps of an upgrade: the first brings an empty schema to version 1, and so on."""

UPGRADE_LIMIT_S = 86_400.0
"""How long a statement of an upgrade may take before its connection counts as lost, in seconds: 1,000,000 sessions with
2,000,000 items took 50 s, and nobody could open the database where an upgrade was given up halfway."""

_OTHER_TABLES = frozenset({"0A", "22", "23", "42", "P0"})
"""Classes of the SQLSTATEs that statements may meet on tables of another version: a column is gone, a rule is new."""

_HAS_TABLES = """
    SELECT EXISTS (
        SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE nspname = $1 AND relname = 'agentmem_schema'
    ), current_setting('server_encoding')
"""

_GRANTS = """
    SELECT
        CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
        string_agg(DISTINCT privilege_type, ', ')
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace, aclexplode(relacl)
    WHERE nspname = $1 AND relname = 'agentmem_sessions' AND grantee <> relowner
        AND privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    GROUP BY grantee
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

    async def require_tables(self, connection: BoundedConnection) -> int:
        """The version of the tables, which may be an older one: this upgrades nothing.

        Raises:
            StorageError: there are none.
            SchemaVersionError: their version is newer than this agentmem.
        """
        version = await self.version(connection)
        if not version:
            raise StorageError(f"{self._database.name} holds no sessions of agentmem's; check the URL and the schema")
        return version

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
            if version:
                await self._upgrade(connection.with_limit(UPGRADE_LIMIT_S), version)
            else:
                await self._take_steps(connection, _STEPS)

    async def _upgrade(self, connection: BoundedConnection, version: int) -> None:
        """Bring the tables from a version to the newest one, inside the caller's transaction."""
        await connection.execute("SELECT set_config('statement_timeout', '0', true)")  # else it might never succeed
        # Writers of older versions look at the version in their statements: they end before, or wait. Their readers
        # lock the tables of items or sessions first, and then wait for this lock, so the next one may be a deadlock.
        # The server then ends one of both statements, and its call is tried again: all locks come before the work.
        await connection.execute(self._in_schema("LOCK agentmem.agentmem_schema IN ACCESS EXCLUSIVE MODE"))
        await connection.execute(
            self._in_schema("LOCK agentmem.agentmem_items, agentmem.agentmem_sessions IN ACCESS EXCLUSIVE MODE")
        )
        await self._take_steps(connection, _STEPS[version:])
        # Who was given the tables that there were can write to the new ones, too.
        new_tables = self._in_schema("agentmem.agentmem_notes, agentmem.agentmem_locks")
        for role, rights in await connection.fetch(_GRANTS, self._database.schema):
            await connection.execute(f"GRANT {rights} ON {new_tables} TO {role}")

    async def _take_steps(self, connection: BoundedConnection, steps: Sequence[str]) -> None:
        for step in steps:
            await connection.execute(self._in_schema(step))
        set_version = self._in_schema("UPDATE agentmem.agentmem_schema SET version = $1")
        await connection.execute(set_version, SCHEMA_VERSION)

    def _in_schema(self, sql: str) -> str:
        return self._statements.in_schema(sql)
