"""Writes to sessions that other connections hold: set aside, so that they hold up no write to another session.

Rules kept here:

- The writes to one session are carried out in the order in which they were asked for: once one waits, the later ones
  wait behind it.
- They wait for a session on one connection of their own, which looks again and again which sessions are free.
- A write whose deadline is over fails with the error that it met; nothing of it was written. So do those that wait in
  the batcher's queue behind it.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from .. import deadlines
from ..batching import Batcher, Job, give_errors
from .errors import LOCK_NOT_AVAILABLE, GaveUp, sqlstate_of
from .writes import Write, Writer

POLL_INTERVAL_S = 0.02
"""How long to wait before looking again whether a held session is free, in seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class _HeldWrite:
    job: Job[Write]
    error: Exception  # what it fails with at its deadline


class HeldSessions:
    """The sessions that other connections hold, and the writes that wait for them.

    Args:
        writer: writes them, when their sessions are free.
        batcher: is told of their outcomes.
        loop: the event loop on which all of it happens.
        start: starts the task that waits for the sessions.
    """

    def __init__(
        self,
        writer: Writer,
        batcher: Batcher[Write],
        loop: asyncio.AbstractEventLoop,
        start: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._writer = writer
        self._batcher = batcher
        self._loop = loop
        self._start = start
        self._waiting: dict[str, deque[_HeldWrite]] = {}

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._waiting

    @property
    def session_count(self) -> int:
        """How many sessions are waited for."""
        return len(self._waiting)

    @property
    def write_count(self) -> int:
        """How many writes wait for them."""
        return sum(map(len, self._waiting.values()))

    def set_aside(self, jobs: Sequence[Job[Write]], error: Exception | None = None) -> None:
        """Take these writes out of their batch, and have them wait for their sessions.

        Args:
            error: what they met; None where earlier writes wait for the same sessions, for the error of those.
        """
        if not jobs:
            return
        is_running = bool(self._waiting)
        for job in jobs:
            job.is_set_aside = True
            session_id = job.work.session_id
            queue = self._waiting.setdefault(session_id, deque())
            queue.append(_HeldWrite(job, met := error or queue[-1].error))
            if len(queue) == 1:
                self._batcher.block(session_id, met, is_key=True)
        if not is_running:
            self._start(self._wait_for_locks())

    async def _wait_for_locks(self) -> None:
        while self._waiting:
            sessions = list(self._waiting)
            try:
                held = await self._writer.held_among(sessions, self._first_deadline())
                for session_id in sessions:
                    if session_id not in held:
                        await self._write_queue(session_id)
            except Exception as error:
                # What was not tried is not in doubt, also where the write that met the error is.
                not_tried = GaveUp(error.error, in_doubt=False) if isinstance(error, GaveUp) else error
                if not self._fail_late(deadlines.now(), not_tried):  # waiting is in vain
                    self._fail_late(math.inf, not_tried)
            else:
                self._fail_late(deadlines.now())
            if self._waiting:
                await asyncio.sleep(POLL_INTERVAL_S)

    def _first_deadline(self) -> float:
        return min(write.job.deadline for queue in self._waiting.values() for write in queue)

    async def _write_queue(self, session_id: str) -> None:
        """Carry out the writes that wait for a session, in order, until another connection holds it again."""
        while queue := self._waiting.get(session_id):
            job = queue[0].job
            try:
                (job.result,) = await self._writer.write([job.work], job.deadline, job.deadline)
            except Exception as error:
                if sqlstate_of(error) == LOCK_NOT_AVAILABLE:
                    return
                job.error = error
                if isinstance(error, GaveUp):
                    self._finish(session_id, queue[0])
                    raise
            self._finish(session_id, queue[0])

    def _fail_late(self, now: float, error: Exception | None = None) -> bool:
        """Let those fail whose deadline is over; returns whether there were any.

        Args:
            error: what they fail with; None: what each met.
        """
        late = [
            (session_id, write)
            for session_id, queue in self._waiting.items()
            for write in queue
            if write.job.deadline <= now
        ]
        for session_id, write in late:
            give_errors([write.job], error or write.error)
            self._finish(session_id, write)
        return bool(late)

    def _finish(self, session_id: str, write: _HeldWrite) -> None:
        queue = self._waiting[session_id]
        queue.remove(write)
        if not queue:
            del self._waiting[session_id]
            self._batcher.unblock(session_id)
        self._batcher.settle([write.job])


async def held_sessions(writer: Writer, jobs: Sequence[Job[Write]], deadline: float) -> set[str]:
    """Which sessions kept these writes, of one group, from being written; none where that cannot be found out."""
    if len(jobs) == 1:
        return {jobs[0].work.session_id}
    try:
        return await writer.held_among((job.work.session_id for job in jobs), deadline)
    except Exception:  # the caller then tries each alone, and each meets what is wrong
        return set()
