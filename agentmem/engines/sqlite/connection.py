"""One SQLite connection and the thread that uses it.

Rules kept here:

- A whole batch is one message to the connection's thread, and its outcomes are one message back. With a way there and
  back through aiosqlite for each statement, reading the last 20 items took 82 µs where this takes 58: most of it is
  two cores that wake each other, and hand over Python's interpreter lock.
- Batches run one after the other, in the order in which they were sent. Once the connection is closed, none runs any
  more: each goes back to its sender.
- SQLite never crosses a fork: every connection to a file is closed before it.
- Nobody who closes a connection waits for another process's lock: a thread that waits for one lets go of its own
  (:meth:`Connection.rest`).
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakSet

from ...errors import StorageBusyError, StorageError
from ...lifecycle import around_fork, register_own_thread, when_program_ends
from .. import deadlines
from ..batching import Batch, Job
from .checkpoint import WAIT_MS, Checkpoints
from .errors import is_lock
from .file import FileIdentity, opening_lock
from .opening import OpenedByAiosqlite, open_through_aiosqlite
from .waiting import LockWait

T = TypeVar("T")

MEMORY = ":memory:"

COPY_WAL_S = 5.0
"""How long the readers of a moved file are waited for when its last connection closes, in seconds."""

HEARD_S = 0.2
"""How often a new connection looks whether the event loop that is to hear of it was closed, in seconds."""

IN_USE_S = 0.1
"""How long work on a file that was at the same path before may take until that counts as waiting, in seconds."""


class ConnectionLost(Exception):  # noqa: N818  no error of the caller's: the sender opens another connection
    """The connection was closed: before a fork, because its file was replaced, or at the program's end."""


class Origin(Protocol):
    """Where a batch comes from, and where its outcomes go.

    Attributes:
        loop: the event loop on which `take_in`, `returned` and `waits` are called.
    """

    loop: asyncio.AbstractEventLoop

    def run(self, connection: Connection, batch: Batch[Any]) -> None:
        """Carry out the batch, in the connection's thread.

        Gives each of the batch's jobs its outcome, and calls :meth:`Connection.settle` for those that have theirs. What
        it raises is the outcome of the jobs that are left.
        """

    def take_in(self, outcome: Outcome) -> None:
        """Settle the jobs that have their outcome."""

    def returned(self, batch: Batch[Any]) -> None:
        """The batch's jobs were not begun, because the connection was closed before."""

    def waits(self, met: Exception | None) -> None:
        """The thread waits for a lock that another connection holds, for which it met this; None: not any more."""


class SpareWork(Protocol):
    """What a connection does between its batches; see ``removal``."""

    def look(self) -> None:
        """There may be something to do."""

    def is_due(self) -> bool:
        """Whether there is something to do when no batch waits."""

    def is_overdue(self) -> bool:
        """Whether it is to be done now, although batches wait. Called at least once before each of these."""

    def run(self, connection: Connection) -> float:
        """Do a part, in the connection's thread; returns how long to leave the file to others then, in seconds."""


class Outcome:
    """Which jobs of a batch have their outcome.

    Attributes:
        is_last: whether the batch was run to its end.
        error: the outcome of all jobs that are left then; None where none is left.
    """

    __slots__ = ("batch", "error", "is_last", "jobs", "origin")

    def __init__(self, origin: Origin, batch: Batch[Any]) -> None:
        self.origin = origin
        self.batch = batch
        self.jobs: list[Job[Any]] = []
        self.is_last = False
        self.error: BaseException | None = None


