"""One SQLite connection and its thread, as coroutines see it.

Rules kept here:

- A whole batch is one hop to the connection's thread and back: a hop costs 60 to 100 µs on a small machine,
  about as much as ten reads.
- What awaits here runs in an ``UncancellableTask``: aiosqlite loses a connection whose opening is cancelled, and
  goes on with a hop whose caller is.
- SQLite never crosses a fork: every connection to a file is closed before it (``ConnectionLost`` tells the
  pool to open another).
- The file that was opened must still be the one at its path.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, cast
from weakref import WeakSet

import aiosqlite

from ..errors import StorageError, StorageFullError
from .lifecycle import around_fork, watch, when_program_ends

T = TypeVar("T")

MEMORY = ":memory:"


class ConnectionLost(Exception):  # noqa: N818  no error of the caller's: the pool opens a new connection
    """The connection was closed between two hops, because of a fork or a replaced file."""


class WorkerConnection(sqlite3.Connection):
    """An SQLite connection that runs a whole function in one hop to its thread.

    aiosqlite passes ``factory=`` on to sqlite3 and calls ``execute`` in the connection's own thread, so a
    :class:`Hop` given as a statement's parameters runs there, with the connection.
    """

    def __init__(self, database: str, *args: Any, **kwargs: Any) -> None:
        self.lock = threading.Lock()  # held while a hop runs, and while it closes
        self.alive = False
        self.is_writer = False
        self.in_memory = database == MEMORY
        self.file: FileIdentity | None = None  # of the one that writes
        self.thread = threading.current_thread()
        watch(self.thread)
        with _opening:
            super().__init__(database, *args, **kwargs)
            self.alive = True
            _live.add(self)

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        if isinstance(parameters, Hop):
            parameters.run(self)
            return parameters
        return super().execute(sql, parameters)

    def close(self) -> None:
        """Close, from any thread, once the hop under way is done."""
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
            super().close()
            if moved is not None:
                moved.remove_stale_wal()
            _live.discard(self)  # only now: a fork waits for those that are being closed too


class Hop(Generic[T]):
    """A function on its way to a connection's thread, and its outcome on the way back."""

    __slots__ = ("error", "function", "result")

    def __init__(self, function: Callable[[WorkerConnection], T]) -> None:
        self.function = function
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self, connection: WorkerConnection) -> None:
        with connection.lock:
            try:
                if not connection.alive:
                    raise ConnectionLost
                self.result = self.function(connection)
            except BaseException as error:  # raised where the hop is awaited
                self.error = error

    def fetchall(self) -> list[Any]:
        return []  # aiosqlite fetches from what execute returned

    def outcome(self) -> T:
        if self.error is not None:
            raise self.error
        return cast(T, self.result)


class Link:
    """One open connection. Its methods can be awaited on any event loop."""

    def __init__(self, aio: aiosqlite.Connection, raw: WorkerConnection) -> None:
        self._aio = aio
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
            check_same_thread=False,  # close() may come from any thread, under the connection's lock
        )
        _connecting.add(aio)
        try:
            await aio
        except Exception:
            # aiosqlite has told the thread to end, but the thread still reports that to this event loop, which may
            # be closed a moment later.
            for thread in threads:
                thread.join()
            _connecting.discard(aio)
            raise
        try:
            link = cls(aio, await _hop(aio, lambda raw: raw))
            _connecting.discard(aio)
            await link.hop(prepare)
        except Exception:
            await aio.close()
            _connecting.discard(aio)
            raise
        return link

    async def hop(self, function: Callable[[WorkerConnection], T]) -> T:
        """Run `function` in the connection's thread; returns its result.

        Raises:
            ConnectionLost: the connection was closed before; `function` was not run.
        """
        return await _hop(self._aio, function)

    async def close(self) -> None:
        """Close the connection and end its thread."""
        await self._aio.close()

    def stop(self) -> None:
        """Close the connection and end its thread; to be called where no event loop runs."""
        self._aio.stop()
        self.raw.thread.join()
        self.raw.close()  # if the thread had ended before, because its event loop was closed under it


