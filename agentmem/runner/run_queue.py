"""The run queue: in one process, one run at a time on each session, in the order of their calls.

Rules:

- The order holds across event loops and threads. (A run of the sync wrappers is on agentmem's background loop, while
  the caller's own loop may use the same session.)
- A waiter that is cancelled leaves the queue. If the session has just been handed to it, it is handed to the next one.
- A key is kept only while it is held. After a fork, the child has none.

Runs that wait for each other would wait forever. A tool can start a run, and the run of the tool waits for it. If that
one waits for the session of the first, or for the session of a third that waits for it in the same way, nobody goes on.

- A context variable says which runs a run was started inside of. It travels to tasks and to the threads of tools, sync
  calls included. So the run that would close such a circle is refused at once.
- It does not travel through a thread pool of the caller's. But whoever waits inside of a run was started by code of the
  caller's (a *step* of the holder: a tool, an instructions function) that had begun before. So a waiter notes the steps
  under way when it arrives, and waits only so long for each of them to end. Steps that begin later cannot have started
  it, nor can those of a later holder. In every circle, the waiter that arrived last finds such a step.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise

from ..errors import RunError
from ..event_loop import running_loop

STEP_WAIT_S = 30.0
"""How long a run waits for a step of the holder that was under way when it arrived, unless it is told otherwise."""


@dataclass(eq=False)
class _Step:
    """Code of the caller's in which a run is.

    Attributes:
        name: what it is, for the error's message.
        at_least_s: how long others wait for it, also those that would rather wait less.
    """

    name: str
    at_least_s: float
    ended: bool = False


@dataclass(eq=False)
class QueuedRun:
    """A run that waits for a key or holds it.

    Attributes:
        key: what it waits for or holds.
        session_id: its session, for messages.
        outer: the runs inside of which it was started, the outermost first.
        loop: its event loop.
        handed: is done when the key was handed to it.
        held_since: when it got the key.
        ended: it has given the key back. A task that a tool left behind still has it in its context.
        steps: the steps in which it is.
        inner_waiters: the runs that were started inside of it and wait.
    """

    key: Hashable
    session_id: str
    outer: tuple[QueuedRun, ...]
    loop: asyncio.AbstractEventLoop
    handed: asyncio.Future[None]
    held_since: datetime | None = None
    ended: bool = False
    steps: list[_Step] = field(default_factory=list)
    inner_waiters: set[QueuedRun] = field(default_factory=set)

    def wake(self) -> None:
        """Let it go on with the key."""
        if not self.handed.done():  # done if it was cancelled; then it hands the key on
            self.handed.set_result(None)


@dataclass(eq=False)
class _Line:
    holder: QueuedRun
    waiters: deque[QueuedRun] = field(default_factory=deque)


class RunQueue:
    """Keys, each held by one run at a time. Every method can be called in any thread."""

    def __init__(self) -> None:
        # Reentrant, because the end of a collected coroutine releases its key wherever the garbage collector runs, and
        # that may be in a thread that holds this lock.
        self._lock = threading.RLock()
        self._lines: dict[Hashable, _Line] = {}  # has exactly the keys that are held
        self._inside: ContextVar[tuple[QueuedRun, ...]] = ContextVar("agentmem_runs_inside", default=())
        if hasattr(os, "register_at_fork"):
            # The runs that held keys or waited are not in the child; nor is a thread that may have held the lock.
            os.register_at_fork(after_in_child=self._reset)

    def __repr__(self) -> str:
        with self._lock:
            waiting = sum(len(line.waiters) for line in self._lines.values())
            return f"<RunQueue: {len(self._lines)} held, {waiting} waiting>"

    def is_held(self, key: Hashable) -> bool:
        """Whether a run holds the key."""
        with self._lock:
            return key in self._lines

    def waiting_count(self, key: Hashable) -> int:
        """How many runs wait for the key."""
        with self._lock:
            return len(self._lines[key].waiters) if key in self._lines else 0

    @asynccontextmanager
    async def hold(
        self, key: Hashable, session_id: str, *, step_wait_s: float | None = STEP_WAIT_S
    ) -> AsyncIterator[None]:
        """Wait for the key, and hold it during the ``async with`` block.

        Args:
            key: what one run at a time may hold.
            session_id: the session, for the error's message.
            step_wait_s: how long to wait for a step of the holder that is under way now; None for no limit.

        Cancellation: a waiter leaves the queue.

        Raises:
            RunError: the runs would wait for each other; or a step took too long, which may be the same.
        """
        run = await self.acquire(key, session_id, step_wait_s=step_wait_s)
        outer = self._inside.get()
        self._inside.set((*outer, run))
        try:
            yield
        finally:
            self._inside.set(outer)
            self.release(run)

    @contextmanager
    def step(self, name: str, *, at_least_s: float = 0.0) -> Iterator[None]:
        """Say that the run of this context is in code of the caller's during the ``with`` block.

        Args:
            name: what it is, for the error of a run that waits for it.
            at_least_s: how long others wait for it, also those that would rather wait less.
        """
        inside = self._inside.get()
        step = _Step(name, at_least_s)
        if inside:
            with self._lock:
                inside[-1].steps.append(step)
        try:
            yield
        finally:
            step.ended = True
            if inside:
                with self._lock:
                    inside[-1].steps.remove(step)

    async def acquire(self, key: Hashable, session_id: str, *, step_wait_s: float | None = STEP_WAIT_S) -> QueuedRun:
        """Wait for the key and take it; the caller must release what is returned. See :meth:`hold`."""
        loop = running_loop()
        outer = tuple(run for run in self._inside.get() if not run.ended)
        run = QueuedRun(key, session_id, outer, loop, loop.create_future())
        with self._lock:
            line = self._lines.get(key)
            if line is None:
                self._lines[key] = _Line(_now_held(run))
                return run
            self._refuse_circle(run, line.holder)
            steps = line.holder.steps.copy()
            line.waiters.append(run)
            for one in outer:
                one.inner_waiters.add(run)
        try:
            if step_wait_s is not None:
                await self._wait_for_steps(run, line, steps, step_wait_s)
            await run.handed
        except BaseException:  # also GeneratorExit: the loop is gone and the waiting task was collected
            with self._lock:
                was_handed_key = run not in line.waiters
                if not was_handed_key:
                    line.waiters.remove(run)
                    _no_longer_waits(run)
            if was_handed_key:
                self.release(run)
            raise
        return run

    def release(self, run: QueuedRun) -> None:
        """Hand the key of this run to the next waiter; without one, nobody holds it any more."""
        with self._lock:
            run.ended = True
            line = self._lines.get(run.key)
            if line is None or line.holder is not run:
                return  # this is a child that was forked while its parent held the key
            while line.waiters:
                next_run = line.waiters.popleft()
                _no_longer_waits(next_run)
                line.holder = _now_held(next_run)
                try:
                    next_run.loop.call_soon_threadsafe(next_run.wake)
                    return
                except RuntimeError:
                    next_run.ended = True  # its loop is closed
            del self._lines[run.key]

    def _refuse_circle(self, run: QueuedRun, holder: QueuedRun) -> None:
        """Raise a RunError if the holder waits, directly or through others, for a run that this one is inside of."""
        if not run.outer:
            return  # nobody waits for it
        paths, seen = [[holder]], {holder}
        while paths:
            path = paths.pop()
            if path[-1] in run.outer:
                raise RunError(_describe_circle(run, path))
            for waiter in path[-1].inner_waiters:
                next_holder = self._lines[waiter.key].holder
                if next_holder not in seen:
                    seen.add(next_holder)
                    paths.append([*path, next_holder])

    async def _wait_for_steps(self, run: QueuedRun, line: _Line, steps: list[_Step], wait_s: float) -> None:
        """Wait for the key, or until each of the holder's steps has ended.

        Raises:
            RunError: a step took too long.
        """
        began = time.monotonic()
        for step in sorted(steps, key=lambda step: step.at_least_s):
            limit_s = max(wait_s, step.at_least_s)
            if not step.ended:
                await asyncio.wait([run.handed], timeout=max(0.0, began + limit_s - time.monotonic()))
            with self._lock:
                if run in line.waiters and not step.ended:
                    raise RunError(_describe_step(run, line.holder, step, limit_s))

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._lines = {}


def _now_held(run: QueuedRun) -> QueuedRun:
    run.held_since = datetime.now(UTC)
    return run


def _no_longer_waits(run: QueuedRun) -> None:
    for outer in run.outer:
        outer.inner_waiters.discard(run)


def _describe_circle(run: QueuedRun, path: list[QueuedRun]) -> str:
    if len(path) == 1:
        return (
            f"a tool of a run on the session {run.session_id!r} started another run on it, and each would wait for the "
            "other; use another session in the tool, or none, or start the run when this one is over"
        )
    waits = "".join(f", that on {one.session_id!r} waits for {two.session_id!r}" for one, two in pairwise(path))
    return (
        f"runs would wait for each other: a tool of the run on the session {path[-1].session_id!r} started a run on "
        f"{run.session_id!r}{waits}; use another session in one of the tools, or none, or start the run when this one "
        "is over"
    )


def _describe_step(run: QueuedRun, holder: QueuedRun, step: _Step, waited_s: float) -> str:
    return (
        f"the session {run.session_id!r} is held since {holder.held_since:%Y-%m-%d %H:%M:%S} UTC by a run that is in "
        f"{step.name}, and this run waited {waited_s:g} s for it; nothing was added to the session by this run. If "
        f"{step.name} started this run, in a thread of its own, each waits for the other: use another session there, "
        "or none. Otherwise run again later, or wait longer with RunConfig(session_wait_s=...)"
    )


run_queue = RunQueue()
"""The queue of this process."""