class Connection:
    """One open SQLite connection and its thread. Its coroutines can be awaited on any event loop.

    Attributes:
        raw: the connection itself, for functions that run in its thread.
        thread: the thread.
        is_open: whether SQLite has it open; once it was closed it is not opened again.
        is_writer: whether it is the one that writes.
        file: which file it is to; None in memory.
        checkpoints: when it is to copy the WAL into the database; None for one that reads, and in memory.
        removals: what it removes between its batches; None for one that reads.
    """

    raw: sqlite3.Connection

    def __init__(self, path: str) -> None:
        self.is_writer = False
        self.file: FileIdentity | None = None
        self.checkpoints: Checkpoints | None = None
        self.removals: SpareWork | None = None
        self._spare_work_at = 0.0  # as the clock of deadlines has it; never before
        self._path = path
        self._opened: OpenedByAiosqlite | None = None
        self.is_open = False
        self._leaves_wal = self._is_wal_copied = False  # set where its file was moved under it
        self._is_fork_waiting = False
        # Held while a batch runs, and while the connection closes; notified when it is closed.
        self._lock = threading.Condition(threading.Lock())
        self._inbox: SimpleQueue[tuple[Origin, Batch[Any]] | None] = SimpleQueue()
        self._ending = threading.Lock()  # nothing may be sent that the thread would never see
        self._is_told_to_end = self._has_ended = False
        self._is_heard_of = threading.Event()
        self._at_end: list[Callable[[], object]] = []
        self._unreported: list[Outcome] = []
        # A daemon, because the program's end does not wait for it but ends it; see lifecycle.
        self.thread = threading.Thread(target=self._run, name="agentmem-sqlite", daemon=True)

    @classmethod
    async def open(
        cls,
        path: str,
        prepare: Callable[[Connection], None],
        before: Callable[[], None] = lambda: None,
        *,
        deadline: float = 0,
        on_wait: Callable[[Exception | None], None] = lambda met: None,
    ) -> Connection:
        """Connect, and `prepare` the connection in its own thread; closed again where that fails.

        Args:
            prepare: called again where it met a lock.
            before: called in that thread before SQLite opens the file, while no other connection is being opened.
            deadline: until when locks are waited for.
            on_wait: called on the event loop with what was met when a wait begins, and with None when it is over.

        Raises:
            ConnectionLost: a fork came between.
            StorageError: the program is ending, or there are no threads or descriptors left.
            sqlite3.Error: SQLite cannot open it, or another connection held a lock until the deadline.
            Exception: what `before` and `prepare` raise.
        """
        _refuse_at_end(path)
        connection = cls(path)
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[BaseException | None] = loop.create_future()

        def tell(error: BaseException | None) -> bool:
            return _call_on(loop, lambda: None if opened.done() else opened.set_result(error))

        wait = LockWait(connection, lambda met: _call_on(loop, on_wait, met))
        connection._start(partial(connection._open, before, prepare, wait, deadline), tell, loop)
        try:
            error = await opened
        except BaseException:
            connection.end()  # nobody will use it
            raise
        finally:
            connection._is_heard_of.set()
        if error is not None:
            raise error
        return connection

    @property
    def in_memory(self) -> bool:
        """Whether it is to a database in memory, which is gone when it closes."""
        return self._path == MEMORY

    def is_lost(self) -> bool:
        """Whether nothing that is sent now would be run."""
        return not self.is_open or self._is_told_to_end

    def send(self, origin: Origin, batch: Batch[Any]) -> None:
        """Have a batch run after those that were sent before.

        Raises:
            ConnectionLost: the thread has ended or is about to.
        """
        with self._ending:
            if self._is_told_to_end:
                raise ConnectionLost
            self._inbox.put((origin, batch))

    async def call(self, function: Callable[[Connection], T]) -> T:
        """Run `function` in the connection's thread; returns its result.

        Raises:
            ConnectionLost: the connection was closed before; `function` was not run.
        """
        caller = _Caller(function)
        self.send(caller, caller.batch)
        await caller.batch.jobs[0].wake
        (job,) = caller.batch.jobs
        if job.error is not None:
            raise job.error
        return cast(T, job.result)

    async def close(self) -> None:
        """Run what was sent, close the connection and end its thread. Every outcome has been told of before.

        Raises:
            StorageError: see :meth:`disconnect`. The connection is closed all the same.
        """
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        self.end(lambda: _call_on(loop, lambda: None if ended.done() else ended.set_result(None)))
        await ended
        if self._leaves_wal:
            self.disconnect()  # raises what it raised in the thread, or succeeds now

    def stop(self) -> None:
        """The same where no event loop runs."""
        self.end()
        self.thread.join()

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

    def end_soon(self) -> None:
        """The same as :meth:`end` where nobody sends any more, from a finalizer: it takes no lock."""
        self._inbox.put(None)

    def disconnect(self) -> None:
        """Close the connection, from any thread, once the batch under way is done. The thread goes on.

        Raises:
            StorageError: the file was moved, and its WAL is still at the path where it was. Called again, it raises
                again until that WAL is gone.
        """
        with self._lock:
            if self.is_open and self.is_writer and self.file is not None and not self.file.is_at_its_path():
                self._leaves_wal = True
                self._is_wal_copied = self._copy_wal()
            self.is_open = False
            self._lock.notify_all()
            try:
                if self._opened is not None:
                    self._opened.disconnect()
            finally:
                _open.discard(self)  # only now: a fork waits for those that are being closed too
            if self._leaves_wal and self.file is not None:
                _leaving_wal.add(self)  # until it is gone
                self.file.remove_stale_wal(is_copied=self._is_wal_copied)
                self._leaves_wal = False
                _leaving_wal.discard(self)

    def _disconnect_moved(self, wait: LockWait) -> None:
        """The same from the thread that opens another file at the path; what runs here may make that wait."""
        if self._lock.acquire(timeout=IN_USE_S):
            self._lock.release()
        else:
            wait.note(
                StorageBusyError(f"{self._path} was replaced, and what this program does in the old file has not ended")
            )
        try:
            self.disconnect()
        finally:
            wait.end()

    def _copy_wal(self) -> bool:
        """Copy the whole WAL into the database; False where that cannot be done."""
        # SQLite leaves the WAL of a file that was moved at the path where it was: what was acknowledged would be
        # missing where the file is now, and be played into the one that is at the path next. FULL waits for readers,
        # before whom PASSIVE would stop, and holds the lock for writing (see checkpoint). It waits in short steps,
        # because a fork waits for it.
        until = deadlines.now() + COPY_WAL_S
        self.raw.execute(f"PRAGMA busy_timeout = {WAIT_MS}")
        while True:
            try:
                ((_, in_wal, copied),) = self.raw.execute("PRAGMA wal_checkpoint(FULL)")
            except sqlite3.Error as error:
                if not is_lock(error):
                    return False
            else:
                if in_wal == copied:
                    return True
            if self._is_fork_waiting or deadlines.now() >= until:
                return False

    # In the connection's thread

    def rest(self, pause_s: float) -> None:
        """Do nothing for so long, and let whoever must close the connection do so.

        Raises:
            ConnectionLost: it was closed.
        """
        self._lock.wait(pause_s)
        if not self.is_open:
            raise ConnectionLost

    def lock_wait(self, origin: Origin) -> LockWait:
        """For a batch that may meet a lock."""
        return LockWait(self, lambda met: _call_on(origin.loop, origin.waits, met))

    def settle(self, origin: Origin, batch: Batch[Any], jobs: Iterable[Job[Any]]) -> None:
        """Note that these jobs have their outcome; their callers are told with the next :meth:`report`."""
        self._outcome_of(origin, batch).jobs.extend(jobs)

    def has_unreported(self) -> bool:
        """Whether there are outcomes that were not told of yet."""
        return bool(self._unreported)

    def report(self) -> None:
        """Tell of the outcomes that there are."""
        unreported, self._unreported = self._unreported, []
        for outcome in unreported:
            _call_on(outcome.origin.loop, outcome.origin.take_in, outcome)

    def _outcome_of(self, origin: Origin, batch: Batch[Any]) -> Outcome:
        if not self._unreported or self._unreported[-1].batch is not batch:
            self._unreported.append(Outcome(origin, batch))
        return self._unreported[-1]

    def _start(
        self,
        connect: Callable[[], None],
        tell: Callable[[BaseException | None], bool],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._connect, self._tell, self._loop = connect, tell, loop
        try:
            register_own_thread(self.thread)
            self.thread.start()
        except RuntimeError as error:  # Python's word for a system without threads left, and for the interpreter's end
            raise StorageError(f"cannot open {self._path}: {error}") from error

    def _run(self) -> None:
        try:
            self._connect()
        except BaseException as error:  # raised where the connection was to be opened
            self._end_with(error)
            return
        if not self._tell(None) or not self._is_loop_hearing():
            self.end()  # whoever opened it is gone with the event loop
        try:
            try:
                self._run_batches()
            finally:
                self.report()
                self._disconnect_at_end()
        except BaseException:
            # Nobody awaits this thread: told as of any thread.
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self.thread)))
        self._end_all()

    def _is_loop_hearing(self) -> bool:
        # A loop may be closed after it was told and before it has heard.
        while not self._is_heard_of.wait(HEARD_S):
            if self._loop.is_closed() or self._is_told_to_end:
                return False
        return True

    def _open(
        self, before: Callable[[], None], prepare: Callable[[Connection], None], wait: LockWait, deadline: float
    ) -> None:
        with _opening_without_moved(self._path, wait):  # a fork waits until aiosqlite is done
            _refuse_at_end(self._path)
            before()
            self._opened = self.raw = open_through_aiosqlite(self._path)
            self.is_open = True
            _open.add(self)
            _connections.add(self)
        with self._lock:
            if not self.is_open:
                raise ConnectionLost
            self._prepare(prepare, wait, deadline)

    def _prepare(self, prepare: Callable[[Connection], None], wait: LockWait, deadline: float) -> None:
        try:
            while True:
                try:
                    return prepare(self)
                except sqlite3.Error as error:
                    if not is_lock(error) or deadlines.now() >= deadline:
                        raise
                    wait.pause(error, deadline)
        finally:
            wait.end()

    def _disconnect_at_end(self) -> None:
        try:
            self.disconnect()
        except StorageError:
            pass  # close() raises it again

    def _end_with(self, error: BaseException) -> None:
        try:
            self.disconnect()
        except Exception as another:
            error.add_note(f"and closing the connection failed: {another!r}")
        self._end_all()
        self._tell(error)

    def _end_all(self) -> None:
        with self._ending:
            self._is_told_to_end = self._has_ended = True
        while not self._inbox.empty():
            if (message := self._inbox.get()) is not None:
                self._return(*message)
        for callback in self._at_end:
            callback()

    def _run_batches(self) -> None:
        while (message := self._next_message()) is not None:
            self._run_batch(*message)
            del message  # else it would keep what it read until the next one comes
            self._report_and_checkpoint()

    def _report_and_checkpoint(self) -> None:
        is_checkpoint_due = self.checkpoints is not None and self.checkpoints.is_due()
        if is_checkpoint_due or self._inbox.empty():
            self.report()
        if is_checkpoint_due:
            self._checkpoint()

    def _next_message(self) -> tuple[Origin, Batch[Any]] | None:
        """The next message; until it comes, there is time for spare work."""
        while self.removals is not None and self.removals.is_due() and self.is_open:
            if not self._inbox.empty() and not self.removals.is_overdue():
                break
            pause_s = self._spare_work_at - deadlines.now()
            if pause_s <= 0:
                self._do_spare_work(self.removals)
                continue
            try:
                return self._inbox.get(timeout=pause_s)
            except Empty:
                pass
        return self._inbox.get()

    def _do_spare_work(self, work: SpareWork) -> None:
        self.report()  # nobody waits for it
        with self._lock:
            pause_s = work.run(self) if self.is_open else 0.0
        self._spare_work_at = deadlines.now() + pause_s
        self._report_and_checkpoint()

    def _run_batch(self, origin: Origin, batch: Batch[Any]) -> None:
        with self._lock:
            if not self.is_open:
                self._return(origin, batch)
                return
            error = None
            try:
                origin.run(self, batch)
            except ConnectionLost:
                self._return(origin, batch)
                return
            except BaseException as raised:  # raised again where the calls are awaited
                error = raised
        last = self._outcome_of(origin, batch)
        last.is_last, last.error = True, error

    def _return(self, origin: Origin, batch: Batch[Any]) -> None:
        self.report()  # those before it come first
        _call_on(origin.loop, origin.returned, batch)

    def _checkpoint(self) -> None:
        with self._lock:
            if self.is_open and self.checkpoints is not None:
                self.checkpoints.run(self.raw)


