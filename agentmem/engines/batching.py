"""Calls that wait are carried out together: group commit for writes, many reads in one visit to a thread.

The way of a call: :meth:`Batcher.submit` makes a :class:`Job` of it, which waits in a :class:`Queue`. The queue decides
which waiting jobs form the next :class:`Batch`. The batcher gives the batch to ``send``, and whoever carries it out
sets each job's outcome, has the batcher settle the job, and in the end finishes the batch. Under load the batches grow
by themselves, so there is nothing to tune.

Cancellation: a call that still waits leaves the queue. One whose batch was formed has begun: it waits for its outcome
and raises the cancellation then.

Deadlines: whoever carries out a batch claims it first, and from then on lets its jobs fail at their deadlines. Where
that meets what others hold, it says so (:meth:`Batcher.block`), and the batcher lets the jobs that wait behind fail at
theirs. Calls that wait for nothing but the batches before them do not fail, however long that takes.

A batcher belongs to one event loop. Everything here runs on that loop, except :meth:`Batcher.claim`.
"""

from __future__ import annotations

import asyncio
import copy
import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from anyio import CancelScope

from . import deadlines

W = TypeVar("W")

LOOK_S = 0.02
"""How often the deadlines of waiting jobs are looked at while others hold what they wait for, in seconds; less often
where more than `LOOK_JOBS` wait, because a look costs 50 ns for each."""

LOOK_JOBS = 10_000


class Job(Generic[W]):
    """One call on its way to the database, with its outcome on the way back.

    Whoever carries it out sets `result` or `error`, from any thread; the batcher wakes the caller when it is settled.
    """

    __slots__ = (
        *("deadline", "error", "is_begun", "is_set_aside", "is_settled"),
        *("is_withdrawn", "result", "wake", "work"),
    )

    def __init__(self, work: W, wake: asyncio.Future[None], deadline: float = math.inf) -> None:
        self.work = work
        self.wake = wake
        self.deadline = deadline
        self.result: object = None
        self.error: BaseException | None = None
        self.is_begun = self.is_set_aside = self.is_settled = self.is_withdrawn = False


class Batch(Generic[W]):
    """Jobs that are carried out together.

    Attributes:
        number: rises by one with each batch of a queue, in the order in which the batches were formed.
        slot: which of the queue's slots it takes until it is finished, from 0.
        jobs: in the order in which they were submitted; with a `key`, those of one key are together.
        is_claimed: whether somebody carries it out; see :meth:`Batcher.claim`.
    """

    __slots__ = ("is_claimed", "jobs", "number", "slot")

    def __init__(self, number: int, slot: int, jobs: list[Job[W]]) -> None:
        self.number = number
        self.slot = slot
        self.jobs = jobs
        self.is_claimed = False


@dataclass(frozen=True)
class QueueCounts:
    """What a queue holds at one moment.

    Attributes:
        waiting: jobs that no batch has taken yet, with those that were withdrawn a moment ago.
        under_way: jobs that a batch has taken and that are not settled yet.
        batches: batches that are not finished yet.
    """

    waiting: int
    under_way: int
    batches: int