async def _hop(aio: aiosqlite.Connection, function: Callable[[WorkerConnection], T]) -> T:
    hop = Hop(function)
    try:
        await aio.execute_fetchall("", cast(Any, hop))
    except ValueError as error:  # aiosqlite's word for a connection whose thread was told to end
        raise StorageError("the connection was closed because the program is ending") from error
    return hop.outcome()


class FileIdentity:
    """Which file is opened, so that a deleted, replaced or emptied one is noticed; a check costs 2 µs.

    To be made before SQLite opens the file, so that one which is replaced in between is noticed too.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._inode = _inode(path)
        self._wal_inode: tuple[int, int] | None = None

    def remember_wal(self) -> None:
        """To be called when SQLite has opened the file."""
        self._wal_inode = _inode(self._path + "-wal")

    def is_at_its_path(self) -> bool:
        return _inode(self._path) == self._inode

    def check(self) -> None:
        """Raises StorageError when the file at the path is another, empty, or gone."""
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise StorageError(
                f"{self._path} was deleted or moved while it was open ({error.strerror}); "
                "put it back, or open a new session to start a new file"
            ) from error
        if (status.st_dev, status.st_ino) != self._inode:
            raise self.replaced()
        if status.st_size == 0:
            raise StorageError(f"{self._path} was emptied while it was open; restore it from a backup")

    def check_wal(self) -> None:
        """Raises StorageError when the WAL is not the one that SQLite opened: a crash would take what goes into it.

        To be called only while the connection that writes is open: SQLite deletes the WAL with the last one.
        """
        if self._wal_inode is not None and _inode(self._path + "-wal") != self._wal_inode:
            raise StorageError(
                f"{self._path}-wal was deleted or replaced while {self._path} was open; "
                "close every session on it, which saves what was stored, and open new ones"
            )

    def replaced(self) -> StorageError:
        return StorageError(
            f"{self._path} was replaced by another file while it was open; open a new session to use that one"
        )

    def remove_stale_wal(self) -> None:
        """Delete the WAL that a replaced file left at its path: SQLite would play it into the new file."""
        if self._wal_inode is not None and _inode(self._path + "-wal") == self._wal_inode:
            for suffix in ("-wal", "-shm"):
                try:
                    os.unlink(self._path + suffix)
                except FileNotFoundError:
                    pass  # SQLite removed it when the last connection closed


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


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


_opening = threading.Lock()
_live: set[WorkerConnection] = set()
_links: WeakSet[Link] = WeakSet()
_connecting: set[aiosqlite.Connection] = set()


def stop_all(links: Iterable[Link]) -> None:
    """Close connections whose event loops are gone, from a thread without one, the writers last."""
    for link in sorted(links, key=lambda link: link.raw.is_writer):
        link.stop()


def _close_all_at_end() -> None:
    with _opening:
        links = list(_links)
    stop_all(links)
    # What was being opened when its event loop was closed.
    for aio in list(_connecting):
        aio.stop()
    for raw in list(_live):
        raw.close()


def _close_before_fork() -> None:
    _opening.acquire()  # until after the fork: no connection is opened meanwhile
    for raw in list(_live):
        if not raw.in_memory:
            raw.close()


def _go_on_in_parent() -> None:
    _opening.release()


def _start_anew_in_child() -> None:
    global _opening
    _opening = threading.Lock()
    _live.clear()
    _inherited.extend(_links)
    _links.clear()
    _connecting.clear()


_inherited: list[Link] = []
"""Links of the parent's: kept, because the threads that would close them do not exist in the child."""

when_program_ends(_close_all_at_end)
around_fork(before=_close_before_fork, in_parent=_go_on_in_parent, in_child=_start_anew_in_child)