class _Caller:
    """One function's way to a connection's thread and back; see :meth:`Connection.call`."""

    def __init__(self, function: Callable[[Connection], Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self.batch: Batch[Callable[[Connection], Any]] = Batch(0, 0, [Job(function, self.loop.create_future())])

    def run(self, connection: Connection, batch: Batch[Any]) -> None:
        connection.report()  # the function may take long
        (job,) = batch.jobs
        job.result = job.work(connection)

    def take_in(self, outcome: Outcome) -> None:
        self._end(outcome.error)

    def returned(self, batch: Batch[Any]) -> None:
        self._end(ConnectionLost())

    def waits(self, met: Exception | None) -> None:
        """A function meets no lock that it does not wait for itself."""

    def _end(self, error: BaseException | None) -> None:
        (job,) = self.batch.jobs
        job.error = error
        if not job.wake.done():
            job.wake.set_result(None)


def _call_on(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> bool:
    """Call back on an event loop, from a connection's thread; False where that loop is closed."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise
        return False  # whoever waited there is gone
    return True


_has_program_ended = False
_open: set[Connection] = set()
"""Those to a file that SQLite has open, which must be closed before a fork, and those in memory."""

_leaving_wal: set[Connection] = set()
"""Closed ones whose file was moved, and whose WAL is still at the path where the file was."""

_connections: WeakSet[Connection] = WeakSet()
_inherited: list[Connection] = []
"""Connections of the parent's: kept, because the threads that would close them do not exist in the child."""


def open_connections() -> list[Connection]:
    """Every connection that this process has open now."""
    return list(_open)


def stop_all(connections: Iterable[Connection]) -> None:
    """Close connections whose event loops are gone, from a thread without one, the writers last."""
    for connection in sorted(connections, key=lambda connection: connection.is_writer):
        connection.stop()
        try:
            connection.disconnect()
        except StorageError:  # nobody awaits it: told as of any thread
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


def _refuse_at_end(path: str) -> None:
    """Open no connection when the program has ended: nobody would close it."""
    if _has_program_ended:
        raise StorageError(
            f"{path}: the connection was closed because the program is ending; an atexit handler comes too late"
        )


@contextmanager
def _opening_without_moved(path: str, wait: LockWait) -> Iterator[None]:
    """Hold ``opening_lock`` while no connection to a file is open that was at this path before.

    SQLite must not have two files open under one path: both would use the same -wal and -shm. No lease sees those of a
    pool that is just opening or closing.

    Raises:
        StorageError: the WAL of such a file is still at the path; see :meth:`Connection.disconnect`.
    """
    while True:
        # Without the lock: what they run may take long, and no fork and no other file waits for it then.
        for connection in _moved(path):
            connection._disconnect_moved(wait)
        with opening_lock:
            if not _moved(path):
                yield
                return


def _moved(path: str) -> list[Connection]:
    """The connections to a file that was at this path, the writers last, so that no reader checkpoints."""
    moved = {
        connection
        for connection in [*_open, *_leaving_wal]
        if connection._path == path and connection.file is not None and not connection.file.is_at_its_path()
    }
    return sorted(moved, key=lambda connection: connection.is_writer)


def _close_all_at_end() -> None:
    global _has_program_ended
    with opening_lock:
        _has_program_ended = True
        connections = list(_connections)
    stop_all(connections)


def _close_before_fork() -> None:
    opening_lock.acquire()  # until after the fork: no connection is opened meanwhile
    # The writers last, so that no reader checkpoints.
    for connection in sorted(_open, key=lambda connection: connection.is_writer):
        if not connection.in_memory:
            connection._is_fork_waiting = True
            try:
                connection.disconnect()
            except StorageError:
                pass  # what is wrong with the file meets the next call, too; the others must not cross the fork


def _go_on_in_parent() -> None:
    opening_lock.release()


def _start_anew_in_child() -> None:
    global _has_program_ended
    opening_lock.release()  # by the thread that forked, which took it
    _has_program_ended = False
    _inherited.extend(_connections)
    for connection in _leaving_wal:
        connection._lock = threading.Condition(threading.Lock())  # another thread of the parent's may have held it
    _open.clear()
    _connections.clear()


when_program_ends(_close_all_at_end)
around_fork(before=_close_before_fork, in_parent=_go_on_in_parent, in_child=_start_anew_in_child)
