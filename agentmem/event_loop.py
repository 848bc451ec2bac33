"""The running event loop, which is asyncio's."""

from __future__ import annotations

import asyncio


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop of asyncio.

    Raises:
        RuntimeError: there is none: the caller runs under trio, or drives a coroutine without an event loop. aiosqlite
            and asyncpg know no other loop than asyncio's.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise RuntimeError(
            "agentmem's async classes need a running event loop of asyncio, and there is none here. Under trio, call "
            "the sync classes in a thread: await trio.to_thread.run_sync(session.get_items)"
        ) from error
