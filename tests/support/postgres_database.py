"""A database on a PostgreSQL server of the tests' own, as others than agentmem see it."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from urllib.parse import quote, urlencode

from postgres_server import PostgresServer
from waiting import WAIT_S, wait_until

from agentmem.items import Item

_numbers = itertools.count(1)


class PostgresDatabase:
    """One of its databases; the role agentmem owns it, and owns nothing else.

    Attributes:
        server, name: where it is.
    """

    def __init__(self, server: PostgresServer, name: str) -> None:
        self.server = server
        self.name = name

    @property
    def url(self) -> str:
        return self.url_of("agentmem")

    def url_of(self, role: str = "agentmem", password: str = "", *, port: int | None = None, **options: object) -> str:
        """For a role, at the server's port or another one's, with options in the URL."""
        who = quote(role, safe="") + (f":{quote(password, safe='')}" if password else "")
        query = f"?{urlencode(options)}" if options else ""
        return f"postgresql://{who}@{self.server.host}:{port or self.server.port}/{quote(self.name)}{query}"

    def sql(self, statement: str) -> str:
        """Run statements as superuser; returns rows as lines, columns by "|"."""
        return self.server.sql(statement, database=self.name)

    def sessions(self, schema: str = "agentmem") -> dict[str, list[Item]]:
        """The items of each session as another program finds them: at positions from 0 without a gap, up to its end."""
        if not self.sql(f"SELECT 1 FROM pg_namespace WHERE nspname = {_quoted(schema)}"):
            return {}
        table = '"' + schema.replace('"', '""') + '".agentmem_'
        rows = self.sql(f"""
            SELECT json_build_array(session_id, length, position, item)
            FROM {table}sessions FULL JOIN {table}items USING (session_id) ORDER BY session_id, position
        """)
        found: dict[str, list[Item]] = {}
        ends: dict[str, int] = {}
        for session_id, ends[session_id], position, item in map(json.loads, filter(None, rows.split("\n"))):
            items = found.setdefault(session_id, [])
            if item is not None:
                assert position == len(items), f"a gap or a double in {session_id}"
                items.append(json.loads(item))
        assert {session_id: len(items) for session_id, items in found.items()} == ends
        return found

    def stored(self, session_id: str = "user_123", schema: str = "agentmem") -> list[Item]:
        """The items of one session; likewise."""
        return self.sessions(schema).get(session_id, [])

    def record(self, expression: str, schema: str = "agentmem") -> None:
        """Have each statement that adds or removes items write down the value that an SQL expression has in it."""
        self.sql(f"""
            CREATE TABLE recorded (value text);
            GRANT ALL ON recorded TO public;
            CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN INSERT INTO public.recorded SELECT {expression}; RETURN NULL; END
            $$;
            CREATE TRIGGER record AFTER INSERT OR DELETE ON {schema}.agentmem_items
                FOR EACH STATEMENT EXECUTE FUNCTION record();
        """)

    def recorded(self) -> list[str]:
        """What was written down since, one value for each statement."""
        return self.sql("SELECT value FROM recorded").splitlines()

    def connections(self) -> set[int]:
        """The process ids of the server's backends, one for each connection, without the one that this call uses."""
        where = f"datname = {_quoted(self.name)} AND backend_type = 'client backend'"
        told = self.server.sql(f"SELECT pid FROM pg_stat_activity WHERE {where}", database="postgres")
        return set(map(int, told.split()))

    @contextmanager
    def holding(self) -> Iterator[None]:
        """All sessions locked by another connection, as if it were in the middle of writing to them."""
        asyncpg = import_module("asyncpg")  # where it is missing, tests that need a server are skipped

        async def hold() -> None:
            connection = await asyncpg.connect(self.url)
            async with connection.transaction():
                await connection.execute("SELECT FROM agentmem.agentmem_sessions FOR UPDATE")
                held.set()
                await asyncio.to_thread(released.wait)
            await connection.close()

        held, released = threading.Event(), threading.Event()
        holder = threading.Thread(target=lambda: asyncio.run(hold()))
        holder.start()
        try:
            assert held.wait(WAIT_S)
            yield
        finally:
            released.set()
            holder.join()

    def is_waited_for(self) -> bool:
        """Whether somebody waits for a lock."""
        waiting = f"datname = {_quoted(self.name)} AND wait_event_type = 'Lock'"
        return self.server.sql(f"SELECT 1 FROM pg_stat_activity WHERE {waiting} LIMIT 1") == "1"

    def wait_until_left(self) -> None:
        """Until nobody is connected; the server notices an end of a connection a moment later."""
        wait_until(lambda: not self.connections())


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def postgres_database(server: PostgresServer, options: str = "") -> Iterator[PostgresDatabase]:
    """An empty database, to which nobody is connected any more at the end of the ``with``.

    Args:
        options: of CREATE DATABASE.
    """
    database = PostgresDatabase(server, f"test_{next(_numbers)}")
    server.sql(f"CREATE DATABASE {database.name} OWNER agentmem {options}", database="postgres")
    yield database
    database.wait_until_left()
    server.sql(f"DROP DATABASE {database.name}", database="postgres")
