"""One state of an SQLite file, for work that is too long for the pool: in a thread of its own, on its own connection.

Rules kept here:

- Everything is read in one transaction, and nothing is written. Writers go on meanwhile; the WAL grows by what they
  write until the transaction ends.
- No file is made: one that nobody has open is read as a file that cannot change (sqlite.org/uri.html#uriimmutable),
  without locks and without a -wal and -shm, which SQLite would leave behind. If it did change, the work is done again
  like beside writers. (Where somebody has copied a file with its -wal alone, SQLite makes the -shm.)
- The work can be stopped from any thread: it stops when its caller is cancelled and at the program's end, and before a
  fork, after which it begins again (SQLite must not be carried across one, sqlite.org/howtocorrupt.html, section 2.6).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from ...cancellation import despite_cancellation
from ...errors import StorageError
from ...lifecycle import around_fork, register_own_thread, when_program_ends

T = TypeVar("T")

_OPCODES = 10_000
"""Of SQLite's virtual machine, between two looks at whether to stop; about 100 µs."""

_SETTLED_S = 0.02
"""Writes further apart than this differ in a file's time stamp, which on Linux moves every 1 to 10 ms."""


class Halted(Exception):  # noqa: N818  no error of the caller's
    """The work was told to stop, or the file changed under it."""


class _Changed(Halted):
    """The file that nobody had open was written to."""


class Snapshot:
    """One state of a database, as long as ``reading()`` lasts.

    Attributes:
        connection: has a read transaction under way; to be used in one thread, and to read.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.halted = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Begin, and end when the block does; then nothing is left on the connection."""
        self.connection.set_progress_handler(lambda: int(self.halted), _OPCODES)
        self.connection.execute("BEGIN")
        try:
            yield
        finally:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            self.connection.set_progress_handler(None, 0)

    def halt(self) -> None:
        """Have the work stop soon; from any thread."""
        self.halted = True

    def confirm(self) -> None:
        """Raises Halted where the work is to stop; what it has found or copied counts for nothing then."""
        if self.halted:
            raise Halted


