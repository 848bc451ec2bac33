"""The rivals, each used as its documentation shows, with nothing tuned but the durability that all share.

Their modules are imported when they are measured, by name, so that the suite runs without any of them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar

from .material import History, Item
from .postgres import AgentMemPostgres, AgentsPostgres, BareAsyncpg
from .systems import AgentMem, BareSQLite, Handle, System, nothing


class _AgentsSDK(System):
    """What the SDK's three SQL sessions have in common: the tables."""

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def insert(self, db: sqlite3.Connection, history: History) -> None:
        db.executemany(
            "INSERT INTO agent_sessions (session_id) VALUES (?)", ((name,) for name, _ in history.sessions())
        )
        db.executemany(
            "INSERT INTO agent_messages (session_id, message_data) VALUES (?, ?)",
            ((session_id, json.dumps(item)) for session_id, _, item in history.rows()),
        )


class AgentsSQLite(_AgentsSDK):
    title = "Agents SDK SQLiteSession"
    modules = ("agents",)
    packages = ("openai-agents",)

    async def session(self, session_id: str) -> Handle:
        session = import_module("agents").SQLiteSession(session_id, self.path)

        async def close() -> None:
            session.close()

        return Handle(session.add_items, session.get_items, close)


class AgentsAsync(_AgentsSDK):
    title = "Agents SDK AsyncSQLiteSession"
    modules = ("agents", "agents.extensions.memory.async_sqlite_session")
    packages = ("openai-agents", "aiosqlite")

    async def session(self, session_id: str) -> Handle:
        session = import_module(self.modules[1]).AsyncSQLiteSession(session_id, self.path)
        return Handle(session.add_items, session.get_items, session.close)


class AgentsSQLAlchemy(_AgentsSDK):
    title = "Agents SDK SQLAlchemySession"
    modules = ("agents", "agents.extensions.memory.sqlalchemy_session", "sqlalchemy.ext.asyncio", "aiosqlite")
    packages = ("openai-agents", "sqlalchemy", "aiosqlite")
    note = "on aiosqlite; one engine for all sessions, tables made beforehand"

    async def open(self) -> None:
        self._engine = import_module("sqlalchemy.ext.asyncio").create_async_engine(f"sqlite+aiosqlite:///{self.path}")
        await self._open("first", create_tables=True).get_items(1)

    async def close(self) -> None:
        await self._engine.dispose()

    async def session(self, session_id: str) -> Handle:
        session = self._open(session_id)
        return Handle(session.add_items, session.get_items, nothing)

    def _open(self, session_id: str, **options: Any) -> Any:
        return import_module(self.modules[1]).SQLAlchemySession(session_id, engine=self._engine, **options)


class LangGraph(System):
    title = "LangGraph AsyncSqliteSaver"
    modules = ("langgraph.checkpoint.sqlite.aio", "langgraph.checkpoint.base")
    packages = ("langgraph-checkpoint-sqlite", "langgraph-checkpoint", "aiosqlite")
    note = "a checkpoint per turn, which holds the whole history; a graph's own work and pending writes are left out"
    most_items: ClassVar[int | None] = 20_000

    async def open(self) -> None:
        self._context = import_module(self.modules[0]).AsyncSqliteSaver.from_conn_string(self.path)
        self._saver = await self._context.__aenter__()
        await self._saver.setup()

    async def close(self) -> None:
        await self._context.__aexit__(None, None, None)

    async def session(self, session_id: str) -> Handle:
        thread = _Thread(self._saver, session_id)
        return Handle(thread.add, thread.tail, nothing)

    async def fill(self, history: History) -> None:
        # One checkpoint holds a whole session, so the system's own call is fast enough.
        rows: dict[str, list[Item]] = {}
        for session_id, _, item in history.rows():
            rows.setdefault(session_id, []).append(item)
        async with self:
            for session_id, items in rows.items():
                await _Thread(self._saver, session_id).add(items)


