"""Runs async calls from sync code: on one background event loop per process, while the calling thread waits.

Rules:

- All threads share the loop, and so its pools. It runs beside any loop of the caller's, such as that of a notebook.
- Plain functions of the caller's never run on it, but in the thread that made the call; see ``calling_thread``.
- Async code on the background loop cannot wait for it (an async tool of a run that ``Runner.run_sync`` began). Such a
  call raises ``RuntimeError`` at once and says what to do.
- An interrupt (Ctrl+C) of the waiting thread cancels the call, as if a task were cancelled, and is raised when the
  call's outcome is known. A second interrupt is raised at once.
- A loop that ends before the program does (because code on it stopped it) is not replaced: nobody knows what it left
  undone. Every call that waits for it, and every later one, raises ``BackgroundLoopError``.
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
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar

from .calling_thread import CallingThread
from .errors import BackgroundLoopError
from .lifecycle import around_fork, register_own_thread, when_program_ends

MAX_EXECUTOR_THREADS = 10_000
"""More than a system starts. Threads are started when they are needed."""

P = ParamSpec("P")
T = TypeVar("T")


def run_blocking(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run an async function on the background event loop, and wait for its result.

    It can be called in any thread but that of the background loop. An interrupt (Ctrl+C) cancels the function, and is
    raised when the function has ended. What the function returned is dropped; its error is the interrupt's
    ``__cause__``. A second interrupt is raised at once; the function then ends by itself.

    Returns:
        What the function returns.

    Raises:
        BackgroundLoopError: the background loop has ended.
        RuntimeError: it was called on the background loop, which would wait for itself; or during the interpreter's
            shutdown.
        Everything that the function raises.
    """
    if sys.is_finalizing():
        raise RuntimeError("a sync agentmem call was made while the interpreter ends; make it earlier")
    background = background_loop
    loop = background.get_or_start()
    if threading.get_ident() == background.thread_id:
        raise RuntimeError(
            "a sync agentmem call was made on agentmem's own event loop, where it would wait for itself: async code "
            "runs there (an async tool, async instructions). Either await the async class there (AsyncSQLiteSession, "
            "AsyncSessionStore, Runner.run), or make that code a plain function, which runs in a thread"
        )
    call = _Call(function, args, kwargs, loop)
    try:
        background.begin(call)
        call.thread.wait()
    except BaseException as interrupt:
        _end_interrupted(call, background, interrupt)
    try:
        return call.outcome()
    finally:
        del call  # an error's traceback refers to this frame