class _FileSnapshot(Snapshot):
    def __init__(self, path: str, busy_timeout_s: float, unused: tuple[int, ...] | None) -> None:
        if not os.path.isfile(path):  # SQLite would speak of permissions, or of the disk
            raise StorageError(f"there is no file {path}; check the path")
        self._path = path
        self._unused = unused
        uri = f"{Path(path).as_uri()}?mode=ro{'&immutable=1' if unused else ''}"
        super().__init__(
            sqlite3.connect(uri, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
        )

    def halt(self) -> None:
        super().halt()
        try:
            # Before SQLite 3.41 its integrity check, one long step, does not ask whether to stop.
            self.connection.interrupt()
        except sqlite3.ProgrammingError:
            pass  # closed meanwhile

    def confirm(self) -> None:
        super().confirm()
        if self.has_changed():
            raise Halted

    def has_changed(self) -> bool:
        """Whether the file that nobody had open was written to or replaced since."""
        return self._unused is not None and _state(self._path) != self._unused


def _unused_file(path: str) -> tuple[int, ...] | None:
    """The state of a file that nobody has open, None of one that somebody may have open."""
    state = _state(path)
    if state is None:
        return None  # let SQLite say so
    if abs(time.time_ns() - state[-1]) < _SETTLED_S * 1e9:
        time.sleep(_SETTLED_S)  # else a write right now might not show
        state = _state(path)
    # Who reads makes the -shm, and who died may have left in the -wal what is not in the file yet.
    in_use = os.path.exists(path + "-shm") or os.path.exists(path + "-journal") or _size(path + "-wal")
    return None if in_use else state


def _state(path: str) -> tuple[int, ...] | None:
    """Which file it is, and what differs once it was written to."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


class SnapshotWork(Generic[T]):
    """Runs `function` on one state of a file; ``result()`` starts it.

    Args:
        path: of the file, absolute and without links.
        busy_timeout_s: how long a statement waits for a lock.
        function: raises nothing for being halted: whatever comes out of it then is dropped. It may be run again.
    """

    def __init__(self, path: str, busy_timeout_s: float, function: Callable[[Snapshot], T]) -> None:
        self.outcome: Future[T] = Future()
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._function = function
        self._process = os.getpid()
        self._stopped = False
        self._snapshot: Snapshot | None = None
        self.idle = threading.Event()  # no connection is open
        self.idle.set()

    async def result(self) -> T:
        """Run it, and wait for what it returns. Cancelled, it is stopped first."""
        # No daemon, so that it is not cut off at the program's end, which stops it; see lifecycle.
        thread = threading.Thread(target=self._run, name="agentmem-snapshot", daemon=False)
        register_own_thread(thread)
        _unfinished.add(self)
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends, or the system has no more threads
            _unfinished.discard(self)
            raise
        return await until_done(asyncio.wrap_future(self.outcome), self.stop)

    async def finished(self) -> None:
        """Wait until it is over; at once in a child process that got it by a fork, where it never will be."""
        if self._process == os.getpid():
            outcome = asyncio.wrap_future(self.outcome)
            await asyncio.wait([outcome])
            outcome.exception()  # looked at, so that asyncio does not report it

    def stop(self) -> None:
        """Have it end soon, in vain; from any thread."""
        self._stopped = True
        self.halt()

    def halt(self) -> None:
        """Have its connection closed soon; from any thread. It opens another one when it may."""
        snapshot = self._snapshot  # the thread may be done with it at any time
        if snapshot is not None:
            snapshot.halt()

    def _run(self) -> None:
        try:
            self.outcome.set_result(self._in_the_end())
        except BaseException as error:
            self.outcome.set_exception(error)
        finally:
            _unfinished.discard(self)

    def _in_the_end(self) -> T:
        as_unused = True
        while True:
            try:
                return self._attempt(as_unused)
            except _Changed:
                as_unused = False
            except Halted:
                pass  # a fork came between

    def _attempt(self, as_unused: bool) -> T:
        unused = _unused_file(self._path) if as_unused else None
        with _opening:
            if self._stopped:
                raise StorageError(f"the work on {self._path} was stopped: it was cancelled, or the program ends")
            snapshot = _FileSnapshot(self._path, self._busy_timeout_s, unused)
            self.idle.clear()
            self._snapshot = snapshot
        try:
            with snapshot.reading():
                return self._function(snapshot)
        except Exception as error:
            if snapshot.has_changed():
                raise _Changed from error
            if snapshot.halted:
                raise Halted from error
            raise
        finally:
            self._snapshot = None
            snapshot.connection.close()
            self.idle.set()


async def until_done(outcome: asyncio.Future[T], stop: Callable[[], None]) -> T:
    """Wait for `outcome`. Cancelled, call `stop` until there is one, and raise the cancellation then."""
    try:
        await asyncio.wait([outcome])
    except asyncio.CancelledError:
        await despite_cancellation(_stop(outcome, stop))
        raise
    return outcome.result()


async def _stop(outcome: asyncio.Future[T], stop: Callable[[], None]) -> None:
    stop()
    while not (await asyncio.wait([outcome], timeout=_SETTLED_S))[0]:
        stop()  # what interrupts one statement may come just before the next
    outcome.exception()  # looked at, so that asyncio does not report it


_opening = threading.Lock()  # held over a fork: no connection is opened meanwhile
_unfinished: set[SnapshotWork[Any]] = set()


def _stop_all() -> None:
    for work in list(_unfinished):
        work.stop()


def _halt_before_fork() -> None:
    _opening.acquire()
    for work in list(_unfinished):
        work.halt()
        while not work.idle.wait(_SETTLED_S):
            work.halt()


def _go_on_in_parent() -> None:
    _opening.release()


def _start_anew_in_child() -> None:
    global _opening
    _opening = threading.Lock()
    _unfinished.clear()


when_program_ends(_stop_all)
around_fork(before=_halt_before_fork, in_parent=_go_on_in_parent, in_child=_start_anew_in_child)
