"""A copy holds what the source holds, byte for byte, or says of which session it does not; and it can be run again."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from exhaustive import cases, exhaustive
from processes import Child

from agentmem import AsyncSessionStore, SessionStore
from agentmem.checking import MAX_PROBLEMS
from agentmem.copying import PAGE_SESSIONS, SESSIONS_AT_ONCE, CopyReport, copy_sessions
from agentmem.engines import ENGINES
from agentmem.engines import open_engine as open_by_url
from agentmem.engines.base import Engine
from agentmem.errors import SessionClosedError, StorageError
from agentmem.reading import SLICE_ROWS, TailReading

pytestmark = pytest.mark.anyio

Contents = dict[str, list[bytes]]
"""The rows of each session."""

LONG = 2 * SLICE_ROWS + 100

ODD = [
    '{"b": 1,  "a": 1e2}',
    "no JSON",
    "",
    "[]",
    '{"é": "\\ud83d 😀"}',
    f'{{"n": {10**40}}}',
    '{"a":1,"a":2}',
    "\x7f\n",
]
"""Texts that would not come back as they are from a JSON column, are none of an item, or an erased one's."""

NO_ITEMS = (1, 3, 7)
"""Which of them are none."""


PAIRS = [
    " to ".join(pair) for pair in sorted({pair for name in ENGINES for pair in ((name, "sqlite"), ("sqlite", name))})
]
"""Each engine of the registry as source and as target, an SQLite file as the other."""


@pytest.fixture(params=PAIRS)
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Source and target of each pair."""
    source, target = request.param.split(" to ")
    other = str(tmp_path / "other.db")
    if source == "sqlite":
        return other, request.getfixturevalue(f"empty_{target}")
    return request.getfixturevalue(f"empty_{source}"), other


# For what takes long with each pair: the quick run takes one of them.
large = pytest.mark.parametrize("urls", cases(PAIRS, quick=lambda pair: pair == "sqlite to postgresql"), indirect=True)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Source and target where they must be SQLite files, because other programs have a part in it."""
    return str(tmp_path / "source.db"), str(tmp_path / "target.db")


def row(number: int) -> str:
    return f'{{"role": "user",  "content": "{number}"}}'


def rows(start: int, stop: int) -> list[str]:
    return [row(number) for number in range(start, stop)]


def stored(texts: list[str]) -> list[bytes]:
    return [text.encode() for text in texts]


async def fill(url: str, sessions: dict[str, list[str]]) -> None:
    engine = open_by_url(url)
    await asyncio.gather(*(engine.append(session_id, texts) for session_id, texts in sessions.items()))
    await engine.close()


async def contents(url: str) -> Contents:
    """All that is in a database, which must have no gap."""
    engine = open_by_url(url)
    await engine.open()
    found: Contents = {}

    async def find(session_id: str, length: int) -> None:
        texts: list[bytes] = []
        while part := await engine.rows(session_id, len(texts), 1000):
            assert [position for position, _ in part] == list(range(len(texts), len(texts) + len(part)))
            texts += [text for _, text in part]
        assert len(texts) == length
        found[session_id] = texts

    after = None
    while page := await engine.sessions(after, 100):
        after = page[-1][0]
        await asyncio.gather(*(find(session_id, length) for session_id, length in page))
    await engine.close()
    return found


async def copy(urls: tuple[str, str]) -> CopyReport:
    source, target = map(open_by_url, urls)
    try:
        return await copy_sessions(source, target)
    finally:
        await source.close()
        await target.close()


def after_call(engine: Engine, method: str, number: int, act: Callable[[], Awaitable[object]]) -> Callable[[], int]:
    """Have something happen between the `number`-th call of a method of the engine and its return; returns what counts
    the calls."""
    calls = 0
    original = getattr(engine, method)

    async def call(*args: object) -> object:
        nonlocal calls
        result = await original(*args)
        calls += 1
        if calls == number:
            await act()
        return result

    setattr(engine, method, call)
    return lambda: calls


# What goes over


