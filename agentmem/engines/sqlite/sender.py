"""Sends batches to one connection at a time, in the order of their numbers, whatever happens to connections meanwhile.

The rule that keeps the order: a batch is sent when each one before it is done, or was sent before on the same
connection. A connection that was closed gives back what it did not run. Then nothing is sent until it has given back
everything; only then is it replaced, and what came back is sent first.

Whoever waits for a connection does so until its own deadline: an attempt to open one lasts until the latest deadline of
those for whom it began, and the batchers let each of them fail at its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum, auto
from heapq import heappop, heappush
from typing import Any, Generic, TypeVar

from ...cancellation import UncancellableTask
from ...errors import SessionClosedError
from ..batching import Batch, Batcher, Queue
from .connection import Connection, ConnectionLost, Origin, Outcome
from .errors import is_lock

W = TypeVar("W")

MAX_OPENINGS = 1_000_000
"""The largest number of calls for which one connection is opened: as many as there may be."""


class Step(Enum):
    """What a sender does next."""

    SEND = auto()
    CONNECT = auto()
    WAIT = auto()


def next_step(*, has_unsent: bool, has_sent: bool, is_connected: bool, is_connecting: bool) -> Step:
    """What a sender does next.

    Args:
        has_unsent: whether a batch is to be sent.
        has_sent: whether batches were sent whose outcome is not known.
        is_connected: whether there is a connection that runs what is sent.
        is_connecting: whether the connection is being replaced.
    """
    if not has_unsent or is_connecting:
        return Step.WAIT
    if is_connected:
        return Step.SEND
    return Step.WAIT if has_sent else Step.CONNECT


class Sender(Generic[W]):
    """Has the batches of one event loop carried out by one connection after the other.

    Args:
        batcher: where the batches come from; it is told of their outcomes.
        run: carries out a batch, in the connection's thread; see :class:`~.connection.Origin`.
        connect: opens a connection; waits for locks until the given deadline.
        loop: the event loop.

    Attributes:
        openings: the calls that wait for a connection and for no more.
    """

    def __init__(
        self,
        batcher: Batcher[W],
        run: Callable[[Connection, Origin, Batch[W]], None],
        connect: Callable[[float], Awaitable[Connection]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.loop = loop
        self.connection: Connection | None = None
        self._batcher = batcher
        self._run = run
        self._connect = connect
        self._unsent: list[tuple[int, Batch[W]]] = []  # a heap, by number
        self._sent: set[int] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[None] | None = None  # kept: a loop does not keep its tasks
        self.openings: Batcher[None] = Batcher(self._send_opening, Queue(slots=1, max_batch_size=MAX_OPENINGS))
        self._replacing = asyncio.Lock()
        self._is_closed = False

    def __repr__(self) -> str:
        state = "connected" if self.is_connected() else "connecting" if self._connecting else "not connected"
        return f"<Sender {state}, {len(self._unsent)} batches to send, {len(self._sent)} sent>"

    def is_connected(self) -> bool:
        """Whether there is a connection that runs what is sent."""
        return self.connection is not None and not self.connection.is_lost()

    def send(self, batch: Batch[W]) -> None:
        """Have a batch carried out after those with lower numbers."""
        heappush(self._unsent, (batch.number, batch))
        self._go_on()

    async def connected(self, deadline: float) -> Connection:
        """The connection; opened, if there is none that runs what is sent.

        Raises:
            SessionClosedError: the sender was closed meanwhile.
            Exception: what `connect` raises.
        """
        while self.connection is None or self.connection.is_lost():
            if self._is_closed:  # also where it was closed between the opening and this caller's hearing of it
                raise SessionClosedError("it was closed while it was being opened; open a new one")
            job = await self.openings.submit(None, deadline)
            if job.error is not None:
                raise job.error
        return self.connection

    async def close(self) -> None:
        """Run what was sent, and close the connection; none is opened any more."""
        self._is_closed = True
        await self.openings.drain()
        async with self._replacing:  # it may just be opened
            connection, self.connection = self.connection, None
            if connection is not None:
                await connection.close()

    # What a connection asks of the origin of its batches

    def run(self, connection: Connection, batch: Batch[W]) -> None:
        """Carry out a batch, in the connection's thread."""
        self._batcher.claim(batch)
        self._run(connection, self, batch)

    def waits(self, met: Exception | None) -> None:
        """Have what waits behind a batch fail at its deadline, for as long as that waits for a lock."""
        if met is None:
            self._batcher.unblock(self)
        else:
            self._batcher.block(self, met)

    def take_in(self, outcome: Outcome) -> None:
        """Settle the jobs that have their outcome."""
        if outcome.jobs:
            self._batcher.settle(outcome.jobs)
        if outcome.is_last:
            self._sent.discard(outcome.batch.number)
            if outcome.error is None:
                self._batcher.finish(outcome.batch)
            else:
                self._batcher.fail(outcome.batch, outcome.error)
            self._go_on()

    def returned(self, batch: Batch[W]) -> None:
        """Take back a batch that was not run, to send it before all others that were not."""
        self._batcher.unclaim(batch)
        self._sent.discard(batch.number)
        self.send(batch)

    def _go_on(self) -> None:
        while True:
            step = next_step(
                has_unsent=bool(self._unsent),
                has_sent=bool(self._sent),
                is_connected=self.is_connected(),
                is_connecting=self._connecting is not None,
            )
            if step is Step.CONNECT:
                self._connecting = UncancellableTask(self._replace_connection(), loop=self.loop)
            elif step is Step.SEND:
                self._send_first()
                continue
            return

    def _send_first(self) -> None:
        assert self.connection is not None
        number, batch = heappop(self._unsent)
        self._sent.add(number)
        try:
            self.connection.send(self, batch)
        except ConnectionLost:  # since it was looked at: it is replaced next
            self._sent.discard(number)
            heappush(self._unsent, (number, batch))

    def _send_opening(self, batch: Batch[None]) -> None:
        self._opening = UncancellableTask(self._open_for(batch), loop=self.loop)

    async def _open_for(self, batch: Batch[None]) -> None:
        try:
            await self._connect_for([batch])
        except BaseException as error:
            if not self.loop.is_closed():  # else nobody waits
                self.openings.fail(batch, error)
            if not isinstance(error, Exception):
                raise
        else:
            self.openings.settle(batch.jobs)
            self.openings.finish(batch)

    async def _replace_connection(self) -> None:
        try:
            while self._unsent and not self.is_connected():
                try:
                    await self._connect_for(batch for _, batch in self._unsent)
                except Exception as error:
                    if not is_lock(error):
                        raise
                    self._batcher.block(self, error)  # others may have come meanwhile, and may wait longer
                    self._finish_empty()
        except BaseException as error:
            self._connecting = None
            if not self.loop.is_closed():  # else nobody waits
                self._fail_unsent(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._connecting = None
            self._go_on()
        finally:
            self._batcher.unblock(self)

    async def _connect_for(self, batches: Iterable[Batch[Any]]) -> None:
        """Open a connection, if there is none that runs what is sent, for batches that wait for it."""
        deadline = max((job.deadline for batch in batches for job in batch.jobs), default=0)
        async with self._replacing:
            if self.connection is None or self.connection.is_lost():
                if self.connection is not None:
                    await self.connection.close()  # when that returns, everything that it did not run has come back
                self.connection = await self._connect(deadline)

    def _finish_empty(self) -> None:
        """Finish the batches all of whose jobs have failed at their deadlines."""
        unsent, self._unsent = self._unsent, []
        for number, batch in unsent:
            if batch.jobs:
                heappush(self._unsent, (number, batch))
            else:
                self._batcher.finish(batch)

    def _fail_unsent(self, error: BaseException) -> None:
        """Each batch would wait for the same, one after the other."""
        unsent, self._unsent = sorted(self._unsent), []
        for _, batch in unsent:
            self._batcher.fail(batch, error)
