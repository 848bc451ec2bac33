"""An empty place for a test's sessions in a database on a PostgreSQL server: a schema of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from postgres_programs import find_folder
from waiting import WAIT_S

POSTGRES_URL = os.environ.get("AGENTMEM_TEST_POSTGRES")
"""A database in which the role may create schemas; without it the tests start a server."""


def postgres_header() -> str:
    """For the head of pytest's report: which PostgreSQL is tested, or why none is."""
    try:
        return f"PostgreSQL: {shown(POSTGRES_URL) if POSTGRES_URL else find_folder()}"
    except OSError as error:
        return f"PostgreSQL: {error}"


def shown(url: str) -> str:
    """A URL without its password."""
    password = urlsplit(url).password
    return url.replace(f":{password}@", ":…@") if password else url


@contextlib.contextmanager
def empty_schema(url: str) -> Iterator[str]:
    """The URL of a new schema in a database, to the end of the ``with``."""
    schema = f"agentmem_test_{secrets.token_hex(8)}"
    yield f"{url}{'&' if '?' in url else '?'}schema={schema}"
    # Where the test left a connection in a transaction, this fails; it waits for no lock for ever.
    ask(url, f"DROP SCHEMA IF EXISTS {schema} CASCADE")


def ask(url: str, statement: str) -> list[Any]:
    """The rows that it returns.

    Raises:
        OSError: the server cannot be reached, or does not let us in.
    """
    import asyncpg  # here, because only those who have a server need it

    async def ask() -> list[Any]:
        try:
            connection = await asyncpg.connect(url, timeout=WAIT_S, server_settings={"lock_timeout": "10s"})
        except (TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, OverflowError) as error:
            raise OSError(f"{shown(url)}: {type(error).__name__}: {error}") from error
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close()

    return asyncio.run(ask())
