"""Long reads of one state of a database, each on its own connection, outside the pool.

A file is read in a thread of the work's own. A database in memory is copied first, and the copy is read.

Rules kept here:

- Everything is read in one transaction, and nothing is written. Writers go on meanwhile; the WAL grows by what they
  write until the transaction ends.
- No file is created. A database that no connection has open is read as immutable (sqlite.org/uri.html#uriimmutable):
  without locks, and without a -wal and -shm, which SQLite would leave behind. If the file changed meanwhile, the work
  is done again with locks. One exception: if a file was copied with its -wal but without its -shm, SQLite creates the
  -shm.
- The work can be stopped from any thread. It stops when its caller is cancelled and when the program ends. It also
  stops before a fork and starts again after it, because an SQLite connection must not be carried across a fork
  (sqlite.org/howtocorrupt.html, section 2.6).
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

from ...calling_thread import call_back
from ...cancellation import UncancellableTask, despite_cancellation
from ...errors import StorageError
from ...event_loop import running_loop
from ...lifecycle import around_fork, register_own_thread, when_program_ends
from .. import deadlines
from ..callbacks import CallbackFailed
from .errors import is_lock
from .file import warn_of_other_names
from .lineage import refuse_foreign_wal

T = TypeVar("T")

STOP_CHECK_OPCODES = 10_000
"""How many instructions SQLite's virtual machine runs between two checks whether to stop; about 100 µs."""

_TIMESTAMP_STEP_S = 0.02
"""Two writes further apart than this, in seconds, give a file different time stamps. Linux's clock for them moves every
1 to 10 ms."""

_LOCK_INTERVAL_S = 0.01
"""How long to wait before a lock that others hold is tried again, in seconds. SQLite's own wait does not end for a
fork."""

_HALT_INTERVAL_S = 0.02
"""How long to wait for work to stop before it is told again, in seconds."""


class Halted(Exception):  # noqa: N818  never reaches the caller
    """The work was told to stop, or the file changed while it was read as immutable."""


class _FileChanged(Halted):
    """The file changed while it was read as immutable."""


