"""The databases that ``scaling`` fills and measures: a server, or a new SQLite file; each with its driver alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .material import item
from .postgres import BareAsyncpg
from .server import URL_VARIABLE, connected, drop_schemas, make_schema, schema_of, tables, vacuum
from .systems import BareSQLite, Handle, System, nothing

ITEMS = 10
"""Of each stored session: five turns, so that a read of the newest ten has ten."""


class Store(System):
    """agentmem on any database of its registry, as a web app uses it: one store, a session from it for every call."""

    title = "agentmem"
    modules = ("agentmem",)
    packages = ()

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url)
        self._options = options

    async def open(self) -> None:
        from agentmem import AsyncSessionStore

        self.store = AsyncSessionStore(self.path, **self._options)
        await self.store.open()

    async def close(self) -> None:
        await self.store.close()

    async def session(self, session_id: str) -> Handle:
        session = self.store.session(session_id)
        return Handle(session.add_items, session.get_items, nothing)


@dataclass(frozen=True)
class Place:
    """A database to fill and to measure.

    Attributes:
        about: what it is, and with which settings.
        make: agentmem on it, closed.
        bare: its driver alone, with so many connections where it has several.
        fill: stores the sessions of these numbers.
        settle: has the database do now what it would else do while it is measured.
        size_bytes: of all that agentmem stores.
    """

    about: str
    make: Callable[[], System]
    bare: Callable[[int], System]
    fill: Callable[[range], None]
    settle: Callable[[], None]
    size_bytes: Callable[[], int]


# Straight into the engines' tables: by their own calls a million sessions would take minutes.
_SQLITE_SESSIONS = """
    INSERT INTO agentmem_sessions (session_id, length, updated_at, stored_at, created_at)
    WITH RECURSIVE counted (number, place) AS (
        SELECT :first, 1 UNION ALL SELECT number + 1, place + 1 FROM counted WHERE place < :count
    )
    SELECT printf('other-%07d', number), :length, now, now, now
    FROM counted, (SELECT strftime('%s') * 1000000 AS now)
"""
_SQLITE_ITEMS = """
    INSERT INTO agentmem_items (session_key, position, created_at, item)
    WITH RECURSIVE positions (position) AS (
        SELECT 0 UNION ALL SELECT position + 1 FROM positions WHERE position < :length - 1
    )
    SELECT session_key, position, created_at, iif(position % 2, :odd, :even)
    FROM agentmem_sessions CROSS JOIN positions WHERE session_key > :after ORDER BY session_key, position
"""
_POSTGRES_SESSIONS = """
    INSERT INTO {0}.agentmem_sessions (session_id, length)
    SELECT 'other-' || lpad(number::text, 7, '0'), $3 FROM generate_series($1::int, $2::int) AS number
"""
_POSTGRES_ITEMS = """
    INSERT INTO {0}.agentmem_items (session_id, position, item)
    SELECT 'other-' || lpad(number::text, 7, '0'), position, CASE position % 2 WHEN 0 THEN $4::text ELSE $5::text END
    FROM generate_series($1::int, $2::int) AS number, generate_series(0, $3::bigint - 1) AS position
"""


@contextlib.contextmanager
def place(url: str) -> Iterator[Place]:
    """The database at a URL, or an SQLite file at a path; what is stored in it is removed afterwards.

    Raises:
        ValueError: an SQLite file that exists: somebody's conversations may be in it.
        NoServer: none answers.
    """
    if url.startswith(("postgresql://", "postgres://")):
        with _on_server(url) as found:
            yield found
    else:
        with _in_file(Path(url.removeprefix("sqlite:///"))) as found:
            yield found


@contextlib.contextmanager
def _in_file(path: Path) -> Iterator[Place]:
    bare = path.with_name(f"{path.name}-bare")  # its tables are others
    files = [Path(f"{name}{end}") for name in (path, bare) for end in ("", "-wal", "-shm")]
    for file in files:
        if file.exists():
            raise ValueError(f"{file} exists; name a file that does not, because it is deleted afterwards")

    async def prepare() -> None:
        async with Store(str(path)):
            pass  # has the tables made

    def fill(numbers: range) -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = OFF")
            db.execute("BEGIN IMMEDIATE")
            db.execute(_SQLITE_SESSIONS, {"first": numbers[0], "count": len(numbers), "length": ITEMS})
            (first,) = db.execute("SELECT max(session_key) - ? FROM agentmem_sessions", (len(numbers),)).fetchone()
            even, odd = json.dumps(item(0)), json.dumps(item(1))
            db.execute(_SQLITE_ITEMS, {"after": first, "length": ITEMS, "even": even, "odd": odd})
            db.execute("COMMIT")

    def settle() -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with path.open("r+b") as file:
            os.fsync(file.fileno())  # else the first checkpoint waits for gigabytes

    try:
        asyncio.run(prepare())
        yield Place(
            about=f"SQLite, in {path}",
            make=partial(Store, str(path)),
            bare=lambda connections: BareSQLite(str(bare)),
            fill=fill,
            settle=settle,
            size_bytes=lambda: sum(file.stat().st_size for file in files[:3] if file.exists()),
        )
    finally:
        for file in files:
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _on_server(url: str) -> Iterator[Place]:
    os.environ[URL_VARIABLE] = url  # for the processes that make the load, too
    with tempfile.TemporaryDirectory(prefix="agentmem-scaling-") as folder:
        path, bare = (os.path.join(folder, name) for name in ("agentmem", "bare"))
        schema = schema_of(path)

        def bare_system(connections: int) -> System:
            system = BareAsyncpg(bare)
            system.connections = connections
            return system

        async def prepare() -> str:
            await make_schema(path)
            async with Store(url, schema=schema):
                pass  # has the tables made
            async with connected() as db:
                names = ("server_version", "shared_buffers", "fsync", "synchronous_commit", "max_connections")
                return ", ".join([f"{name} {await db.fetchval(f'SHOW {name}')}" for name in names])

        async def fill(numbers: range) -> None:
            first, last = numbers[0], numbers[-1]
            async with connected() as db:
                await db.execute("SET synchronous_commit = off")
                await db.execute(_POSTGRES_SESSIONS.format(schema), first, last, ITEMS)
                await db.execute(
                    _POSTGRES_ITEMS.format(schema), first, last, ITEMS, json.dumps(item(0)), json.dumps(item(1))
                )

        async def settle() -> None:
            await vacuum(schema)
            async with connected() as db:
                with contextlib.suppress(Exception):  # not every role may
                    await db.execute("CHECKPOINT")

        async def size_bytes() -> int:
            async with connected() as db:
                sizes = [
                    await db.fetchval("SELECT pg_total_relation_size($1::text::regclass)", table)
                    for table in await tables(db, schema)
                ]
            return sum(sizes)

        try:
            yield Place(
                about=f"PostgreSQL: {asyncio.run(prepare())}",
                make=partial(Store, url, schema=schema),
                bare=bare_system,
                fill=lambda numbers: asyncio.run(fill(numbers)),
                settle=lambda: asyncio.run(settle()),
                size_bytes=lambda: asyncio.run(size_bytes()),
            )
        finally:
            asyncio.run(drop_schemas(Path(folder)))
