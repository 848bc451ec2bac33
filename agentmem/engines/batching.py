"""Calls that wait are served together: group commit for writes, many reads to a thread hop.

A :class:`Batcher` queues calls and hands all that wait to ``serve`` at once, on as many lanes at a time as
it has. Under load the batches grow by themselves, so there is nothing to tune.

Cancellation: a call that is still queued leaves the queue; one that is being served waits for its outcome
and raises the cancellation then. The lanes themselves cannot be cancelled, because they serve everybody; nor
can what runs in :func:`despite_cancellation`.

One Batcher belongs to one event loop; it has no locks because everything here runs on that loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
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


class Batcher(Generic[W]):
    """A queue of calls on one event loop.

    Args:
        serve: gives each job of a batch its result or error; what it raises fails the whole batch.
        lanes: how many batches are served at a time; the first argument of ``serve`` is the lane, from 0.
        most: the largest batch.
    """

    def __init__(self, serve: Callable[[int, list[Job[W]]], Awaitable[None]], *, lanes: int, most: int) -> None:
        self._serve = serve
        self._most = most
        self._waiting: deque[Job[W]] = deque()
        self._idle = list(range(lanes))[::-1]
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = False

    async def submit(self, work: W) -> Job[W]:
        """Queue `work` and wait until it was served; the caller looks at the job's result or error."""
        loop = asyncio.get_running_loop()
        job = Job(work, loop.create_future())
        self._waiting.append(job)
        self._start_lane()
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
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start_lane(self) -> None:
        while self._waiting and self._waiting[0].withdrawn:
            self._waiting.popleft()
        # A lane that was started but has not run yet will take whatever is queued by then: one is enough.
        if self._idle and self._waiting and not self._starting:
            self._starting = True
            task = UncancellableTask(self._run_lane(self._idle.pop()), loop=asyncio.get_running_loop())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run_lane(self, lane: int) -> None:
        try:
            while batch := self._take():
                try:
                    await self._serve(lane, batch)
                except BaseException as error:
                    for job in batch:
                        job.error = error
                    if not isinstance(error, Exception):
                        raise
                finally:
                    for job in batch:
                        job.finish()
                # The callers that were just answered run first, so that what they ask for next joins the batch.
                if not self._waiting:
                    await asyncio.sleep(0)
        finally:
            self._idle.append(lane)
            self._starting = False
            self._start_lane()  # nothing waits here, unless serving raised what is no Exception

    def _take(self) -> list[Job[W]]:
        self._starting = False
        batch: list[Job[W]] = []
        while self._waiting and len(batch) < self._most:
            job = self._waiting.popleft()
            if not job.withdrawn:
                job.begun = True
                batch.append(job)
        self._start_lane()  # for what is left
        return batch
