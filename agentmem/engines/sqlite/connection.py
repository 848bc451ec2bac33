"""One SQLite connection and its thread, as coroutines see it.

Rules kept here:

- A whole batch is one message to the connection's thread and one back. The thread is aiosqlite's, but it serves what
  is sent to it here: with aiosqlite's own way there and back for each batch, reading the last 20 items took 82 µs
  where this takes 58 (most of it is two cores that wake each other, and hand over Python's interpreter lock).
- What awaits here runs in an ``UncancellableTask``: aiosqlite loses a connection whose opening is cancelled.
- SQLite never crosses a fork: every connection to a file is closed before it (``ConnectionLost`` tells the
  pool to open another).
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar, cast
from weakref import WeakSet

import aiosqlite

from ...errors import StorageError, StorageFullError
from ...lifecycle import around_fork, watch, when_program_ends
from .file import FileIdentity

T = TypeVar("T")

MEMORY = ":memory:"


class ConnectionLost(Exception):  # noqa: N818  no error of the caller's: the pool opens a new connection
    """The connection was closed between two messages: by a fork, a replaced file, or the program's end."""


class Checkpointing(Protocol):
    """When a connection that writes copies the WAL into the database; see ``sqlite_checkpoint``."""

    def wrote(self, sessions: int, size_bytes: int) -> None:
        """Count a transaction."""

    def is_due(self) -> bool:
        """Whether to run it after this hop."""

    def run(self, raw: WorkerConnection) -> None:
        """Run it, in the connection's thread and outside any transaction."""


class WorkerConnection(sqlite3.Connection):
    """An SQLite connection whose thread runs the functions that are sent to it, one after the other.

    aiosqlite passes ``factory=`` on to sqlite3, and calls two methods of what it gets in the connection's own thread:
    ``execute``, which takes :class:`_HandOver` for parameters here, and ``close`` when it is told to stop.
    """

    def __init__(self, database: str, *args: Any, **kwargs: Any) -> None:
        self.lock = threading.Lock()  # held while a function runs, and while the connection closes
        self.alive = False
        self.is_writer = False
        self.in_memory = database == MEMORY
        self.file: FileIdentity | None = None  # of the one that writes
        self.checkpoints: Checkpointing | None = None  # likewise
        self.joins_whole: bool | None = None  # whether group_concat keeps NUL; None before that was tried
        self.thread = threading.current_thread()
        self._inbox: SimpleQueue[Hop[Any] | None] = SimpleQueue()
        self._ending = threading.Lock()  # nothing may be sent that the thread would never see
        self._is_told_to_end = self._has_ended = False
        self._at_end: list[Callable[[], object]] = []
        self._unreported: Hop[Any] | None = None
        watch(self.thread)
        with _opening:
            super().__init__(database, *args, **kwargs)
            self.alive = True
            _live.add(self)

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        if isinstance(parameters, _HandOver):
            return parameters.run(self)
        return super().execute(sql, parameters)

    def close(self) -> None:
        """Serve what is sent, in the connection's own thread, until told to end; then close."""
        try:
            try:
                self._serve()
            finally:
                self.report()
                self.disconnect()
        except BaseException:
            # Not to aiosqlite, which would go on with the thread, and nobody would end that: told as of any thread.
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self.thread)))
        with self._ending:
            self._is_told_to_end = self._has_ended = True
        while not self._inbox.empty():
            if (hop := self._inbox.get()) is not None:
                hop.error = ConnectionLost()
                hop.report()
        for callback in self._at_end:
            callback()

    def _serve(self) -> None:
        while (hop := self._inbox.get()) is not None:
            if not hop.reports:
                self.report()
            hop.run(self)
            self.report()
            self._unreported = hop
            del hop  # else it would keep what it read until the next one comes
            is_checkpoint_due = self.checkpoints is not None and self.checkpoints.is_due()
            if is_checkpoint_due or self._inbox.empty():
                self.report()
            if is_checkpoint_due:
                self._checkpoint()

    def is_lost(self) -> bool:
        """Whether nothing that is sent now would be run."""
        return not self.alive or self._is_told_to_end

    def _checkpoint(self) -> None:
        with self.lock:
            if self.alive and self.checkpoints is not None:
                self.checkpoints.run(self)

    def send(self, hop: Hop[Any]) -> None:
        """Have `hop` run in the connection's thread, after those that were sent before.

        Raises:
            ConnectionLost: the thread has ended or is about to.
        """
        with self._ending:
            if self._is_told_to_end:
                raise ConnectionLost
            self._inbox.put(hop)

    def has_unreported(self) -> bool:
        return self._unreported is not None

    def report(self) -> None:
        """Tell of the hop before this one, if that was not done; in the connection's thread."""
        hop, self._unreported = self._unreported, None
        if hop is not None:
            hop.report()

    def end(self, then: Callable[[], object] = lambda: None) -> None:
        """Have the thread end when it has run what was sent, and then call `then`, in whatever thread."""
        with self._ending:
            if not self._has_ended:
                self._at_end.append(then)
                if not self._is_told_to_end:
                    self._is_told_to_end = True
                    self._inbox.put(None)
                return
        then()

    def disconnect(self) -> None:
        """Close the connection, from any thread, once the function under way is done. The thread goes on."""
        with self.lock:
            moved = self.file if self.alive and self.file is not None and not self.file.is_at_its_path() else None
            if moved is not None:
                # SQLite leaves the WAL of such a file at the path where it was: what was acknowledged would be
                # missing where the file is now, and be played into the one that is at the path next.
                try:
                    super().execute("PRAGMA wal_checkpoint(PASSIVE)")
                except sqlite3.Error:
                    pass  # the file is out of reach; its users learn that from FileIdentity.check()
            self.alive = False
            try:
                super().close()
                if moved is not None:
                    moved.remove_stale_wal()
            finally:
                _live.discard(self)  # only now: a fork waits for those that are being closed too


