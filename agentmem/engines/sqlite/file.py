"""The database's file: made for its owner alone; one that is deleted, replaced or emptied while it is open is noticed,
and so is its WAL."""

from __future__ import annotations

import errno
import os
import threading

from ...errors import StorageError, StorageFullError

opening = threading.Lock()
"""Held while a connection is opened or a file is made, and over a fork."""


def create_private(path: str) -> None:
    """Create the file, if there is none, readable by its owner alone; SQLite gives -wal and -shm its mode.

    Raises:
        StorageError: there is no such folder, or it cannot be written.
        StorageFullError: there is no room.
    """
    # Closing any descriptor of a file drops all locks that this process has on it
    # (sqlite.org/howtocorrupt.html, 2.2), so this happens where no connection can have opened the file yet.
    with opening:
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
                except OSError as error:
                    raise StorageError(
                        f"cannot remove {self._path}{suffix}, which belongs to a file that was at this path before "
                        f"({error.strerror}); remove it, or SQLite would play it into the file that is there now"
                    ) from error


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
