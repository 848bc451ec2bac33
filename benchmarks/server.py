"""The PostgreSQL server that is measured, and the schemas on it.

Rules kept here:

- A schema stands for every file that a system would have if it were on SQLite. Its comment is that file's path, so that
  a run finds all of its own, and drops them.
- asyncpg is imported when it is needed, so that the suite runs without it.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

URL_VARIABLE, DEFAULT_URL = "AGENTMEM_TEST_POSTGRES", "postgresql://postgres@127.0.0.1/test"

LONGEST_CONNECT_S = 10.0


class NoServer(Exception):  # noqa: N818  an outcome
    """No PostgreSQL server can be used; the message says which, and why."""


def server_url() -> str:
    """The server that is measured."""
    return os.environ.get(URL_VARIABLE) or DEFAULT_URL


@asynccontextmanager
async def connected(url: str | None = None) -> AsyncIterator[Any]:
    """A connection of asyncpg's to the server.

    Raises:
        NoServer: it does not answer, or refuses.
    """
    asyncpg, url = import_module("asyncpg"), url or server_url()
    try:
        db = await asyncpg.connect(url, timeout=LONGEST_CONNECT_S)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        at = urlsplit(url)
        place = f"{at.hostname or 'localhost'}:{at.port or 5432}{at.path}"  # without user and password
        raise NoServer(f"no PostgreSQL at {place}: {type(error).__name__}: {error}; see {URL_VARIABLE}") from error
    try:
        yield db
    finally:
        await db.close()


async def costs_us() -> dict[str, float]:
    """What the server makes all systems pay: the way there and back, and a commit; medians."""

    async def median_us(db: Any, sql: str, repeats: int) -> float:
        took = []
        for _ in range(repeats):
            begun = perf_counter()
            await db.execute(sql)
            took.append(perf_counter() - begun)
        return round(statistics.median(took) * 1e6, 1)

    async with connected() as db:
        # The second is the least that has to be flushed; no table, so that nothing else is paid for.
        return {
            "round_trip_us": await median_us(db, "SELECT 1", 500),
            "commit_us": await median_us(db, "SELECT pg_logical_emit_message(true, '', '')", 100),
        }


def schema_of(path: str) -> str:
    """The schema that stands for the file at this path; a plain name that needs no quotes."""
    return f"agentmem_bench_{blake2b(path.encode(), digest_size=8).hexdigest()}"


async def make_schema(path: str) -> None:
    """Make that schema, if there is none."""
    async with connected() as db:
        await db.execute(f"CREATE SCHEMA IF NOT EXISTS {schema_of(path)}")
        comment = await db.fetchval("SELECT quote_literal($1::text)", path)
        await db.execute(f"COMMENT ON SCHEMA {schema_of(path)} IS {comment}")


async def vacuum(schema: str) -> None:
    """Do what the server would else do while it is measured."""
    async with connected() as db:
        for table in await tables(db, schema):
            await db.execute(f"VACUUM (ANALYZE) {table}")


async def tables(db: Any, schema: str) -> list[str]:
    """The tables in a schema, quoted for SQL."""
    rows = await db.fetch(
        "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = $1::regnamespace AND relkind = 'r'", schema
    )
    return [table for (table,) in rows]


async def drop_schemas(folder: Path) -> None:
    """Drop the schemas that stand for files in this folder."""
    async with connected() as db:
        rows = await db.fetch(
            "SELECT nspname FROM pg_namespace WHERE starts_with(obj_description(oid, 'pg_namespace'), $1)",
            f"{folder}{os.sep}",
        )
        for (name,) in rows:
            await db.execute(f'DROP SCHEMA "{name}" CASCADE')