class Snapshot:
    """One state of a database, during ``reading()``.

    Attributes:
        connection: has a read transaction open. Use it in one thread, and to read only.
        halted: whether the work was told to stop.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.halted = False

    @contextmanager
    def reading(self, deadline: float = 0) -> Iterator[None]:
        """Hold a read transaction open during the block. Afterwards the connection is as it was before.

        Args:
            deadline: until when others may hold a lock that keeps the transaction from its beginning.

        Raises:
            Halted: the work was told to stop.
            sqlite3.Error: others held a lock until then.
        """
        self.connection.set_progress_handler(lambda: int(self.halted), STOP_CHECK_OPCODES)
        self.connection.execute("BEGIN")
        try:
            self._take_lock(deadline)
            yield
        finally:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            self.connection.set_progress_handler(None, 0)

    def _take_lock(self, deadline: float) -> None:
        while True:
            try:
                self.connection.execute("PRAGMA schema_version").fetchone()
            except sqlite3.Error as error:
                if not is_lock(error):
                    return  # what is wrong with the file meets the work, too
                if deadlines.now() >= deadline:
                    raise
            else:
                return
            self.rest()

    def rest(self) -> None:
        """Do nothing for a moment; raises Halted where the work was told to stop."""
        self.require_valid()
        time.sleep(_LOCK_INTERVAL_S)

    def halt(self) -> None:
        """Make the work stop soon. Can be called from any thread."""
        self.halted = True

    def require_valid(self) -> None:
        """Check that what was read or copied so far may be used.

        Raises:
            Halted: the work was told to stop, or the file changed while it was read as immutable.
        """
        if self.halted:
            raise Halted

    def has_changed(self) -> bool:
        """Return whether what was read may be of no state at all, because nothing kept it from changing."""
        return False

    async def run_off_loop(self, function: Callable[[Snapshot], T]) -> T:
        """Run `function` on this state, where callbacks run. If the caller is cancelled, it stops before."""

        def run() -> T:
            with self.reading():
                return function(self)

        task = UncancellableTask(call_back(run), loop=asyncio.get_running_loop())
        return await until_done(task, self.halt)


def copied(memory: sqlite3.Connection) -> Snapshot:
    """A copy of a database in memory, for any thread; its connection must be closed."""
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    memory.backup(copy)
    return Snapshot(copy)


class _FileSnapshot(Snapshot):
    """A snapshot on a new connection to a file.

    Args:
        path: the absolute path of the file.
        immutable_stat: opens the file as immutable, and is what :func:`_stat` returned for it before; None opens it
            with locks.

    Raises:
        StorageError: there is no file at `path`.
        StorageCorruptError: the WAL beside it is another file's.
    """

    def __init__(self, path: str, immutable_stat: tuple[int, ...] | None) -> None:
        if not os.path.isfile(path):  # SQLite's own message would name permissions or the disk
            raise StorageError(f"there is no file {path}; check the path")
        warn_of_other_names(path)
        try:
            refuse_foreign_wal(path, busy_timeout_s=0)  # a fork may be waiting for this thread
        except sqlite3.OperationalError:
            pass  # the file is locked at the moment: what is read of it waits by itself, and nothing is written
        self._path = path
        self._immutable_stat = immutable_stat
        uri = f"{Path(path).as_uri()}?mode=ro{'&immutable=1' if immutable_stat else ''}"
        super().__init__(sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False))

    def halt(self) -> None:
        super().halt()
        try:
            # Before SQLite 3.41 the integrity check, one long step, does not call the progress handler.
            self.connection.interrupt()
        except sqlite3.ProgrammingError:
            pass  # the connection was closed meanwhile

    def require_valid(self) -> None:
        super().require_valid()
        if self.has_changed():
            raise Halted

    def has_changed(self) -> bool:
        """Return whether the file was written to or replaced since it was opened as immutable."""
        return self._immutable_stat is not None and _stat(self._path) != self._immutable_stat


def _stat_if_not_open(path: str) -> tuple[int, ...] | None:
    """Return :func:`_stat` of a file that no connection has open; None if one may have it open, or it is missing."""
    found = _stat(path)
    if found is None:
        return None  # opening it gives the error
    if abs(time.time_ns() - found[-1]) < _TIMESTAMP_STEP_S * 1e9:
        time.sleep(_TIMESTAMP_STEP_S)  # a later write must get another time stamp
        found = _stat(path)
    # An open connection has a -shm. A process that crashed may have left commits in the -wal or a -journal to undo.
    in_use = os.path.exists(path + "-shm") or os.path.exists(path + "-journal") or _size_bytes(path + "-wal")
    return None if in_use else found


def _stat(path: str) -> tuple[int, ...] | None:
    """Return what identifies a file, and changes when it is written to; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _size_bytes(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


class SnapshotWork(Generic[T]):
    """Runs `function` on one state of a file, in a thread of its own; :meth:`result` starts it.

    Args:
        path: the absolute path of the file, without symbolic links.
        deadline: until when locks are waited for.
        function: takes the snapshot. It may run several times: after a halt or a change of the file, what it raised is
            dropped.
        open_snapshot: opens the file at a path; by default as it is read while others write to it.

    Attributes:
        outcome: the outcome of `function`.
        idle: set while no connection is open.
    """

    def __init__(
        self,
        path: str,
        deadline: float,
        function: Callable[[Snapshot], T],
        open_snapshot: Callable[[str], Snapshot] | None = None,
    ) -> None:
        self.outcome: Future[T] = Future()
        self._path = path
        self._deadline = deadline
        self._function = function
        self._open_snapshot = open_snapshot
        self._process = os.getpid()
        self._stopped = False
        self._snapshot: Snapshot | None = None
        self.idle = threading.Event()
        self.idle.set()

    async def result(self) -> T:
        """Run the work, and return its result. If the caller is cancelled, the work stops before that is raised.

        Raises:
            StorageError: there is no file, or the work was stopped.
            sqlite3.Error: SQLite cannot open or read the file.
            Exception: what `function` raises.
        """
        loop = running_loop()  # before the thread starts, which nobody would wait for without one
        # Not a daemon: the program's end stops it and waits for it, see ``agentmem.lifecycle``.
        thread = threading.Thread(target=self._run, name="agentmem-snapshot", daemon=False)
        register_own_thread(thread)
        _unfinished.add(self)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending, or the system gives no more threads
            _unfinished.discard(self)
            raise
        return await until_done(asyncio.wrap_future(self.outcome, loop=loop), self.stop)

    async def finished(self) -> None:
        """Wait until the work is done. In a forked child process it never would be, so this returns at once."""
        if self._process == os.getpid():
            outcome = asyncio.wrap_future(self.outcome)
            await asyncio.wait([outcome])
            outcome.exception()  # retrieved, so that asyncio does not log it

    def stop(self) -> None:
        """Make the work end soon, with an error. Can be called from any thread."""
        self._stopped = True
        self.halt()

    def halt(self) -> None:
        """Make the work close its connection soon, and start again when it may. Can be called from any thread."""
        snapshot = self._snapshot  # read once: the thread may set it to None at any time
        if snapshot is not None:
            snapshot.halt()

    def _run(self) -> None:
        try:
            self.outcome.set_result(self._run_until_valid())
        except BaseException as error:
            self.outcome.set_exception(error)
        finally:
            _unfinished.discard(self)

    def _run_until_valid(self) -> T:
        may_be_immutable = True
        while True:
            try:
                return self._attempt(may_be_immutable)
            except _FileChanged:
                may_be_immutable = False
            except Halted:
                pass  # for a fork: the next attempt waits for it. If the work was stopped, the next attempt raises.

    def _attempt(self, may_be_immutable: bool) -> T:
        may_be_immutable = may_be_immutable and self._open_snapshot is None
        immutable_stat = _stat_if_not_open(self._path) if may_be_immutable else None
        with _opening:
            if self._stopped:
                raise StorageError(f"the work on {self._path} was stopped: it was cancelled, or the program ends")
            snapshot: Snapshot
            if self._open_snapshot is None:
                snapshot = _FileSnapshot(self._path, immutable_stat)
            else:
                snapshot = self._open_snapshot(self._path)
            self.idle.clear()
            self._snapshot = snapshot
        try:
            with snapshot.reading(self._deadline):
                return self._function(snapshot)
        except CallbackFailed:
            raise  # the caller's own error, whatever the file is like by now
        except Exception as error:
            if snapshot.has_changed():
                raise _FileChanged from error
            if snapshot.halted:
                raise Halted from error
            raise
        finally:
            self._snapshot = None
            snapshot.connection.close()
            self.idle.set()


async def until_done(outcome: asyncio.Future[T], stop: Callable[[], None]) -> T:
    """Wait for `outcome` and return its result.

    If the caller is cancelled, call `stop` until `outcome` is done, and then raise the cancellation.
    """
    try:
        await asyncio.wait([outcome])
    except asyncio.CancelledError:
        await despite_cancellation(_stop(outcome, stop))
        raise
    return outcome.result()


async def _stop(outcome: asyncio.Future[T], stop: Callable[[], None]) -> None:
    stop()
    while not (await asyncio.wait([outcome], timeout=_HALT_INTERVAL_S))[0]:
        stop()  # again, because an interrupt that comes between two statements has no effect
    outcome.exception()  # retrieved, so that asyncio does not log it


_opening = threading.Lock()  # held while a connection is opened, and across a fork
_unfinished: set[SnapshotWork[Any]] = set()


def _stop_all() -> None:
    for work in list(_unfinished):
        work.stop()


def _halt_before_fork() -> None:
    _opening.acquire()
    for work in list(_unfinished):
        work.halt()
        while not work.idle.wait(_HALT_INTERVAL_S):
            work.halt()


def _resume_in_parent() -> None:
    _opening.release()


def _reset_in_child() -> None:
    global _opening
    _opening = threading.Lock()
    _unfinished.clear()


when_program_ends(_stop_all)
around_fork(before=_halt_before_fork, in_parent=_resume_in_parent, in_child=_reset_in_child)