class _Thread:
    """A LangGraph thread as a graph with a list of messages uses it: loads the newest checkpoint, puts the next."""

    def __init__(self, saver: Any, thread_id: str) -> None:
        self._saver = saver
        self._thread = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        self._config: dict[str, Any] = self._thread
        self._messages: list[Item] | None = None
        self._version: Any = None

    async def tail(self, limit: int | None) -> Sequence[object]:
        found = await self._saver.aget_tuple(self._thread)
        self._messages = []
        if found is not None:
            self._config = found.config
            self._messages = found.checkpoint["channel_values"]["messages"]
            self._version = found.checkpoint["channel_versions"]["messages"]
        return self._messages if limit is None else self._messages[max(0, len(self._messages) - limit) :]

    async def add(self, items: list[Item]) -> None:
        if self._messages is None:
            await self.tail(None)
        self._messages = [*(self._messages or ()), *items]
        self._version = self._saver.get_next_version(self._version, None)
        checkpoint = import_module("langgraph.checkpoint.base").empty_checkpoint()
        checkpoint["channel_values"] = {"messages": self._messages}
        checkpoint["channel_versions"] = versions = {"messages": self._version}
        metadata = {"source": "loop", "step": len(self._messages), "parents": {}}
        self._config = await self._saver.aput(self._config, checkpoint, metadata, versions)


class ADK(System):
    title = "Google ADK SqliteSessionService"
    modules = ("google.adk.sessions.sqlite_session_service", "google.adk.events", "google.genai.types")
    packages = ("google-adk", "aiosqlite")
    note = (
        "an event and a commit per item, a connection per call; it never asks for WAL, so the file is put into it first"
    )

    async def open(self) -> None:
        db = sqlite3.connect(self.path)
        db.execute("PRAGMA journal_mode = WAL")  # stays in the file
        db.close()
        self._service = import_module(self.modules[0]).SqliteSessionService(self.path)

    async def close(self) -> None:
        await self._service.close()

    async def session(self, session_id: str) -> Handle:
        conversation = _Conversation(self._service, session_id)
        return Handle(conversation.add, conversation.tail, nothing)

    def insert(self, db: sqlite3.Connection, history: History) -> None:
        db.executemany(
            "INSERT INTO sessions VALUES ('app', 'user', ?, '{}', 1, 1)", ((name,) for name, _ in history.sessions())
        )
        form = json.loads(_event({"role": "user", "content": ""}).model_dump_json(exclude_none=True))

        def data(position: int, item: Item) -> str:
            role, text = _said(item)
            content = {"role": role, "parts": [{"text": text}]}
            event = {**form, "id": f"event-{position}", "timestamp": 1 + position / 1e6, "author": role}
            return json.dumps({**event, "content": content})

        db.executemany(
            "INSERT INTO events VALUES (?, 'app', 'user', ?, 'run', ?, ?)",
            (
                (f"event-{position}", session_id, 1 + position / 1e6, data(position, item))
                for session_id, position, item in history.rows()
            ),
        )


class _Conversation:
    """An ADK session as a runner uses it: gets or creates it, then appends events to it."""

    def __init__(self, service: Any, session_id: str) -> None:
        self._service = service
        self._ids = {"app_name": "app", "user_id": "user", "session_id": session_id}
        self._session: Any = None

    async def tail(self, limit: int | None) -> Sequence[object]:
        config = import_module("google.adk.sessions.base_session_service").GetSessionConfig(num_recent_events=limit)
        session = await self._service.get_session(**self._ids, config=config)
        self._session = session or await self._service.create_session(**self._ids)
        events: list[object] = self._session.events
        return events

    async def add(self, items: list[Item]) -> None:
        if self._session is None:
            await self.tail(0)
        for item in items:
            await self._service.append_event(self._session, _event(item))


def _event(item: Item) -> Any:
    types = import_module("google.genai.types")
    role, text = _said(item)
    content = types.Content(role=role, parts=[types.Part(text=text)])
    return import_module("google.adk.events").Event(invocation_id="run", author=role, content=content)


def _said(item: Item) -> tuple[str, str]:
    content = item.get("content")
    if isinstance(content, str):
        return "user", content
    return "model", content[0]["text"] if content else json.dumps(item)


SYSTEMS: dict[str, type[System]] = {
    "agentmem": AgentMem,
    "sqlite3": BareSQLite,
    "agents-sqlite": AgentsSQLite,
    "agents-async": AgentsAsync,
    "agents-sqlalchemy": AgentsSQLAlchemy,
    "langgraph": LangGraph,
    "adk": ADK,
    "agentmem-postgres": AgentMemPostgres,
    "asyncpg": BareAsyncpg,
    "agents-postgres": AgentsPostgres,
}
"""What is measured, by the name that ``--system`` takes; a new rival is a class above and a row here."""
