"""The turnstile: runs on one session in one process take turns.

Rules kept here:

- First come, first served, also among event loops and threads (a run of the sync wrappers is on agentmem's
  background loop while the caller's own loop may use the same session).
- A waiter that is cancelled leaves; if the turn had just come to it, the turn goes on to the next.
- A run that waits for its own session, from a tool of the run that holds it, would wait for ever: an error.
- An entry exists only while somebody holds or waits for it. After a fork the child starts with none.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from ..errors import RunError


@dataclass(eq=False)
class _Waiter:
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]

    def wake(self) -> None:
        if not self.future.done():  # done: cancelled, and on its way to pass the turn on
            self.future.set_result(None)


@dataclass(eq=False)
class _Hold:
    """A turn that was taken. It outlives its end in the contexts of tasks that a tool left behind."""

    key: Hashable
    ended: bool = field(default=False)


class Turnstile:
    """Turns by key. Every method may be called from any thread."""

    def __init__(self) -> None:
        # Reentrant, because a collected coroutine ends its turn wherever the collector happens to run,
        # which may be in a thread that is inside this lock.
        self._lock = threading.RLock()
        self._waiting: dict[Hashable, deque[_Waiter]] = {}  # a key is here while its turn is taken
        self._held: ContextVar[tuple[_Hold, ...]] = ContextVar("agentmem_turns_held", default=())
        if hasattr(os, "register_at_fork"):
            # Who held or waited is not in the child; nor is the thread that may have held the lock.
            os.register_at_fork(after_in_child=self._reset)

    @asynccontextmanager
    async def turn(self, key: Hashable, name: str) -> AsyncIterator[None]:
        """Waits for the turn and holds it for the length of the block.

        Args:
            key: what may be held by one at a time.
            name: the session, for the error's message.

        Cancellation: while waiting, gives up the place in the queue.

        Raises:
            RunError: the caller is inside a run that holds this turn.
        """
        held = self._held.get()
        if any(hold.key == key and not hold.ended for hold in held):
            raise RunError(
                f"a tool of a run on the session {name!r} started another run on it, and each would wait for the "
                "other; use another session in the tool, or none, or start the run when this one is over"
            )
        await self._take(key)
        hold = _Hold(key)
        self._held.set((*held, hold))
        try:
            yield
        finally:
            hold.ended = True
            self._held.set(held)
            self._pass_on(key)

    async def _take(self, key: Hashable) -> None:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop, loop.create_future())
        with self._lock:
            if key not in self._waiting:
                self._waiting[key] = deque()
                return
            queue = self._waiting[key]
            queue.append(waiter)
        try:
            await waiter.future
        except BaseException:  # GeneratorExit too: the loop went away and the waiting task was collected
            with self._lock:
                came_too_late = waiter not in queue
                if not came_too_late:
                    queue.remove(waiter)
            if came_too_late:
                self._pass_on(key)
            raise

    def _pass_on(self, key: Hashable) -> None:
        with self._lock:
            queue = self._waiting.get(key)
            while queue:
                waiter = queue.popleft()
                try:
                    waiter.loop.call_soon_threadsafe(waiter.wake)
                    return
                except RuntimeError:
                    continue  # its loop is closed
            self._waiting.pop(key, None)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._waiting = {}


turnstile = Turnstile()
"""The one of this process."""
