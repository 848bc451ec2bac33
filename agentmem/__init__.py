"""Conversation memory for agents: sessions that are stored durably and replayed exactly.

The classes for async and for sync code::

    async       AsyncSQLiteSession, AsyncPostgresSession   AsyncSessionStore   Runner.run, Runner.run_streamed
    sync        SQLiteSession, PostgresSession             SessionStore        Runner.run_sync

``async_restore`` and ``restore`` put a backup in a database's place, ``async_upgrade`` and ``upgrade`` bring one of an
older version to this one; ``message_text`` gives the text of an item.

Their docstrings say what each does and raises; the README has the promises. ``agentmem.errors`` has every error, and
``agentmem.__version__`` the version.

Each name is loaded when it is first used. So a program that only stores sessions does not load the Runner.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import errors as errors
    from . import items as items
    from . import runner as runner
    from .errors import AgentMemError
    from .items import message_text
    from .replay import SessionSettings
    from .restoring import async_restore
    from .runner import Agent, RunConfig, RunContext, Runner, RunResult, RunStream, TextDelta, function_tool
    from .session import AsyncPostgresSession, AsyncSession, AsyncSQLiteSession
    from .store import AsyncSessionStore
    from .sync import PostgresSession, Session, SessionStore, SQLiteSession, restore, upgrade
    from .upgrading import async_upgrade
    from .version import __version__ as __version__

_NAMES_OF_MODULES = {
    "errors": ("AgentMemError",),
    "items": ("message_text",),
    "replay": ("SessionSettings",),
    "restoring": ("async_restore",),
    "runner": ("Agent", "RunConfig", "RunContext", "RunResult", "RunStream", "Runner", "TextDelta", "function_tool"),
    "session": ("AsyncPostgresSession", "AsyncSQLiteSession", "AsyncSession"),
    "store": ("AsyncSessionStore",),
    "sync": ("PostgresSession", "SQLiteSession", "Session", "SessionStore", "restore", "upgrade"),
    "upgrading": ("async_upgrade",),
    "version": ("__version__",),
}
_MODULES = {"errors", "items", "runner"}
_MODULE_OF_NAME = {name: module for module, names in _NAMES_OF_MODULES.items() for name in names}

__all__ = [
    "Agent",
    "AgentMemError",
    "AsyncPostgresSession",
    "AsyncSQLiteSession",
    "AsyncSession",
    "AsyncSessionStore",
    "PostgresSession",
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
    "async_restore",
    "async_upgrade",
    "function_tool",
    "message_text",
    "restore",
    "upgrade",
]


if not TYPE_CHECKING:  # with this function, a type checker would accept any name

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return import_module(f".{name}", __name__)
        if name not in _MODULE_OF_NAME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_MODULE_OF_NAME[name]}", __name__), name)
        globals()[name] = value  # found there from now on, without this function
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
