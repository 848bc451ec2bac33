"""Durability as it is, not as a system says: what the database answers when the system has written a turn.

SQLite is asked in every connection that the system opens; PostgreSQL within each of its transactions, as it commits.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import Any
from unittest import mock

from .bench import TURNS, Bench
from .databases import POSTGRES
from .postgres import PostgresSystem
from .server import connected

REQUIRED = ("wal", 2)
"""Journal mode, and FULL as ``PRAGMA synchronous`` gives it (sqlite.org/pragma.html#pragma_synchronous)."""

REQUIRED_POSTGRES = ("on", "on")
"""``fsync`` and ``synchronous_commit`` (postgresql.org/docs/current/runtime-config-wal.html)."""


class Refused(Exception):  # noqa: N818  an outcome
    """The system's durability is not the one that all are measured at."""


def verify_durability(bench: Bench) -> None:
    """Look up the durability of one turn that the system stores, on a database of its own, untimed.

    Raises:
        Refused: it is not the one required, or could not be looked up.
    """
    if bench.kind.database is POSTGRES:
        asyncio.run(_verify_postgres(bench))
    else:
        _verify_sqlite(bench)


def _verify_sqlite(bench: Bench) -> None:
    connections: list[Any] = []
    connect = sqlite3.connect

    def watched(kind: type[Any]) -> type[Any]:
        class Watched(kind):  # type: ignore[misc]  # whatever class of connection the system asks for
            durability: tuple[str, int] | None = None

            def look(self) -> None:
                with contextlib.suppress(sqlite3.ProgrammingError):  # closed already, or in use by another thread
                    self.durability = tuple(
                        sqlite3.Connection.execute(self, f"PRAGMA {name}").fetchone()[0]
                        for name in ("journal_mode", "synchronous")
                    )

            def execute(self, sql: str, *args: Any) -> Any:
                result = super().execute(sql, *args)
                if sql == "COMMIT":  # agentmem's connections serve until they are closed, in their close()
                    self.look()
                return result

            def close(self) -> None:
                self.look()
                super().close()

        return Watched

    def watching(database: Any, *args: Any, factory: Any = sqlite3.Connection, **kwargs: Any) -> Any:
        if isinstance(factory, type):
            connection: Any = connect(database, *args, factory=watched(factory), **kwargs)
        else:  # a function
            connection = connect(database, *args, factory=factory, **kwargs)
            connection.__class__ = watched(type(connection))
        connections.append(connection)
        return connection

    async def one_turn() -> None:
        async with bench.new("durability.db") as system:
            handle = await system.session("durability")
            await handle.add(TURNS[0])
            await handle.tail(2)
            await handle.close()

    with mock.patch("sqlite3.connect", watching):
        asyncio.run(one_turn())
    for connection in connections:
        connection.look()  # some are never closed
    found = {connection.durability for connection in connections}
    if found != {REQUIRED}:
        raise Refused(f"its connections have {found} as journal_mode and synchronous, not {REQUIRED}")


# A deferred trigger runs as the transaction commits, so it sees what SET LOCAL said, too.
_WATCH = """
    CREATE TABLE {schema}.durability (fsync text, synchronous_commit text);
    CREATE FUNCTION {schema}.durability() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO {schema}.durability VALUES (current_setting('fsync'), current_setting('synchronous_commit'));
        RETURN NULL;
    END $$;
    DO $$ DECLARE watched regclass; BEGIN
        FOR watched IN
            SELECT oid FROM pg_class
            WHERE relnamespace = '{schema}'::regnamespace AND relkind = 'r' AND relname <> 'durability'
        LOOP
            EXECUTE format(
                'CREATE CONSTRAINT TRIGGER durability AFTER INSERT OR UPDATE ON %s DEFERRABLE INITIALLY DEFERRED '
                'FOR EACH ROW EXECUTE FUNCTION {schema}.durability()', watched
            );
        END LOOP;
    END $$;
"""


async def _verify_postgres(bench: Bench) -> None:
    async with bench.new("durability.db") as system:
        assert isinstance(system, PostgresSystem)
        handle = await system.session("durability")
        await handle.add(TURNS[0])  # makes the tables where nothing else has
        async with connected() as db:
            await db.execute("SET lock_timeout = '10s'")  # a system may hold on to its tables
            await db.execute(_WATCH.format(schema=system.schema))
            await handle.add(TURNS[1])
            rows = await db.fetch(f"SELECT DISTINCT fsync, synchronous_commit FROM {system.schema}.durability")
        await handle.close()
    found = {tuple(row) for row in rows}
    if found != {REQUIRED_POSTGRES}:
        raise Refused(f"it commits with {found} as fsync and synchronous_commit, not {REQUIRED_POSTGRES}")
