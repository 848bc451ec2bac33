"""Of a file that is moved while it is open nothing is lost, whatever is under way, and its WAL gets into no other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from database import shell, stored
from held import HeldReading
from loops import loop_in_a_thread
from processes import Child, files, run_quietly

from agentmem.engines.sqlite.connection import Connection
from agentmem.engines.sqlite.engine import SQLiteEngine
from agentmem.engines.sqlite.schema import prepare_writer
from agentmem.errors import StorageError

pytestmark = pytest.mark.anyio

ROW = '{"role":"user","content":"one"}'
ITEM = {"role": "user", "content": "one"}


@pytest.fixture
def moved(path: Path) -> Path:
    """Where the file is moved to."""
    return path.with_name("moved.db")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """What a connection's thread had to tell when it closed; a test adds what its calls raised."""
    errors: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: errors.append(args.exc_value))
    return errors


def wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def sessions(path: Path) -> list[str]:
    with shell(path) as other:
        return [name for (name,) in other.execute("SELECT session_id FROM agentmem_sessions ORDER BY session_id")]


# While a pool on another event loop closes or opens


@pytest.fixture
def disconnecting(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when any connection is told to close: what is held must go on then, as closing waits for it."""
    event = threading.Event()
    disconnect = Connection.disconnect

    def note_and_disconnect(self: Connection) -> None:
        event.set()
        disconnect(self)

    monkeypatch.setattr(Connection, "disconnect", note_and_disconnect)
    return event


async def _append_three(engine: SQLiteEngine) -> None:
    for _ in range(3):
        await engine.append("new", [ROW])


async def test_a_file_that_is_moved_while_a_pool_on_another_event_loop_closes_loses_nothing_that_was_acknowledged(
    path: Path, moved: Path, disconnecting: threading.Event
) -> None:
    begun = threading.Event()
    reading = HeldReading(begun.set)
    reading.go_on = disconnecting
    old, new = SQLiteEngine(path), SQLiteEngine(path)

    async def fill_and_begin_to_close() -> asyncio.Future[Any]:
        await old.append("old", [ROW] * 50)
        popping = asyncio.ensure_future(old.pop("old", reading))
        await asyncio.to_thread(begun.wait)
        closing = asyncio.ensure_future(old.close())
        await asyncio.sleep(0)  # its pool is nobody's any more, and waits for the pop
        return asyncio.gather(popping, closing, return_exceptions=True)

    async def end(closing: asyncio.Future[Any]) -> None:
        popped, closed = await closing
        assert popped is None or isinstance(popped, StorageError)
        assert closed is None

    with loop_in_a_thread() as other:
        closing = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(fill_and_begin_to_close(), other))
        path.rename(moved)
        adding = asyncio.ensure_future(_append_three(new))
        adding.add_done_callback(lambda _: disconnecting.set())
        await adding
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(end(closing), other))
        await new.append("new", [ROW])
        await new.close()
    assert (sessions(path), stored(path, "new")) == (["new"], [ITEM] * 4)
    assert (sessions(moved), stored(moved, "old")) == (["old"], [ITEM] * 50)
    assert (files(path), files(moved)) == ({path.name}, {moved.name})


async def test_a_file_that_is_moved_while_a_pool_on_another_event_loop_opens_loses_nothing_that_was_acknowledged(
    path: Path, moved: Path, disconnecting: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed, old, new = SQLiteEngine(path), SQLiteEngine(path), SQLiteEngine(path)
    await seed.append("seed", [ROW])
    await seed.close()
    disconnecting.clear()
    prepared = threading.Event()

    def prepare_and_wait(connection: Connection, name: str, **options: Any) -> None:
        prepare_writer(connection, name, **options)
        if not prepared.is_set():
            prepared.set()
            disconnecting.wait()

    monkeypatch.setattr("agentmem.engines.sqlite.pool.prepare_writer", prepare_and_wait)

    async def append() -> BaseException | None:
        (outcome,) = await asyncio.gather(old.append("old", [ROW]), return_exceptions=True)
        return outcome

    with loop_in_a_thread() as other:
        appending = asyncio.run_coroutine_threadsafe(append(), other)
        await asyncio.to_thread(prepared.wait)
        path.rename(moved)
        adding = asyncio.ensure_future(_append_three(new))
        adding.add_done_callback(lambda _: disconnecting.set())
        await adding
        outcome = await asyncio.wrap_future(appending)
        assert outcome is None or isinstance(outcome, StorageError)
        await new.append("new", [ROW])
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(old.close(), other))
        await new.append("new", [ROW])
        await new.close()
    assert (sessions(path), stored(path, "new")) == (["new"], [ITEM] * 5)
    assert stored(moved, "seed") == [ITEM]
    assert stored(moved, "old") == [ITEM] or (stored(moved, "old") == [] and outcome is not None)
    assert (files(path), files(moved)) == ({path.name}, {moved.name})


# While another connection reads


@contextlib.contextmanager
def _read_by_another_process(path: Path) -> Iterator[None]:
    with Child(_READ, path) as reader:
        assert reader.read_line() == "reads"
        yield
        reader.write_line()
        assert reader.finish() == (0, "", "")


_READ = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN")
other.execute("SELECT count(*) FROM agentmem_items").fetchone()
print("reads", flush=True)
sys.stdin.readline()
other.close()
"""


@contextlib.contextmanager
def _checked_on_another_event_loop(path: Path) -> Iterator[None]:
    begun, go_on = threading.Event(), threading.Event()

    def wait(checked: int, expected: int) -> None:
        begun.set()
        go_on.wait()

    async def check() -> None:
        engine = SQLiteEngine(path)
        try:
            assert (await engine.check(wait)).items == 600
        finally:
            await engine.close()

    with loop_in_a_thread() as other:
        checking = asyncio.run_coroutine_threadsafe(check(), other)
        begun.wait()
        try:
            yield
        finally:
            go_on.set()
            checking.result()


@pytest.mark.parametrize("end", ["its session closes", "a new session opens"])
@pytest.mark.parametrize("reader", [_read_by_another_process, _checked_on_another_event_loop])
async def test_a_file_that_is_moved_while_somebody_reads_has_all_that_was_acknowledged_or_the_wal_that_has_it_is_named(
    path: Path,
    moved: Path,
    told: list[BaseException | None],
    reader: Any,
    end: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agentmem.engines.sqlite.connection.COPY_WAL_S", 0.2)  # the readers stay longer than that
    old, new = SQLiteEngine(path, busy_timeout_s=0), SQLiteEngine(path, busy_timeout_s=0)
    await old.append("user_123", [ROW] * 600)
    with reader(path):
        for _ in range(10):
            await old.append("user_123", [ROW])  # what the reader does not see
        path.rename(moved)
        ended = old.close() if end == "its session closes" else new.append("new", [ROW])
        told += [error for error in await asyncio.gather(ended, return_exceptions=True) if error is not None]
        missing = told != []
        if missing:
            assert all(isinstance(error, StorageError) and str(wal_of(path)) in str(error) for error in told)
            for _ in range(2):  # whoever opens the path next must neither remove the WAL nor use it
                with pytest.raises(StorageError, match=re.escape(str(wal_of(path)))):
                    await new.append("new", [ROW])
            wal_of(path).rename(wal_of(moved))
    assert stored(moved) == [ITEM] * 610
    await new.append("new", [ROW])
    await new.close()
    await old.close()
    assert stored(moved) == [ITEM] * 610
    assert stored(path, "new") == [ITEM] * (1 if missing or end == "its session closes" else 2)


# When the WAL can be neither copied nor removed


def test_a_moved_file_into_which_its_wal_cannot_be_copied_is_an_error_that_names_the_wal_and_leaves_it_there(
    path: Path, moved: Path
) -> None:
    pytest.importorskip("resource", reason="this system has no limit for the size of a file")
    assert f"StorageError, it names {wal_of(path)}" in run_quietly(_LIMITED, path, moved).splitlines()
    wal_of(path).rename(wal_of(moved))
    assert stored(moved) == [ITEM] * 600


_LIMITED = """
import asyncio, os, resource, signal, sys, threading
from agentmem.engines.sqlite.engine import SQLiteEngine

path, moved = sys.argv[1:]

def tell(error):
    names = f"{path}-wal" in str(error)
    print(f"{type(error).__name__}, it names {path}-wal" if names else repr(error))

async def main():
    threading.excepthook = lambda args: tell(args.exc_value)
    engine = SQLiteEngine(path)
    for _ in range(30):
        await engine.append("user_123", ['{"role":"user","content":"one"}'] * 20)
    os.rename(path, moved)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # as on a full disk
    try:
        await engine.close()
    except Exception as error:
        tell(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

asyncio.run(main())
"""


@pytest.mark.parametrize("closes", [False, True], ids=["while the old session is open", "after it was closed"])
async def test_a_stale_wal_that_cannot_be_removed_is_an_error_for_every_later_session_and_gets_into_no_other_file(
    path: Path, moved: Path, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    unlink = os.unlink

    def refuse(name: str, *args: Any, **kwargs: Any) -> None:
        if str(name).endswith(("-wal", "-shm")):
            raise PermissionError(13, "Permission denied")
        unlink(name, *args, **kwargs)

    another = SQLiteEngine(path.with_name("another.db"))
    await another.append("new", [ROW])
    await another.close()
    old = SQLiteEngine(path)
    await old.append("old", [ROW])
    path.rename(moved)
    path.with_name("another.db").rename(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        if closes:
            with pytest.raises(StorageError, match=f"cannot remove {path}-"):
                await old.close()
        for _ in range(3):
            new = SQLiteEngine(path)
            with pytest.raises(StorageError, match=f"cannot remove {path}-"):
                await new.append("new", [ROW])
            await new.close()
    new = SQLiteEngine(path)
    await new.append("new", [ROW])
    await new.close()
    await old.close()
    assert (sessions(path), stored(path, "new")) == (["new"], [ITEM] * 2)
    assert (sessions(moved), stored(moved, "old")) == (["old"], [ITEM])
