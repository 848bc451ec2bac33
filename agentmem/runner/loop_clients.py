"""Clients with connections, one for each event loop, because asyncio's transports work on no other."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from ..event_loop import running_loop
from ..threads import call_in_thread

C = TypeVar("C")


class LoopClients(Generic[C]):
    """The clients of each event loop, by a key. They are kept between runs, and closed when their loop shuts down.

    Args:
        close: closes a client.
    """

    def __init__(self, close: Callable[[C], Awaitable[object]]) -> None:
        self._close = close
        # Each client has the generator that closes it.
        self._by_loop: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[Hashable, tuple[C, AsyncGenerator[None, None]]]
        ] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()  # loops in several threads ask at the same time

    def open(self) -> dict[asyncio.AbstractEventLoop, list[C]]:
        """Return the clients that are open, by their event loop."""
        with self._lock:
            return {loop: [client for client, _ in clients.values()] for loop, clients in self._by_loop.items()}

    async def get(self, key: Hashable, create: Callable[[], C]) -> C:
        """Return the running loop's client for a key; made by the first call, in a thread.

        Raises:
            Exception: what `create` raises.
        """
        loop = running_loop()
        with self._lock:
            for closed_loop in [other for other in self._by_loop if other.is_closed()]:
                # The client's connections refer to the loop, so the weak dictionary would never drop it.
                del self._by_loop[closed_loop]
            clients = self._by_loop.setdefault(loop, {})
        if key not in clients:
            client = await call_in_thread(create)
            if key in clients:
                await self._close(client)  # another task of this loop was faster
            else:
                closer = self._close_with_loop(client)
                clients[key] = (client, closer)
                await closer.__anext__()
        return clients[key][0]

    async def _close_with_loop(self, client: C) -> AsyncGenerator[None, None]:
        """Wait until the event loop shuts down, then close the client.

        asyncio has one hook for a loop that is about to close: ``loop.shutdown_asyncgens()``, which asyncio.run(),
        anyio and uvicorn call. It finishes every async generator that was started on the loop.
        """
        try:
            yield
        finally:
            with self._lock:
                self._by_loop.pop(asyncio.get_running_loop(), None)
            await self._close(client)
