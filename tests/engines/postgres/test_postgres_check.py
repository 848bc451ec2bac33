"""A check of PostgreSQL says what one of SQLite's says of the same history, and changes nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import pytest
from database import shell
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres_database import PostgresDatabase

from agentmem import AsyncSessionStore
from agentmem.checking import CheckReport
from agentmem.engines import open_engine
from agentmem.errors import StorageError
from agentmem.items import Item

pytest.importorskip("asyncpg", reason="asyncpg is not installed")

from agentmem.engines.postgres import check as postgres_check

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}
ITEM = '{"role": "user", "content": "x"}'


async def check(url: str) -> CheckReport:
    store = AsyncSessionStore(url)
    try:
        return await store.check()
    finally:
        await store.close()


async def fill(url: str, sessions: int = 3, items: int = 5) -> None:
    async with AsyncSessionStore(url) as store:
        for number in range(sessions):
            await store.session(f"user_{number}").add_items([{**ONE, "n": place} for place in range(items)])


def lines(report: CheckReport) -> list[str]:
    return [str(problem) for problem in report.problems]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (
            "DELETE FROM agentmem_items WHERE session_id = 'user_1' AND position IN (1, 2)",
            ["session 'user_1', position 1: missing, up to position 2"],
        ),
        (
            "UPDATE agentmem_sessions SET length = 7 WHERE session_id = 'user_2'",
            ["session 'user_2', position 5: missing, up to position 6"],
        ),
        (
            "UPDATE agentmem_sessions SET length = 3 WHERE session_id = 'user_0'",
            ["session 'user_0', position 3: not below the session's next position, 3, up to position 4"],
        ),
        (
            "UPDATE agentmem_sessions SET length = -1 WHERE session_id = 'user_1'",
            [
                "session 'user_1': its next position is -1",
                "session 'user_1', position 0: not below the session's next position, -1, up to position 4",
            ],
        ),
        (
            "DELETE FROM agentmem_sessions WHERE session_id = 'user_1'",
            ["items of session 'user_1', which does not exist"],
        ),
        (
            "UPDATE agentmem_items SET item = 'broken' WHERE session_id = 'user_1' AND position = 3",
            ["session 'user_1', position 3: cannot be read: .*"],
        ),
        (
            "UPDATE agentmem_items SET item = '[]' WHERE session_id = 'user_2' AND position = 4",
            ["session 'user_2', position 4: cannot be read: .*"],
        ),
        (
            "DELETE FROM agentmem_items",
            [f"session 'user_{n}', position 0: missing, up to position 4" for n in range(3)],
        ),
        (
            "DELETE FROM agentmem_sessions",
            [f"items of session 'user_{number}', which does not exist" for number in range(3)],
        ),
        (
            "INSERT INTO agentmem_notes SELECT 'gone_' || n % 3, 'usage', n, 0, '{}' FROM generate_series(1, 9) AS n;"
            "INSERT INTO agentmem_notes VALUES ('user_1', 'usage', '1', 0, '{}')",
            [f"notes of session 'gone_{number}', which does not exist" for number in range(3)],
        ),
        (
            # A lock is kept apart from the session, which may come later.
            "INSERT INTO agentmem_locks VALUES ('new', 'token', 'holder', now(), now(), now())",
            [],
        ),
        (
            "UPDATE agentmem_items SET position = position + 1 WHERE session_id = 'user_0' AND position = 4",
            [
                "session 'user_0', position 4: missing",
                "session 'user_0', position 5: not below the session's next position, 5",
            ],
        ),
    ],
)
async def test_each_kind_of_damage_is_named_wherever_a_page_ends(
    database: PostgresDatabase, damage: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(database.url)
    database.sql(f"SET search_path = agentmem; {damage}")
    for page_rows in (1, 4, 5, 2048):
        monkeypatch.setattr(postgres_check, "PAGE_ROWS", page_rows)
        report = await check(database.url)
        assert report.problem_count == len(report.problems) == len(found)
        for line, expected in zip(lines(report), found, strict=True):
            assert line == expected or re.fullmatch(expected, line)


class Change(NamedTuple):
    """Something that no agentmem does; of a session by its place."""

    kind: str
    session: int
    number: int


KINDS = ["lose", "break", "end", "forget"]
CHANGES = st.lists(st.builds(Change, st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 14)), max_size=6).map(
    lambda changes: sorted(changes, key=lambda change: KINDS.index(change.kind))
)


def in_sqlite(change: Change) -> str:
    of_session = f"session_key = (SELECT session_key FROM agentmem_sessions WHERE session_id = 'user_{change.session}')"
    return statement(change, of_session)


def in_postgresql(change: Change) -> str:
    return statement(change, f"session_id = 'user_{change.session}'")


def statement(change: Change, of_session: str) -> str:
    item = f"{of_session} AND position = {change.number}"
    session = f"session_id = 'user_{change.session}'"
    return {
        "lose": f"DELETE FROM agentmem_items WHERE {item}",
        "break": f"UPDATE agentmem_items SET item = 'broken' WHERE {item}",
        "end": f"UPDATE agentmem_sessions SET length = {change.number} WHERE {session}",
        "forget": f"DELETE FROM agentmem_sessions WHERE {session}",
    }[change.kind]


@pytest.mark.hypothesis
def test_any_damaged_history_has_the_report_that_it_has_in_sqlite(
    database: PostgresDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count()

    def compare(lengths: list[int], changes: list[Change], page_rows: int) -> None:
        monkeypatch.setattr(postgres_check, "PAGE_ROWS", page_rows)
        number = next(numbers)
        path, schema = tmp_path / f"{number}.db", f"schema_{number}"
        urls = (f"sqlite:///{path}", database.url_of(schema=schema))
        for url in urls:
            asyncio.run(make(url, lengths))
        with shell(path) as other:
            for change in changes:
                other.execute(in_sqlite(change))
        database.sql(";".join([f"SET search_path = {schema}", *map(in_postgresql, changes)]))
        expected, report = (asyncio.run(check(url)) for url in urls)
        assert (report.sessions, report.items) == (expected.sessions, expected.items)
        assert report.problem_count == expected.problem_count
        # What has no session has no id in SQLite, and so comes by another name.
        assert of_sessions(report) == of_sessions(expected)

    examples = settings().max_examples // 2  # a server takes some milliseconds for what a file does in one
    settings(max_examples=examples, suppress_health_check=[HealthCheck.function_scoped_fixture])(
        given(st.lists(st.integers(0, 12), min_size=1, max_size=6), CHANGES, st.sampled_from([1, 2, 3, 7, 2048]))(
            compare
        )
    )()


def of_sessions(report: CheckReport) -> list[str]:
    return [str(problem) for problem in report.problems if problem.session_id is not None]


async def make(url: str, lengths: list[int]) -> None:
    engine = open_engine(url)
    await engine.open()
    for place, length in enumerate(lengths):
        await engine.append(f"user_{place}", [ITEM] * length)
    await engine.close()


async def test_of_very_many_problems_the_first_are_described_and_the_others_counted(
    database: PostgresDatabase,
) -> None:
    await fill(database.url, sessions=1, items=1500)
    database.sql("UPDATE agentmem.agentmem_items SET item = '[]'")
    report = await check(database.url)
    assert (report.items, report.problem_count, len(report.problems)) == (1500, 1500, 100)


async def test_progress_goes_up_to_all_items_and_is_told_in_another_thread(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_check, "PAGE_ROWS", 700)
    await fill(database.url, sessions=3, items=1024)
    told: list[tuple[int, int]] = []
    threads: set[int] = set()

    def progress(done: int, about: int) -> None:
        told.append((done, about))
        threads.add(threading.get_ident())

    async with AsyncSessionStore(database.url) as store:
        await store.check(progress=progress)
    assert told == [(0, 3072), (1024, 3072), (2048, 3072), (3072, 3072), (3072, 3072)]
    assert threads != {threading.get_ident()}


async def test_a_check_of_long_items_takes_the_memory_of_a_few(database: PostgresDatabase) -> None:
    engine = open_engine(database.url)
    for _ in range(4):
        await engine.append("user_123", [json.dumps({"text": "x" * 1_000_000})] * 10)
    tracemalloc.start()
    try:
        assert (await engine.check()).items == 40
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        await engine.close()
    assert peak_bytes < 10_000_000


async def test_a_check_sees_one_state_while_others_write(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_check, "PAGE_ROWS", 2)
    async with AsyncSessionStore(database.url) as store:

        async def write(number: int) -> None:
            session = store.session(f"user_{number}")
            while not checking.done():
                await session.add_items([ONE, ONE, ONE])
                await session.pop_item()
                await session.clear_session()

        async def check_often() -> None:
            for _ in range(10):
                assert (await store.check()).problems == ()

        await fill(database.url, sessions=10)
        checking = asyncio.ensure_future(check_often())
        await asyncio.gather(checking, *map(write, range(4)))


@pytest.mark.parametrize("call", ["check", "sessions"])
@pytest.mark.parametrize("there", ["", "CREATE SCHEMA agentmem; CREATE TABLE agentmem.other (x int)"])
async def test_where_nothing_was_ever_stored_is_an_error_and_nothing_is_made(
    database: PostgresDatabase, call: str, there: str
) -> None:
    database.sql(there)
    before = database.sql("SELECT nspname FROM pg_namespace; SELECT count(*) FROM pg_class")
    engine = open_engine(database.url)
    with pytest.raises(StorageError, match=r"holds no sessions of agentmem's; check the URL and the schema"):
        await (engine.check() if call == "check" else engine.sessions(None, 10))
    await engine.close()
    assert database.sql("SELECT nspname FROM pg_namespace; SELECT count(*) FROM pg_class") == before


async def test_tables_that_are_not_as_agentmem_made_them_are_an_error_by_name(database: PostgresDatabase) -> None:
    await fill(database.url)
    database.sql("ALTER TABLE agentmem.agentmem_items RENAME item TO text")
    with pytest.raises(StorageError, match=r"column \"item\" does not exist.*not as agentmem made them"):
        await check(database.url)
    database.sql("DROP TABLE agentmem.agentmem_items")
    with pytest.raises(StorageError, match=r"its tables are gone; restore a backup"):
        await check(database.url)
