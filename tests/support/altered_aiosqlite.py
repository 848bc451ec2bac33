"""aiosqlite as another release of it might be: the same documented interface, other insides."""

from __future__ import annotations

import shutil
from pathlib import Path

import aiosqlite

ALTERATIONS = {
    "parameters as a tuple, rows through a cursor": """
async def execute(self, sql, parameters=None):
    return Cursor(self, await self._execute(self._conn.execute, sql, tuple(parameters or ())))

async def execute_fetchall(self, sql, parameters=None):
    cursor = await self.cursor()
    await cursor.execute(sql, tuple(parameters or ()))
    try:
        return await cursor.fetchall()
    finally:
        await cursor.close()

Connection.execute, Connection.execute_fetchall = execute, execute_fetchall
""",
    "a statement right after connecting": """
connect_before = Connection.__await__

def __await__(self):
    async def connect():
        await _Awaitable(connect_before(self))
        await self.execute("SELECT 1")
        return self
    return connect().__await__()

class _Awaitable:
    def __init__(self, steps):
        self.steps = steps
    def __await__(self):
        return self.steps

Connection.__await__ = __await__
""",
    "closing rolls back, and closes twice": """
close_before = Connection.close

async def close(self):
    if self._connection is not None:
        await self._execute(self._conn.rollback)
        await self._execute(self._conn.close)
    await close_before(self)

Connection.close = close
""",
    "closing never returns": """
async def close(self):
    self._connection = None
    await asyncio.get_running_loop().create_future()

Connection.close = close
""",
}
"""What is added at the end of aiosqlite's module, by name."""

OF_ITS_OWN = '''
"""The documented interface that agentmem uses, on an executor."""

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor


class Connection:
    def __init__(self, database, **kwargs):
        self._executor = ThreadPoolExecutor(1)
        self._database, self._kwargs = database, kwargs

    def __await__(self):
        return self._connect().__await__()

    async def _connect(self):
        open_it = lambda: sqlite3.connect(self._database, **self._kwargs)
        self._raw = await asyncio.get_running_loop().run_in_executor(self._executor, open_it)
        return self

    async def close(self):
        await asyncio.get_running_loop().run_in_executor(self._executor, self._raw.close)
        self._executor.shutdown()


def connect(database, *, iter_chunk_size=64, loop=None, **kwargs):
    return Connection(database, **kwargs)
'''

NAMES = [*ALTERATIONS, "a package of its own"]


def write_copy(name: str, folder: Path) -> None:
    """Put an altered aiosqlite into `folder`, which comes first in ``sys.path`` then."""
    target = folder / "aiosqlite"
    if name in ALTERATIONS:
        shutil.copytree(Path(aiosqlite.__file__).parent, target, ignore=shutil.ignore_patterns("__pycache__", "tests"))
        with (target / "core.py").open("a", encoding="utf-8") as core:
            core.write(ALTERATIONS[name])
    else:
        target.mkdir()
        (target / "__init__.py").write_text(OF_ITS_OWN, encoding="utf-8")
