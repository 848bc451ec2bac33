"""Many processes on one file: some are killed, some are stopped at the worst moment, and nothing is lost or torn."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sqlite3
import time
from pathlib import Path

import pytest
from database import stored
from exhaustive import cases, exhaustive
from killing import PROGRAM, check, program_arguments
from processes import STRICT, SUPPORT, Child, files, needs_fork, needs_sigstop, run, run_quietly

from agentmem import AsyncSQLiteSession
from agentmem.errors import StorageBusyError
from agentmem.items import Item

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}
TWO: Item = {"role": "user", "content": "two"}

FORKING = (*STRICT, "-W", "ignore:This process:DeprecationWarning")
"""Python from 3.12 on warns of a fork with threads; agentmem's may be there."""


# Killed


@needs_fork
@pytest.mark.parametrize("kills", [8, pytest.param(30, marks=exhaustive)])
@pytest.mark.parametrize(
    "used",
    [
        pytest.param(False, id="forked before first use", marks=exhaustive),
        pytest.param(True, id="forked after first use"),
    ],
)
def test_eight_processes_of_which_some_are_killed_at_any_moment_lose_and_tear_nothing_and_the_others_see_no_error(
    path: Path, used: bool, kills: int
) -> None:
    output = run_quietly(PROGRAM, *program_arguments(path, writers=8, kills=kills, used=used), flags=FORKING)
    assert check(path, output) >= 10 * kills
    assert files(path) == {path.name}


# Ended with work in flight

_ENDS = """
import asyncio, itertools, os, sys
sys.path.insert(0, sys.argv[1])
from killing import Batch, add_batch
from agentmem import AsyncSQLiteSession

async def add(task):
    session = AsyncSQLiteSession(sys.argv[2], session_id=f"session_{task % 3}")  # never closed
    for number in itertools.count():
        batch = Batch(session.session_id, 0, task, number)
        await add_batch(session, batch)
        os.write(1, (" ".join(map(str, batch)) + "\\n").encode())
        if number == 20:
            ended.set()

async def main():
    global ended, tasks
    ended = asyncio.Event()
    tasks = [asyncio.ensure_future(add(task)) for task in range(12)]
    await ended.wait()
    {end}

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("end", "code", "last_line"),
    [
        ("return", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("raise LookupError('mine')", 1, "LookupError: mine"),
        ("os._exit(4)", 4, ""),
        ("os.abort()", -6, ""),
    ],
    ids=["return", "sys.exit", "an exception", "os._exit", "an abort"],
)
def test_a_process_that_ends_with_writes_in_flight_leaves_whole_batches_and_says_nothing_but_what_was_wrong(
    path: Path, end: str, code: int, last_line: str
) -> None:
    ended, output, errors = run(_ENDS.replace("{end}", end), SUPPORT, path)
    assert ended == code
    if "abort" not in end:  # of which Python's development mode tells where
        assert (errors.splitlines() or [""])[-1] == last_line
        assert errors.count("Traceback") == bool(last_line), errors
    assert check(path, output + "end") > 200
    if "_exit" not in end and "abort" not in end:
        assert files(path) == {path.name}


# Stopped

_STOPS_ITSELF = """
import os, signal, sqlite3, sys
other = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[3:]:
    other.execute(statement).fetchone()
