"""Where plain functions of the caller's run that agentmem calls in the middle of its work, such as ``count_tokens``.

Rules:

- None of them runs on agentmem's background event loop, which all threads share. For a sync call they run in the
  thread that made the call, which only waits for it. So they see that thread's variables, and Ctrl+C reaches them.
- For an async call they run in threads of their own. So they may block.
- Nothing that another call may need is held meanwhile: no connection, no lock, no place in a queue. So they may make
  agentmem calls of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from .threads import call_in_thread

MAX_THREADS = 16
"""The largest number of threads on each event loop, for the callbacks of one depth of nesting: sessions that are read
at once must not take a thread each."""

INTERRUPT_CHECK_S = 0.2
"""The longest time until an interrupted call notices the interrupt."""

P = ParamSpec("P")
T = TypeVar("T")


async def call_back(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that calls code of the caller's, off the event loop.

    Cancellation: in a thread of its own, the function is waited for. In the thread of a sync call it is not: it must
    end before that call returns anyway.

    Returns:
        What the function returns.

    Raises:
        Everything that the function raises.
    """
    thread = calling_thread()
    call = partial(function, *args, **kwargs)
    return await (_in_own_thread(call) if thread is None else thread.run(call))


def calling_thread() -> CallingThread | None:
    """The thread that waits for the sync call to which the running task belongs; None in an async call."""
    thread = _calling_thread.get()
    if thread is None or thread.is_dismissed or thread.loop is not asyncio.get_running_loop():
        return None  # a task that outlived the call; or code of the caller's that runs an event loop of its own
    return thread


class CallingThread:
    """A thread that waits for the end of a call, and runs what the call asks it to run meanwhile.

    Attributes:
        loop: the event loop of the call.
        is_dismissed: whether it runs nothing more.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.is_dismissed = False
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()

    # On the event loop

    def enter(self) -> None:
        """Let the running task, and those that it starts, find this thread."""
        _calling_thread.set(self)

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in the thread; in one of its own, if the thread leaves before it has begun.

        Raises:
            Everything that the function raises.
            asyncio.CancelledError: the function was ended by an interrupt, which ends the call.
        """
        request = _Request(function, self.loop)
        self._requests.put(request)
        if not await request.is_run:
            return await _in_own_thread(function)
        try:
            if request.error is not None:
                raise request.error
            return request.result  # type: ignore[no-any-return]  # what `function` returned
        finally:
            del request  # its error's traceback refers to this frame

    def dismiss(self) -> None:
        """Run nothing more: the call is over, or the thread has left."""
        self.is_dismissed = True
        while (request := self._next_request()) is not None:
            request.decline()
        self._requests.put(None)

    def _next_request(self) -> _Request | None:
        try:
            return self._requests.get_nowait()
        except Empty:
            return None

    # In the thread

    def wait(self) -> None:
        """Run what is asked for until :meth:`dismiss`.

        Raises:
            BaseException: an interrupt of the thread, also one that ended a function.
        """
        while not self.is_dismissed:
            try:
                # With a timeout: a Ctrl+C that comes just before Python waits for a lock does not end the wait. With
                # seven busy programs on two cores, 4 of 56 interrupts were lost like that.
                request = self._requests.get(timeout=INTERRUPT_CHECK_S)
            except Empty:
                continue
            if request is not None:
                request.run()
            del request  # it may hold an error, whose traceback refers to this frame


class _Request:
    """A function on its way to a thread, with its outcome on the way back.

    Attributes:
        is_run: done when the function has an outcome (True) or will not be run (False).
    """

    def __init__(self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.is_run: asyncio.Future[bool] = loop.create_future()
        self.result: Any = None
        self.error: Exception | None = None
        self._function = function
        self._context: Context = copy_context()
        self._loop = loop

    def run(self) -> None:
        """Run the function in this thread, unless the task that asked for it was cancelled."""
        if self.is_run.cancelled():
            return
        is_interrupted = True
        try:
            self.result = self._context.run(self._function)
            is_interrupted = False
        except Exception as error:
            self.error = error
            is_interrupted = False
        finally:
            # An interrupt must not reach the loop, which it would end. The thread that it was meant for raises it.
            self._tell(self._cancel if is_interrupted else partial(self._set, True))

    def decline(self) -> None:
        """Do not run the function; called on the event loop."""
        self._set(False)

    def _tell(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # else whoever asked is gone

    def _set(self, is_run: bool) -> None:
        if not self.is_run.done():  # done if whoever asked was cancelled
            self.is_run.set_result(is_run)

    def _cancel(self) -> None:
        self.is_run.cancel()


_calling_thread: ContextVar[CallingThread | None] = ContextVar("agentmem_calling_thread", default=None)

_depth: ContextVar[int] = ContextVar("agentmem_callback_depth", default=0)
"""How many callbacks the running code is inside of."""

_limiters: RunVar[dict[int, CapacityLimiter]] = RunVar("agentmem_callback_limiters")


async def _in_own_thread(function: Callable[[], T]) -> T:
    depth = _depth.get()
    async with _limiter(depth):
        token = _depth.set(depth + 1)
        try:
            return await call_in_thread(function)
        finally:
            _depth.reset(token)


def _limiter(depth: int) -> CapacityLimiter:
    """One for each depth, because a callback may wait for those that its own calls lead to."""
    try:
        limiters = _limiters.get()
    except LookupError:
        limiters = {}
        _limiters.set(limiters)
    return limiters.setdefault(depth, CapacityLimiter(MAX_THREADS))
