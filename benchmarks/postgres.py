"""The systems on PostgreSQL: agentmem, asyncpg alone, and the Agents SDK, each in schemas of its own on one server.

Drivers are imported when they are measured, by name, so that the suite runs without any of them.
"""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from .databases import POSTGRES
from .material import History, Item, turn
from .server import connected, drop_schemas, make_schema, schema_of, server_url, vacuum
from .systems import Handle, System, add_history, agentmem_version, nothing
from .timing import Tally


class PostgresSystem(System):
    """One way to store sessions in PostgreSQL.

    Attributes:
        schema: stands for the file at `path`.
    """

    database = POSTGRES
    servers: ClassVar[dict[str, str]] = {}

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.schema = schema_of(path)

    async def open(self) -> None:
        await make_schema(self.path)
        await self.connect()

    @abstractmethod
    async def connect(self) -> None:
        """Open what the system keeps open; the schema is there."""

    async def fill(self, history: History) -> None:
        async with self:
            handle = await self.session("first")
            await handle.add(turn(0))
            await handle.close()
            await self.copy(history)
        await vacuum(self.schema)

    @abstractmethod
    async def copy(self, history: History) -> None:
        """Put the history into the system's tables, which its own first call has made."""

    async def copy_rows(self, table: str, columns: Sequence[str], rows: Any) -> None:
        """Write these rows, fast."""
        async with connected() as db:
            await db.copy_records_to_table(table, schema_name=self.schema, columns=columns, records=rows)

    @classmethod
    def load(cls) -> None:
        super().load()

        async def version() -> str:
            async with connected() as db:
                return str(await db.fetchval("SHOW server_version"))

        PostgresSystem.servers["postgresql"] = asyncio.run(version()).split()[0]

    @classmethod
    def other_versions(cls) -> dict[str, str]:
        return dict(cls.servers)

    @classmethod
    def clean(cls, folder: Path) -> None:
        asyncio.run(drop_schemas(folder))


class AgentMemPostgres(PostgresSystem):
    title = "agentmem"
    modules = ("agentmem", "agentmem.store", "agentmem.engines.postgres.engine", "asyncpg")
    packages = ("asyncpg", "pydantic")

    async def connect(self) -> None:
        self._store = import_module("agentmem").AsyncSessionStore(server_url(), schema=self.schema)
        await self._store.open()

    async def close(self) -> None:
        await self._store.close()

    async def session(self, session_id: str) -> Handle:
        kind = import_module("agentmem").AsyncPostgresSession
        session = await kind(server_url(), session_id=session_id, schema=self.schema).__aenter__()
        return Handle(session.add_items, session.get_items, session.close)

    async def copy(self, history: History) -> None:
        await add_history(
            self._store, history.sessions(), tools=history.tools
        )  # by its own calls: they know what the tables look like today

    @classmethod
    def other_versions(cls) -> dict[str, str]:
        return {"agentmem": agentmem_version(), **super().other_versions()}


