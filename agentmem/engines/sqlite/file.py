"""Creates the database's file, and notices when the file or its WAL is deleted or replaced while it is open.

Rules kept here:

- A new file is readable by its owner alone.
- A file with a second name is a ``HardLinkWarning``.
- A file that was deleted, replaced or emptied is a ``StorageError``, and so is a WAL that was deleted or replaced.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings
from stat import S_ISREG

from ...errors import HardLinkWarning, StorageError, StorageFullError

opening_lock = threading.Lock()
"""Held while a connection is opened or a file is created, and across a fork."""


def create_private(path: str) -> None:
    """Create the file, if there is none, so that its owner alone can read it. SQLite gives -wal and -shm the same mode.

    The caller holds ``opening_lock``.

    Raises:
        StorageError: the folder does not exist or cannot be written, or too many files are open.
        StorageFullError: there is no space.
    """
    # Closing any descriptor of a file drops all locks that this process holds on it
    # (sqlite.org/howtocorrupt.html, section 2.2). O_EXCL opens only a file that this call creates, and the lock keeps
    # connections from opening that file before its descriptor is closed.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass  # the usual case; an existing file keeps its mode
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"cannot create {path}: {error.strerror}; make room and try again") from error
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise no_descriptors(path, error) from error
        folder = os.path.dirname(path)
        advice = "choose a folder that can be written" if os.path.isdir(folder) else "create its folder first"
        raise StorageError(f"cannot create {path}: {error.strerror}; {advice}") from error


def warn_of_other_names(path: str) -> None:
    """Warn where the file at a path has another name, too: a hard link.

    Warns:
        HardLinkWarning: it has. Where warnings are errors, this is raised, so call it before anything is open.
    """
    try:
        status = os.stat(path)
    except OSError:
        return  # opening it gives the error
    if status.st_nlink > 1 and S_ISREG(status.st_mode):  # folders have several
        warnings.warn(
            f"{path} has {status.st_nlink} names (hard links), and SQLite keeps the latest writes in a file that is "
            "named after one of them: what is written under another name can be lost; remove the other names, or make "
            "symbolic links of them",
            HardLinkWarning,
            stacklevel=2,
        )


def no_descriptors(path: str, error: OSError) -> StorageError:
    """Return the error for a process, or a system, that has too many files open."""
    return StorageError(f"cannot open {path}: {error.strerror}; close some, or raise the limit")


class FileIdentity:
    """Remembers which file is opened, so that a deleted, replaced or emptied one is noticed. A check takes 2 µs.

    Create it before SQLite opens the file, so that a file that is replaced in between is noticed, too.

    Args:
        path: the path of the file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._inode = _inode(path)
        self._wal_inode: tuple[int, int] | None = None

    def remember_wal(self) -> None:
        """Remember the WAL. Call it once SQLite has opened the file."""
        self._wal_inode = _inode(self._path + "-wal")

    def is_at_its_path(self) -> bool:
        """Return whether the file at the path is still the same one."""
        return _inode(self._path) == self._inode

    def check(self) -> None:
        """Check that the file is still at its path.

        Raises:
            StorageError: the file at the path is another one, is empty, or does not exist.
        """
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
        """Check that the WAL is the one that SQLite opened. A crash would lose what is written to any other.

        Call it only while the writing connection is open: the last connection that closes deletes the WAL.

        Raises:
            StorageError: the WAL was deleted or replaced.
        """
        if self._wal_inode is not None and _inode(self._path + "-wal") != self._wal_inode:
            raise StorageError(
                f"{self._path}-wal was deleted or replaced while {self._path} was open; "
                "close every session on it, which saves what was stored, and open new ones"
            )

    def replaced(self) -> StorageError:
        """Return the error for a file that was replaced by another one."""
        return StorageError(
            f"{self._path} was replaced by another file while it was open; open a new session to use that one"
        )

    def remove_stale_wal(self, *, is_copied: bool) -> None:
        """Delete the WAL that a moved file left at its path. SQLite would apply it to the file that is there next.

        Args:
            is_copied: whether the moved file has all that is in the WAL.

        Raises:
            StorageError: the WAL cannot be deleted, or holds what the moved file lacks.
        """
        if self._wal_inode is not None and _inode(self._path + "-wal") == self._wal_inode:
            if not is_copied:
                raise StorageError(
                    f"{self._path} was moved while it was open, and {self._path}-wal holds what it lacks; move that, "
                    "too, to where the file is now, under the file's name with -wal"
                )
            for suffix in ("-wal", "-shm"):
                try:
                    os.unlink(self._path + suffix)
                except FileNotFoundError:
                    pass  # the last connection deleted it when it closed
                except OSError as error:
                    raise StorageError(
                        f"cannot remove {self._path}{suffix}, which belongs to a file that was at this path before "
                        f"({error.strerror}); remove it, or SQLite would play it into the file that is there now"
                    ) from error


def _inode(path: str) -> tuple[int, int] | None:
    """Return what identifies the file at a path; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