def close_blocking(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run an async close method like :func:`run_blocking`; do nothing during the interpreter's shutdown."""
    if not sys.is_finalizing():
        run_blocking(close)


def _end_interrupted(call: _Call[Any], background: BackgroundLoop, interrupt: BaseException) -> NoReturn:
    """Cancel a call whose thread was interrupted, wait for its outcome, and raise the interrupt."""
    try:
        background.cancel(call)
        call.thread.wait()
    except BaseException:  # another interrupt: whoever sends two does not want to wait
        background.abandon(call)
        raise
    cause, call.error = call.error, None
    if isinstance(cause, asyncio.CancelledError):
        cause = cause.__cause__  # the error of a write that had begun
    try:
        if cause is None:
            raise interrupt
        raise interrupt from cause
    finally:
        del call, interrupt, cause  # their tracebacks refer to this frame


class _Call(Generic[T]):
    """An async call that is run on the background loop, and its outcome for the waiting thread.

    The coroutine is created on the loop. If the waiting thread created it, an interrupt before it is handed over would
    leave a coroutine that nothing awaits.

    Attributes:
        thread: the thread that waits for it.
        error: what it raised; None if it raised nothing, or is not over.
        is_over: whether it has its outcome.
        on_end: called when it gets its outcome.
    """

    def __init__(
        self, function: Callable[..., Coroutine[Any, Any, T]], args: Any, kwargs: Any, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.thread = CallingThread(loop)
        self.error: BaseException | None = None
        self.is_over = False
        self.on_end: Callable[[_Call[T]], object] = lambda call: None
        self._function, self._args, self._kwargs = function, args, kwargs
        self._task: asyncio.Task[None] | None = None
        self._result: T

    def outcome(self) -> T:
        """Return what the call returned, or raise what it raised; once."""
        error, self.error = self.error, None  # its traceback refers to frames that refer to this call
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error, self

    # On the loop

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._end_unstarted)

    def cancel(self) -> None:
        if self._task is None:  # the interrupt came before it was handed over
            self.end(asyncio.CancelledError())
        else:
            self._task.cancel()

    def end(self, error: BaseException | None) -> None:
        """Let the thread go on with this outcome, unless there is one."""
        if not self.is_over:
            self.error, self.is_over = error, True
            self.on_end(self)
            self.thread.dismiss()

    async def _run(self) -> None:
        self.thread.enter()
        try:
            self._result = await self._function(*self._args, **self._kwargs)
        except BaseException as error:  # raised in the thread that waits
            self.end(error)
        else:
            self.end(None)

    def _end_unstarted(self, task: asyncio.Task[None]) -> None:
        # Of a task that is cancelled before its first step, nothing runs at all.
        self.end(asyncio.CancelledError())


class BackgroundLoop:
    """An event loop in a daemon thread of its own, started when it is first needed.

    Attributes:
        thread_id: of its thread; None before it is started, and after it has ended.
        start_lock: held while it is started. It is also held during a fork: starting imports modules, and a child
            would wait forever for the lock of a module that a thread of the parent was importing.
    """

    def __init__(self) -> None:
        self.thread_id: int | None = None
        self.start_lock = threading.Lock()
        self._starting: Future[asyncio.AbstractEventLoop] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended_by: BaseException | None = None
        self._calls: set[_Call[Any]] = set()
        self._calls_lock = threading.RLock()  # reentrant, because a signal handler may make a call at any moment

    def get_or_start(self) -> asyncio.AbstractEventLoop:
        """Return the loop; start it, if this is the first call. Can be called in any thread."""
        if self._loop is None:
            with self.start_lock:
                if self._loop is None:
                    if self._starting is None:  # else an interrupt has ended the wait for it
                        self._starting = self._start()
                    try:
                        self._loop = self._starting.result()
                    except Exception:
                        self._starting = None  # the next call tries again
                        raise
        return self._loop

    def begin(self, call: _Call[Any]) -> None:
        """Start a call on the loop. Where the loop has ended, that is the call's outcome."""
        with self._calls_lock:
            ended_by = self._ended_by
            if ended_by is None:
                self._calls.add(call)
                call.on_end = self._calls.discard
        if ended_by is None:
            self._call_soon(call, call.start)
        else:
            call.end(_error_of_ended_loop(ended_by))

    def cancel(self, call: _Call[Any]) -> None:
        """Cancel a call. Its thread must still wait for the outcome."""
        if call in self._calls:
            self._call_soon(call, call.cancel)
        else:
            call.end(asyncio.CancelledError())  # it was never begun, or it is over

    def abandon(self, call: _Call[Any]) -> None:
        """Let a call end without its thread."""
        if call in self._calls:
            self._call_soon(call, call.thread.dismiss)

    def finish(self) -> None:
        """Finish the async generators of the loop: that of a model's client closes its connections."""
        if self._loop is not None and self._ended_by is None:
            finishing = asyncio.run_coroutine_threadsafe(self._loop.shutdown_asyncgens(), self._loop)
            wait([finishing], timeout=1)  # seconds: an async tool that blocks the loop must not block the program's end

    def _start(self) -> Future[asyncio.AbstractEventLoop]:
        started: Future[asyncio.AbstractEventLoop] = Future()
        # Not anyio's start_blocking_portal(): what it returns waits for its thread when it is collected, which can be
        # during the shutdown of the interpreter, when daemon threads no longer run.
        thread = threading.Thread(target=self._run, args=(started,), name="agentmem-loop", daemon=True)
        register_own_thread(thread)
        thread.start()
        return started

    def _call_soon(self, call: _Call[Any], callback: Callable[[], object]) -> None:
        try:
            call.thread.loop.call_soon_threadsafe(callback)
        except RuntimeError:
            if not call.thread.loop.is_closed():
                raise
            # else the loop has ended meanwhile, and every call with it

    # In the loop's thread

    def _run(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner() as runner:
            try:
                runner.run(self._run_forever(started))
            except BaseException as error:
                if started.done():
                    self._end(error)  # raised by every call, and so not here
                else:
                    started.set_exception(error)  # raised in the thread that starts the loop

    async def _run_forever(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        loop = asyncio.get_running_loop()
        # For ``asyncio.to_thread`` in async tools, and for asyncio itself. Its own executor has six threads on two
        # cores: tools that wait in them for runs would leave none for what these runs need.
        loop.set_default_executor(ThreadPoolExecutor(MAX_EXECUTOR_THREADS, thread_name_prefix="agentmem-executor"))
        self.thread_id = threading.get_ident()
        started.set_result(loop)
        while self._ended_by is None:
            try:
                await loop.create_future()  # never done: the loop may be in use until the process ends
            except asyncio.CancelledError:
                pass  # code on the loop has cancelled every task there is: the loop goes on for all others

    def _end(self, error: BaseException) -> None:
        """Give every call its outcome: the loop has ended."""
        with self._calls_lock:
            self._ended_by = error
            calls = list(self._calls)
        self.thread_id = None
        for call in calls:
            call.end(_error_of_ended_loop(error))


def _error_of_ended_loop(ended_by: BaseException) -> BackgroundLoopError:
    error = BackgroundLoopError(
        "agentmem's background event loop, on which all sync calls run, has ended: code that ran on it (an async tool, "
        f"a task that one started) stopped it ({type(ended_by).__name__}: {ended_by}). Whether a write that was under "
        "way is stored is in doubt: look before you write it again. Sync calls need a new process; the async classes "
        "go on"
    )
    error.__cause__ = ended_by
    return error


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
