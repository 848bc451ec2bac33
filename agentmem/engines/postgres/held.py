"""Writes to sessions that other connections hold: set aside, so that they hold up no write to another session.

Rules kept here:

- The writes to one session are carried out in the order in which they were asked for: once one waits, the later ones
  wait behind it.
- They wait for a session on one connection of their own, which looks again and again which sessions are free.
- A write that has waited for ``busy_timeout_s`` fails with the error that it met; nothing of it was written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from ..batching import Batcher, Job
from .errors import LOCK_NOT_AVAILABLE, GaveUp, sqlstate_of
from .writes import Write, Writer

POLL_INTERVAL_S = 0.02
"""How long to wait before looking again whether a held session is free, in seconds."""


@dataclass(frozen=True, slots=True)
class _HeldWrite:
    job: Job[Write]
    deadline: float  # of the event loop's time
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

    def set_aside(self, jobs: Sequence[Job[Write]], deadline: float, error: Exception | None = None) -> None:
        """Take these writes out of their batch, and have them wait for their sessions.

        Args:
            error: what they met; None where earlier writes wait for the same sessions, for the error of those.
        """
        if not jobs:
            return
        is_running = bool(self._waiting)
        for job in jobs:
            job.is_set_aside = True
            queue = self._waiting.setdefault(job.work.session_id, deque())
            queue.append(_HeldWrite(job, deadline, error or queue[-1].error))
        if not is_running:
            self._start(self._wait_for_locks())

    async def _wait_for_locks(self) -> None:
        while self._waiting:
            sessions = list(self._waiting)
            try:
                held = await self._writer.held_among(sessions)
                for session_id in sessions:
                    if session_id not in held:
                        await self._write_queue(session_id)
            except Exception as error:
                # What was not tried is not in doubt, also where the write that met the error is.
                self._fail_all(GaveUp(error.error, in_doubt=False) if isinstance(error, GaveUp) else error)
                return
            self._fail_late(self._loop.time())
            if self._waiting:
                await asyncio.sleep(POLL_INTERVAL_S)

    async def _write_queue(self, session_id: str) -> None:
        """Carry out the writes that wait for a session, in order, until another connection holds it again."""
        while queue := self._waiting.get(session_id):
            job = queue[0].job
            try:
                (job.result,) = await self._writer.write([job.work])
            except Exception as error:
                if sqlstate_of(error) == LOCK_NOT_AVAILABLE:
                    return
                job.error = error
                if isinstance(error, GaveUp):
                    self._finish_first(session_id)
                    raise
            self._finish_first(session_id)

    def _fail_late(self, now: float) -> None:
        for session_id in list(self._waiting):
            while (queue := self._waiting.get(session_id)) and queue[0].deadline <= now:
                queue[0].job.error = queue[0].error
                self._finish_first(session_id)

    def _fail_all(self, error: Exception) -> None:
        for session_id in list(self._waiting):
            while queue := self._waiting.get(session_id):
                queue[0].job.error = error
                self._finish_first(session_id)

    def _finish_first(self, session_id: str) -> None:
        queue = self._waiting[session_id]
        job = queue.popleft().job
        if not queue:
            del self._waiting[session_id]
        self._batcher.settle([job])


async def held_sessions(writer: Writer, jobs: Sequence[Job[Write]]) -> set[str]:
    """Which sessions kept these writes, of one group, from being written; none where that cannot be found out."""
    if len(jobs) == 1:
        return {jobs[0].work.session_id}
    try:
        return await writer.held_among(job.work.session_id for job in jobs)
    except Exception:  # the caller then tries each alone, and each meets what is wrong
        return set()
