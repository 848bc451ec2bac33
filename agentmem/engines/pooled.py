"""What every engine does alike that shares a pool of connections: leasing, opening, closing, and mapping of errors.

Rules kept here:

- Making an engine opens nothing. The first call on each event loop leases that loop's pool.
- An engine that could not be opened leaves nothing open, and its next call tries again.
- A call has one deadline, from when it was made; see ``deadlines``.
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
from .deadlines import deadline_after
from .pools import Leases, LoopPool, NoMoreLeases, close_unused

P = TypeVar("P", bound=LoopPool)
W = TypeVar("W")


class PooledEngine(Engine, Generic[P]):
    """An engine whose calls go through a pool that it leases for each event loop.

    Args:
        name: the database as messages name it.
        key: equal for two engines on the same database, in this process.
        leases: leases the pools.
        busy_timeout_s: how long a call may wait for what others hold, in seconds.
    """

    def __init__(self, name: str, key: Hashable, leases: Leases[P], busy_timeout_s: float) -> None:
        self.name = name
        self.key = key
        self._leases = leases
        self._busy_timeout_s = busy_timeout_s
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.name}{', closed' if self._is_closed else ''}>"

    @abstractmethod
    def map_error(self, error: BaseException, session_id: str | None = None) -> BaseException:
        """agentmem's error for a driver's; any other is returned as it is."""

    @abstractmethod
    async def open_pool(self, pool: P, deadline: float) -> None:
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
        try:
            return self._leases.take()
        except NoMoreLeases:
            raise self._closed_error() from None

    def refuse_closed(self) -> None:
        """Raise SessionClosedError where the engine was closed."""
        if self._is_closed:
            raise self._closed_error()

    def _closed_error(self) -> SessionClosedError:
        return SessionClosedError(f"the store on {self.name} is closed; open a new one")

    def deadline(self) -> float:
        """The deadline of a call that is made now."""
        return deadline_after(self._busy_timeout_s)

    async def open(self) -> None:
        deadline = self.deadline()
        pool = self.pool()
        try:
            await self.open_pool(pool, deadline)
        except BaseException as error:
            await self._leases.release(pool)  # a later call leases again
            self.raise_mapped(error)

    async def submit(
        self, batcher: Batcher[W], work: W, session_id: str | None = None, *, deadline: float | None = None
    ) -> Any:
        """Have `work` carried out; returns its result, or raises its error, mapped.

        Args:
            deadline: of the call that this is a part of; None where it is all that the call does.

        Raises:
            asyncio.CancelledError: the caller was cancelled. Where `work` had begun and failed, its error, mapped, is
                the ``__cause__``.
        """
        try:
            job = await batcher.submit(work, self.deadline() if deadline is None else deadline)
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
