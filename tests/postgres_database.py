"""A database on a PostgreSQL server of the tests' own, as others than agentmem see it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, urlencode

from postgres_server import PostgresServer
from waiting import wait_until

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

    def stored(self, session_id: str = "user_123", schema: str = "agentmem") -> list[Item]:
        """The items as another program finds them: at positions from 0 without a gap, up to the session's end."""
        table = '"' + schema.replace('"', '""') + '".agentmem_'
        of = "WHERE session_id = '" + session_id.replace("'", "''") + "'"
        rows = self.sql(f"SELECT position, item FROM {table}items {of} ORDER BY position").splitlines()
        ends = self.sql(f"SELECT next_position FROM {table}sessions {of}").splitlines()
        positions = [int(row.partition("|")[0]) for row in rows]
        assert positions == list(range(int(ends[0]) if ends else 0))
        return [json.loads(row.partition("|")[2]) for row in rows]

    def record(self, expression: str, schema: str = "agentmem") -> None:
        """Have each transaction that adds items write down the value of an SQL expression, as it is in it."""
        self.sql(f"""
            CREATE TABLE recorded (value text);
            GRANT ALL ON recorded TO public;
            CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN INSERT INTO public.recorded SELECT {expression}; RETURN NULL; END
            $$;
            CREATE TRIGGER record AFTER INSERT ON {schema}.agentmem_items FOR EACH STATEMENT EXECUTE FUNCTION record();
        """)

    def recorded(self) -> list[str]:
        """What was written down since, one value for each transaction."""
        return self.sql("SELECT value FROM recorded").splitlines()

    def connections(self) -> int:
        """How many are open to it, without the one that asks."""
        where = f"datname = '{self.name}' AND backend_type = 'client backend'"
        return int(self.server.sql(f"SELECT count(*) FROM pg_stat_activity WHERE {where}", database="postgres"))


@contextmanager
def postgres_database(server: PostgresServer, options: str = "") -> Iterator[PostgresDatabase]:
    """An empty database, to which nobody is connected any more at the end of the ``with``.

    Args:
        options: of CREATE DATABASE.
    """
    database = PostgresDatabase(server, f"test_{next(_numbers)}")
    server.sql(f"CREATE DATABASE {database.name} OWNER agentmem {options}", database="postgres")
    yield database
    wait_until(lambda: database.connections() == 0)  # not at once: the server needs a moment to notice
    server.sql(f"DROP DATABASE {database.name}", database="postgres")
