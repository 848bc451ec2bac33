"""A write to a file that goes away says whether it is in doubt: only in the middle of its transaction it is."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentmem import AsyncSession, AsyncSQLiteSession
from agentmem.engines.sqlite import statements, transaction
from agentmem.engines.sqlite.engine import SQLiteEngine
from agentmem.errors import StorageError
from agentmem.items import Item
from agentmem.reading import TailReading
from agentmem.runner import Agent, OfflineModel, Runner, function_tool

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}
DOUBT = "committed to what was open: look whether it is stored before you write it again"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


def after_rows_are_written(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]) -> None:
    """Do something in the middle of the next transactions that append."""

    def append_and_do(*args: Any) -> None:
        statements.append_all(*args)
        then()

    monkeypatch.setattr(transaction, "append_all", append_and_do)


def remove(path: Path, what: str) -> None:
    for file in path.parent.glob(f"{path.name}-wal" if what == "wal" else path.name):
        if what == "replaced":
            file.rename(path.with_name("moved.db"))
            path.touch()
        else:
            file.unlink()


@pytest.mark.parametrize("what", ["file", "wal", "replaced"])
async def test_an_append_whose_file_goes_away_before_its_commit_is_in_doubt_and_later_ones_are_not(
    path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SQLiteEngine(path)
    session = AsyncSession(engine, "user_123")
    await session.add_items([ONE])
    with monkeypatch.context() as in_transaction:
        after_rows_are_written(in_transaction, lambda: remove(path, what))
        outcomes = await asyncio.gather(*(session.add_items([ONE]) for _ in range(3)), return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, StorageError)
        assert outcome.in_doubt
        assert DOUBT in str(outcome)
    for call in (session.add_items([ONE]), session.pop_item(), session.clear_session(), session.get_items()):
        with pytest.raises(StorageError) as raised:
            await call
        assert not raised.value.in_doubt
        assert DOUBT not in str(raised.value)
    await engine.close()


class Removing(TailReading):
    """A reading that removes the file once it was fed."""

    def __init__(self, path: Path) -> None:
        super().__init__(1)
        self._path = path

    def feed(self, rows: Sequence[tuple[int, bytes]], *, at_start: bool) -> int:
        self._path.unlink()
        return super().feed(rows, at_start=at_start)


async def test_a_pop_whose_file_goes_away_before_its_commit_is_in_doubt(path: Path) -> None:
    engine = SQLiteEngine(path)
    await engine.append("user_123", ["{}"])
    with pytest.raises(StorageError, match=DOUBT) as raised:
        await engine.pop("user_123", Removing(path))
    assert raised.value.in_doubt
    await engine.close()


async def test_a_write_that_is_cancelled_meanwhile_tells_in_the_cause_that_it_is_in_doubt(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        await session.add_items([ONE])
        loop = asyncio.get_running_loop()

        def cancel_and_remove() -> None:
            loop.call_soon_threadsafe(append.cancel)
            path.unlink()

        after_rows_are_written(monkeypatch, cancel_and_remove)
        append = asyncio.ensure_future(session.add_items([ONE]))
        with pytest.raises(asyncio.CancelledError) as raised:
            await append
        assert isinstance(raised.value.__cause__, StorageError)
        assert raised.value.__cause__.in_doubt


async def test_a_run_whose_write_is_in_doubt_does_not_say_that_nothing_was_added(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent("Assistant", "Answer.", model=OfflineModel())
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        after_rows_are_written(monkeypatch, path.unlink)
        with pytest.raises(StorageError) as raised:
            await Runner.run(agent, "Hello", session=session)
        assert raised.value.in_doubt
        assert str(raised.value).endswith(
            "it is in doubt whether the session 'user_123' holds the last 2 items of this run, all or nothing: look at "
            "its latest items before you run again"
        )


async def test_a_run_says_what_is_stored_for_certain_beside_what_is_in_doubt(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @function_tool
    def get_weather(city: str) -> str:
        """The weather in a city."""
        after_rows_are_written(monkeypatch, remove_after_the_second)
        return f"sunny in {city}"

    appends = itertools.count(1)

    def remove_after_the_second() -> None:
        if next(appends) == 2:
            path.unlink()

    agent = Agent("Weather", "Answer.", model=OfflineModel(), tools=[get_weather])
    said = r"holds the input and 1 tool exchange of this turn; it is in doubt .* holds the last item of this run"
    async with AsyncSQLiteSession(path, session_id="user_123") as session:
        with pytest.raises(StorageError, match=said):
            await Runner.run(agent, "What is the weather in Paris?", session=session)
