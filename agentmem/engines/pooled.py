"""What every engine does alike that shares a pool of connections: leasing, opening, closing, and mapping of errors.

Rules kept here:

- Making an engine opens nothing. The first call on each event loop leases that loop's pool.
- An engine that could not be opened leaves nothing open, and its next call tries again.
- A driver's exception never comes out: each engine's :meth:`PooledEngine.map_error` names agentmem's error for it.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, Generic, NoReturn, TypeVar

from ..cancellation import despite_cancellation
from ..errors import AgentMemError, SessionClosedError
from .base import Engine
from .batching import Batcher
from .callbacks import CallbackFailed
from .pools import Leases, LoopPool, close_unused

P = TypeVar("P", bound=LoopPool)
W = TypeVar("W")


class PooledEngine(Engine, Generic[P]):
    """An engine whose calls go through a pool that it leases for each event loop.

    Args:
        name: the database as messages name it.
        key: equal for two engines on the same database, in this process.
        leases: leases the pools.
    """

    def __init__(self, name: str, key: Hashable, leases: Leases[P]) -> None:
        self.name = name
        self.key = key
        self._leases = leases
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.name}{', closed' if self._is_closed else ''}>"

    @abstractmethod
    def map_error(self, error: BaseException, session_id: str | None = None) -> BaseException:
        """agentmem's error for a driver's; any other is returned as it is."""

    @abstractmethod
    async def open_pool(self, pool: P) -> None:
        """Connect a pool that was just leased."""

    def refuse_other_process(self) -> None:
        """Raise StorageError where what this engine works on stayed in the process that it was forked from."""

    def pool(self) -> P:
        """This engine's pool on the running event loop; leased, if need be.

        Raises:
            SessionClosedError: the engine was closed.
            StorageError: see :meth:`refuse_other_process`.
        """
        self.refuse_closed()
        self.refuse_other_process()
        return self._leases.take()

    def refuse_closed(self) -> None:
        """Raise SessionClosedError where the engine was closed."""
        if self._is_closed:
            raise SessionClosedError(f"the store on {self.name} is closed; open a new one")

    async def open(self) -> None:
        pool = self.pool()
        try:
            await self.open_pool(pool)
        except BaseException as error:
            await self._leases.release(pool)  # a later call leases again
            self.raise_mapped(error)

    async def submit(self, batcher: Batcher[W], work: W, session_id: str | None = None) -> Any:
        """Have `work` carried out; returns its result, or raises its error, mapped.

        Raises:
            asyncio.CancelledError: the caller was cancelled. Where `work` had begun and failed, its error, mapped, is
                the ``__cause__``.
        """
        try:
            job = await batcher.submit(work)
        except asyncio.CancelledError as cancelled:
            if cancelled.__cause__ is not None:
                cancelled.__cause__ = self._mapped(cancelled.__cause__, session_id)
            raise
        if job.error is not None:
            self.raise_mapped(job.error, session_id)
        return job.result

    def raise_mapped(self, error: BaseException, session_id: str | None = None) -> NoReturn:
        """Raise agentmem's error for `error`; what the caller's own code raised, as it is.

        Call it outside of ``except``: else an error of the caller's would show the one that wrapped it as its context.
        """
        raise self._mapped(error, session_id)

    def _mapped(self, error: BaseException, session_id: str | None) -> BaseException:
        if isinstance(error, CallbackFailed):
            return error.error
        mapped = self.map_error(error, session_id)
        if mapped is not error:
            mapped.__cause__ = error.__cause__ if isinstance(error, AgentMemError) else error
        return mapped

    async def close(self) -> None:
        self._is_closed = True
        unused = self._leases.release_all()
        if unused or self.has_more_to_close():
            await despite_cancellation(self.close_pools(unused))

    def has_more_to_close(self) -> bool:
        """Whether closing has something to wait for beside pools."""
        return False

    async def close_pools(self, pools: Sequence[P]) -> None:
        """Close pools that nobody uses any more."""
        for pool in pools:
            await close_unused(pool)
