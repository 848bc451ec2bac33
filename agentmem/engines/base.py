"""The interface that every engine implements: what a database must do to store sessions.

An engine stores encoded rows and never looks into an item. Every engine keeps these rules, which
``agentmem.conformance`` checks:

- Positions are issued inside the write transaction, from 0, without gaps. A read sees one state.
- A write is atomic, and durable when its call returns. If the call is cancelled before the write has begun, nothing is
  written. Once it has begun, the write finishes, and the cancellation is raised when its outcome is known.
- A read sees every write whose call has returned in this process. It does not wait for writes that are under way.
- A driver's exception never reaches the caller; it is mapped to an error of ``agentmem.errors``.
- A row whose text is empty held an item that was erased (``agentmem.items.ERASED``). It keeps its position, and counts
  in the session's length.
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
"""The largest size of a session id in UTF-8. Every database can index it; PostgreSQL's limit is about 2,700."""


class Reading(Protocol[T_co]):
    """Takes a session's rows slice by slice, and says how many more it wants; see ``agentmem.reading``.

    Attributes:
        first: how many rows it wants first; 0 for none.
        oldest: the position of the oldest row that it took; None if it took none.
        is_short: whether an engine may try :meth:`feed_joined` first, on the event loop.
    """

    first: int
    oldest: int | None
    is_short: bool = False

    @abstractmethod
    def feed(self, rows: Sequence[tuple[int, bytes]], *, at_start: bool) -> int:
        """Take the next rows, newest first, and return how many more it wants; 0 when it is done.

        A reading passes over an erased row without a word. An engine may leave such rows out.

        Args:
            rows: ``(position, text)`` each.
            at_start: whether the session has no older rows.
        """

    @abstractmethod
    def restart(self) -> None:
        """Forget what it took. The connection was lost, and the rows are fed again from the newest on."""

    @abstractmethod
    def result(self) -> T_co:
        """Return what was read."""

    def feed_joined(self, joined: bytes, count: int, oldest: int) -> bool:
        """Take the `first` newest rows as one text, and return whether that is enough.

        If it is not enough, the reading forgets them, and the rows must be fed one by one from the newest on. It never
        is where there is an erased row among them, so an engine does well to leave these out.

        Args:
            joined: the rows' texts, newest first, with commas between them.
            count: how many texts they are. Fewer than `first` are all of the session.
            oldest: the position of the oldest of them.
        """
        return False


