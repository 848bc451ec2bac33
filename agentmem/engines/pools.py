"""Which event loop and database share which pool of connections: one pool for each, shared by every handle on it.

Rules kept here:

- A pool is closed when its last user releases it. One whose event loop is closed is abandoned with the next lease.
- Connections are not carried across a fork: the child leases pools of its own, and leaves the parent's to the parent.
"""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from ..event_loop import running_loop
from ..lifecycle import around_fork


class LoopPool(ABC):
    """The connections of one event loop to one database.

    Args:
        key: equal for all who share the pool.
        loop: the event loop on which it is used.
    """

    def __init__(self, key: Hashable, loop: asyncio.AbstractEventLoop) -> None:
        self.key = key
        self.loop = loop
        self.users = 0
        self._process = os.getpid()

    def is_inherited(self) -> bool:
        """Whether this process got the pool by a fork, without the threads and the connections behind it."""
        return os.getpid() != self._process

    @abstractmethod
    async def close(self) -> None:
        """Finish what was asked for, then close every connection; on the pool's event loop."""

    @abstractmethod
    def abandon(self) -> None:
        """Have the connections closed without waiting for it, because the event loop is closed or stands still."""


P = TypeVar("P", bound=LoopPool)


class Pools(Generic[P]):
    """All pools of this process to databases of one kind.

    Attributes:
        lock: held while pools are leased and released; never for longer than a look at a file takes.
    """

    def __init__(self) -> None:
        self._pools: dict[tuple[Hashable, asyncio.AbstractEventLoop], P] = {}
        # Kept, because collecting a connection closes it, and removes it from the selector that the parent uses, too.
        self._inherited: list[P] = []
        self._dropped: deque[P] = deque()
        # Loops in several threads lease at the same time. Reentrant: Leases holds it around a lease.
        self.lock = threading.RLock()
        around_fork(before=self._lock_before_fork, in_parent=self._unlock_in_parent, in_child=self._forget_in_child)

    def lease(
        self,
        key: Hashable,
        make: Callable[[asyncio.AbstractEventLoop], P],
        is_stale: Callable[[P], bool] = lambda pool: False,
    ) -> P:
        """The running event loop's pool with this key, which has one user more then. No I/O but what `is_stale` does.

        Args:
            make: makes the pool, where there is none.
            is_stale: whether a pool, also of another key, must not be leased again.
        """
        loop = running_loop()
        with self.lock:
            while self._dropped:
                dropped = self._dropped.popleft()
                self._pools.pop((dropped.key, dropped.loop), None)
            for place, pool in list(self._pools.items()):
                must_go = is_stale(pool)
                if pool.loop.is_closed():
                    pool.abandon()
                if must_go or pool.loop.is_closed():
                    del self._pools[place]
            here = self._pools.get((key, loop))
            if here is None:
                here = self._pools[key, loop] = make(loop)
            here.users += 1
            return here

    def abandon_closed_loops(self) -> None:
        """Abandon the pools whose event loops are closed; nobody can use them any more."""
        with self.lock:
            for place, pool in list(self._pools.items()):
                if pool.loop.is_closed():
                    pool.abandon()
                    del self._pools[place]

    def release(self, pool: P) -> bool:
        """Give a leased pool back. True for its last user, who must call :func:`close_unused`."""
        with self.lock:
            pool.users -= 1
            if pool.users:
                return False
            if self._pools.get((pool.key, pool.loop)) is pool:
                del self._pools[pool.key, pool.loop]
            return True

    def drop(self, pool: P) -> None:
        """Give back a pool that nobody can use any more. Takes no lock, so a finalizer may call it, in any thread."""
        self._dropped.append(pool)  # the next lease looks

    def all(self) -> Sequence[P]:
        """The pools that are in use now."""
        with self.lock:
            return list(self._pools.values())

    def _lock_before_fork(self) -> None:
        self.lock.acquire()

    def _unlock_in_parent(self) -> None:
        self.lock.release()

    def _forget_in_child(self) -> None:
        self.lock = threading.RLock()
        self._inherited += self._pools.values()
        self._pools = {}


class NoMoreLeases(Exception):  # noqa: N818  the engine raises its own error
    """The engine was closed, in another thread, since the call looked."""


class Leases(Generic[P]):
    """The pools that one engine uses, one for each event loop.

    Args:
        pools: where they are leased.
        lease: leases the running event loop's pool.
    """

    def __init__(self, pools: Pools[P], lease: Callable[[], P]) -> None:
        self._pools = pools
        self._lease = lease
        self._by_loop: dict[asyncio.AbstractEventLoop, P] = {}
        self._is_closed = False

    def get(self) -> P | None:
        """The running event loop's pool; None where this process did not lease it yet."""
        pool = self._by_loop.get(running_loop())
        return None if pool is None or pool.is_inherited() else pool

    def take(self) -> P:
        """The running event loop's pool; leased by the first call.

        Raises:
            NoMoreLeases: after :meth:`release_all`.
        """
        return self.get() or self._take_new()

    def _take_new(self) -> P:
        with self._pools.lock:  # another thread may be closing the engine
            if self._is_closed:
                raise NoMoreLeases
            for loop, theirs in list(self._by_loop.items()):
                if theirs.is_inherited() or loop.is_closed():
                    self._by_loop.pop(loop, None)
            pool = self._by_loop[running_loop()] = self._lease()
            return pool

    def are_inherited(self) -> bool:
        """Whether this process got any of them by a fork."""
        return any(pool.is_inherited() for pool in list(self._by_loop.values()))

    async def release(self, pool: P) -> None:
        """Give back a pool that could not be opened: nobody closes what ``async with`` could not enter."""
        with self._pools.lock:
            is_unused = self._by_loop.get(pool.loop) is pool
            if is_unused:
                del self._by_loop[pool.loop]
                is_unused = self._pools.release(pool)
        if is_unused:
            await close_unused(pool)

    def release_all(self) -> list[P]:
        """Give back every pool, and lease none any more. Returns those that nobody uses, for :func:`close_unused`."""
        with self._pools.lock:
            self._is_closed = True
            pools = list(self._by_loop.values())
            self._by_loop.clear()
            return [pool for pool in pools if not pool.is_inherited() and self._pools.release(pool)]

    def drop_all(self) -> None:
        """Give back every pool, from a finalizer; nobody may share them. The caller closes their connections."""
        for pool in list(self._by_loop.values()):
            self._pools.drop(pool)


async def close_unused(pool: LoopPool) -> None:
    """Close a pool that nobody uses any more, on its own event loop."""
    if pool.loop is running_loop():
        await pool.close()
    elif not pool.loop.is_running():  # it may never run again
        pool.abandon()
    else:
        asyncio.run_coroutine_threadsafe(pool.close(), pool.loop)
