"""The same sessions without ``await``: for scripts, threads and notebooks.

Rules kept here:

- No logic: every method runs the async one on agentmem's background event loop and waits for it. So all
  threads share the pools of that one loop, and a notebook's own running loop is no obstacle.
- Called from the background loop itself (an async tool of a run that ``Runner.run_sync`` began), a call
  could never return: it raises ``RuntimeError`` and says what to do.
- Interrupted (Ctrl+C), a call is cancelled like an awaited one.
- The loop runs in a daemon thread. Nothing needs to be closed for the program to end, and what was
  acknowledged is stored. Once the interpreter ends (a ``__del__`` of what modules hold), that thread runs no more:
  a call raises ``RuntimeError`` instead of waiting for ever, and closing does nothing, because all is closed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from types import TracebackType
from typing import Any, Generic, Literal, ParamSpec, TypeVar

import anyio
from anyio.from_thread import BlockingPortal
from pydantic import BaseModel

from .arguments import session_id_by_keyword
from .checking import CheckReport, Progress
from .copying import CopyReport
from .lifecycle import around_fork, watch, when_program_ends
from .replay import SessionSettings
from .session import AsyncPostgresSession, AsyncSession, AsyncSQLiteSession
from .store import AsyncSessionStore

INTERRUPT_S = 0.2
"""How long an interrupted call may go on waiting, at most."""

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])
SelfT = TypeVar("SelfT", bound="Session")
StoreT = TypeVar("StoreT", bound="SessionStore")


def run_blocking(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run an async function on the background event loop and wait for its result; from any thread but that loop's.

    Raises:
        RuntimeError: called on the background loop, which would wait for itself; or while the interpreter ends.
    """
    if sys.is_finalizing():
        raise RuntimeError("a sync agentmem call was made while the interpreter ends; make it earlier")
    loop = _background.loop()
    if threading.get_ident() == _background.thread_id:
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
        loop.call_soon_threadsafe(call.cancel)  # no effect unless this thread was interrupted meanwhile
        raise
    finally:
        del call  # its outcome may be the error whose traceback holds this frame


def _wait_for(outcome: Future[T]) -> T:
    try:
        while not outcome.done():
            try:
                # Not without a limit: Ctrl+C that comes just before Python waits for a lock does not end the waiting.
                # With seven programs at work on two cores, 4 of 56 were lost so.
                return outcome.result(INTERRUPT_S)
            except TimeoutError:  # the wait's, or what the outcome is
                pass
            except FutureTimeoutError:  # the same before Python 3.11
                pass
        return outcome.result()
    finally:
        del outcome  # it may be the error whose traceback holds this frame


