"""Calls that wait are served together: group commit for writes, many reads to a thread hop.

A :class:`Batcher` queues calls and hands all that wait to ``serve`` at once, on as many lanes at a time as
it has. Under load the batches grow by themselves, so there is nothing to tune.

Cancellation: a call that is still queued leaves the queue; one that was handed over has begun: it waits for its outcome
and raises the cancellation then. The lanes themselves cannot be cancelled, because they are callbacks and no tasks;
nor can what runs in :func:`despite_cancellation`.

One Batcher belongs to one event loop; it has no locks because everything here runs on that loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

from anyio import CancelScope

T = TypeVar("T")
W = TypeVar("W")


class UncancellableTask(asyncio.Task[T]):
    """A task that runs to its end, also where every task of the loop is cancelled, as ``asyncio.run`` does last.

    ``asyncio.run`` waits for it then, so it must end by itself. No ``await`` inside it is ever cancelled.
    """

    def cancel(self, msg: Any = None) -> bool:
        """Do nothing: False, as for a task that is done."""
        return False


async def despite_cancellation(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end whatever is cancelled meanwhile; then raise the cancellation, if there was one."""
    task = UncancellableTask(work, loop=asyncio.get_running_loop())
    cancelled: asyncio.CancelledError | None = None
    with CancelScope(shield=True):  # else a cancelled anyio scope would cancel the wait on every loop cycle
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled from task.exception()
    return task.result()


class Job(Generic[W]):
    """One queued call. Whoever serves it sets `result` or `error`, from any thread."""

    __slots__ = ("begun", "error", "finished", "result", "wake", "withdrawn", "work")

    def __init__(self, work: W, wake: asyncio.Future[None]) -> None:
        self.work = work
        self.wake = wake
        self.result: object = None
        self.error: BaseException | None = None
        self.begun = self.finished = self.withdrawn = False

    def finish(self) -> None:
        self.finished = True
        if not self.wake.done():  # a cancelled caller's future is
            self.wake.set_result(None)


Done = Callable[[BaseException | None], None]
"""Called on the event loop when a batch was served, with what failed all of it."""


class Batcher(Generic[W]):
    """A queue of calls on one event loop.

    Args:
        serve: has each job of a batch given its result or error, and then calls ``done``, later, on the event loop.
            The first argument is the lane, from 0. What it raises fails the whole batch.
        lanes: how many batches are served at a time.
        most: the largest batch.
        crowd: how many calls must wait before another lane is used while one is busy. Where that is more than one,
            calls that find all lanes idle and are twice as many are served in two halves: in one batch they would
            come back together each time, and the event loop would have nothing to do while it is served.
    """

    def __init__(
        self, serve: Callable[[int, list[Job[W]], Done], None], *, lanes: int, most: int, crowd: int = 1
    ) -> None:
        self._serve = serve
        self._most = most
        self._crowd = crowd
        self._waiting: deque[Job[W]] = deque()
        self._lanes = lanes
        self._idle = list(range(lanes))[::-1]
        self._is_planned = False
        self._drained: list[asyncio.Future[None]] = []

    async def submit(self, work: W) -> Job[W]:
        """Queue `work` and wait until it was served; the caller looks at the job's result or error."""
        loop = asyncio.get_running_loop()
        job = Job(work, loop.create_future())
        self._waiting.append(job)
        self._plan(loop)
        try:
            await job.wake
            return job
        except asyncio.CancelledError as error:
            if not job.begun:
                job.withdrawn = True
                raise
            cancelled = error
        # Shielded, because a cancelled anyio scope would otherwise cancel this wait on every loop cycle. So what is
        # caught below is a task.cancel(), and it is the one to raise: an anyio scope swallows its own cancellation.
        with CancelScope(shield=True):
            while not job.finished:
                job.wake = loop.create_future()
                try:
                    await job.wake
                except asyncio.CancelledError as error:
                    cancelled = error
        raise cancelled from job.error

    async def drain(self) -> None:
        """Wait until nothing is queued or being served."""
        while self._waiting or not self._is_idle():
            drained = asyncio.get_running_loop().create_future()
            self._drained.append(drained)
            await drained

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not at once: what is called in the same cycle of the event loop, or by the callers that were just answered,
        # joins the batch.
        if self._idle and not self._is_planned and len(self._waiting) >= (1 if self._is_idle() else self._crowd):
            self._is_planned = True
            loop.call_soon(self._start, loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_planned = False
        most, waiting = self._most, len(self._waiting)
        if self._is_idle() and waiting >= 2 * self._crowd > 2:
            most = min(most, (waiting + 1) // 2)
        if batch := self._take(most):
            lane = self._idle.pop()
            done = partial(self._finish, loop, lane, batch)
            try:
                self._serve(lane, batch, done)
            except BaseException as error:
                done(error)
                if not isinstance(error, Exception):
                    raise
        self._go_on(loop)  # with what is left

    def _take(self, most: int) -> list[Job[W]]:
        batch: list[Job[W]] = []
        while self._waiting and len(batch) < most:
            job = self._waiting.popleft()
            if not job.withdrawn:
                job.begun = True
                batch.append(job)
        return batch

    def _is_idle(self) -> bool:
        return len(self._idle) == self._lanes

    def _finish(
        self, loop: asyncio.AbstractEventLoop, lane: int, batch: list[Job[W]], error: BaseException | None
    ) -> None:
        self._idle.append(lane)
        for job in batch:
            job.error = job.error or error
            job.finish()
        self._go_on(loop)

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        self._plan(loop)
        if not self._waiting and self._is_idle():
            for drained in self._drained:
                if not drained.done():
                    drained.set_result(None)
            self._drained.clear()