@large
async def test_every_session_goes_over_as_it_is_stored(urls: tuple[str, str]) -> None:
    sessions = {
        "odd": ODD,
        "long": rows(0, LONG),
        "wide": [f'{{"x": "{"é" * 300_000}"}}' for _ in range(7)],
        **{f"{number} ü\n%'": rows(0, number % 4 + 1) for number in range(PAGE_SESSIONS + 50)},
        "x" * 1024: rows(0, 1),
    }
    await fill(urls[0], sessions)
    before = await contents(urls[0])
    report = await copy(urls)
    count = sum(map(len, sessions.values()))
    assert (report.sessions, report.items, report.already_there) == (len(sessions), count, 0)
    assert [(problem.session_id, problem.position) for problem in report.problems] == [("odd", at) for at in NO_ITEMS]
    assert await contents(urls[1]) == before == {id_: stored(texts) for id_, texts in sessions.items()}
    assert await contents(urls[0]) == before
    assert all("copied as it is, but cannot be read" in str(problem) for problem in report.problems)
    assert await copy(urls) == CopyReport(len(sessions), 0, count, len(NO_ITEMS), report.problems)


async def test_a_session_without_items_leaves_nothing_to_copy(urls: tuple[str, str]) -> None:
    await fill(urls[0], {"empty": rows(0, 1)})
    engine = open_by_url(urls[0])
    await engine.pop("empty", TailReading(1))
    await engine.close()
    assert await copy(urls) == CopyReport(1, 0, 0, 0, ())
    assert await contents(urls[1]) == {}


async def test_a_copy_of_nothing_is_a_database_too(urls: tuple[str, str]) -> None:
    engine = open_by_url(urls[0])
    await engine.open()
    await engine.close()
    assert await copy(urls) == CopyReport(0, 0, 0, 0, ())
    assert await copy((urls[1], urls[0])) == CopyReport(0, 0, 0, 0, ())


async def test_run_again_it_copies_what_is_new_and_leaves_alone_what_is_not_the_source_s(urls: tuple[str, str]) -> None:
    await fill(urls[0], {"a": rows(0, 5), "b": rows(0, LONG)})
    await fill(urls[1], {"mine": rows(0, 3)})
    await copy(urls)
    await fill(urls[0], {"b": rows(LONG, LONG + 700), "c": rows(0, 2)})
    assert await copy(urls) == CopyReport(3, 702, LONG + 5, 0, ())
    assert await contents(urls[1]) == {**await contents(urls[0]), "mine": stored(rows(0, 3))}


@large
@pytest.mark.parametrize("have", [1, SLICE_ROWS - 1, SLICE_ROWS, SLICE_ROWS + 1, LONG - 1, LONG])
async def test_a_session_of_which_the_target_holds_a_beginning_gets_the_rest(urls: tuple[str, str], have: int) -> None:
    await fill(urls[0], {"a": rows(0, LONG)})
    await fill(urls[1], {"a": rows(0, have)})
    assert await copy(urls) == CopyReport(1, LONG - have, have, 0, ())
    assert await contents(urls[1]) == {"a": stored(rows(0, LONG))}


# What does not


@large
@pytest.mark.parametrize(
    ("ours", "theirs", "position"),
    [
        (rows(0, 3), [*rows(0, 2), row(9)], 2),
        (rows(0, 3), [row(9)], 0),
        (rows(0, 3), ['{"content": "0",  "role": "user"}'], 0),
        (rows(0, 3), rows(0, 4), 3),
        (rows(0, LONG), [*rows(0, LONG - 1), row(9)], LONG - 1),
        (rows(0, LONG), [*rows(0, SLICE_ROWS), row(9)], SLICE_ROWS),
        (rows(0, SLICE_ROWS), rows(0, SLICE_ROWS + 1), SLICE_ROWS),
        (rows(0, SLICE_ROWS), rows(0, LONG), SLICE_ROWS),
    ],
)
async def test_a_session_that_differs_is_named_and_left_as_it_is_and_the_others_are_copied(
    urls: tuple[str, str], ours: list[str], theirs: list[str], position: int
) -> None:
    await fill(urls[0], {"a": rows(0, 2), "b": ours, "c": rows(0, 3)})
    await fill(urls[1], {"b": theirs})
    report = await copy(urls)
    (problem,) = report.problems
    assert (problem.session_id, problem.position) == ("b", position)
    assert "in the target" in str(problem) or "the target has" in str(problem)
    assert "clear it there" in str(problem)
    assert (report.sessions, report.items, report.problem_count) == (3, 5, 1)
    assert await contents(urls[1]) == {"a": stored(rows(0, 2)), "b": stored(theirs), "c": stored(rows(0, 3))}


