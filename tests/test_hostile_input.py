"""Whatever is given or found in the file is stored whole or refused by name: never a crash, a hang or a full memory.

The cases run in processes of their own, so that a crash is seen, with a bound on their memory: all small ones in one,
and each at its full size in one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from exhaustive import exhaustive
from processes import run_quietly
from pydantic import BaseModel

from agentmem import AsyncSessionStore, AsyncSQLiteSession, SessionSettings, SessionStore, SQLiteSession
from agentmem.errors import CorruptItemWarning, InvalidItemError
from agentmem.items import Item

ONE: Item = {"role": "user", "content": "one"}
KB, MB, MILLION = 1 << 10, 1 << 20, 1_000_000
"""At full size; a sixteenth of it where cases are small."""

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import test_hostile_input
test_hostile_input.run(*sys.argv[2:])
"""

MEMORY_BYTES = 1500 * MB
"""What a process may take of addresses. 64 MB of emoji as text, JSON and rows take about 500 MB."""


class Cases(NamedTuple):
    """What one process does.

    Attributes:
        size: "small" or "full".
        recursion: whether Python has its "usual" limit of recursion, or an "unbounded" one.
        names: of the cases.
    """

    size: str
    recursion: str
    names: tuple[str, ...]


def cases_of(names: Iterable[str], *, depth: str) -> list[Any]:
    """All with the usual limit of recursion, and those that are about depth without one."""
    deep = [name for name in names if depth in name]
    quick = [Cases("small", "usual", tuple(names)), *([Cases("small", "unbounded", tuple(deep))] if deep else [])]
    full = [Cases("full", "usual", (name,)) for name in names] + [Cases("full", "unbounded", (name,)) for name in deep]
    return [
        pytest.param(quick[0], id="small, usual"),
        *(pytest.param(cases, id=f"small, {cases.recursion}", marks=exhaustive) for cases in quick[1:]),
        *(pytest.param(cases, id=f"{cases.names[0]}-{cases.recursion}", marks=exhaustive) for cases in full),
    ]


def run_in_a_process(what: str, folder: Path, cases: Cases) -> None:
    arguments: list[str | Path] = [Path(__file__).parent, what, folder, cases.size, cases.recursion, *cases.names]
    told = "".join(f"{name}\n" for name in cases.names)
    assert run_quietly(PROGRAM, *arguments) == f"{told}as promised\n"


def run(what: str, folder: str, size: str, recursion: str, *names: str) -> None:
    """The cases; in the child."""
    global KB, MB, MILLION
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if recursion == "unbounded":  # what some programs do; then Python does not keep C code from overflowing the stack
        sys.setrecursionlimit(1_000_000)
    if size == "small":
        KB, MB, MILLION = KB // 16, MB // 16, MILLION // 16
    run_one: dict[str, Callable[[str, str], None]] = {"item": run_item, "row": run_row, "id": run_id}
    for number, name in enumerate(names):
        print(name, flush=True)  # so that a crash is known by its name
        run_one[what](f"{folder}/{number}.db", name)
    print("as promised")


# Items


class Model(BaseModel):
    inner: object = None


def nested(levels: int, wrap: Callable[[object], object], leaf: object = "x") -> object:
    value = leaf
    for _ in range(levels):
        value = wrap(value)
    return value


ITEMS: dict[str, tuple[Callable[[], Any], str]] = {
    # name: what makes it, and what its refusal says; nothing where it is stored
    "64 MB of text": (lambda: {"text": "x" * 64 * MB}, ""),
    "64 MB of emoji": (lambda: {"text": "\U0001f600" * 16 * MB}, ""),
    "64 MB and a lone surrogate": (lambda: {"text": "x" * 64 * MB + "\ud800"}, ""),
    "a million keys": (lambda: {str(number): number for number in range(MILLION)}, ""),
    "a million keys with lone surrogates": (lambda: {f"{number}\udfff": [] for number in range(MILLION)}, ""),
    "a million lists": (lambda: {"lists": [[] for _ in range(MILLION)]}, ""),
    "a key of 10 MB": (lambda: {"k" * 10 * MB: 1}, ""),
    "200 levels of keys of 100 KB": (lambda: nested(200, lambda inner: {"k" * 100 * KB: inner}, "\ud800"), ""),
    "NaN under 200 keys of 100 KB": (
        lambda: nested(200, lambda inner: {"k" * 100 * KB: inner}, float("nan")),
        "nan is not JSON",
    ),
    "NaN under a key of 10 MB": (lambda: {"k" * 10 * MB: float("nan")}, "nan is not JSON"),
    "NaN after a million numbers": (lambda: {"list": [*range(MILLION), float("nan")]}, "nan is not JSON"),
    "100,000 levels of objects": (lambda: nested(100_000, lambda inner: {"a": inner}), "nested deeper than 256 levels"),
    "100,000 levels of arrays": (lambda: {"a": nested(100_000, lambda inner: [inner])}, "nested deeper than 256"),
    "100,000 levels of models": (
        lambda: nested(100_000, lambda inner: Model.model_construct(inner=inner)),
        "cannot be converted to JSON",
    ),
    "an integer of a million digits": (lambda: {"number": 1 << 4 * MILLION}, "more digits than Python converts"),
    "a key of a million digits": (lambda: {1 << 4 * MILLION: 1}, "a key is int; JSON keys are strings"),
    "a key of a million numbers": (lambda: {tuple(range(MILLION)): 1}, "is tuple; JSON keys are strings"),
    "a key of 10 MB of bytes": (lambda: {b"k" * 10 * MB: 1}, "is bytes; JSON keys are strings"),
}


