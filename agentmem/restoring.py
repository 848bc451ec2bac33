"""Restores a backup: puts it in a database's place."""

from __future__ import annotations

import os
from typing import Any

from .engines import open_engine


async def async_restore(backup: str | os.PathLike[str], target: str | os.PathLike[str] | Any) -> None:
    """Put a backup in a database's place: whole, or not at all. Nobody may have the database open.

    The backup is checked, copied beside the target and flushed, and then takes the target's name in one step. So a
    crash or an error at any moment leaves the target as it was, with all that was stored in it, or as the backup is.
    What a crash of the application had left beside the target, such as a WAL, is removed. (``cp`` would leave it, and
    SQLite would mix it with the backup.) The new file keeps the mode and the owner of the old one; where there was
    none, only its owner can read it. The backup stays as it is.

    The restored database is another one to whoever had the old one open before: open new handles.

    Args:
        backup: path or URL of the backup, as :meth:`agentmem.AsyncSessionStore.backup` makes it, or of any other SQLite
            file of agentmem's. It may be in use.
        target: path or URL of the database. It need not exist, but its folder must.

    Cancellation: the target stays as it was; or it is replaced, if that has begun.

    Raises:
        TypeError: an argument is not a path.
        ValueError: an argument cannot be the path of a file; or both are the same file.
        StorageBusyError: somebody has the target open, in this program or in another. It was not replaced.
        StorageCorruptError: the backup is damaged, or the target is no database at all. It was not replaced.
        SchemaVersionError: a newer agentmem wrote the backup.
        StorageError: there is no backup, or it is not agentmem's; the target is another program's database, or cannot
            be written; or it is in PostgreSQL, which ``psql`` or ``pg_restore`` restores. It was not replaced.
        StorageFullError: there is no space for the copy. The target was not replaced.
    """
    source, database = open_engine(backup), open_engine(target)
    try:
        await database.restore(source)
    finally:
        await source.close()
        await database.close()