class BareAsyncpg(PostgresSystem):
    """What a program would do by hand: the same rows as agentmem's, JSON made and parsed, nothing else."""

    title = "asyncpg alone"
    modules = ("asyncpg", "json")
    packages = ("asyncpg",)
    note = (
        "a statement per call, on ten connections; where many sessions add at once, all rows go into one single "
        "transaction, a statement for a turn of each"
    )
    connections = 10

    _TABLES = """
        CREATE TABLE IF NOT EXISTS {0}.sessions (session_id text PRIMARY KEY, next bigint NOT NULL);
        CREATE TABLE IF NOT EXISTS {0}.items (
            session_id text NOT NULL, position bigint NOT NULL, item text NOT NULL, PRIMARY KEY (session_id, position)
        );
    """
    _ADD = """
        WITH added AS (
            SELECT session_id, item, count(*) OVER (PARTITION BY session_id) AS count,
                row_number() OVER (PARTITION BY session_id ORDER BY place) AS place
            FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS added (session_id, item, place)
        ), grown AS (
            INSERT INTO {0}.sessions AS old SELECT DISTINCT session_id, count FROM added
            ON CONFLICT (session_id) DO UPDATE SET next = old.next + excluded.next RETURNING session_id, next
        )
        INSERT INTO {0}.items SELECT session_id, next - count + place - 1, item FROM added JOIN grown USING (session_id)
    """
    _TAIL = "SELECT item FROM {0}.items WHERE session_id = $1 ORDER BY position DESC LIMIT $2"

    async def connect(self) -> None:
        asyncpg = import_module("asyncpg")
        self._ids: dict[Handle, str] = {}
        self._idle: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        self._all = [await asyncpg.connect(server_url()) for _ in range(self.connections)]
        self._add, self._tail = self._ADD.format(self.schema), self._TAIL.format(self.schema)
        await self._all[0].execute(self._TABLES.format(self.schema))
        for db in self._all:
            self._idle.put_nowait(db)

    async def close(self) -> None:
        for db in self._all:
            await db.close()

    async def session(self, session_id: str) -> Handle:
        async def add(items: list[Item]) -> None:
            texts = [json.dumps(item) for item in items]
            db = await self._idle.get()
            try:
                await db.fetch(self._add, [session_id] * len(texts), texts)
            finally:
                self._idle.put_nowait(db)

        async def tail(limit: int | None) -> list[Item]:
            db = await self._idle.get()
            try:
                rows = await db.fetch(self._tail, session_id, limit)
            finally:
                self._idle.put_nowait(db)
            return [json.loads(item) for (item,) in reversed(rows)]

        handle = Handle(add, tail, nothing)
        self._ids[handle] = session_id
        return handle

    async def add_at_once(self, handles: Sequence[Handle], turns: Sequence[list[Item]], budget_s: float) -> Tally:
        tally = Tally()
        db = await self._idle.get()
        begun = perf_counter()
        async with db.transaction():
            for added in turns:
                ids = [self._ids[handle] for handle in handles for _ in added]
                await db.fetch(self._add, ids, [json.dumps(item) for _ in handles for item in added])
        tally.seconds = perf_counter() - begun
        tally.done = len(handles) * len(turns)
        self._idle.put_nowait(db)
        return tally

    async def copy(self, history: History) -> None:
        await self.copy_rows("sessions", ("session_id", "next"), history.sessions())
        rows = ((session_id, position, json.dumps(item)) for session_id, position, item in history.rows())
        await self.copy_rows("items", ("session_id", "position", "item"), rows)


class AgentsPostgres(PostgresSystem):
    title = "Agents SDK SQLAlchemySession"
    modules = ("agents", "agents.extensions.memory.sqlalchemy_session", "sqlalchemy.ext.asyncio", "asyncpg")
    packages = ("openai-agents", "sqlalchemy", "asyncpg")
    note = (
        "on asyncpg; one engine for all sessions, its pool of 16 the fastest of those from 5 to 64 where 64 sessions "
        "call at once; tables made beforehand"
    )
    connections: ClassVar[int] = 16

    async def connect(self) -> None:
        self._engine = import_module("sqlalchemy.ext.asyncio").create_async_engine(
            server_url().replace("postgresql://", "postgresql+asyncpg://", 1),
            pool_size=self.connections,
            max_overflow=0,
            pool_use_lifo=True,  # calls one by one have one connection, which knows their statements
            connect_args={"server_settings": {"search_path": self.schema}},
        )
        await self._open("first", create_tables=True).get_items(1)
        async with AsyncExitStack() as stack:  # its pool would open each when it is first needed, and be timed with it
            for _ in range(self.connections):
                await stack.enter_async_context(self._engine.connect())

    async def close(self) -> None:
        await self._engine.dispose()

    async def session(self, session_id: str) -> Handle:
        session = self._open(session_id)
        return Handle(session.add_items, session.get_items, nothing)

    def _open(self, session_id: str, **options: Any) -> Any:
        return import_module(self.modules[1]).SQLAlchemySession(session_id, engine=self._engine, **options)

    async def copy(self, history: History) -> None:
        await self.copy_rows("agent_sessions", ("session_id",), ((name,) for name, _ in history.sessions()))
        # Turns a second apart: its index goes by session and time, and would have to sort what is of one instant.
        begun = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)  # its columns have no time zone
        rows = (
            (session_id, json.dumps(item), begun + timedelta(seconds=position // 2))
            for session_id, position, item in history.rows()
        )
        await self.copy_rows("agent_messages", ("session_id", "message_data", "created_at"), rows)
