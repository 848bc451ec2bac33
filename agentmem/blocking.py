"""Runs async calls from sync code: on one background event loop per process, while the calling thread waits.

Rules:

- All threads share the loop, and so its pools. It runs beside any loop of the caller's, such as that of a notebook.
- Code on the background loop cannot wait for it (an async tool of a run that ``Runner.run_sync`` began). Such a call
  raises ``RuntimeError`` at once and says what to do.
- An interrupt (Ctrl+C) of the waiting thread cancels the call, as if a task were cancelled.
- The loop's thread is a daemon, so a program can end without closing anything, and what was acknowledged is stored.
  While the interpreter shuts down (``__del__`` of what modules hold), the thread no longer runs. Then a call raises
  ``RuntimeError`` instead of waiting forever, and a close does nothing, because everything is closed.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, ParamSpec, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from .lifecycle import around_fork, register_own_thread, when_program_ends

INTERRUPT_CHECK_S = 0.2
"""The longest time until an interrupted call notices the interrupt."""

MAX_EXECUTOR_THREADS = 10_000
"""More than a system starts. Threads are started when they are needed."""

P = ParamSpec("P")
T = TypeVar("T")


def run_blocking(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run an async function on the background event loop, and wait for its result.

    It can be called in any thread but that of the background loop. An interrupt (Ctrl+C) cancels the function.

    Returns:
        What the function returns.

    Raises:
        RuntimeError: it was called on the background loop, which would wait for itself; or during the interpreter's
            shutdown.
        Everything that the function raises.
    """
    if sys.is_finalizing():
        raise RuntimeError("a sync agentmem call was made while the interpreter ends; make it earlier")
    loop = background_loop.get_or_start()
    if threading.get_ident() == background_loop.thread_id:
        raise RuntimeError(
            "a sync agentmem call was made on agentmem's own event loop, where it would wait for itself: "
            "await the async class there (AsyncSQLiteSession, AsyncSessionStore, Runner.run), or make the tool "
            "that calls it a plain function, which runs in a thread"
        )
    call = _Call(function, args, kwargs)
    loop.call_soon_threadsafe(call.start)
    try:
        return _wait_for(call.outcome)
    except BaseException:
        loop.call_soon_threadsafe(call.cancel)  # has an effect only if this thread was interrupted
        raise
    finally:
        del call  # its outcome may be the error, whose traceback refers to this frame


def close_blocking(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run an async close method like :func:`run_blocking`; do nothing during the interpreter's shutdown."""
    if not sys.is_finalizing():
        run_blocking(close)


def _wait_for(outcome: Future[T]) -> T:
    try:
        while not outcome.done():
            try:
                # With a timeout: a Ctrl+C that comes just before Python waits for a lock does not end the wait. With
                # seven busy programs on two cores, 4 of 56 interrupts were lost like that.
                return outcome.result(INTERRUPT_CHECK_S)
            except TimeoutError:
                pass  # of this wait; or the outcome itself, which the line below raises
        return outcome.result()
    finally:
        del outcome  # it may be the error, whose traceback refers to this frame


class _Call(Generic[T]):
    """An async call that is run on the background loop, and its outcome for the waiting thread.

    The coroutine is created on the loop. If the waiting thread created it, an interrupt before it is handed over would
    leave a coroutine that nothing awaits.
    """

    def __init__(self, function: Callable[..., Coroutine[Any, Any, T]], args: Any, kwargs: Any) -> None:
        self.outcome: Future[T] = Future()
        self._function, self._args, self._kwargs = function, args, kwargs
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            result = await self._function(*self._args, **self._kwargs)
        except BaseException as error:  # raised in the thread that waits
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(result)


class BackgroundLoop:
    """An event loop in a daemon thread of its own, started when it is first needed.

    Attributes:
        thread_id: of its thread; None before it is started.
        start_lock: held while it is started. It is also held during a fork: starting imports modules, and a child
            would wait forever for the lock of a module that a thread of the parent was importing.
    """

    def __init__(self) -> None:
        self.thread_id: int | None = None
        self.start_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def get_or_start(self) -> asyncio.AbstractEventLoop:
        """Return the running loop; start it, if this is the first call. Can be called in any thread."""
        if self._loop is None:
            with self.start_lock:
                if self._loop is None:
                    started: Future[asyncio.AbstractEventLoop] = Future()
                    # Not anyio's start_blocking_portal(): what it returns waits for its thread when it is collected,
                    # which can be during the shutdown of the interpreter, when daemon threads no longer run. A portal
                    # in the frames of a daemon thread is never collected.
                    thread = threading.Thread(target=_run_loop, args=(started,), name="agentmem-loop", daemon=True)
                    register_own_thread(thread)
                    thread.start()
                    loop = started.result()
                    self.thread_id = thread.ident
                    self._loop = loop
        return self._loop

    def finish(self) -> None:
        """Finish the async generators of the loop: that of a model's client closes its connections."""
        if self._loop is not None:
            finishing = asyncio.run_coroutine_threadsafe(self._loop.shutdown_asyncgens(), self._loop)
            wait([finishing], timeout=1)  # seconds: an async tool that blocks the loop must not block the program's end


def _run_loop(started: Future[asyncio.AbstractEventLoop]) -> None:
    try:
        anyio.run(_run_forever, started)
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)  # raised in the thread that starts the loop


async def _run_forever(started: Future[asyncio.AbstractEventLoop]) -> None:
    # For ``asyncio.to_thread`` in async tools, and for asyncio itself. Its own executor has six threads on two cores:
    # tools that wait in them for runs would leave none for what these runs need.
    executor = ThreadPoolExecutor(MAX_EXECUTOR_THREADS, thread_name_prefix="agentmem-executor")
    asyncio.get_running_loop().set_default_executor(executor)
    async with BlockingPortal() as portal:
        started.set_result(asyncio.get_running_loop())
        await portal.sleep_until_stopped()  # never stopped: the loop may be in use until the process ends


background_loop = BackgroundLoop()
"""The loop of this process. A forked child gets a new one."""

_loops_of_parents: list[BackgroundLoop] = []
"""Kept, because only a thread that the child does not have could close them cleanly."""


def _finish_background_loop() -> None:
    background_loop.finish()  # looked up when the program ends, because a fork replaces it


def _lock_before_fork() -> None:
    background_loop.start_lock.acquire()


def _unlock_in_parent() -> None:
    background_loop.start_lock.release()


def _replace_in_child() -> None:
    global background_loop
    _loops_of_parents.append(background_loop)
    background_loop = BackgroundLoop()


when_program_ends(_finish_background_loop)
around_fork(before=_lock_before_fork, in_parent=_unlock_in_parent, in_child=_replace_in_child)
