"""AsyncSession keeps its contract on every engine, whatever is done to a few sessions of one database, in any order."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sqlite3
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from agentmem import AsyncSession, AsyncSQLiteSession, SessionSettings, SQLiteSession
from agentmem.engines import open_engine as open_by_url
from agentmem.engines import scheme_of
from agentmem.engines.base import MAX_SESSION_ID_BYTES, Engine, Reading
from agentmem.errors import CorruptItemWarning, InvalidItemError, SessionClosedError
from agentmem.items import Item
from agentmem.replay import replay_window

pytestmark = pytest.mark.anyio

HELLO: Item = {"role": "user", "content": "Hello"}


@pytest.fixture
def make_session(open_engine: Callable[[], Engine]) -> Callable[..., AsyncSession]:
    def make(session_id: str = "user_123", settings: SessionSettings | None = None) -> AsyncSession:
        return AsyncSession(open_engine(), session_id, settings, owns_engine=True)

    return make


Make = Callable[..., AsyncSession]


async def test_items_come_back_equal_and_as_fresh_objects(make_session: Make) -> None:
    async with make_session() as session:
        await session.add_items([HELLO, {"z": 1, "a": [None, 1.5, "\ud800"]}])
        first, second = await session.get_items(), await session.get_items()
        assert first == second == [HELLO, {"z": 1, "a": [None, 1.5, "\ud800"]}]
        first[0]["content"] = "changed"
        assert await session.get_items() == second


async def test_a_handle_with_other_settings_is_one_on_the_same_session(make_session: Make) -> None:
    async with make_session(settings=SessionSettings(limit=1)) as session:
        await session.add_items([HELLO, HELLO])
        whole = session.with_settings(None)
        assert (len(await session.get_items()), len(await whole.get_items())) == (1, 2)
        await whole.close()
        assert len(await session.get_items()) == 1
        with pytest.raises(TypeError, match=r"agentmem\.SessionSettings"):
            session.with_settings({"limit": 1})  # type: ignore[arg-type]  # that is the point
    with pytest.raises(SessionClosedError):
        session.with_settings(None)


@pytest.mark.parametrize("count", [1, 300], ids=["few rows", "many rows"])
@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("mine"), ConnectionError("mine"), TimeoutError("mine")], ids=repr
)
async def test_what_the_callers_own_function_raises_is_raised_as_it_is(
    make_session: Make, error: Exception, count: int
) -> None:
    # These are what databases and servers raise, too: it must not be taken for their failure.
    def count_tokens(item: Item) -> int:
        raise error

    async with make_session(settings=SessionSettings(max_tokens=10, count_tokens=count_tokens)) as session:
        await session.add_items([HELLO] * count)
        with pytest.raises(type(error)) as raised:
            await session.get_items()
        assert raised.value is error
        assert len(await session.get_items(1000)) == count


async def test_a_second_handle_continues_the_conversation(make_session: Make) -> None:
    async with make_session() as session:
        await session.add_items([HELLO])
    async with make_session() as session:
        await session.add_items([{"role": "assistant", "content": "Hi"}])
        assert [item["content"] for item in await session.get_items()] == ["Hello", "Hi"]


async def test_an_explicit_limit_is_the_raw_tail_even_where_it_cuts_an_exchange(make_session: Make) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "1"}
    async with make_session(settings=SessionSettings(limit=1)) as session:
        await session.add_items([HELLO, call, output])
        assert await session.get_items(0) == []
        assert await session.get_items(1) == [output]
        assert await session.get_items(2) == [call, output]
        assert await session.get_items(99) == [HELLO, call, output]
        assert await session.get_items() == []


async def test_settings_choose_what_is_replayed_and_delete_nothing(make_session: Make) -> None:
    items = [{"role": "user", "content": str(number)} for number in range(25)]
    async with make_session(settings=SessionSettings(limit=10)) as session:
        await session.add_items(items)
        assert await session.get_items() == items[-10:]
    async with make_session() as session:
        assert await session.get_items() == items


@pytest.mark.parametrize(
    ("limit", "error"), [(-1, ValueError), (True, TypeError), ("3", TypeError), (2.0, TypeError)], ids=repr
)
async def test_a_limit_that_is_none_is_refused(make_session: Make, limit: Any, error: type[Exception]) -> None:
    async with make_session() as session:
        with pytest.raises(error, match="limit"):
            await session.get_items(limit)


@pytest.mark.parametrize(
    ("bad", "path"),
    [
        ({"content": float("nan")}, "$.content"),
        ({"content": [{"x": float("-inf")}]}, "$.content[0].x"),
        ({"content": b"bytes"}, "$.content"),
        ({1: "x"}, "$"),
        (["not", "an", "object"], "$"),
        ("text", "$"),
        (None, "$"),
    ],
    ids=repr,
)
async def test_an_item_that_json_cannot_hold_is_named_and_nothing_of_its_batch_is_stored(
    make_session: Make, bad: Any, path: str
) -> None:
    async with make_session() as session:
        await session.add_items([HELLO])
        with pytest.raises(InvalidItemError, match="item 1 at") as caught:
            await session.add_items([HELLO, bad, HELLO])
        assert (caught.value.index, caught.value.path) == (1, path)
        assert await session.get_items() == [HELLO]


@pytest.mark.parametrize("items", [HELLO, "text", None, 3], ids=repr)
async def test_one_item_instead_of_a_list_is_refused(make_session: Make, items: Any) -> None:
    async with make_session() as session:
        with pytest.raises(TypeError):
            await session.add_items(items)
        assert await session.get_items() == []


async def test_a_batch_may_be_any_iterable_and_also_empty(make_session: Make) -> None:
    async with make_session() as session:
        await session.add_items([])
        await session.add_items(HELLO for _ in range(3))
        assert await session.get_items() == [HELLO] * 3


async def test_what_the_caller_changes_after_the_call_began_is_not_stored(make_session: Make) -> None:
    async with make_session() as session:
        item = dict(HELLO)
        adding = asyncio.ensure_future(session.add_items([item]))
        await asyncio.sleep(0)
        item["content"] = "changed"
        await adding
        assert await session.get_items() == [HELLO]


@pytest.mark.parametrize(
    ("session_id", "error"),
    [
        ("", ValueError),
        ("x" * (MAX_SESSION_ID_BYTES + 1), ValueError),
        ("\ud800", ValueError),
        ("a\0b", ValueError),
        (7, TypeError),
        (None, TypeError),
    ],
    ids=["empty", "long", "surrogate", "NUL", "int", "None"],
)
def test_a_session_id_that_not_every_database_can_hold_is_refused(
    make_session: Make, session_id: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="session_id"):
        make_session(session_id)


@pytest.mark.parametrize("session_id", ["x" * MAX_SESSION_ID_BYTES, "Ü 漢 😀", "'; DROP TABLE agentmem_items; --", " "])
async def test_any_other_session_id_is_one_conversation(make_session: Make, session_id: str) -> None:
    async with (
        make_session(session_id) as session,
        make_session(session_id + "x" if len(session_id) < 9 else "other") as other,
    ):
        await session.add_items([HELLO])
        assert (await session.get_items(), await other.get_items()) == ([HELLO], [])


def test_settings_of_another_kind_are_refused(make_session: Make) -> None:
    settings: Any = {"limit": 3}
    with pytest.raises(TypeError, match="SessionSettings"):
        make_session(settings=settings)


async def test_a_closed_handle_says_so_and_what_it_stored_stays(make_session: Make) -> None:
    session = make_session()
    await session.add_items([HELLO])
    await session.close()
    await session.close()
    for call in (session.get_items, session.pop_item, session.clear_session, session.__aenter__):
        with pytest.raises(SessionClosedError, match="user_123"):
            await call()
    with pytest.raises(SessionClosedError, match="user_123"):
        await session.add_items([HELLO])
    async with make_session() as again:
        assert await again.get_items() == [HELLO]


async def test_a_row_that_cannot_be_read_is_skipped_with_a_warning_that_names_it(
    open_engine: Callable[[], Engine], make_session: Make
) -> None:
    engine = open_engine()
    await engine.append("user_123", [json.dumps(HELLO), "no JSON", json.dumps(HELLO), "{"])
    await engine.close()
    async with make_session() as session:
        with pytest.warns(CorruptItemWarning) as caught:
            assert await session.get_items(2) == [HELLO, HELLO]
        assert ["position 3" in str(caught[0].message), "position 1" in str(caught[1].message)] == [True, True]
        assert "user_123" in str(caught[0].message)
        assert caught[0].filename == __file__
        with pytest.warns(CorruptItemWarning, match="position 3"):
            assert await session.pop_item() == HELLO
        with pytest.warns(CorruptItemWarning, match="position 1"):
            assert await session.get_items() == [HELLO]


async def test_where_the_warning_of_a_row_is_an_error_a_pop_removes_nothing_and_its_item_is_not_lost(
    open_engine: Callable[[], Engine], make_session: Make
) -> None:
    rows = [json.dumps(HELLO), "no JSON", json.dumps({"n": 1}), "{", "[]"]
    engine = open_engine()
    await engine.append("user_123", rows)
    async with make_session() as session:
        for _ in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(CorruptItemWarning, match="position 4"):
                    await session.pop_item()
            assert [row.decode() for _, row in await engine.rows("user_123", 0, 10)] == rows
        with pytest.warns(CorruptItemWarning) as caught:
            assert await session.pop_item() == {"n": 1}
        assert [re.findall(r"position (\d)", str(one.message)) for one in caught] == [["4"], ["3"]]
        assert {one.filename for one in caught} == {__file__}
        assert [row.decode() for _, row in await engine.rows("user_123", 0, 10)] == rows[:2]
    await engine.close()


async def test_a_pop_warns_also_of_a_row_that_came_while_it_warned_of_others(
    open_engine: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine()
    await engine.append("user_123", [json.dumps(HELLO), "{"])
    pop = engine.pop
    coming = iter([["["], []])

    async def pop_and_append(session_id: str, reading: Reading[Any]) -> Any:
        try:
            return await pop(session_id, reading)
        finally:
            await engine.append(session_id, next(coming, []))

    monkeypatch.setattr(engine, "pop", pop_and_append)
    session = AsyncSession(engine, "user_123")
    with pytest.warns(CorruptItemWarning) as caught:
        assert await session.pop_item() == HELLO
    assert [re.findall(r"position (\d)", str(one.message)) for one in caught] == [["1"], ["2"]]
    assert await engine.rows("user_123", 0, 10) == []
    await engine.close()


async def test_the_agents_sdk_is_told_of_no_settings_so_that_it_asks_for_the_window(make_session: Make) -> None:
    session = make_session(settings=SessionSettings(limit=3))
    assert session.session_settings is None
    assert session.settings == SessionSettings(limit=3)
    await session.close()


async def test_handles_on_one_session_of_one_database_share_a_run_key(make_session: Make) -> None:
    one, same, other = make_session("a"), make_session("a"), make_session("b")
    assert one.run_key == same.run_key != other.run_key
    for session in (one, same, other):
        await session.close()


@pytest.mark.parametrize("kind", [AsyncSQLiteSession, SQLiteSession])
def test_the_sqlite_session_refuses_other_databases_and_names_the_classes_for_them(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"^postgresql:// .* PostgresSession and AsyncPostgresSession; SessionStore"):
        kind("postgresql://app:secret@localhost/x", session_id="a")


TEXTS = st.text(st.characters(exclude_categories=()), max_size=8).filter(
    lambda text: json.loads(json.dumps(text)) == text  # a surrogate pair is refused; test_items has it
)
ITEMS = st.one_of(
    st.builds(
        lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "assistant", "system"]), TEXTS
    ),
    st.builds(
        lambda kind, call: {"type": kind, "call_id": call},
        st.sampled_from(["function_call", "function_call_output", "shell_call", "shell_call_output"]),
        st.sampled_from("abc"),
    ),
    st.just({"type": "reasoning", "id": "r", "summary": []}),
    st.dictionaries(
        TEXTS, st.one_of(st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS)
    ),
)
CAPS = st.one_of(st.none(), st.integers(0, 12))
SESSION_IDS = st.sampled_from(["a", "b", "A"])


class Sessions(RuleBasedStateMachine):
    """Random calls on several sessions of one database, next to a plain list for each."""

    url: str
    runs = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.run_number = next(self.runs)  # in the sessions' ids, so that each run has sessions of its own
        self.model: dict[str, list[Item]] = {"a": [], "b": [], "A": []}
        self.handles: dict[str, AsyncSession] = {}

    def run(self, call: Any) -> Any:
        return self.loop.run_until_complete(call)

    def end_loop(self) -> None:
        self.run(self.loop.shutdown_asyncgens())  # as asyncio.run does
        self.loop.close()

    def open(self, session_id: str, settings: SessionSettings | None = None) -> AsyncSession:
        engine = open_by_url(self.url)
        return AsyncSession(engine, f"{session_id}-{self.run_number}", settings, owns_engine=True)

    def session(self, session_id: str) -> AsyncSession:
        if session_id not in self.handles:
            self.handles[session_id] = self.open(session_id)
        return self.handles[session_id]

    @rule(session_id=SESSION_IDS, items=st.lists(ITEMS, max_size=6))
    def add(self, session_id: str, items: list[Item]) -> None:
        self.run(self.session(session_id).add_items(items))
        self.model[session_id] += items

    @rule(session_id=SESSION_IDS, batches=st.lists(st.lists(ITEMS, min_size=1, max_size=3), min_size=2, max_size=4))
    def add_at_once(self, session_id: str, batches: list[list[Item]]) -> None:
        async def add_all() -> None:
            await asyncio.gather(*(self.session(session_id).add_items(batch) for batch in batches))

        self.run(add_all())
        self.model[session_id] += [item for batch in batches for item in batch]

    @rule(session_id=SESSION_IDS, items=st.lists(ITEMS, max_size=3))
    def add_with_a_bad_item(self, session_id: str, items: list[Item]) -> None:
        with pytest.raises(InvalidItemError):
            self.run(self.session(session_id).add_items([*items, {"bad": float("nan")}]))

    @rule(session_id=SESSION_IDS, limit=st.integers(0, 12))
    def get_the_tail(self, session_id: str, limit: int) -> None:
        items = self.model[session_id]
        assert self.run(self.session(session_id).get_items(limit)) == items[max(0, len(items) - limit) :]

    @rule(session_id=SESSION_IDS, limit=CAPS, max_turns=CAPS, max_tokens=st.one_of(st.none(), st.integers(0, 120)))
    def get_the_window(self, session_id: str, limit: int | None, max_turns: int | None, max_tokens: int | None) -> None:
        settings = SessionSettings(limit=limit, max_turns=max_turns, max_tokens=max_tokens)
        session = self.open(session_id, settings)
        assert self.run(session.get_items()) == replay_window(self.model[session_id], settings)
        self.run(session.close())

    @rule(session_id=SESSION_IDS)
    def pop(self, session_id: str) -> None:
        items = self.model[session_id]
        assert self.run(self.session(session_id).pop_item()) == (items.pop() if items else None)

    @rule(session_id=SESSION_IDS)
    def clear(self, session_id: str) -> None:
        self.run(self.session(session_id).clear_session())
        self.model[session_id] = []

    @rule(session_id=SESSION_IDS)
    def reopen(self, session_id: str) -> None:
        if session_id in self.handles:
            self.run(self.handles.pop(session_id).close())

    @rule()
    def reopen_on_another_event_loop(self) -> None:
        for session_id in list(self.handles):
            self.reopen(session_id)
        self.end_loop()
        self.loop = asyncio.new_event_loop()

    @rule()
    def go_on_with_another_event_loop(self) -> None:
        self.end_loop()
        self.loop = asyncio.new_event_loop()

    @invariant()
    def every_session_equals_its_list(self) -> None:
        for session_id, items in self.model.items():
            assert self.run(self.session(session_id).get_items()) == items

    def teardown(self) -> None:
        for handle in self.handles.values():
            self.run(handle.close())
        self.end_loop()


@pytest.mark.hypothesis
def test_any_sequence_of_calls_on_several_sessions_does_what_it_does_to_plain_lists(database_url: str) -> None:
    class SessionsThere(Sessions):
        url = database_url

    examples = settings().max_examples // 2
    if scheme_of(database_url) != "sqlite":
        examples //= 2  # a server takes some milliseconds for what a file does in one
    run_state_machine_as_test(SessionsThere, settings=settings(max_examples=examples))
