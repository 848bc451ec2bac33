"""Conversation memory for agents: sessions that are stored durably and replayed exactly.

The classes, by how you call them::

    await       AsyncSQLiteSession   AsyncSessionStore   Runner.run, Runner.run_streamed
    plain       SQLiteSession        SessionStore        Runner.run_sync

What each promises stands in its docstring, and all together in the README. Errors: ``agentmem.errors``.
"""

from .errors import AgentMemError
from .replay import SessionSettings
from .runner import Agent, RunConfig, RunContext, Runner, RunResult, RunStream, TextDelta, function_tool
from .session import AsyncSession, AsyncSQLiteSession
from .store import AsyncSessionStore
from .sync import Session, SessionStore, SQLiteSession

__all__ = [
    "Agent",
    "AgentMemError",
    "AsyncSQLiteSession",
    "AsyncSession",
    "AsyncSessionStore",
    "RunConfig",
    "RunContext",
    "RunResult",
    "RunStream",
    "Runner",
    "SQLiteSession",
    "Session",
    "SessionSettings",
    "SessionStore",
    "TextDelta",
    "function_tool",
]
