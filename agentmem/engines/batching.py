"""Calls that wait are served together: group commit for writes, many reads to a thread hop.

A :class:`Batcher` queues calls and hands all that wait to ``serve`` at once, on as many lanes at a time as
it has. Under load the batches grow by themselves, so there is nothing to tune. :class:`Groups` says in what order the
writes of a batch are tried when some of them cannot succeed.

Cancellation: a call that is still queued leaves the queue; one that was handed over has begun: it waits for its outcome
and raises the cancellation then. The lanes themselves cannot be cancelled, because they are callbacks and no tasks.

One Batcher belongs to one event loop; it has no locks because everything here runs on that loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from typing import Generic, TypeVar

from anyio import CancelScope

W = TypeVar("W")


class Job(Generic[W]):
    """One queued call. Whoever serves it sets `result` or `error`, from any thread."""

    __slots__ = ("begun", "detached", "error", "finished", "result", "wake", "withdrawn", "work")

    def __init__(self, work: W, wake: asyncio.Future[None]) -> None:
        self.work = work
        self.wake = wake
        self.result: object = None
        self.error: BaseException | None = None
        self.begun = self.detached = self.finished = self.withdrawn = False

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
        key: what a call is about. Calls about the same are never on two lanes at a time, so they are served in the
            order in which they were asked for, whatever connection each lane has. None: lanes keep no order.
    """

    def __init__(
        self,
        serve: Callable[[int, list[Job[W]], Done], None],
        *,
        lanes: int,
        most: int,
        crowd: int = 1,
        key: Callable[[W], Hashable] | None = None,
    ) -> None:
        self._serve = serve
        self._most = most
        self._crowd = crowd
        self._key = key
        self._serving: dict[int, list[Job[W]]] = {}
        self._detached: set[Job[W]] = set()
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

    def detach(self, jobs: Iterable[Job[W]]) -> None:
        """Let the lane go on without these of its batch; they are still being served, and end with :meth:`answer`."""
        for job in jobs:
            job.detached = True
            self._detached.add(job)

    def answer(self, jobs: Iterable[Job[W]]) -> None:
        """Tell the callers of `jobs`, which were detached, their outcomes; on the event loop."""
        for job in jobs:
            self._detached.discard(job)
            job.finish()
        self._go_on(asyncio.get_running_loop())

    async def drain(self) -> None:
        """Wait until nothing is queued or being served."""
        while self._is_at_work():
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
            self._serving[lane] = batch
            done = partial(self._finish, loop, lane, batch)
            try:
                self._serve(lane, batch, done)
            except BaseException as error:
                done(error)
                if not isinstance(error, Exception):
                    raise
        elif self._waiting:
            return  # each for a lane that is busy with what it is about
        self._go_on(loop)  # with what is left

    def _take(self, most: int) -> list[Job[W]]:
        batch: list[Job[W]] = []
        held: list[Job[W]] = []
        busy = self._busy_keys()
        while self._waiting and len(batch) < most:
            job = self._waiting.popleft()
            if job.withdrawn:
                continue
            if busy and self._key is not None and self._key(job.work) in busy:
                held.append(job)
            else:
                job.begun = True
                batch.append(job)
        self._waiting.extendleft(reversed(held))
        return batch

    def _busy_keys(self) -> set[Hashable]:
        if self._key is None:
            return set()
        serving = chain(self._detached, *self._serving.values())
        return {self._key(job.work) for job in serving if not job.finished}

    def _is_idle(self) -> bool:
        return len(self._idle) == self._lanes

    def _is_at_work(self) -> bool:
        return bool(self._waiting or self._detached or not self._is_idle())

    def _finish(
        self, loop: asyncio.AbstractEventLoop, lane: int, batch: list[Job[W]], error: BaseException | None
    ) -> None:
        self._idle.append(lane)
        self._serving.pop(lane, None)
        for job in batch:
            if not job.detached:
                job.error = job.error or error
                job.finish()
        self._go_on(loop)

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        self._plan(loop)
        if self._drained and not self._is_at_work():
            for drained in self._drained:
                if not drained.done():
                    drained.set_result(None)
            self._drained.clear()


class Groups(Generic[W]):
    """A batch of writes in the groups in which they are tried, one after the other, each group in one transaction.

    Neighbours of one kind go together. Where they fail, each is tried alone, so that one that cannot succeed fails
    alone. Whoever iterates says of each group how it went.

    Args:
        kind: of a write; equal for those that can share a transaction, None for one that cannot.
        size: of a write, where groups have a size.
        most: largest size of a group, but for a write that is larger by itself.
    """

    def __init__(
        self,
        jobs: Iterable[Job[W]],
        kind: Callable[[W], Hashable],
        *,
        size: Callable[[W], int] | None = None,
        most: int = 0,
    ) -> None:
        groups = _groups(jobs, kind)
        if size is not None:
            groups = (part for group in groups for part in _parts(group, size, most))
        self._groups = deque(groups)

    def __iter__(self) -> Iterator[list[Job[W]]]:
        while self._groups:
            yield self._groups.popleft()

    def succeeded(self, group: Sequence[Job[W]], results: Iterable[object]) -> None:
        """Each write of the group has its result."""
        for job, result in zip(group, results, strict=True):
            job.result = result

    def failed(self, group: Sequence[Job[W]], error: Exception) -> None:
        """Nothing of the group was written; try each alone, if there are several."""
        if len(group) > 1:
            self._groups.extendleft([job] for job in reversed(group))
        else:
            group[0].error = error

    def again(self, group: list[Job[W]]) -> None:
        """Nothing of the group was written; try it once more before the others."""
        self._groups.appendleft(group)

    def failed_for_all(self, group: Sequence[Job[W]], error: Exception) -> None:
        """Nothing of the group was written, and nothing that is left would be."""
        for job in chain(group, *self):
            job.error = error


def _groups(jobs: Iterable[Job[W]], kind: Callable[[W], Hashable]) -> Iterator[list[Job[W]]]:
    for shared, group in groupby(jobs, lambda job: kind(job.work)):
        if shared is None:
            yield from ([job] for job in group)
        else:
            yield list(group)


def _parts(group: list[Job[W]], size: Callable[[W], int], most: int) -> Iterator[list[Job[W]]]:
    part: list[Job[W]] = []
    left = most
    for job in group:
        left -= (of_this := size(job.work))
        if left < 0 and part:
            yield part
            part, left = [], most - of_this
        part.append(job)
    yield part
