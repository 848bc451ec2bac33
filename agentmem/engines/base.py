"""What a database must do to hold sessions: the one interface that every engine implements.

An engine sees encoded rows and never looks into an item. The rules that all of them keep, and that
``agentmem.conformance`` checks:

- Positions are issued inside the write transaction, from 0, without gaps; a read sees one state.
- A write is durable when its call returns, all or nothing. One that is cancelled before it began is not
  written; one that has begun finishes, and the cancellation is raised once its outcome is known.
- A read sees every write whose call has returned in this process, and does not wait for those under way.
- Only errors of ``agentmem.errors`` come out, never a driver's.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar

from ..checking import CheckReport, Progress

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MAX_SESSION_ID_BYTES = 1024
"""Longest session id in UTF-8; what every database can index (PostgreSQL's limit is about 2,700)."""


class Reading(Protocol[T_co]):
    """Says, slice by slice, how much of a session a read takes; see ``agentmem.reading``.

    Attributes:
        first: rows wanted to begin with; 0 for none.
        oldest: position of the oldest row taken, None where there is none.
        is_short: whether an engine may try :meth:`feed_joined` first, on the event loop.
    """

    first: int
    oldest: int | None
    is_short: bool = False

    @abstractmethod
    def feed(self, rows: Sequence[tuple[int, bytes]], *, at_start: bool) -> int:
        """Take rows, newest first; returns how many more are wanted, 0 when done."""

    @abstractmethod
    def restart(self) -> None:
        """Forget what was taken: the connection was lost, and the rows are fed again, from the newest on."""

    @abstractmethod
    def result(self) -> T_co:
        """What was read."""

    def feed_joined(self, joined: bytes, count: int, oldest: int) -> bool:
        """Take the `first` newest rows (fewer: all that there are) as one text; returns whether that is enough.

        Where it is not, what was taken is forgotten: the rows are to be fed one by one, from the newest on.

        Args:
            joined: the rows' texts, newest first, with commas between them.
            count: how many there are.
            oldest: the oldest one's position.
        """
        return False


class Engine(ABC):
    """One database, as one handle or store uses it. Making one does no I/O and opens nothing.

    Any number of tasks may call it at the same time, on any event loop. Every method but :meth:`close` raises

    - :class:`~agentmem.errors.SessionClosedError` after :meth:`close`;
    - :class:`~agentmem.errors.StorageBusyError` where a lock was held, or the server did not answer, for longer than
      ``busy_timeout_s``;
    - :class:`~agentmem.errors.StorageCorruptError` where the database is damaged, or is not one;
    - :class:`~agentmem.errors.SchemaVersionError` where a newer agentmem wrote it;
    - :class:`~agentmem.errors.StorageError` for whatever else the database could not do.

    What a method raises beside these stands with it.
    """

    name: str
    """The database as messages name it: a path, or a URL without its password."""

    key: Hashable
    """Equal for two engines on the same database, in this process."""

    @abstractmethod
    async def open(self) -> None:
        """Connect, and create or upgrade the schema. The other methods do that by themselves.

        An engine that could not be opened holds nothing open, and its next call tries again.
        """

    @abstractmethod
    async def append(self, session_id: str, rows: Sequence[str]) -> None:
        """Append encoded items, oldest first: all of them or none. The first append creates the session.

        Appends of one event loop to one session are stored in the order in which they were called, whatever happens
        to connections meanwhile. No rows write nothing and create nothing.

        Raises:
            StorageFullError: there is no room; nothing was written.
        """

    @abstractmethod
    async def read(self, session_id: str, reading: Reading[T]) -> T:
        """Feed the session's rows to `reading`, newest first and all from one state; returns its result.

        Feeding happens off the event loop, except for ``feed_joined`` of a reading that ``is_short`` where the rows are
        few bytes. A session that does not exist has no rows.

        Raises:
            Exception: what `reading` raises, as it is.
        """

    @abstractmethod
    async def sessions(self, after: str | None, limit: int) -> list[tuple[str, int]]:
        """The next sessions in the order of the bytes of their ids in UTF-8, each with its length.

        A session that pops have emptied is there, with length 0; one that was cleared is not. Each call sees one state:
        a session that is added or cleared between two calls is seen, or not, by where its id stands.

        Args:
            after: an id, which need not exist; None: from the first session on, which creates nothing.
            limit: the largest number of sessions, 1 or more. Fewer are returned only at the end.

        Returns:
            ``(session_id, length)`` each. Bytes of an id that are not UTF-8, as only damage makes them, are lone
            surrogates (``surrogateescape``), and may come back as `after`.

        Raises:
            StorageError: `after` is None and there is no database of agentmem's.
        """

    @abstractmethod
    async def rows(self, session_id: str, start: int, limit: int) -> list[tuple[int, bytes]]:
        """The session's rows from position `start` on, oldest first, as they are stored; all from one state.

        Args:
            start: the lowest position wanted, 0 or more.
            limit: the largest number of rows, 1 or more. Fewer may be returned where the rows are long (an engine may
                stop at some hundred kB), but none only where there is none.

        Returns:
            ``(position, text)`` each: the text's bytes in UTF-8, corrupt or not. Nothing for a session that does not
            exist.
        """

    @abstractmethod
    async def pop(self, session_id: str, reading: Reading[T]) -> T:
        """As :meth:`read`, but inside a write, which then removes every row from ``reading.oldest`` on.

        Where ``reading.oldest`` is None, no row is removed. The positions that were removed are issued again.

        Raises:
            StorageFullError: there is no room; nothing was removed.
            Exception: what `reading` raises, as it is; nothing was removed.
        """

    @abstractmethod
    async def clear(self, session_id: str) -> None:
        """Remove the session with everything that is stored for it; the next append starts at position 0.

        Raises:
            StorageFullError: there is no room; nothing was removed.
        """

    @abstractmethod
    async def check(self, progress: Progress | None = None) -> CheckReport:
        """What is wrong with the database, in one state of it. Writes nothing, creates nothing, holds up no call.

        Args:
            progress: told from time to time how far it is, in another thread than the event loop's.

        Raises:
            StorageError: there is no database of agentmem's, or the work was stopped because the program ends.
            Exception: what `progress` raises, as it is.
        """

    @abstractmethod
    async def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy one state of the database, with everything that was acknowledged, to a new file; holds up no call.

        Raises:
            ValueError: `path` names no file.
            StorageError: there is something at `path` already, or this engine makes no backups; the message names what
                does. Nothing is left at `path`.
            StorageFullError: there is no room for the copy. Nothing is left at `path`.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of the database once the calls under way are done. Idempotent.

        It closes also where it is cancelled; the cancellation is raised then.
        """


def check_busy_timeout(busy_timeout_s: object) -> None:
    """Refuse a `busy_timeout_s` that is no number of seconds; every engine has this option."""
    if isinstance(busy_timeout_s, bool) or not isinstance(busy_timeout_s, (int, float)):
        raise TypeError(f"busy_timeout_s is a number of seconds, got {busy_timeout_s!r}")
    if not 0 <= busy_timeout_s < float("inf"):
        raise ValueError(f"busy_timeout_s is a number of seconds, 0 or more, got {busy_timeout_s!r}")