async def test_a_session_that_pops_have_emptied_differs_from_one_with_items(urls: tuple[str, str]) -> None:
    await fill(urls[0], {"a": rows(0, 1)})
    await copy(urls)
    engine = open_by_url(urls[0])
    await engine.pop("a", TailReading(1))
    await engine.close()
    assert [problem.position for problem in (await copy(urls)).problems] == [0]
    assert await contents(urls[1]) == {"a": stored(rows(0, 1))}


@pytest.mark.parametrize(("bad", "what"), [("CAST(x'7b0041' AS TEXT)", "NUL"), ("CAST(x'7bff' AS TEXT)", "UTF-8")])
@pytest.mark.parametrize("position", [0, LONG - 1])
async def test_a_session_with_a_text_that_not_every_database_stores_is_named_and_nothing_of_it_copied(
    files: tuple[str, str], bad: str, what: str, position: int
) -> None:
    await fill(files[0], {"a": rows(0, 2), "b": rows(0, LONG), "c": rows(0, 3)})
    execute(files[0], f"UPDATE agentmem_items SET item = {bad} WHERE session_key = 2 AND position = {position}")
    report = await copy(files)
    (problem,) = report.problems
    assert (problem.session_id, problem.position) == ("b", position)
    assert what in str(problem)
    assert await contents(files[1]) == {"a": stored(rows(0, 2)), "c": stored(rows(0, 3))}


@pytest.mark.parametrize(
    "session_id", ["''", "CAST(x'610062' AS TEXT)", "CAST(x'61ff' AS TEXT)", "printf('%2000d', 1)"]
)
async def test_a_session_whose_id_agentmem_refuses_is_named_and_not_copied(
    files: tuple[str, str], session_id: str
) -> None:
    sessions = {f"user_{number}": rows(0, 1) for number in range(PAGE_SESSIONS)}
    await fill(files[0], {"a": rows(0, 2), "b": rows(0, 3), **sessions})
    execute(files[0], f"UPDATE agentmem_sessions SET session_id = {session_id} WHERE session_id = 'a'")
    report = await copy(files)
    assert (report.sessions, report.problem_count) == (PAGE_SESSIONS + 2, 1)
    assert "not copied: session_id" in str(report.problems[0])
    assert str(report.problems[0]).isprintable()
    assert await contents(files[1]) == {id_: stored(texts) for id_, texts in {"b": rows(0, 3), **sessions}.items()}


@pytest.mark.parametrize("position", [0, 3, SLICE_ROWS, LONG - 1])
async def test_a_session_with_a_gap_is_named_and_not_copied(files: tuple[str, str], position: int) -> None:
    await fill(files[0], {"a": rows(0, LONG), "b": rows(0, 3)})
    execute(files[0], f"DELETE FROM agentmem_items WHERE session_key = 1 AND position = {position}")
    report = await copy(files)
    assert [(problem.session_id, problem.position) for problem in report.problems] == [("a", position)]
    assert "check" in str(report.problems[0])
    assert await contents(files[1]) == {"b": stored(rows(0, 3))}


