"""How a connection is opened: by aiosqlite, which then lets go of it.

Only aiosqlite's documented interface is used: ``connect()`` with arguments for ``sqlite3.connect()``, awaiting what it
returns, and ``close()``. So what a release does differently inside changes nothing here. A thread of agentmem's own
uses the connection afterwards (see ``connection``), because one message for each batch is all that it needs.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from typing import Any

import aiosqlite

from ...errors import StorageError
from .file import no_descriptors

OPEN_S = 30.0
"""How long aiosqlite may take to open a connection, in seconds. It waits for no lock."""

LET_GO_S = 5.0
"""How long aiosqlite and its thread are waited for when they let go of a connection, in seconds. What is left of them
then is a daemon that nobody needs."""


class OpenedByAiosqlite(sqlite3.Connection):
    """A connection that stays open when aiosqlite closes it, and closes by :meth:`disconnect`."""

    def close(self) -> None:
        """Do nothing; aiosqlite calls it when it lets go of the connection."""

    def disconnect(self) -> None:
        """Close the connection."""
        super().close()


def open_through_aiosqlite(path: str) -> OpenedByAiosqlite:
    """A connection that aiosqlite has opened and let go of, for the calling thread, which has no event loop.

    On an event loop of its own, so that nothing that happens to the caller's meanwhile leaves aiosqlite's thread
    waiting. That thread is a daemon where the calling one is, and has mostly ended when this returns.

    The connection never waits for a lock: what it meets is an error at once, and ``waiting`` waits instead of it.

    Raises:
        sqlite3.Error: SQLite cannot open it.
        StorageError: aiosqlite did not open it in time, or no descriptors are left.
    """
    opened: list[OpenedByAiosqlite] = []
    threads: list[threading.Thread] = []

    def make(*args: Any, **kwargs: Any) -> OpenedByAiosqlite:
        threads.append(threading.current_thread())
        opened.append(OpenedByAiosqlite(*args, **kwargs))
        return opened[-1]

    async def open_and_let_go() -> None:
        aio = aiosqlite.connect(
            path,
            timeout=0,
            isolation_level=None,
            factory=make,
            check_same_thread=False,  # used in another thread than aiosqlite's, and closed from any, under a lock
        )
        try:
            async with asyncio.timeout(OPEN_S):
                await aio
            async with asyncio.timeout(LET_GO_S):
                await aio.close()
        finally:
            # What it may still tell this event loop must find it open.
            for thread in threads:
                thread.join(LET_GO_S)

    try:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(open_and_let_go())
    except TimeoutError as error:
        if not opened:
            raise StorageError(f"aiosqlite did not open {path} in {OPEN_S:g} s; try again") from error
        # It is open, and of aiosqlite nothing more is needed.
    except OSError as error:  # the event loop's, which needs three descriptors
        for raw in opened:
            raw.disconnect()
        raise no_descriptors(path, error) from error
    except BaseException:
        for raw in opened:
            raw.disconnect()
        raise
    return opened[0]