def _close(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    if not sys.is_finalizing():
        run_blocking(function)


class _Call(Generic[T]):
    """An async call on its way to the background loop, and its outcome on the way back.

    The coroutine is made there, not here: an interrupt that came between making it and handing it over would leave one
    that nobody awaits.
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


def _docs_of(function: Callable[..., object]) -> Callable[[F], F]:
    def copy(method: F) -> F:
        method.__doc__ = function.__doc__
        return method

    return copy


class Session:
    """One conversation, with the methods of :class:`~agentmem.AsyncSession` as plain calls.

    The Agents SDK's Runner takes it too (from 0.20 on; type checkers do not, as the SDK's protocol is async), at
    a cost: each call blocks the Runner's event loop, and all other tasks on it, for a hop to the background loop and
    back and for what happens there. Measured with SQLite on two busy cores: 0.25 ms for a read, one and a half times
    an awaited one; 1 to 3 ms for a write, mostly the flush. And it gives up group commit: 64 sessions that write at
    once on one loop wait for 64 flushes in a row, 5 to 45 times as long. Use the async class there, or this one's
    ``async_session``.

    Args:
        async_session: the session that does the work; also usable by itself, under any event loop.
    """

    __slots__ = ("async_session",)

    session_settings: None = None

    def __init__(self, async_session: AsyncSession) -> None:
        self.async_session = async_session

    @property
    def session_id(self) -> str:
        """Which conversation, as given."""
        return self.async_session.session_id

    @property
    def settings(self) -> SessionSettings:
        """What ``get_items()`` without a limit replays, as given."""
        return self.async_session.settings

    @property
    def run_key(self) -> Hashable:
        """Equal for two handles on the same session of the same database; runs on it take turns."""
        return self.async_session.run_key

    @_docs_of(AsyncSession.get_items)
    def get_items(self, limit: int | None = None) -> list[Any]:
        return run_blocking(self.async_session.get_items, limit)

    @_docs_of(AsyncSession.add_items)
    def add_items(self, items: Iterable[Mapping[str, Any] | BaseModel]) -> None:
        run_blocking(self.async_session.add_items, items)

    @_docs_of(AsyncSession.pop_item)
    def pop_item(self) -> Any | None:
        return run_blocking(self.async_session.pop_item)

    @_docs_of(AsyncSession.clear_session)
    def clear_session(self) -> None:
        run_blocking(self.async_session.clear_session)

    @_docs_of(AsyncSession.with_settings)
    def with_settings(self, settings: SessionSettings | None) -> Session:
        return Session(self.async_session.with_settings(settings))

    @_docs_of(AsyncSession.close)
    def close(self) -> None:
        _close(self.async_session.close)

    def __enter__(self: SelfT) -> SelfT:
        run_blocking(self.async_session.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self.async_session).replace("<Async", "<", 1)


class SQLiteSession(Session):
    __slots__ = ()
    __doc__ = AsyncSQLiteSession.__doc__

    @session_id_by_keyword
    def __init__(
        self,
        db: str | os.PathLike[str],
        *,
        session_id: str,
        settings: SessionSettings | None = None,
        busy_timeout_s: float = 5.0,
        durability: Literal["full", "normal"] = "full",
    ) -> None:
        super().__init__(
            AsyncSQLiteSession(
                db, session_id=session_id, settings=settings, busy_timeout_s=busy_timeout_s, durability=durability
            )
        )


class PostgresSession(Session):
    __slots__ = ()
    __doc__ = AsyncPostgresSession.__doc__

    def __init__(
        self,
        dsn: str | Any,
        *,
        session_id: str,
        settings: SessionSettings | None = None,
        schema: str | None = None,
        busy_timeout_s: float = 5.0,
        statement_cache_size: int | None = None,
    ) -> None:
        super().__init__(
            AsyncPostgresSession(
                dsn,
                session_id=session_id,
                settings=settings,
                schema=schema,
                busy_timeout_s=busy_timeout_s,
                statement_cache_size=statement_cache_size,
            )
        )


class SessionStore:
    __slots__ = ("async_store",)
    __doc__ = AsyncSessionStore.__doc__

    def __init__(self, db: str | os.PathLike[str] | Any, **options: Any) -> None:
        self.async_store = AsyncSessionStore(db, **options)

    @property
    def name(self) -> str:
        """The database as messages name it: an absolute path, or a URL without its password."""
        return self.async_store.name

    @_docs_of(AsyncSessionStore.session)
    def session(self, session_id: str, *, settings: SessionSettings | None = None) -> Session:
        return Session(self.async_store.session(session_id, settings=settings))

    @_docs_of(AsyncSessionStore.open)
    def open(self) -> None:
        run_blocking(self.async_store.open)

    @_docs_of(AsyncSessionStore.check)
    def check(self, *, progress: Progress | None = None) -> CheckReport:
        return run_blocking(self.async_store.check, progress=progress)

    @_docs_of(AsyncSessionStore.backup)
    def backup(self, path: str | os.PathLike[str]) -> None:
        run_blocking(self.async_store.backup, path)

    @_docs_of(AsyncSessionStore.copy_to)
    def copy_to(self, other: SessionStore, *, progress: Progress | None = None) -> CopyReport:
        target: Any = getattr(other, "async_store", other)  # what is no store is refused there
        return run_blocking(self.async_store.copy_to, target, progress=progress)

    @_docs_of(AsyncSessionStore.close)
    def close(self) -> None:
        _close(self.async_store.close)

    def __enter__(self: StoreT) -> StoreT:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self.async_store).replace("<Async", "<", 1)


class _BackgroundLoop:
    """The event loop that all sync calls of a process run on; started by the first of them."""

    def __init__(self) -> None:
        self.thread_id: int | None = None
        # Held over a fork: a loop that is starting imports modules, and a child that was forked meanwhile would
        # wait for ever for the lock of a module that a thread of the parent's was importing.
        self.starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            with self.starting:
                if self._loop is None:
                    started: Future[asyncio.AbstractEventLoop] = Future()
                    # Not by anyio's start_blocking_portal(): what it returns waits for its thread when it is collected,
                    # which may be when the interpreter ends and its daemon threads run no more. In the frames of a
                    # daemon thread the portal is never collected.
                    thread = threading.Thread(target=_run_loop, args=(started,), name="agentmem-loop", daemon=True)
                    watch(thread)
                    thread.start()
                    loop = started.result()
                    self.thread_id = thread.ident
                    self._loop = loop
        return self._loop

    def end(self) -> None:
        """Finish what is open on the loop: a model's client closes its connections."""
        if self._loop is not None:
            finishing = asyncio.run_coroutine_threadsafe(self._loop.shutdown_asyncgens(), self._loop)
            wait([finishing], timeout=1)  # seconds; an async tool that blocks the loop must not block the end


def _run_loop(started: Future[asyncio.AbstractEventLoop]) -> None:
    try:
        anyio.run(_serve, started)
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)  # raised where the loop was to be started


async def _serve(started: Future[asyncio.AbstractEventLoop]) -> None:
    async with BlockingPortal() as portal:
        started.set_result(asyncio.get_running_loop())
        await portal.sleep_until_stopped()  # never: the thread is a daemon, and its loop may be in use to the end


_background = _BackgroundLoop()
_of_the_parent: list[_BackgroundLoop] = []


def _end() -> None:
    _background.end()  # looked up now: after a fork it is another one


def _wait_before_fork() -> None:
    _background.starting.acquire()


def _go_on_in_parent() -> None:
    _background.starting.release()


def _start_anew_in_child() -> None:
    # Kept, because what would close it cleanly is a thread that does not exist in the child.
    global _background
    _of_the_parent.append(_background)
    _background = _BackgroundLoop()


when_program_ends(_end)
around_fork(before=_wait_before_fork, in_parent=_go_on_in_parent, in_child=_start_anew_in_child)
