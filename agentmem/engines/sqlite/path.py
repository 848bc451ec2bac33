"""The path of a database's file, and the texts that are no path: they would make a file of a name that nobody meant.

Rules kept here:

- A URL, a ``file:`` URI, connection settings of PostgreSQL and a path of Windows (elsewhere) are a ``ValueError``.
- What may hold a password is never quoted in a message.
"""

from __future__ import annotations

import os
import re

from ...errors import StorageError
from .connection import MEMORY

_CREDENTIALS = re.compile(r"(?s)[^/\\@]*:.*@[\w.\[\]-]+(:\d+)?(/.*)?")
"""``user:password@host``, a URL whose scheme was forgotten."""

_FILE_NAME_ENDING = re.compile(r"\.(db|db3|sqlite|sqlite3)$", re.IGNORECASE)

_SETTINGS = re.compile(r"(?s)\s*\w+\s*=.*\s(host|hostaddr|port|dbname|user|password)\s*=.*")
"""PostgreSQL's other form of a URL (postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING)."""

_URL = "a path, or a URL: sqlite:///relative.db, sqlite:////absolute.db"

_ADVICE_BY_SCHEME = (
    (re.compile(r"sqlite3?(\+\w+)?:"), f"it begins like a URL of SQLite's and is none; write {_URL}"),
    (re.compile(r"file:"), "agentmem takes no file: URI; write the path alone, and give options by keyword"),
    (
        re.compile(r"(postgre|postgres|postgress|postgresq|postgresql|pgsql|psql|pg)(\+\w+)?:"),
        "it begins like a URL of PostgreSQL's and is none; write postgresql://user@host/database",
    ),
    (re.compile(r"[a-z][a-z0-9+.-]*://"), f"it is a URL; write {_URL}"),
)


def database_path(db: object) -> str:
    """Return the absolute path of a file, given as a str or a path, with ``~`` expanded; ":memory:" as it is.

    Raises:
        TypeError: `db` is not a str or a path.
        ValueError: `db` cannot be the path of a file, or is something else that looks like none.
        StorageError: `db` is relative, and the working directory was deleted or cannot be read.
    """
    path: object = os.fspath(db) if isinstance(db, (str, os.PathLike)) else db
    if not isinstance(path, str):
        raise TypeError(f"db is a path or a URL, got {type(db).__name__}")
    if path == MEMORY:
        return path
    _refuse_what_is_no_path(path)
    try:
        return os.path.abspath(os.path.expanduser(path))
    except OSError as error:
        raise StorageError(
            f"the path {path!r} is relative, and the working directory cannot be used ({error.strerror}): it was "
            "deleted or may not be read; give an absolute path, or change the directory"
        ) from error


def _refuse_what_is_no_path(path: str) -> None:
    if not path or "\0" in path:
        raise ValueError(f"db is a path of a file, got {path!r}")
    if advice := _advice_for_address(path):
        raise ValueError(f"db is no path of a file: {advice}. (The path of a file of such a name begins with ./)")
    if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]|\\\\", path):
        raise ValueError(f"db is a path of Windows, which means nothing on this system: {path!r}")
    if path.endswith((os.sep, os.altsep or os.sep)):
        raise ValueError(f"db is the path of a folder, got {path!r}; name the file in it")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ValueError(f"db is no path of a file: {path!r} has characters that no file name can have") from error


def _advice_for_address(path: str) -> str | None:
    """Return what to write instead of a text that is the address of a database; None for any other text."""
    for scheme, advice in _ADVICE_BY_SCHEME:
        if scheme.match(path.strip().lower()):
            return advice
    has_credentials = _CREDENTIALS.fullmatch(path) and not _FILE_NAME_ENDING.search(path.partition("/")[0])
    if _SETTINGS.fullmatch(path) or (has_credentials and not os.path.splitdrive(path)[0]):
        return "it looks like the address of a PostgreSQL database; write postgresql://user:password@host:port/database"
    if path.startswith(":"):
        # sqlite.org/c3ref/open.html: SQLite keeps such names for itself, as ":memory:" is one.
        return 'it begins with a colon; write ":memory:" for a database in memory'
    return None