async def test_a_damaged_page_costs_the_session_that_it_is_of_and_no_other(files: tuple[str, str]) -> None:
    await fill(files[0], {"a": rows(0, 3), "b": [row(0) + " " * 400] * 3000, "c": rows(0, 3)})
    with open(files[0], "r+b") as file:
        file.seek(file.seek(0, 2) // 2 // 4096 * 4096)
        file.write(b"\xff" * 4096)
    report = await copy(files)
    assert [problem.session_id for problem in report.problems] == ["b"]
    assert "cannot be read to its end" in str(report.problems[0])
    assert await contents(files[1]) == {"a": stored(rows(0, 3)), "c": stored(rows(0, 3))}


async def test_more_problems_than_anyone_reads_are_counted_and_not_kept(urls: tuple[str, str]) -> None:
    sessions = {f"user_{number:03}": rows(0, 1) for number in range(MAX_PROBLEMS + 50)}
    await fill(urls[0], sessions)
    await fill(urls[1], {session_id: [row(9)] for session_id in sessions})
    report = await copy(urls)
    assert report.problem_count == MAX_PROBLEMS + 50
    named = [problem.session_id for problem in report.problems]
    assert len(set(named)) == MAX_PROBLEMS
    assert named == sorted(named, key=str)


@asynccontextmanager
async def connections_kept(urls: tuple[str, str]) -> AsyncIterator[None]:
    """Engines that are opened on these databases meanwhile use connections that there are."""
    engines = [open_by_url(url) for url in urls]
    for engine in engines:
        await engine.open()
    yield
    for engine in engines:
        await engine.close()


def execute(path: str, statement: str) -> None:
    """What another program does to a file."""
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(statement).rowcount == 1


# What changes meanwhile


async def pop(engine: Engine) -> None:
    await engine.pop("a", TailReading(1))


async def clear(engine: Engine) -> None:
    await engine.clear("a")


async def begin_anew(engine: Engine) -> None:
    await engine.clear("a")
    await engine.append("a", rows(1, LONG + 1))


async def replace_the_last(engine: Engine) -> None:
    await engine.pop("a", TailReading(1))
    await engine.append("a", [row(-1)])


@large
@pytest.mark.parametrize("change", [pop, clear, begin_anew, replace_the_last])
@pytest.mark.parametrize("length", [pytest.param(3, marks=exhaustive), LONG])
async def test_a_session_that_changes_in_the_source_meanwhile_is_named_or_copied_as_it_is_then(
    urls: tuple[str, str], length: int, change: Callable[[Engine], Awaitable[None]]
) -> None:
    async with connections_kept(urls):
        await change_after_each_call(urls, length, change)


async def change_after_each_call(
    urls: tuple[str, str], length: int, change: Callable[[Engine], Awaitable[None]]
) -> None:
    for number in itertools.count():
        source, target, other = (open_by_url(url) for url in (*urls, urls[0]))
        await source.clear("a")
        await target.clear("a")
        await source.append("a", rows(0, length))
        calls = after_call(source, "rows", number, lambda other=other: change(other))  # type: ignore[misc]  # mypy: lambda
        report = await copy_sessions(source, target)
        for engine in (source, target, other):
            await engine.close()
        if number == 0:  # nothing happened, and these are all the calls that there are
            assert report.problem_count == 0
            total = calls()
        elif number == total:
            assert number >= 2
            return  # what comes after the last look is after the copy
        else:
            ours, theirs = (await contents(urls[0])).get("a", []), (await contents(urls[1])).get("a", [])
            assert report.problem_count == 1 or ours == theirs
            assert report.problem_count == 0 or "run the copy again" in str(report.problems[0])


@pytest.mark.parametrize("length", [pytest.param(3, marks=exhaustive), LONG])
async def test_what_is_appended_in_the_source_meanwhile_is_left_to_the_next_run(
    urls: tuple[str, str], length: int
) -> None:
    await fill(urls[0], {"a": rows(0, length)})
    source, target, other = (open_by_url(url) for url in (*urls, urls[0]))
    for number in range(1, 20):
        after_call(source, "rows", number, lambda: other.append("a", [row(0)] * 100))
    assert await copy_sessions(source, target) == CopyReport(1, length, 0, 0, ())
    for engine in (source, target, other):
        await engine.close()
    assert await contents(urls[1]) == {"a": stored(rows(0, length))}
    assert (await copy(urls)).problem_count == 0
    assert await contents(urls[1]) == await contents(urls[0])


@large
@pytest.mark.parametrize("length", [pytest.param(3, marks=exhaustive), LONG])
async def test_what_somebody_else_writes_to_the_target_meanwhile_is_found(urls: tuple[str, str], length: int) -> None:
    for number in itertools.count():
        source, target, other = (open_by_url(url) for url in (*urls, urls[1]))
        await source.clear("a")
        await target.clear("a")
        await source.append("a", rows(0, length))
        calls = after_call(target, "rows", number, lambda other=other: other.append("a", [row(9)]))  # type: ignore[misc]  # mypy: lambda
        report = await copy_sessions(source, target)
        for engine in (source, target, other):
            await engine.close()
        if number == 0:
            total = calls()
        elif number == total:
            return
        assert report.problem_count == (number > 0)


# Which databases


async def test_a_database_is_not_copied_to_itself(files: tuple[str, str]) -> None:
    store = AsyncSessionStore(files[0])
    for spelled in (files[0], f"sqlite:///{files[0]}", str(Path(files[0]).parent / "." / "source.db")):
        with pytest.raises(ValueError, match=r"are the same database, .*source\.db"):
            await store.copy_to(AsyncSessionStore(spelled))
    assert not Path(files[0]).exists()
    async with AsyncSessionStore(":memory:") as memory:
        with pytest.raises(ValueError, match=r"the same database, :memory:"):
            await memory.copy_to(memory)


async def test_a_source_that_is_none_is_refused_and_nothing_is_made(files: tuple[str, str]) -> None:
    source, target = map(AsyncSessionStore, files)
    with pytest.raises(StorageError, match=r"there is no file .*source\.db"):
        await source.copy_to(target)
    assert not Path(files[0]).exists()
    for content in (b"", b"Dear diary. " * 1000):
        Path(files[0]).write_bytes(content)
        with pytest.raises(StorageError, match=r"source\.db"):
            await source.copy_to(target)
        assert Path(files[0]).read_bytes() == content
    assert not Path(files[1]).exists()


async def test_a_source_file_is_only_read(files: tuple[str, str]) -> None:
    await fill(files[0], {"a": rows(0, LONG), "b": rows(0, 1)})
    before = Path(files[0]).read_bytes()
    await copy(files)
    assert Path(files[0]).read_bytes() == before
    assert {path.name for path in Path(files[0]).parent.iterdir()} == {"source.db", "target.db"}


async def test_sessions_in_memory_are_copied_to_a_file_and_back(files: tuple[str, str]) -> None:
    async with AsyncSessionStore(":memory:") as memory, AsyncSessionStore(":memory:") as back:
        await memory.session("a").add_items([{"role": "user", "content": "one"}])
        async with AsyncSessionStore(files[1]) as file:
            assert (await memory.copy_to(file)).items == 1
            assert (await file.copy_to(back)).items == 1
        assert await back.session("a").get_items() == [{"role": "user", "content": "one"}]


async def test_stores_are_opened_by_the_copy_and_stay_open(files: tuple[str, str]) -> None:
    await fill(files[0], {"a": ['{"n": 1}']})
    source, target = map(AsyncSessionStore, files)
    await source.copy_to(target)
    assert await target.session("a").get_items() == await source.session("a").get_items() == [{"n": 1}]
    await source.close()
    with pytest.raises(SessionClosedError):
        await source.copy_to(target)
    await target.close()


@pytest.mark.parametrize("other", ["other.db", None, SessionStore(":memory:")])
async def test_a_target_that_is_no_store_is_a_type_error(other: object) -> None:
    with pytest.raises(TypeError, match=type(other).__name__):
        await AsyncSessionStore("no.db").copy_to(other)  # type: ignore[arg-type]  # that is the point


def test_the_sync_store_copies_likewise(files: tuple[str, str]) -> None:
    with SessionStore(files[0]) as source, SessionStore(files[1]) as target:
        source.session("a").add_items([{"n": 1}])
        assert source.copy_to(target) == CopyReport(1, 1, 0, 0, ())
        assert target.session("a").get_items() == [{"n": 1}]
        with pytest.raises(TypeError, match="str"):
            source.copy_to("other.db")  # type: ignore[arg-type]  # that is the point


# How it ends


def sessions_of_many_lengths() -> dict[str, list[str]]:
    """More sessions than are listed and copied at once; one in twenty takes several slices."""
    lengths = (1 + number % 5 if number % 20 else LONG for number in range(5 * SESSIONS_AT_ONCE))
    return {f"user_{number}": rows(number, number + length) for number, length in enumerate(lengths)}


def beginnings(part: Contents, whole: Contents) -> int:
    """How many items there are of each session's beginning."""
    for session_id, texts in part.items():
        assert texts == whole[session_id][: len(texts)]
        assert len(texts) % SLICE_ROWS == 0 or len(texts) == len(whole[session_id])
    return sum(map(len, part.values()))


@large
async def test_an_error_comes_out_as_it_is_and_the_next_run_completes_the_copy(urls: tuple[str, str]) -> None:
    await fill(urls[0], sessions_of_many_lengths())
    for method, closes in (("append", 1), ("rows", 0), ("sessions", 0)):
        engines = source, target = open_by_url(urls[0]), open_by_url(urls[1])
        after_call(engines[closes], method, 1, engines[closes].close)
        with pytest.raises(SessionClosedError):
            await copy_sessions(source, target)
        await source.close()
        await target.close()

    failed: list[int] = []

    def fail(done: int, of: int) -> None:
        if done and not failed:
            failed.append(done)
            raise ZeroDivisionError

    source, target = map(open_by_url, urls)
    with pytest.raises(ZeroDivisionError):
        await copy_sessions(source, target, progress=fail)
    await source.close()
    await target.close()
    whole = await contents(urls[0])
    # The other sessions' copies ended with it.
    assert beginnings(await contents(urls[1]), whole) < sum(map(len, whole.values()))
    assert (await copy(urls)).problem_count == 0
    assert await contents(urls[1]) == whole


@pytest.mark.parametrize(
    "error",
    cases(
        [
            ZeroDivisionError("x"),
            KeyboardInterrupt("x"),
            SystemExit("x"),
            asyncio.CancelledError("x"),
            ExceptionGroup("x", [ValueError("y")]),
            BaseExceptionGroup("x", [KeyboardInterrupt("y")]),
        ],
        quick=lambda error: type(error) in (asyncio.CancelledError, BaseExceptionGroup),
    ),
    ids=lambda error: type(error).__name__,
)
async def test_what_the_caller_s_progress_raises_at_any_call_comes_out_as_it_is(
    files: tuple[str, str], error: BaseException
) -> None:
    await fill(files[0], {"a": rows(0, 3), "b": rows(0, 5 * 1024), "c": rows(0, 2)})
    await fill(files[1], {"a": [row(9)], "c": [row(9)]})  # for which what is left of a session is counted at its end
    calls = 0

    def count(done: int, of: int) -> None:
        nonlocal calls
        calls += 1

    source, target = map(open_by_url, files)
    await copy_sessions(source, target, progress=count)
    for number in range(1, calls + 1):
        left = [number]

        def fail(done: int, of: int) -> None:
            left[0] -= 1  # noqa: B023  of this round
            if not left[0]:  # noqa: B023
                raise error

        with pytest.raises(type(error)) as raised:
            await copy_sessions(source, target, progress=fail)
        assert raised.value is error
    await source.close()
    await target.close()


async def test_corrupt_items_of_one_session_are_counted_and_the_first_are_named(files: tuple[str, str]) -> None:
    await fill(files[0], {"a": ["no JSON"] * (MAX_PROBLEMS + 50)})
    report = await copy(files)
    assert (report.items, report.problem_count) == (MAX_PROBLEMS + 50, MAX_PROBLEMS + 50)
    assert [problem.position for problem in report.problems] == list(range(MAX_PROBLEMS))


@large
async def test_a_cancelled_copy_leaves_beginnings_and_the_next_run_completes_it(urls: tuple[str, str]) -> None:
    await fill(urls[0], sessions_of_many_lengths())
    whole = await contents(urls[0])
    counts = [0]
    for number in (1, 10, SESSIONS_AT_ONCE):
        source, target = map(open_by_url, urls)

        async def cancel() -> None:
            task.cancel()  # noqa: B023  of this round

        after_call(target, "append", number, cancel)
        task = asyncio.ensure_future(copy_sessions(source, target))
        with pytest.raises(asyncio.CancelledError):
            await task
        await source.close()
        await target.close()
        counts.append(beginnings(await contents(urls[1]), whole))
    assert counts == sorted(counts)
    assert counts[1] > 0
    already_there = beginnings(await contents(urls[1]), whole)
    assert await copy(urls) == CopyReport(
        len(whole), sum(map(len, whole.values())) - already_there, already_there, 0, ()
    )
    assert await contents(urls[1]) == whole


KILLED = """
import asyncio, sys
from agentmem import AsyncSessionStore

def tell(done, of):
    print(done, flush=True)
    if sys.argv[3] == str(done // 1024):
        sys.stdin.readline()

async def main():
    async with AsyncSessionStore(sys.argv[1]) as source, AsyncSessionStore(sys.argv[2]) as target:
        await source.copy_to(target, progress=tell)

asyncio.run(main())
"""


@large
@pytest.mark.parametrize("stops", [True, pytest.param(False, marks=exhaustive)], ids=["stopped half way", "at work"])
async def test_a_killed_copy_leaves_beginnings_and_the_next_run_completes_it(
    urls: tuple[str, str], stops: bool
) -> None:
    sessions = {f"user_{number}": rows(0, number) for number in range(1, 2 * SESSIONS_AT_ONCE)}
    sessions["long"] = rows(0, 4 * LONG)
    await fill(urls[0], sessions)
    whole = {session_id: stored(texts) for session_id, texts in sessions.items()}
    had = 0
    for kilo in (1, 6):
        with Child(KILLED, *urls, str(kilo) if stops else "never") as child:
            while int(child.read_line()) < kilo * 1024:
                pass
            child.kill()
        there = beginnings(await contents(urls[1]), whole)
        assert there >= had
        had = there
        assert not stops or there < sum(map(len, whole.values()))
    assert had > 0
    report = await copy(urls)
    assert (report.already_there, report.problem_count) == (had, 0)
    assert await contents(urls[1]) == whole


# How far it is, and how much at a time


@large
async def test_progress_rises_to_the_number_of_items(urls: tuple[str, str]) -> None:
    await fill(urls[0], {**sessions_of_many_lengths(), "b": ODD})
    await fill(urls[1], {"b": [row(9)]})
    total = sum(map(len, (await contents(urls[0])).values()))
    told: list[tuple[int, int]] = []
    source, target = map(open_by_url, urls)
    await copy_sessions(source, target, progress=lambda done, of: told.append((done, of)))
    await source.close()
    await target.close()
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert told == sorted(told)
    assert len(told) > 5


@large
async def test_many_sessions_are_written_at_once_but_not_all(urls: tuple[str, str]) -> None:
    await fill(urls[0], {f"user_{number}": rows(0, 1) for number in range(5 * SESSIONS_AT_ONCE)})
    source, target = map(open_by_url, urls)
    at_once = most = 0
    append = target.append

    async def count(*args: object) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await append(*args)  # type: ignore[arg-type]  # as they came
        at_once -= 1

    target.append = count  # type: ignore[method-assign, assignment]  # it counts, and does the same
    await copy_sessions(source, target)
    await source.close()
    await target.close()
    assert 1 < most <= SESSIONS_AT_ONCE
