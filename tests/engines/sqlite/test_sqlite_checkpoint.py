"""The WAL is copied into the database by the connection that writes alone, under its lock, and stays short."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
from pathlib import Path

import pytest
from database import connections
from processes import Child, wait_until
from waiting import WAIT_S

from agentmem import AsyncSessionStore, AsyncSQLiteSession
from agentmem.engines.sqlite import checkpoint as sqlite_checkpoint
from agentmem.engines.sqlite.checkpoint import Checkpoints
from agentmem.engines.sqlite.connection import Connection
from agentmem.items import Item

pytestmark = pytest.mark.anyio

SMALL: Item = {"role": "user", "content": "one"}
LARGE: Item = {"role": "user", "content": "x" * 50_000}

LIMIT_BYTES = 2 * 1024 * 1024
RETRY_BYTES = LIMIT_BYTES // 4
MAX_RETRY_BYTES = 4 * LIMIT_BYTES


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the usual length: the same checkpoints, after an eighth of the bytes."""
    for name, value in (
        ("LIMIT_BYTES", LIMIT_BYTES),
        ("RETRY_BYTES", RETRY_BYTES),
        ("MAX_RETRY_BYTES", MAX_RETRY_BYTES),
    ):
        assert 8 * value == getattr(sqlite_checkpoint, name)
        monkeypatch.setattr(sqlite_checkpoint, name, value)


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let checkpoints wait for a reader that the machine holds up.

    Some wait in vain all the same: SQLite waits for the lock on a reader's mark in the WAL's index, and other readers
    may take over the mark meanwhile.
    """
    monkeypatch.setattr(sqlite_checkpoint, "WAIT_MS", 1_000)


class Restarts:
    """Counts how often the WAL of a file is started anew, and fails where too much is written before that.

    So much means that about eight checkpoints in a row have waited in vain.
    """

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._path, self._salt, self._written_bytes = path, salt(path), 0

    def wrote(self, size_bytes: int) -> None:
        self._written_bytes += size_bytes
        assert self._written_bytes < 24 * LIMIT_BYTES
        if (now := salt(self._path)) != self._salt:
            self.count, self._salt, self._written_bytes = self.count + 1, now, 0


def wal_bytes(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size


def salt(path: Path) -> bytes:
    """Changes each time that the WAL is started anew (sqlite.org/fileformat2.html#walformat)."""
    with path.with_name(path.name + "-wal").open("rb") as wal:
        return wal.read(24)[16:]


def writer(path: Path) -> sqlite3.Connection:
    (raw,) = [one.raw for one in connections(path) if one.is_writer]
    return raw


# Two connections that take turns, so that at any moment at least one of them is in the middle of a read.
ALWAYS_READING = """
import sqlite3, sys, threading
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ended.set())).start()
this, other = (sqlite3.connect(sys.argv[1], isolation_level=None) for _ in range(2))
other.execute("BEGIN")
print("begun", flush=True)
while not ended.is_set():
    this.execute("BEGIN")
    this.execute("SELECT max(sequence) FROM agentmem_items").fetchone()
    other.execute("COMMIT")
    this, other = other, this
"""


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("through", ["the file", "a link to it"])
async def test_the_wal_stays_short_where_somebody_reads_at_every_moment(
    path: Path, tmp_path: Path, through: str
) -> None:
    if through == "a link to it":
        (tmp_path / "folder").mkdir()
        path.symlink_to(tmp_path / "folder" / "real.db")
    real = path.resolve()
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.add_items([SMALL])
        with Child(ALWAYS_READING, real) as child:
            assert child.read_line() == "begun"
            restarts = Restarts(real)
            while restarts.count < 4:
                await session.add_items([LARGE])
                restarts.wrote(50_000)
            child.write_line()
            assert child.finish()[0] == 0


@pytest.mark.usefixtures("_patient")
async def test_it_stays_short_under_reads_of_its_own_process_that_never_pause(path: Path) -> None:
    async with AsyncSessionStore(path) as store:
        for number in range(8):
            await store.session(f"read_{number}").add_items([{"text": "x" * 500}] * 200)
        stop = asyncio.Event()

        async def read(number: int) -> None:
            while not stop.is_set():
                assert len(await store.session(f"read_{number % 8}").get_items()) == 200

        async def write(number: int) -> None:
            session = store.session(f"written_{number}")
            for place in itertools.count(1):
                await session.add_items([{"text": "x" * 500}] * 4)
                restarts.wrote(14_000)  # of which 2,000 are the items
                if restarts.count == 2:
                    return
                if place % 25 == 0:
                    await session.clear_session()

        restarts = Restarts(path)
        reading = [asyncio.create_task(read(number)) for number in range(50)]
        await asyncio.gather(*(write(number) for number in range(8)))
        stop.set()
        await asyncio.gather(*reading)


async def test_small_writes_to_many_sessions_keep_it_short_too(path: Path) -> None:
    async with AsyncSessionStore(path) as store:
        sessions = [store.session(f"user_{number}") for number in range(64)]
        for _ in range(15):
            await asyncio.gather(*(session.add_items([SMALL] * 20) for session in sessions))
            assert wal_bytes(path) < LIMIT_BYTES + 64 * 4 * 4096  # what one batch may write


READING = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN")
db.execute("SELECT count(*) FROM agentmem_items").fetchone()
print("reading", flush=True)
sys.stdin.readline()
"""


async def test_a_reader_that_does_not_end_holds_up_no_write_and_when_it_does_the_wal_is_started_anew(
    path: Path,
) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.add_items([SMALL])
        with Child(READING, path) as child:
            assert child.read_line() == "reading"
            before = salt(path)
            statements: list[str] = []
            writer(path).set_trace_callback(statements.append)
            for _ in range(150):  # 7.5 MB
                await session.add_items([LARGE])
            assert salt(path) == before
            assert wal_bytes(path) > 3 * LIMIT_BYTES
            # At 2, 2.5, 3.5 and 5.5 MB: each waits for the reader, and so less and less often.
            assert 2 <= sum("wal_checkpoint" in statement for statement in statements) <= 5
            child.write_line()
            assert child.finish()[0] == 0
        added = 0
        while salt(path) == before:
            await session.add_items([LARGE])
            added += 1
            assert added * 50_000 < MAX_RETRY_BYTES
        assert len(await session.get_items()) == 1 + 150 + added


async def test_room_that_one_large_write_took_is_given_back(path: Path) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.add_items([LARGE] * 200)
        await session.add_items([SMALL])
        assert wal_bytes(path) < RETRY_BYTES
        assert len(await session.get_items()) == 201


async def test_every_checkpoint_holds_the_lock_for_writing(path: Path) -> None:
    # What no automatic one does, on which the WAL-reset bug rests; the modes are SQLite's that hold it.
    statements: list[str] = []
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        raw = writer(path)
        assert raw.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
        raw.set_trace_callback(statements.append)
        for _ in range(100):
            await session.add_items([LARGE])
    checkpoints = [statement for statement in statements if "wal_checkpoint" in statement]
    assert len(checkpoints) >= 2
    assert set(checkpoints) == {"PRAGMA wal_checkpoint(RESTART)"}


async def test_nobody_can_write_while_a_checkpoint_waits_for_a_reader(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_checkpoint, "WAIT_MS", 60_000)

    def cannot_write() -> bool:
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            return "locked" in str(error)
        other.execute("ROLLBACK")
        return False

    reader, other = (sqlite3.connect(path, isolation_level=None, timeout=0) for _ in range(2))
    link = await Connection.open(str(path), lambda one: one.raw.execute("PRAGMA journal_mode = WAL").close())
    await link.call(lambda one: one.raw.execute("CREATE TABLE t (n)"))
    reader.execute("BEGIN")
    reader.execute("SELECT n FROM t").fetchall()
    await link.call(lambda one: one.raw.execute("INSERT INTO t VALUES (1)"))
    checkpoint = asyncio.ensure_future(link.call(lambda one: Checkpoints(str(path)).run(one.raw)))
    await asyncio.sleep(0)
    wait_until(cannot_write)
    assert not checkpoint.done()
    reader.execute("COMMIT")
    await checkpoint
    assert not cannot_write()
    for connection in (reader, other):
        connection.close()
    await link.close()


async def test_a_checkpoint_that_fails_loses_nothing_and_a_later_one_does_its_work(path: Path) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.add_items([SMALL])
        raw = writer(path)
        raw.set_authorizer(
            lambda action, what, *_: sqlite3.SQLITE_DENY if what == "wal_checkpoint" else sqlite3.SQLITE_OK
        )
        for _ in range(75):
            await session.add_items([LARGE])
        assert wal_bytes(path) > LIMIT_BYTES + RETRY_BYTES
        before = salt(path)
        raw.set_authorizer(None)
        added = 0
        while salt(path) == before:
            await session.add_items([LARGE])
            added += 1
            assert added * 50_000 < MAX_RETRY_BYTES
        assert raw.execute("PRAGMA busy_timeout").fetchone() == (0,)


async def test_a_write_is_told_of_before_the_checkpoint_that_it_makes_due(path: Path) -> None:
    class Due(Checkpoints):
        def is_due(self) -> bool:
            return written.is_set() and not told.is_set()

        def run(self, raw: sqlite3.Connection) -> None:
            was_told.append(told.wait(WAIT_S))

    def prepare(connection: Connection) -> None:
        connection.checkpoints = Due(str(path))

    async def write() -> None:
        await link.call(lambda _: written.set())
        told.set()

    written, told = threading.Event(), threading.Event()
    was_told: list[bool] = []
    link = await Connection.open(str(path), prepare)
    await write()
    await link.call(lambda _: None)
    await link.close()
    assert was_told == [True]