class Engine(ABC):
    """One database, as one session or store uses it. Creating an engine does no I/O and opens nothing.

    Any number of tasks may call it at the same time, on any event loop. Every method except :meth:`close` raises these
    errors:

    - :class:`~agentmem.errors.SessionClosedError`: it was called after :meth:`close`;
    - :class:`~agentmem.errors.StorageBusyError`: a lock was held, or the server did not answer, for longer than
      ``busy_timeout_s``;
    - :class:`~agentmem.errors.StorageCorruptError`: the database is damaged, or the file is not a database;
    - :class:`~agentmem.errors.SchemaVersionError`: a newer agentmem wrote the database;
    - :class:`~agentmem.errors.StorageError`: the database failed in another way.

    The docstring of a method lists only the errors that it raises in addition.
    """

    name: str
    """The database's name in messages: a path, or a URL without its password."""

    key: Hashable
    """Equal for two engines in this process if they use the same database."""

    @abstractmethod
    async def open(self) -> None:
        """Connect, and create or upgrade the schema. The other methods do this when they need it.

        If it fails, nothing stays open, and the next call tries again.
        """

    @abstractmethod
    async def append(self, session_id: str, rows: Sequence[str]) -> None:
        """Append encoded items, oldest first: all of them or none. The first append creates the session.

        A row may be empty, as the copy of an erased item's is.

        Appends of one event loop to one session are stored in the order in which they were called, even if connections
        are lost meanwhile. An append of no rows writes nothing and creates nothing.

        Raises:
            StorageFullError: there is no space; nothing was written.
        """

    @abstractmethod
    async def read(self, session_id: str, reading: Reading[T]) -> T:
        """Feed the session's rows to `reading`, newest first and all from one state, and return its result.

        Erased rows may be left out.

        The reading is fed off the event loop. The one exception is ``feed_joined`` with few bytes, of a reading that
        ``is_short``. A session that does not exist has no rows.

        Raises:
            Exception: what `reading` raises, unchanged.
        """

    @abstractmethod
    async def sessions(self, after: str | None, limit: int) -> list[tuple[str, int]]:
        """Return the next sessions with their lengths, ordered by the bytes of their ids in UTF-8.

        A session that was emptied by pops is returned with length 0; a cleared session is not returned. Each call sees
        one state of the database. A session that is created between two calls is returned by the second call only if
        its id comes after `after`.

        Args:
            after: only sessions whose ids come after this id, which need not exist. None starts with the first session
                and does not create the database.
            limit: the largest number of sessions, 1 or more. Fewer are returned only at the end.

        Returns:
            ``(session_id, length)`` each. Bytes of a damaged id that are not valid UTF-8 are returned as lone
            surrogates (``surrogateescape``). Such an id may be given as `after`.

        Raises:
            StorageError: `after` is None and the database does not exist or has no agentmem tables.
        """

    @abstractmethod
    async def rows(self, session_id: str, start: int, limit: int) -> list[tuple[int, bytes]]:
        """Return the session's rows from position `start` on, oldest first, as they are stored; all from one state.

        Args:
            start: the lowest position, 0 or more.
            limit: the largest number of rows, 1 or more. Fewer may be returned if the rows are long: an engine may
                stop after some hundred kB. The result is empty only if there are no such rows.

        Returns:
            ``(position, text)`` each. The text is the stored bytes in UTF-8, even if they are corrupt; empty where the
            item was erased. The list is empty for a session that does not exist.
        """

    @abstractmethod
    async def pop(self, session_id: str, reading: Reading[T]) -> T:
        """Do a :meth:`read`, and remove every row from ``reading.oldest`` on in the same transaction.

        No row is removed if ``reading.oldest`` is None. The removed positions are issued again.

        Raises:
            StorageFullError: there is no space; nothing was removed.
            Exception: what `reading` raises, unchanged; nothing was removed.
        """

    @abstractmethod
    async def clear(self, session_id: str) -> None:
        """Remove the session with everything that is stored for it. The next append starts at position 0.

        Raises:
            StorageFullError: there is no space; nothing was removed.
        """

    @abstractmethod
    async def check(self, progress: Progress | None = None) -> CheckReport:
        """Check one state of the database, and report what is wrong with it.

        It writes nothing and creates nothing. Other calls do not wait for it, except on a database in memory.

        Args:
            progress: called from time to time, in another thread than the event loop's.

        Raises:
            StorageError: the database does not exist or has no agentmem tables.
            StorageError: the check was stopped because the program ends.
            Exception: what `progress` raises, unchanged.
        """

    @abstractmethod
    async def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy one state of the database, with every acknowledged write, to a new file.

        Other calls do not wait for it, except on a database in memory. If it fails, it creates nothing at `path`.

        Raises:
            ValueError: `path` cannot be the path of a file.
            StorageError: `path` exists already.
            StorageError: this engine cannot make backups; the message names the tool that can.
            StorageFullError: there is no space for the copy.
        """

    @abstractmethod
    async def restore(self, backup: Engine) -> None:
        """Put a copy of another engine's database in the place of this one: whole, or not at all.

        This engine must not have been used yet. Nothing of the database that was there stays.

        Args:
            backup: the engine of the database to copy, of the same kind as this one. It is only read.

        Raises:
            ValueError: `backup` is not of this kind, or is the same database.
            StorageBusyError: somebody has this database open; it was not replaced.
            StorageCorruptError: `backup` is damaged, or what is in the place of this database is none; it was not
                replaced.
            StorageError: this engine cannot restore backups; the message names the tool that can.
            StorageFullError: there is no space for the copy; the database was not replaced.
        """

    async def upgrade(self, progress: Progress | None = None) -> None:
        """Bring a database of an older version to this one: whole, or not at all.

        An engine whose :meth:`open` does that for a database of any size need not override this.

        Args:
            progress: called from time to time, in another thread than the event loop's.

        Raises:
            ValueError: it is a database in memory.
            StorageBusyError: somebody has the database open, and must not; it was not upgraded.
            StorageCorruptError: it is damaged; it was not upgraded.
            StorageFullError: there is no space; it was not upgraded.
            Exception: what `progress` raises, unchanged; it was not upgraded.
        """
        await self.open()

    @abstractmethod
    async def close(self) -> None:
        """Wait for the calls that are under way, then release the connections. Idempotent.

        If it is cancelled, it still releases them, and then raises the cancellation.
        """


def check_busy_timeout(busy_timeout_s: object) -> None:
    """Check the option `busy_timeout_s`, which every engine has.

    Raises:
        TypeError: it is not a number.
        ValueError: it is negative, infinite or NaN.
    """
    if isinstance(busy_timeout_s, bool) or not isinstance(busy_timeout_s, (int, float)):
        raise TypeError(f"busy_timeout_s is a number of seconds, got {busy_timeout_s!r}")
    if not 0 <= busy_timeout_s < float("inf"):
        raise ValueError(f"busy_timeout_s is a number of seconds, 0 or more, got {busy_timeout_s!r}")