class Hop(Generic[T]):
    """A function on its way to a connection's thread, and its outcome on the way back.

    Args:
        function: is called with the connection, in its thread.
        loop: the event loop that waits for the outcome.
        done: is called there, with this hop, whose `result` or `error` is set.
        reports: whether the function calls :meth:`WorkerConnection.report` itself, at a moment when this thread does
            not need Python's interpreter lock for a while; else that is done before it is called.
    """

    __slots__ = ("_done", "_function", "_loop", "error", "reports", "result")

    def __init__(
        self,
        function: Callable[[WorkerConnection], T],
        loop: asyncio.AbstractEventLoop,
        done: Callable[[Hop[T]], object],
        reports: bool = False,
    ) -> None:
        self.reports = reports
        self._function = function
        self._loop = loop
        self._done = done
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self, connection: WorkerConnection) -> None:
        with connection.lock:
            try:
                if not connection.alive:
                    raise ConnectionLost
                self.result = self._function(connection)
            except BaseException as error:  # raised where the hop is awaited
                self.error = error

    def report(self) -> None:
        _tell(self._loop, self._done, self)


class _HandOver:
    """Makes aiosqlite give its thread to :meth:`WorkerConnection.close`; stands for a statement's parameters."""

    def __init__(self, aio: aiosqlite.Connection) -> None:
        self._aio = aio
        self.raw: WorkerConnection | None = None

    def run(self, raw: WorkerConnection) -> _HandOver:
        self.raw = raw
        # Told to stop in a thread without an event loop, it reports the end to none: the loop that opened the
        # connection may be closed long before.
        self._aio.stop()
        return self

    def fetchall(self) -> list[Any]:
        return []  # aiosqlite fetches from what execute returned


