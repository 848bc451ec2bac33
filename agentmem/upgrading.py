"""Upgrades a database that an older agentmem wrote and that is too large to be upgraded while it is opened."""

from __future__ import annotations

import os
from typing import Any

from .checking import Progress
from .engines import open_engine


async def async_upgrade(db: str | os.PathLike[str] | Any, *, progress: Progress | None = None) -> None:
    """Bring a database of an older version to this one: whole, or not at all. Nobody may have it open.

    Opening a database does this by itself, except for an SQLite file of more than 100 MB, which would keep others
    waiting for too long. Such a file is checked, and a new one is built beside it and flushed, and then takes its name
    in one step. So a crash or an error at any moment leaves the file as it was. The new one keeps its mode and its
    owner, and holds everything that is stored in it, also what cannot be read, and what other programs have stored in
    tables of their own. While it is built, the folder needs room for both, and SQLite some for temporary files.

    A database of this version is left as it is. One in PostgreSQL is opened, which upgrades it.

    Args:
        db: path or URL of the database.
        progress: called from time to time, in another thread, with the number of items that were copied and how many
            there are.

    Cancellation: the database stays as it was; or it is upgraded, if its replacement has begun.

    Raises:
        TypeError: ``db`` is not a path.
        ValueError: ``db`` cannot be the path of a file.
        StorageBusyError: somebody has the database open, in this program or in another. It was not upgraded.
        StorageCorruptError: it is damaged, or no database at all. It was not upgraded.
        SchemaVersionError: a newer agentmem wrote it.
        StorageError: there is no such file, or it is not agentmem's, or its folder cannot be written. It was not
            upgraded.
        StorageFullError: there is no space for the new file. It was not upgraded.
    """
    engine = open_engine(db)
    try:
        await engine.upgrade(progress)
    finally:
        await engine.close()