os.kill(os.getpid(), signal.SIGSTOP)
other.execute(sys.argv[2])
other.close()
"""

IN_A_WRITE = [
    # With a cache of one page, half of the transaction is in the WAL already.
    "PRAGMA cache_size = 1",
    "BEGIN IMMEDIATE",
    "UPDATE agentmem_items SET item = item || ' '",
    "UPDATE agentmem_sessions SET length = length + 50",
    """
    WITH RECURSIVE places(place) AS (SELECT 1 UNION ALL SELECT place + 1 FROM places WHERE place < 50)
    INSERT INTO agentmem_items (session_key, position, created_at, item)
    SELECT session_key, last + place, 0, '{"place": ' || place || ', "text": "' || hex(zeroblob(2000)) || '"}'
    FROM places, (SELECT session_key, max(position) AS last FROM agentmem_items)
    """,
]


@needs_sigstop
@pytest.mark.parametrize(
    "then", cases(["goes on and commits", "goes on and rolls back", "is killed"], quick="is killed".__eq__)
)
async def test_a_process_that_is_stopped_in_a_transaction_makes_writes_wait_as_long_as_they_may_and_nothing_is_lost(
    path: Path, then: str
) -> None:
    async with (
        AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=0.2) as hasty,
        AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=60) as patient,
    ):
        await hasty.add_items([ONE])
        await patient.get_items()
        with Child(_STOPS_ITSELF, path, "ROLLBACK" if "back" in then else "COMMIT", *IN_A_WRITE) as other:
            other.wait_until_stopped()
            await _only_reads_work(hasty, [ONE])
            async with AsyncSQLiteSession(path, session_id="new", busy_timeout_s=0.2) as newcomer:
                await _only_reads_work(newcomer, [])
            writing = asyncio.ensure_future(patient.add_items([TWO]))
            assert await patient.get_items() == [ONE]
            assert not writing.done()
            if "killed" in then:
                other.kill()
            else:
                other.go_on()
            await writing
            assert other.finish() == (-9 if "killed" in then else 0, "", "")
        await hasty.add_items([ONE])
        items = stored(path)
        assert [items[0], *items[-2:]] == [ONE, TWO, ONE]
        assert [item["place"] for item in items[1:-2]] == (list(range(1, 51)) if "commits" in then else [])
        assert await hasty.get_items() == items


async def _only_reads_work(session: AsyncSQLiteSession, content: list[Item]) -> None:
    for call in (lambda: session.add_items([TWO]), session.pop_item, session.clear_session):
        begun = time.monotonic()
        with pytest.raises(StorageBusyError, match="nothing was written here, try again or raise busy_timeout_s"):
            await call()
        assert time.monotonic() - begun >= 0.2  # it did wait
        assert await session.get_items() == content


@needs_sigstop
@pytest.mark.parametrize("then", ["goes on", pytest.param("is killed", marks=exhaustive)])
async def test_a_new_file_that_a_stopped_process_is_creating_is_waited_for_and_then_an_error_by_name(
    path: Path, then: str
) -> None:
    with Child(_STOPS_ITSELF, path, "ROLLBACK", "BEGIN EXCLUSIVE") as other:
        other.wait_until_stopped()
        session = AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=0.2)
        for call in (session.__aenter__, session.get_items, lambda: session.add_items([ONE])):
            with pytest.raises(StorageBusyError, match="try again or raise busy_timeout_s"):
                await call()
        if then == "is killed":
            other.kill()
        else:
            other.go_on()
        other.finish()
    await session.add_items([ONE])
    await session.close()
    assert stored(path) == [ONE]


@needs_sigstop
async def test_a_process_that_is_stopped_while_it_reads_holds_up_nobody(path: Path) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=60) as session:
        await session.add_items([ONE])
        with Child(_STOPS_ITSELF, path, "COMMIT", "BEGIN", "SELECT count(*) FROM agentmem_items") as other:
            other.wait_until_stopped()
            for _ in range(20):  # more than the WAL is allowed to grow to, were it possible to empty it
                await session.add_items([{"text": "x" * 300_000}])
            assert len(await session.get_items()) == 21
            assert await session.pop_item() == {"text": "x" * 300_000}
            async with AsyncSQLiteSession(path, session_id="user_123") as newcomer:
                assert len(await newcomer.get_items()) == 20
            other.go_on()
            assert other.finish() == (0, "", "")
    assert len(stored(path)) == 20
    assert files(path) == {path.name}


_WRITES_FOR_EVER = """
import asyncio, os, sys
from agentmem import AsyncSQLiteSession

async def add(round, task):
    async with AsyncSQLiteSession(sys.argv[1], session_id="child", busy_timeout_s=60) as session:
        of = {"round": round, "task": task, "text": "x" * 2000}
        await session.add_items([{**of, "place": place} for place in range(9)])

async def main():
    async with AsyncSQLiteSession(sys.argv[1], session_id="child", busy_timeout_s=60):
        round = 0
        while True:
            await asyncio.gather(*(add(round, task) for task in range(8)))
            os.write(1, b"%d\\n" % round)
            round += 1

asyncio.run(main())
"""


@needs_sigstop
@pytest.mark.parametrize("then", ["goes on", pytest.param("is killed", marks=exhaustive)])
async def test_a_process_of_agentmems_that_is_stopped_in_its_own_transaction_is_like_any_other(
    path: Path, then: str
) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123", busy_timeout_s=0.2) as session:
        await session.add_items([ONE])
        with Child(_WRITES_FOR_EVER, path) as child:
            acknowledged = _stop_in_a_transaction(child, path)
            await _only_reads_work(session, [ONE])
            if then == "is killed":
                child.kill()
            else:
                child.go_on()
                while int(child.read_line()) < acknowledged + 5:
                    pass
                child.kill()
            _, output, errors = child.finish()
            assert errors == ""
        await session.add_items([TWO])
        assert await session.get_items() == [ONE, TWO]
    items = stored(path, "child")
    batches = [items[start : start + 9] for start in range(0, len(items), 9)]
    for batch in batches:
        assert [item["place"] for item in batch] == list(range(9))
        assert len({(item["round"], item["task"]) for item in batch}) == 1
    written = [(batch[0]["round"], batch[0]["task"]) for batch in batches]
    assert len(set(written)) == len(written)
    last = int((output.splitlines() or [str(acknowledged)])[-1])
    assert set(itertools.product(range(last + 1), range(8))) <= set(written)


def _stop_in_a_transaction(child: Child, path: Path) -> int:
    """Stop it at random moments until it holds the lock then; returns the last round that it acknowledged before."""
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        while True:
            acknowledged = int(child.read_line())
            for _ in range(random.randrange(20_000)):
                pass
            child.stop()
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                assert "locked" in str(error)  # noqa: PT017  it need not be raised
                return acknowledged
            other.execute("ROLLBACK")
            child.go_on()