@pytest.mark.parametrize("cases", cases_of(ITEMS, depth="levels"))
def test_an_item_of_any_size_and_depth_is_stored_whole_or_refused_by_name(tmp_path: Path, cases: Cases) -> None:
    run_in_a_process("item", tmp_path, cases)


def run_item(path: str, name: str) -> None:
    async def main() -> None:
        make, problem = ITEMS[name]
        item = make()
        async with AsyncSQLiteSession(
            path, session_id="user_123", settings=SessionSettings(max_tokens=10**9)
        ) as session:
            await session.add_items([ONE])
            try:
                await session.add_items([ONE, item])
            except InvalidItemError as error:
                refusal, index = str(error), error.index
                assert index == 1
                assert len(refusal) < 500
                assert problem
                assert problem in refusal
            else:
                assert not problem
                assert await session.get_items(limit=1) == [item]
                assert await session.get_items() == [ONE, ONE, item]
                assert await session.pop_item() == item
                assert await session.pop_item() == ONE
            assert await session.get_items() == [ONE]

    asyncio.run(main())


# Rows

ROWS: dict[str, tuple[Callable[[], str | bytes], bool]] = {
    # name: what somebody has put into the file, and whether it is an item
    "100,000 levels of objects": (lambda: '{"a":' * 100_000 + "1" + "}" * 100_000, False),
    "100,000 levels of arrays": (lambda: '{"a":' + "[" * 100_000 + "]" * 100_000 + "}", False),
    "100,000 arrays that do not end": (lambda: '{"a":' + "[" * 100_000, False),
    "100,000 brackets in a text": (lambda: '{"a":"\\ud800' + '\\\\\\"[{' * 100_000 + '"}', True),
    "100,000 brackets after one another": (lambda: '{"a":["\\ud800"' + ",[]" * 100_000 + "]}", True),
    "900 levels": (lambda: '{"a":' + "[" * 898 + "]" * 898 + "}", True),
    "64 MB of text": (lambda: json.dumps({"text": "x" * 64 * MB}), True),
    "64 MB of nothing": (lambda: bytes(64 * MB), False),
    "64 MB of backslashes": (lambda: '{"a":"' + "\\" * 64 * MB, False),
    "a call with an id of 200 levels": (
        lambda: '{"type":"function_call","call_id":' + "[" * 200 + "]" * 200 + "}",
        True,
    ),
}


@pytest.mark.parametrize("cases", cases_of(ROWS, depth="00"))
def test_a_row_of_any_size_and_depth_is_read_or_skipped_with_a_warning(tmp_path: Path, cases: Cases) -> None:
    run_in_a_process("row", tmp_path, cases)


def run_row(path: str, name: str) -> None:
    async def main() -> None:
        make, is_item = ROWS[name]
        row = make()
        async with AsyncSQLiteSession(path, session_id="user_123", settings=SessionSettings(limit=3)) as session:
            await session.add_items([ONE, ONE, ONE])
            with contextlib.closing(sqlite3.connect(path)) as other, other:
                other.execute("UPDATE agentmem_items SET item = ? WHERE position = 1", (row,))
            for limit, length in ((None, 3), (3, 3), (2, 2)):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    items = await session.get_items(limit)
                assert [warning.category for warning in caught] == [CorruptItemWarning] * (not is_item)
                assert items[0] == items[-1] == ONE or limit == 2
                # An incomplete exchange is no part of the window.
                assert len(items) == length - (not is_item and length == 3) - ("call" in name and limit is None)
            assert await session.pop_item() == ONE
            await session.add_items([ONE])

    asyncio.run(main())


# Session ids

IDS: dict[str, tuple[Callable[[], str], bool]] = {
    # name: the id, and whether it is one
    "quotes": (lambda: "'; DROP TABLE agentmem_items; --\"`", True),
    "emoji": (lambda: "\U0001f600" * 256, True),
    "one byte too many": (lambda: "\U0001f600" * 256 + "x", False),
    "nothing": (lambda: "", False),
    "NUL": (lambda: "user\0", False),
    "a lone surrogate": (lambda: "user_\ud800", False),
    "10 MB": (lambda: "x" * 10 * MB, False),
    "10 MB of surrogates": (lambda: "\udfff" * 10 * MB, False),
    "10 MB of NULs": (lambda: "\0" * 10 * MB, False),
}


@pytest.mark.parametrize("cases", cases_of(IDS, depth="levels"))
def test_a_session_id_of_any_size_and_kind_names_a_session_or_is_refused(tmp_path: Path, cases: Cases) -> None:
    run_in_a_process("id", tmp_path, cases)


def run_id(path: str, name: str) -> None:
    make, is_id = IDS[name]
    session_id = make()
    with SessionStore(path) as store:
        ways: list[Callable[[], Any]] = [
            lambda: store.session(session_id),
            lambda: SQLiteSession(path, session_id=session_id),
            lambda: AsyncSessionStore(path).session(session_id),
            lambda: AsyncSQLiteSession(path, session_id=session_id),
        ]
        for way in ways:
            try:
                session = way()
            except ValueError as error:
                refusal = str(error)
                assert not is_id
                assert refusal.startswith("session_id")
                assert len(refusal) < 1000
                continue
            assert is_id
            assert repr(session_id) in repr(session)
            if isinstance(session, SQLiteSession):
                session.add_items([ONE])
                session.close()
        if is_id:
            assert store.session(session_id).get_items() == [ONE]
        assert store.session("user_123").get_items() == []
