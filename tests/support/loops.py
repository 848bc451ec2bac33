"""Another event loop, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def loop_in_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in another thread until the end of the block."""

    async def main() -> None:
        ended = asyncio.Event()
        loops.put((asyncio.get_running_loop(), ended))
        await ended.wait()

    loops: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = queue.SimpleQueue()
    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    loop, ended = loops.get()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
