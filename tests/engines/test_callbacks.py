"""What the caller's own code raises inside an engine is the outcome of the call, as it was raised, on every engine."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agentmem import AsyncSessionStore, SessionSettings, SessionStore
from agentmem.engines.callbacks import CallbackFailed, guarded
from agentmem.errors import StorageBusyError
from agentmem.items import Item

pytestmark = pytest.mark.anyio


def errors() -> list[BaseException]:
    """What an engine itself would take for the database's or the network's, or what ends threads and tasks."""
    raised: list[BaseException] = [
        ValueError("the caller's"),
        BrokenPipeError("the caller's"),
        ConnectionResetError("the caller's"),
        TimeoutError("the caller's"),
        sqlite3.OperationalError("the caller's"),
        sqlite3.DatabaseError("the caller's"),
        StorageBusyError("the caller's"),
        SystemExit("the caller's"),
        KeyboardInterrupt("the caller's"),
        asyncio.CancelledError("the caller's"),
    ]
    try:
        import asyncpg
    except ImportError:
        return raised
    return [*raised, asyncpg.PostgresError("the caller's"), asyncpg.ConnectionDoesNotExistError("the caller's")]


class Failing:
    """A callback that raises an error, and counts its calls."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls = 0

    def __call__(self, *_: object) -> Any:
        self.calls += 1
        raise self.error


@pytest.fixture(params=["sqlite", "memory", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind."""
    return ":memory:" if request.param == "memory" else str(request.getfixturevalue(f"empty_{request.param}"))


ITEMS: list[Item] = [{"number": number, "text": "x" * 40} for number in range(200)]

CALLS: dict[str, Callable[[Any, Callable[..., Any]], Any]] = {
    "check": lambda store, fail: store.check(progress=fail),
    "short window": lambda store, fail: store.session(
        "user_1", settings=SessionSettings(max_tokens=64, count_tokens=fail)
    ).get_items(),
    "long window": lambda store, fail: store.session(
        "user_1", settings=SessionSettings(max_tokens=60_000, count_tokens=fail)
    ).get_items(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_what_a_callback_raises_in_an_engine_is_raised_as_it_is_after_one_call(url: str, call: str) -> None:
    async with AsyncSessionStore(url) as store:
        await store.session("user_1").add_items(ITEMS)
        for error in errors():
            fail = Failing(error)
            with pytest.raises(type(error)) as raised:
                await CALLS[call](store, fail)
            assert raised.value is error
            assert (fail.calls, error.__cause__, error.__context__) == (1, None, None), error
        assert await store.session("user_1").get_items() == ITEMS
        assert (await store.check()).problem_count == 0


@pytest.mark.parametrize("call", CALLS)
async def test_a_callback_that_raises_stopiteration_ends_the_call_with_pythons_own_error_for_it(
    url: str, call: str
) -> None:
    async with AsyncSessionStore(url) as store:
        await store.session("user_1").add_items(ITEMS)
        fail = Failing(StopIteration("the caller's"))
        with pytest.raises(RuntimeError, match="raised StopIteration") as raised:
            await CALLS[call](store, fail)
        assert raised.value.__cause__ is fail.error
        assert fail.calls == 1


@pytest.mark.parametrize("call", CALLS)
def test_the_sync_classes_raise_it_likewise(url: str, call: str) -> None:
    with SessionStore(url) as store:
        store.session("user_1").add_items(ITEMS)
        for error in errors():
            fail = Failing(error)
            with pytest.raises(type(error)) as raised:
                CALLS[call](store, fail)
            assert raised.value is error
            assert fail.calls == 1
        assert store.session("user_1").get_items() == ITEMS


async def test_what_the_progress_of_a_copy_raises_is_raised_as_it_is(url: str) -> None:
    async with AsyncSessionStore(url) as store:
        await store.session("user_1").add_items(ITEMS)
        for error in errors():
            if isinstance(error, Exception):
                async with AsyncSessionStore(":memory:") as other:
                    with pytest.raises(type(error)) as raised:
                        await store.copy_to(other, progress=Failing(error))
                assert raised.value is error


async def test_what_an_iterable_of_items_raises_is_raised_as_it_is_and_nothing_is_stored(url: str) -> None:
    def items(error: BaseException) -> Iterator[Item]:
        yield {"number": 0}
        raise error

    async with AsyncSessionStore(url) as store:
        session = store.session("user_1")
        for error in errors():
            with pytest.raises(type(error)) as raised:
                await session.add_items(items(error))
            assert raised.value is error
        assert await session.get_items() == []


async def test_a_callback_that_fails_while_the_file_changes_is_not_called_again(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    async with AsyncSessionStore(path) as store:
        await store.session("user_1").add_items(ITEMS)

    def change_and_fail(*_: object) -> None:
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE agentmem_sessions SET updated_at = 0")
        other.close()
        fail()

    fail = Failing(ValueError("the caller's"))
    with pytest.raises(ValueError, match="the caller's"):
        await AsyncSessionStore(path).check(progress=change_and_fail)
    assert fail.calls == 1


def test_a_guarded_function_takes_and_returns_what_the_function_does() -> None:
    @guarded
    def divide(number: int, *, by: int) -> float:
        return number / by

    assert divide(3, by=2) == 1.5
    with pytest.raises(CallbackFailed) as raised:
        divide(3, by=0)
    assert isinstance(raised.value.error, ZeroDivisionError)