class Link:
    """One open connection. Its methods can be called on any event loop."""

    def __init__(self, raw: WorkerConnection) -> None:
        self.raw = raw
        with _opening:  # not while the program's end goes through them, in another thread
            _links.add(self)

    @classmethod
    async def open(cls, path: str, busy_timeout_s: float, prepare: Callable[[WorkerConnection], None]) -> Link:
        """Connect, and `prepare` the connection in its own thread; closed again when that fails."""
        threads: list[threading.Thread] = []

        def connect(*args: Any, **kwargs: Any) -> WorkerConnection:
            threads.append(threading.current_thread())
            return WorkerConnection(*args, **kwargs)

        aio = aiosqlite.connect(
            path,
            timeout=busy_timeout_s,
            isolation_level=None,
            factory=connect,
            check_same_thread=False,  # disconnect() may come from any thread, under the connection's lock
        )
        _connecting.add(aio)
        hand_over = _HandOver(aio)
        try:
            await aio
            await aio.execute_fetchall("", cast(Any, hand_over))
        except Exception as error:
            # aiosqlite has told the thread to end, but the thread still reports that to this event loop, which may
            # be closed a moment later.
            for thread in threads:
                thread.join()
            if isinstance(error, ValueError):  # aiosqlite's word for a connection that was told to stop
                raise StorageError("the connection was closed because the program is ending") from error
            raise
        finally:
            _connecting.discard(aio)
        link = cls(cast(WorkerConnection, hand_over.raw))
        try:
            await link.hop(prepare)
        except Exception:
            await link.close()
            raise
        return link

    def is_lost(self) -> bool:
        """Whether the connection was closed, or is about to be."""
        return self.raw.is_lost()

    def send(
        self, function: Callable[[WorkerConnection], T], done: Callable[[Hop[T]], object], *, reports: bool = False
    ) -> None:
        """Run `function` in the connection's thread, and then `done` on the running event loop, with the outcome.

        The outcome is a ConnectionLost where the connection was closed before; `function` was not run then.
        `reports` is explained at :class:`Hop`.

        Raises:
            ConnectionLost: likewise.
        """
        self.raw.send(Hop(function, asyncio.get_running_loop(), done, reports))

    async def hop(self, function: Callable[[WorkerConnection], T]) -> T:
        """Run `function` in the connection's thread; returns its result.

        Raises:
            ConnectionLost: the connection was closed before; `function` was not run.
        """
        done: asyncio.Future[Hop[T]] = asyncio.get_running_loop().create_future()
        self.send(function, lambda hop: None if done.done() else done.set_result(hop))
        hop = await done
        if hop.error is not None:
            raise hop.error
        return cast(T, hop.result)

    async def close(self) -> None:
        """Run what was sent, close the connection and end its thread."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        self.raw.end(lambda: _tell(loop, lambda _: None if ended.done() else ended.set_result(None), None))
        await ended

    def stop(self) -> None:
        """The same where no event loop runs."""
        self.raw.end()
        self.raw.thread.join()


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[[Any], object], outcome: object) -> None:
    """Call back on an event loop, from a connection's thread."""
    try:
        loop.call_soon_threadsafe(callback, outcome)
    except RuntimeError:
        if not loop.is_closed():  # else whoever waited there is gone
            raise


def create_private(path: str) -> None:
    """Create the file, if there is none, readable by its owner alone; SQLite gives -wal and -shm its mode.

    Raises:
        StorageError: there is no such folder, or it cannot be written.
        StorageFullError: there is no room.
    """
    # Closing any descriptor of a file drops all locks that this process has on it
    # (sqlite.org/howtocorrupt.html, 2.2), so this happens where no connection can have opened the file yet.
    with _opening:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            pass  # the usual case; the file keeps the mode that its owner gave it
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFullError(f"cannot create {path}: {error.strerror}; make room and try again") from error
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise StorageError(f"cannot create {path}: {error.strerror}; close some, or raise the limit") from error
            folder = os.path.dirname(path)
            advice = "choose a folder that can be written" if os.path.isdir(folder) else "create its folder first"
            raise StorageError(f"cannot create {path}: {error.strerror}; {advice}") from error


_program_has_ended = False
_opening = threading.Lock()
_live: set[WorkerConnection] = set()
_links: WeakSet[Link] = WeakSet()
_connecting: set[aiosqlite.Connection] = set()


def stop_all(links: Iterable[Link]) -> None:
    """Close connections whose event loops are gone, from a thread without one, the writers last."""
    for link in sorted(links, key=lambda link: link.raw.is_writer):
        link.stop()


def has_program_ended() -> bool:
    """Whether the connections were closed because the program ends."""
    return _program_has_ended


def _close_all_at_end() -> None:
    global _program_has_ended
    _program_has_ended = True
    with _opening:
        links = list(_links)
    stop_all(links)
    # What was being opened when its event loop was closed.
    for aio in list(_connecting):
        aio.stop()
    for raw in list(_live):
        raw.end()
        raw.disconnect()


def _close_before_fork() -> None:
    _opening.acquire()  # until after the fork: no connection is opened meanwhile
    for raw in sorted(_live, key=lambda raw: raw.is_writer):  # the writers last, so that no reader checkpoints
        if not raw.in_memory:
            try:
                raw.disconnect()
            except StorageError:
                pass  # what is wrong with the file meets the next call, too; the others must not cross the fork


def _go_on_in_parent() -> None:
    _opening.release()


def _start_anew_in_child() -> None:
    global _opening, _program_has_ended
    _opening, _program_has_ended = threading.Lock(), False
    _live.clear()
    _inherited.extend(_links)
    _links.clear()
    _connecting.clear()


_inherited: list[Link] = []
"""Links of the parent's: kept, because the threads that would close them do not exist in the child."""

when_program_ends(_close_all_at_end)
around_fork(before=_close_before_fork, in_parent=_go_on_in_parent, in_child=_start_anew_in_child)
