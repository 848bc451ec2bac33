"""How a batch runs in a connection's thread: writes in groups, each in one transaction; reads one by one.

Rules kept here:

- A group of writes is one transaction. When it fails, each write is tried in a transaction of its own, so that one that
  cannot succeed fails alone.
- Where another connection holds the lock, everything that is left waits for it, each call until its own deadline.
- Nothing is written to a database that a newer agentmem has upgraded meanwhile, and nothing read from it is returned.
- A write is acknowledged when its transaction is committed and the file is still the one at its path.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import Any, cast

from ...errors import SchemaVersionError, StorageError
from .. import deadlines
from ..batching import Batch, Job, give_errors
from ..groups import Groups
from .connection import Connection, ConnectionLost, Origin
from .errors import is_lock
from .schema import refuse_newer
from .statements import Append, Read, Write, append_all
from .waiting import LockWait

GROUP_BYTES = 4 * 1024 * 1024
"""The largest size of a group of several writes, which bounds how long the first of a group waits for the last."""

QUICK_GROUP_BYTES = 128 * 1024
"""The largest size of a group for which the news of the commit before it may wait: some milliseconds at most."""

ROW_BYTES = 64
"""What a row counts beside its text: inserting one of some bytes takes as long as copying some hundred."""


_IN_DOUBT = "this write was committed to what was open: look whether it is stored before you write it again"


class Transaction:
    """``BEGIN IMMEDIATE``, then ``COMMIT``, or ``ROLLBACK`` when something is raised.

    The outcomes of what ran before are reported just before this one's commit, so that the event loop answers their
    callers while this thread waits for the disk; else each would wait for the other. 256 sessions that added at
    once made 40,000 adds a second by that instead of 32,000.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._raw = connection.raw

    def __enter__(self) -> None:
        try:
            self._begin()
        except BaseException:
            self._roll_back()
            raise

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            if kind is None:
                self._connection.report()
                self._raw.execute("COMMIT")
        finally:
            self._roll_back()  # not after a commit, nor where SQLite has rolled back by itself

    def _roll_back(self) -> None:
        if self._raw.in_transaction:
            self._raw.execute("ROLLBACK")

    def _begin(self) -> None:
        self._roll_back()  # what could not be rolled back before
        self._raw.execute("BEGIN IMMEDIATE")


def run_writes(
    connection: Connection, origin: Origin, batch: Batch[Write], name: str, confirm: Callable[[], None]
) -> None:
    """Carry out a batch of writes.

    Args:
        name: the path of the database, for messages.
        confirm: raises after a commit where what was committed must not be acknowledged, because the file is not the
            one at its path any more. The writes are in doubt then.
    """
    groups = Groups(batch.jobs, _kind_of, size_of=size_bytes, max_size=GROUP_BYTES)
    wait = connection.lock_wait(origin)
    try:
        for group in groups:
            if not _is_quick(group):
                connection.report()
            try:
                results = _write(connection, [job.work for job in group], name)
            except Exception as error:
                if is_lock(error):
                    connection.settle(origin, batch, groups.fail_late(group, error, deadlines.now()))
                    _pause(connection, wait, error, groups.left())
                elif isinstance(error, SchemaVersionError):  # each would meet the same
                    connection.settle(origin, batch, groups.fail_late(group, error, math.inf))
                elif groups.failed(group, error):
                    connection.settle(origin, batch, group)
                continue
            wait.end()
            try:
                confirm()
            except Exception as error:
                in_doubt = StorageError(f"{error}; {_IN_DOUBT}", in_doubt=True)
                in_doubt.__cause__ = error
                give_errors(group, in_doubt)
            else:
                groups.succeeded(group, results)
            connection.settle(origin, batch, group)
    except ConnectionLost:
        batch.jobs = groups.left()
        raise
    finally:
        wait.end()


def run_reads(connection: Connection, origin: Origin, batch: Batch[Read], name: str) -> None:
    """Carry out a batch of reads; each is one statement, so it sees one state of the database.

    Args:
        name: the path of the database, for messages.
    """
    connection.report()  # in memory, writes run on the same connection
    left = deque(batch.jobs)
    wait = connection.lock_wait(origin)
    try:
        while left:
            met = _read_all(connection, origin, batch, left, name)
            if met is not None:
                late = [job for job in left if job.deadline <= deadlines.now()]
                give_errors(late, met)
                connection.settle(origin, batch, late)
                left = deque(job for job in left if job.error is None)
                _pause(connection, wait, met, left)
    except ConnectionLost:
        batch.jobs = list(left)
        raise
    finally:
        wait.end()


def _read_all(
    connection: Connection, origin: Origin, batch: Batch[Read], left: deque[Job[Read]], name: str
) -> Exception | None:
    """Do the reads that are left, until one meets a lock, which is returned."""
    done: list[Job[Read]] = []
    met: Exception | None = None
    while left and met is None:
        job = left[0]
        try:
            job.result = job.work.apply(connection.raw)
        except Exception as error:
            if is_lock(error):
                met = error
                continue
            job.error = error
        done.append(left.popleft())
    try:
        refuse_newer(connection.raw, name)  # after the reads, which may have met tables of another version
    except Exception as error:
        if is_lock(error):
            left.extendleft(reversed(done))
            return error
        give_errors(done, error)
    connection.settle(origin, batch, done)
    return met


def _pause(connection: Connection, wait: LockWait, met: Exception, jobs: Collection[Job[Any]]) -> None:
    if jobs:
        connection.report()  # what is done must not wait for another process's lock
        wait.pause(met, until=min(job.deadline for job in jobs))


def size_bytes(write: Write) -> int:
    """About how much work a write is, in bytes to insert."""
    if not isinstance(write, Append):
        return ROW_BYTES
    return sum(map(len, write.rows)) + ROW_BYTES * len(write.rows)


def _kind_of(write: Write) -> object:
    return None if write.is_alone else True


def _is_quick(group: Sequence[Job[Any]]) -> bool:
    """Whether the callers of what was committed before may wait for this group."""
    return (
        all(isinstance(job.work, Append) for job in group)
        and sum(size_bytes(job.work) for job in group) <= QUICK_GROUP_BYTES
    )


def _write(connection: Connection, writes: Sequence[Write], name: str) -> list[object]:
    """Do these writes in one transaction."""
    raw, now = connection.raw, time.time_ns() // 1000
    results: list[object] = []
    with Transaction(connection):
        refuse_newer(raw, name)
        if connection.checkpoints is not None:
            connection.checkpoints.begin(raw)
        for are_appends, run in groupby(writes, lambda write: isinstance(write, Append)):
            if are_appends:
                appends = cast("list[Append]", list(run))
                append_all(raw, appends, now)
                results += [None] * len(appends)
            else:
                results += [write.apply(raw, now) for write in run]
        # Before the commit: nothing may be raised after it, or the writes would be tried again.
        if connection.checkpoints is not None:
            appended = (row for write in writes if isinstance(write, Append) for row in write.rows)
            connection.checkpoints.wrote(len({write.session_id for write in writes}), sum(map(len, appended)))
    if connection.removals is not None and any(write.removes_sessions for write in writes):
        connection.removals.look()
    return results
