"""Many processes on one PostgreSQL database: what they write to the same sessions is in order, whole and there once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from exhaustive import exhaustive
from killing import Batch, whole_batches
from postgres_database import PostgresDatabase
from processes import SUPPORT, Child, needs_fork, run_quietly

from agentmem.engines.postgres.pool import READERS, WRITERS
from agentmem.engines.postgres.schema import SCHEMA_VERSION

pytestmark = needs_fork

FORKING = ("-X", "dev", "-W", "error", "-W", "ignore:This process:DeprecationWarning")

TOGETHER = """
import asyncio, json, os, sys
sys.path.insert(0, sys.argv[2])
from forking import start, wait_for
from killing import Batch, add_batch, whole_batches
from agentmem import AsyncSessionStore, SessionStore
import agentmem.engines.postgres.engine  # which processes that begin at the same instant must not each do first
url = sys.argv[1]

def together(work, processes):
    # The end of the pipe comes to all of them at once. What they return goes to a file each: a pipe would mix it.
    start_line, go = os.pipe()
    def wait_and_work(number):
        os.close(go)
        os.read(start_line, 1)
        told = work(number)
        if told is not None:
            with open(f"{sys.argv[3]}/{number}", "x") as file:
                json.dump(told, file)
    children = [start(lambda: wait_and_work(number)) for number in range(processes)]
    os.close(go)
    for child in children:
        wait_for(child)
"""

ATTEMPTS = 3

OPENING = """
for attempt in range(int(sys.argv[3])):
    def add(number):
        store = SessionStore(url + f"_{attempt}")
        if number % 2:
            store.open()
        store.session("shared").add_items([{"number": number}])
    together(add, 8)
"""


@exhaustive
def test_an_empty_database_that_8_processes_open_at_once_is_made_once_and_none_of_them_sees_an_error(
    database: PostgresDatabase,
) -> None:
    # The schema's name comes last, so that each attempt has an empty one.
    url = f"{database.url}?schema=attempt"
    assert run_quietly(TOGETHER + OPENING, url, SUPPORT, str(ATTEMPTS), flags=FORKING) == ""
    for attempt in range(ATTEMPTS):
        assert database.sql(f"SELECT version FROM attempt_{attempt}.agentmem_schema") == str(SCHEMA_VERSION)
        numbers = [item["number"] for item in database.stored("shared", f"attempt_{attempt}")]
        assert sorted(numbers) == list(range(8))


APPENDING_AND_POPPING = """
def work(writer):
    popped, reads = [], []

    async def append(session, task):
        for number in range(40):
            await add_batch(session, Batch("", writer, task, number))

    async def pop(session):
        for _ in range(40):
            popped.append(await session.pop_item())

    async def read(session):
        for _ in range(40):
            reads.append(await session.get_items())
            await asyncio.sleep(0)

    async def main():
        async with AsyncSessionStore(url) as store:
            session = store.session("shared")
            await asyncio.gather(append(session, 0), append(session, 1), pop(session), read(store.session("shared")))

    asyncio.run(main())
    return [popped, reads]

together(work, 5)
"""


def told(folder: Path) -> list[Any]:
    """What each of five processes returned."""
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == list("01234")
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.exhaustive
def test_appends_and_pops_of_several_processes_give_each_item_once_and_keep_batches_whole_and_in_order(
    database: PostgresDatabase, tmp_path: Path
) -> None:
    assert run_quietly(TOGETHER + APPENDING_AND_POPPING, database.url, SUPPORT, tmp_path, flags=FORKING) == ""
    of_processes = told(tmp_path)
    left = database.stored("shared")
    popped = [item for pops, _ in of_processes for item in pops if item is not None]
    assert popped
    found = Counter(json.dumps(item) for item in [*popped, *left])
    expected = Counter(
        json.dumps({"batch": [writer, task, number], "size": size, "place": place})
        for writer in range(5)
        for task in range(2)
        for number in range(40)
        for size in (1 + (number + task) % 4,)
        for place in range(size)
    )
    assert found == expected
    for items in (left, *(items for _, reads in of_processes for items in reads)):
        check_order(list(whole_batches("shared", items, popped=True)), has_gaps=True)


CLEARING = """
def work(writer):
    reads = []

    async def append(session, task):
        for number in range(60):
            await add_batch(session, Batch("", writer, task, number))

    async def clear(session):
        for _ in range(15):
            await session.clear_session()
            reads.append(await session.get_items())

    async def main():
        async with AsyncSessionStore(url) as store:
            session = store.session("shared")
            await asyncio.gather(append(session, 0), append(session, 1), clear(session))

    asyncio.run(main())
    return reads

together(work, 5)
"""


@pytest.mark.exhaustive
def test_clears_of_several_processes_never_cut_a_batch_and_what_comes_after_the_last_is_all_there(
    database: PostgresDatabase, tmp_path: Path
) -> None:
    assert run_quietly(TOGETHER + CLEARING, database.url, SUPPORT, tmp_path, flags=FORKING) == ""
    reads = [items for of_process in told(tmp_path) for items in of_process]
    assert len(reads) == 5 * 15
    for items in (*reads, database.stored("shared")):
        check_order(list(whole_batches("shared", items)), has_gaps=False)


def check_order(batches: list[Batch], *, has_gaps: bool) -> None:
    """The batches of each task rise, without any missing between two unless others pop."""
    last: dict[tuple[int, int], int] = {}
    for _, writer, task, number in batches:
        before = last.get((writer, task))
        assert before is None or (number > before if has_gaps else number == before + 1), (writer, task, number)
        last[writer, task] = number


MANY_SESSIONS = """
def work(number):
    async def main():
        async with AsyncSessionStore(url) as store:
            sessions = [store.session(f"session_{other}") for other in range(600)]  # for every lane more than it takes
            for _ in range(2):
                await asyncio.gather(
                    *(session.add_items([{"number": number}]) for session in sessions),
                    *(session.get_items() for session in sessions),
                )
            os.write(1, b"ready\\n")
            os.read(0, 1)
    asyncio.run(main())

together(work, 4)
"""


@pytest.mark.exhaustive
def test_each_process_has_as_many_connections_as_are_documented_and_never_one_more(database: PostgresDatabase) -> None:
    # The server counts, at every moment: it refuses the connection that would be one too many, and says so.
    most, said = 4 * (WRITERS + READERS), len(database.server.log())
    database.server.sql(f"ALTER ROLE agentmem CONNECTION LIMIT {most}")
    try:
        with Child(TOGETHER + MANY_SESSIONS, database.url, SUPPORT, flags=FORKING) as processes:
            for _ in range(4):
                assert processes.read_line() == "ready"
            assert 4 * WRITERS <= len(database.connections()) <= most
            processes.write_line("end")  # a byte for each
            assert processes.finish() == (0, "", "")
    finally:
        database.server.sql("ALTER ROLE agentmem CONNECTION LIMIT -1")
    assert "too many connections" not in database.server.log()[said:]
    assert {len(items) for items in database.sessions().values()} == {8}
