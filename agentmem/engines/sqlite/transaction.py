"""How a batch runs in a connection's thread: writes in groups, each in one transaction; reads one by one.

Rules kept here:

- A group of writes is one transaction. When it fails, each write is tried in a transaction of its own, so that one that
  cannot succeed fails alone; only a lock held by another process fails all that are left at once.
- Nothing is written to a database that a newer agentmem has upgraded meanwhile, and nothing read from it is returned.
- A write is acknowledged when its transaction is committed and the file is still the one at its path.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, cast

from ...errors import SchemaVersionError, StorageError
from ..batching import Batch, Groups, Job
from .connection import Connection, Origin
from .errors import BUSY, primary_code
from .schema import refuse_newer
from .statements import Append, Read, Write, append_all

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
        if not self._connection.has_unreported():
            self._raw.execute("BEGIN IMMEDIATE")
            return
        ((timeout_ms,),) = self._raw.execute("PRAGMA busy_timeout")
        self._raw.execute("PRAGMA busy_timeout = 0")
        try:
            self._raw.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if primary_code(error) != BUSY:
                raise
            self._connection.report()  # it must not wait for another process's lock
        finally:
            self._raw.execute(f"PRAGMA busy_timeout = {timeout_ms}")
        if not self._raw.in_transaction:
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
    for group in groups:
        if not _is_quick(group):
            connection.report()
        try:
            results = _write(connection, [job.work for job in group], name)
        except Exception as error:
            is_busy = isinstance(error, sqlite3.Error) and primary_code(error) == BUSY
            if is_busy or isinstance(error, SchemaVersionError):
                # Each would meet the same; a lock, after the same wait.
                connection.settle(origin, batch, groups.failed_for_all(group, error))
            elif groups.failed(group, error):
                connection.settle(origin, batch, group)
            continue
        try:
            confirm()
        except Exception as error:
            in_doubt = StorageError(f"{error}; {_IN_DOUBT}", in_doubt=True)
            in_doubt.__cause__ = error
            for job in group:
                job.error = in_doubt
        else:
            groups.succeeded(group, results)
        connection.settle(origin, batch, group)


def run_reads(connection: Connection, origin: Origin, batch: Batch[Read], name: str) -> None:
    """Carry out a batch of reads; each is one statement, so it sees one state of the database.

    Args:
        name: the path of the database, for messages.
    """
    connection.report()  # in memory, writes run on the same connection
    for job in batch.jobs:
        try:
            job.result = job.work.apply(connection.raw)
        except Exception as error:
            job.error = error
    try:
        refuse_newer(connection.raw, name)  # after the reads, which may have met tables of another version
    except Exception as error:
        for job in batch.jobs:
            job.error = error
    connection.settle(origin, batch, batch.jobs)


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
    raw, now = connection.raw, time.time()
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
    return results
