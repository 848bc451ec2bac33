"""The run queue: in one process, one run at a time on each session, in the order of their calls.

Rules:

- The order holds across event loops and threads. (A run of the sync wrappers is on agentmem's background loop, while
  the caller's own loop may use the same session.)
- A waiter that is cancelled leaves the queue. If the session has just been handed to it, it is handed to the next one.
- A tool of a run that starts another run on the same session would wait forever. That is an error.
- A key is kept only while it is held. After a fork, the child has none.
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
from ..event_loop import running_loop


@dataclass(eq=False)
class _Waiter:
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]

    def wake(self) -> None:
        if not self.future.done():  # done if it was cancelled; then it hands the key on
            self.future.set_result(None)


@dataclass(eq=False)
class _Hold:
    """A key that is held by a run. Tasks that a tool left behind keep it in their contexts after the run."""

    key: Hashable
    ended: bool = field(default=False)


class RunQueue:
    """Keys, each held by one run at a time. Every method can be called in any thread."""

    def __init__(self) -> None:
        # Reentrant, because the end of a collected coroutine releases its key wherever the garbage collector runs, and
        # that may be in a thread that holds this lock.
        self._lock = threading.RLock()
        self._waiters: dict[Hashable, deque[_Waiter]] = {}  # has exactly the keys that are held
        self._held_here: ContextVar[tuple[_Hold, ...]] = ContextVar("agentmem_runs_held", default=())
        if hasattr(os, "register_at_fork"):
            # The runs that held keys or waited are not in the child; nor is a thread that may have held the lock.
            os.register_at_fork(after_in_child=self._reset)

    def __repr__(self) -> str:
        with self._lock:
            return f"<RunQueue: {len(self._waiters)} held, {sum(map(len, self._waiters.values()))} waiting>"

    def is_held(self, key: Hashable) -> bool:
        """Whether a run holds the key."""
        with self._lock:
            return key in self._waiters

    def waiting_count(self, key: Hashable) -> int:
        """How many runs wait for the key."""
        with self._lock:
            return len(self._waiters.get(key, ()))

    @asynccontextmanager
    async def hold(self, key: Hashable, session_id: str) -> AsyncIterator[None]:
        """Wait for the key, and hold it during the ``async with`` block.

        Args:
            key: what one run at a time may hold.
            session_id: the session, for the error's message.

        Cancellation: a waiter leaves the queue.

        Raises:
            RunError: the caller is inside a run that holds the key.
        """
        held_here = self._held_here.get()
        if any(hold.key == key and not hold.ended for hold in held_here):
            raise RunError(
                f"a tool of a run on the session {session_id!r} started another run on it, and each would wait for the "
                "other; use another session in the tool, or none, or start the run when this one is over"
            )
        await self.acquire(key)
        hold = _Hold(key)
        self._held_here.set((*held_here, hold))
        try:
            yield
        finally:
            hold.ended = True
            self._held_here.set(held_here)
            self.release(key)

    async def acquire(self, key: Hashable) -> None:
        """Wait for the key and take it; the caller must release it."""
        loop = running_loop()
        waiter = _Waiter(loop, loop.create_future())
        with self._lock:
            if key not in self._waiters:
                self._waiters[key] = deque()
                return
            queue = self._waiters[key]
            queue.append(waiter)
        try:
            await waiter.future
        except BaseException:  # also GeneratorExit: the loop is gone and the waiting task was collected
            with self._lock:
                was_handed_key = waiter not in queue
                if not was_handed_key:
                    queue.remove(waiter)
            if was_handed_key:
                self.release(key)
            raise

    def release(self, key: Hashable) -> None:
        """Hand the key to the next waiter; without one, nobody holds it any more."""
        with self._lock:
            queue = self._waiters.get(key)
            while queue:
                waiter = queue.popleft()
                try:
                    waiter.loop.call_soon_threadsafe(waiter.wake)
                    return
                except RuntimeError:
                    continue  # the waiter's loop is closed
            self._waiters.pop(key, None)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._waiters = {}


run_queue = RunQueue()
"""The queue of this process."""