class Queue(Generic[W]):
    """Decides which waiting jobs form the next batch. Plain state: no I/O, no event loop, no locks.

    Args:
        slots: how many batches may be under way at a time.
        max_batch_size: the largest number of jobs in a batch.
        second_batch_at: how many jobs must be ready before another batch is formed while one is under way. Where that
            is more than one, jobs that find no batch under way and are twice as many are formed into two batches of
            half the size: in one batch their callers would come back together each time, and the event loop would
            have nothing to do while it is carried out.
        key: what a job is about. Jobs with one key are never in two batches at a time, so they are carried out in the
            order in which they were submitted, whatever connection each batch has. None: jobs do not hold each other
            up.
    """

    def __init__(
        self,
        *,
        slots: int,
        max_batch_size: int,
        second_batch_at: int = 1,
        key: Callable[[W], Hashable] | None = None,
    ) -> None:
        self._slots = slots
        self._max_batch_size = max_batch_size
        self._second_batch_at = second_batch_at
        self._key = key
        self._free_slots = list(range(slots))[::-1]
        self._waiting: dict[Hashable, deque[Job[W]]] = {}
        self._ready: deque[Hashable] = deque()  # the keys that have waiting jobs and none under way
        self._ready_jobs = 0
        self._under_way: dict[Hashable, int] = {}  # how many jobs, by key
        self._batches: dict[int, Batch[W]] = {}  # those that are not finished
        self._next_number = 0

    def add(self, job: Job[W]) -> None:
        """Put a job behind the others of its key."""
        key = self.key_of(job)
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = deque()
            if not self._is_blocked(key):
                self._ready.append(key)
        waiting.append(job)
        self._ready_jobs += not self._is_blocked(key)

    def is_batch_due(self) -> bool:
        """Whether :meth:`next_batch` should be called now."""
        needed = 1 if self._has_all_slots() else self._second_batch_at
        return bool(self._free_slots) and self._ready_jobs >= needed

    def next_batch(self) -> Batch[W] | None:
        """Form a batch of what is ready; None where nothing is, or no slot is free."""
        if not self._free_slots:
            return None
        size = self._max_batch_size
        if self._has_all_slots() and self._ready_jobs >= 2 * self._second_batch_at > 2:
            size = min(size, (self._ready_jobs + 1) // 2)
        jobs = self._take(size)
        if not jobs:
            return None
        self._next_number += 1
        batch = self._batches[self._next_number] = Batch(self._next_number, self._free_slots.pop(), jobs)
        return batch

    def settle(self, job: Job[W]) -> None:
        """Note that a job of a batch has its outcome."""
        key = self.key_of(job)
        left = self._under_way[key] = self._under_way[key] - 1
        if not left:
            del self._under_way[key]
            if key is not None and key in self._waiting:
                self._ready.append(key)
                self._ready_jobs += len(self._waiting[key])

    def release(self, batch: Batch[W]) -> None:
        """Make the slot of a batch free again. Jobs of it that are not settled still keep their keys to themselves."""
        self._free_slots.append(batch.slot)
        del self._batches[batch.number]

    def take_late(self, now: float, is_held: Callable[[Hashable], bool]) -> list[Job[W]]:
        """Take out the jobs whose deadline is over, of keys that are held and of batches that nobody has claimed.

        Those of batches are still to be settled.
        """
        late: list[Job[W]] = []
        for key in [key for key in self._waiting if is_held(key)]:
            late += self._withdraw_late(key, now)
        for batch in self._batches.values():
            if not batch.is_claimed:
                late += (found := [job for job in batch.jobs if job.deadline <= now and is_held(self.key_of(job))])
                batch.jobs = without(batch.jobs, found)
        return late

    def _withdraw_late(self, key: Hashable, now: float) -> list[Job[W]]:
        waiting = self._waiting[key]
        late = [job for job in waiting if job.deadline <= now and not job.is_withdrawn]
        if late:
            for job in late:
                job.is_withdrawn = True
            left = deque(job for job in waiting if not job.is_withdrawn)
            is_ready = not self._is_blocked(key)
            self._ready_jobs -= is_ready * (len(waiting) - len(left))
            self._waiting[key] = left
            if not left:
                del self._waiting[key]
                if is_ready:
                    self._ready.remove(key)
        return late

    def is_empty(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self._waiting and not self._under_way and self._has_all_slots()

    def counts(self) -> QueueCounts:
        """What it holds now."""
        return QueueCounts(
            waiting=sum(map(len, self._waiting.values())),
            under_way=sum(self._under_way.values()),
            batches=self._slots - len(self._free_slots),
        )

    def key_of(self, job: Job[W]) -> Hashable:
        """What the job is about; None where jobs do not hold each other up."""
        return None if self._key is None else self._key(job.work)

    def _has_all_slots(self) -> bool:
        return len(self._free_slots) == self._slots

    def _is_blocked(self, key: Hashable) -> bool:
        return key is not None and key in self._under_way

    def _take(self, size: int) -> list[Job[W]]:
        taken: list[Job[W]] = []
        while self._ready and len(taken) < size:
            key = self._ready[0]
            waiting = self._waiting[key]
            before = len(taken)
            while waiting and len(taken) < size:
                job = waiting.popleft()
                self._ready_jobs -= 1
                if not job.is_withdrawn:
                    job.is_begun = True
                    taken.append(job)
            if begun := len(taken) - before:
                self._under_way[key] = self._under_way.get(key, 0) + begun
            if not waiting:
                del self._waiting[key]
                self._ready.popleft()
            elif self._is_blocked(key):
                self._ready_jobs -= len(waiting)
                self._ready.popleft()
        return taken


class Batcher(Generic[W]):
    """A queue of calls on one event loop.

    Args:
        send: has a batch carried out; called on the event loop, with the batches in the order of their numbers.
            Whoever carries it out calls :meth:`settle` for each job that has its outcome and :meth:`finish` once for
            the batch, both on the event loop. What `send` raises fails the whole batch.
        queue: decides what forms a batch.
    """

    def __init__(self, send: Callable[[Batch[W]], None], queue: Queue[W]) -> None:
        self._send = send
        self._queue = queue
        self._is_planned = False
        self._drained: list[asyncio.Future[None]] = []
        self._held: dict[Hashable, tuple[Exception, bool]] = {}  # the error of each block, and whether it is of a key
        self._is_looking = False
        self._claiming = threading.Lock()

    async def submit(self, work: W, deadline: float = math.inf) -> Job[W]:
        """Queue `work` and wait for its outcome; the caller looks at the job's result or error.

        Args:
            deadline: until when it may wait for what others hold; see ``deadlines``.
        """
        loop = asyncio.get_running_loop()
        job = Job(work, loop.create_future(), deadline)
        self._queue.add(job)
        self._plan(loop)
        try:
            await job.wake
            return job
        except asyncio.CancelledError as error:
            if not job.is_begun:
                job.is_withdrawn = True
                raise
            cancelled = error
        # Shielded, because a cancelled anyio scope would otherwise cancel this wait on every loop cycle. So what is
        # caught below is a task.cancel(), and it is the one to raise: an anyio scope swallows its own cancellation.
        with CancelScope(shield=True):
            while not job.is_settled:
                job.wake = loop.create_future()
                try:
                    await job.wake
                except asyncio.CancelledError as error:
                    cancelled = error
        raise cancelled from job.error

    def settle(self, jobs: Iterable[Job[W]]) -> None:
        """Wake the callers of jobs that have their outcome."""
        for job in jobs:
            job.is_settled = True
            if job.is_begun:
                self._queue.settle(job)
            if not job.wake.done():  # a cancelled caller's future is
                job.wake.set_result(None)
        self._go_on()

    def finish(self, batch: Batch[W]) -> None:
        """Let the next batch take this one's slot. Jobs of it that are set aside may be settled later."""
        self._queue.release(batch)
        self._go_on()

    def fail(self, batch: Batch[W], error: BaseException) -> None:
        """Settle every job of the batch that is not settled or set aside with this error, and finish the batch."""
        jobs = [job for job in batch.jobs if not job.is_settled and not job.is_set_aside]
        give_errors((job for job in jobs if job.error is None), error)
        self._queue.release(batch)
        self.settle(jobs)

    def claim(self, batch: Batch[W]) -> None:
        """Begin to carry out a batch, from any thread: its jobs are the caller's now, and so are their deadlines.

        Jobs that have failed at their deadline before have left the batch.
        """
        with self._claiming:
            batch.is_claimed = True

    def unclaim(self, batch: Batch[W]) -> None:
        """Note that nothing of the batch's jobs was begun; whoever carries it out next claims it again."""
        batch.is_claimed = False
        self._look_when_held()

    def block(self, token: Hashable, error: Exception, *, is_key: bool = False) -> None:
        """Let jobs that are not claimed fail at their deadline, until :meth:`unblock`: others hold what they wait for.

        Args:
            token: names what is held. Several may be.
            error: what the jobs fail with.
            is_key: `token` is the key of the jobs that wait for it; else all jobs do.
        """
        self._held[token] = (error, is_key)
        self._fail_late()
        self._look_when_held()

    def unblock(self, token: Hashable) -> None:
        """End what :meth:`block` began with this token, if it did."""
        self._held.pop(token, None)

    async def drain(self) -> None:
        """Wait until nothing waits and nothing is under way."""
        while not self._queue.is_empty():
            drained = asyncio.get_running_loop().create_future()
            self._drained.append(drained)
            await drained

    def counts(self) -> QueueCounts:
        """What waits and what is under way now."""
        return self._queue.counts()

    def _look_when_held(self) -> None:
        if self._held and not self._is_looking:
            self._is_looking = True
            delay_s = LOOK_S * (1 + self._queue.counts().waiting // LOOK_JOBS)
            asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        self._is_looking = False
        if self._held:
            self._fail_late()
            self._look_when_held()

    def _fail_late(self) -> None:
        whole = next((error for error, is_key in self._held.values() if not is_key), None)
        with self._claiming:  # from here on nobody claims a job that is late
            late = self._queue.take_late(deadlines.now(), lambda key: whole is not None or key in self._held)
        for job in late:
            give_errors([job], whole or self._held[self._queue.key_of(job)][0])
        self.settle(late)

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not at once: what is called in the same cycle of the event loop, or by the callers that were just woken, joins
        # the batch.
        if not self._is_planned and self._queue.is_batch_due():
            self._is_planned = True
            loop.call_soon(self._start)

    def _start(self) -> None:
        self._is_planned = False
        if batch := self._queue.next_batch():
            try:
                self._send(batch)
            except BaseException as error:
                self.fail(batch, error)
                if not isinstance(error, Exception):
                    raise
        self._go_on()

    def _go_on(self) -> None:
        self._plan(asyncio.get_running_loop())
        if self._drained and self._queue.is_empty():
            for drained in self._drained:
                if not drained.done():
                    drained.set_result(None)
            self._drained.clear()


def first_and_last_deadline(jobs: Iterable[Job[W]]) -> tuple[float, float]:
    """The earliest deadline of these jobs, and the latest."""
    its = [job.deadline for job in jobs]
    return min(its), max(its)


def give_errors(jobs: Iterable[Job[W]], error: BaseException) -> None:
    """Let each job fail with this error, as an object of its own.

    Each caller that an object is raised to adds its frames to the object's traceback: of one that were shared by
    thousands, each would get all of them.
    """
    for job in jobs:
        try:
            job.error = copy.copy(error).with_traceback(error.__traceback__)
        except Exception:
            job.error = error  # its class cannot be copied
        else:
            job.error.__cause__, job.error.__suppress_context__ = error.__cause__, error.__suppress_context__


def without(jobs: list[Job[W]], taken: Sequence[Job[W]]) -> list[Job[W]]:
    """The jobs that are not among the taken ones, in order."""
    if not taken:
        return jobs
    gone = set(taken)
    return [job for job in jobs if job not in gone]
