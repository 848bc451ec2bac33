"""For each engine of the registry, an empty database of a test's own.

PostgreSQL's is a schema of its own in the database that ``AGENTMEM_TEST_POSTGRES`` names, dropped after the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from waiting import WAIT_S

DEFAULT_POSTGRES_URL = "postgresql://postgres@127.0.0.1/test"

POSTGRES_URL = os.environ.get("AGENTMEM_TEST_POSTGRES") or DEFAULT_POSTGRES_URL
"""A database in which the role may create schemas."""


@contextlib.contextmanager
def _sqlite(tmp_path: Path) -> Iterator[str]:
    yield f"sqlite:///{tmp_path / 'sessions.db'}"


@contextlib.contextmanager
def _postgresql(tmp_path: Path) -> Iterator[str]:
    postgres_version()
    schema = f"agentmem_test_{secrets.token_hex(8)}"
    yield f"{POSTGRES_URL}{'&' if '?' in POSTGRES_URL else '?'}schema={schema}"
    # Where the test left a connection in a transaction, this fails; it waits for no lock for ever.
    _ask(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


EMPTY_DATABASES: dict[str, Callable[[Path], contextlib.AbstractContextManager[str]]] = {
    "postgresql": _postgresql,
    "sqlite": _sqlite,
}
"""The URL of an empty database for the length of a ``with``; entering raises OSError where its server is missing."""


@functools.cache
def _postgres() -> str | OSError:
    try:
        rows = _ask("SHOW server_version")
    except ImportError as error:
        return OSError(f"{error}: pip install asyncpg")
    except OSError as error:
        return OSError(f"{shown(POSTGRES_URL)}: {error}")
    return str(rows[0][0])


def postgres_version() -> str:
    """The version of the server, which is asked once.

    Raises:
        OSError: it cannot be reached or does not let us in, or its driver is not installed.
    """
    answer = _postgres()
    if isinstance(answer, OSError):
        raise answer
    return answer


def postgres_header() -> str:
    """For the head of pytest's report: which PostgreSQL is tested, or why none is."""
    try:
        return f"PostgreSQL {postgres_version()} at {shown(POSTGRES_URL)}"
    except OSError as error:
        return f"no PostgreSQL ({error})"


def shown(url: str) -> str:
    """A URL without its password."""
    password = urlsplit(url).password
    return url.replace(f":{password}@", ":…@") if password else url


def _ask(statement: str) -> list[Any]:
    """The rows that it returns.

    Raises:
        OSError: the server cannot be reached, or does not let us in.
        ImportError: there is no asyncpg.
    """
    asyncpg = importlib.import_module("asyncpg")  # here, because only those who have a server need it

    async def ask() -> list[Any]:
        try:
            connection = await asyncpg.connect(POSTGRES_URL, timeout=WAIT_S, server_settings={"lock_timeout": "10s"})
        except (TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, OverflowError) as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close()

    return asyncio.run(ask())
