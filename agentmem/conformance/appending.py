"""Checks of appends: the order of the items, their positions, and exact texts."""

from __future__ import annotations

from ..items import Item, encode_items
from ..reading import TailReading
from .fixtures import (
    Check,
    OpenEngine,
    PositionsReading,
    expect_equal,
    make_items,
    make_rows,
    read_items,
    scratch_session,
)


async def items_come_back_in_the_order_in_which_they_were_appended(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        for start in range(0, 12, 3):
            await engine.append(session_id, make_rows(start, start + 3))
        expect_equal(await read_items(engine, session_id), make_items(0, 12), "items of several appends")


async def positions_are_issued_without_gaps_from_0(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        await engine.append(session_id, make_rows(0, 3))
        await engine.pop(session_id, TailReading(1))
        await engine.append(session_id, make_rows(3, 6))
        expect_equal(await engine.read(session_id, PositionsReading()), [4, 3, 2, 1, 0], "positions, newest first")


async def text_is_stored_as_it_is(open_engine: OpenEngine) -> None:
    texts = ["", "\u0000", "\U0001f600 \ud83d é 漢 \u2028", "' OR 1=1; -- \"", "x" * 1_000_000, "\\u0000 \\ud800"]
    items: list[Item] = [{"z": text, "a": 10**40, text[:20]: [None, True, 1.5, {}]} for text in texts]
    async with scratch_session(open_engine) as (engine, session_id):
        await engine.append(session_id, encode_items(items))
        read = await read_items(engine, session_id)
        expect_equal(read, items, "items")
        expect_equal([list(item) for item in read], [list(item) for item in items], "order of keys")


async def sessions_are_isolated_from_each_other(open_engine: OpenEngine) -> None:
    endings = ["", " ", "a", "A", "%", "_", "'", '"', "é", "e\u0301", "\U0001f600", "0", "00"]
    async with scratch_session(open_engine) as (engine, session_id):
        for index, ending in enumerate(endings):
            await engine.append(session_id + ending, make_rows(index, index + 1))
        for index, ending in enumerate(endings):
            items = await read_items(engine, session_id + ending)
            expect_equal(items, make_items(index, index + 1), f"items of the session id that ends with {ending!r}")
        await engine.clear(session_id)
        await engine.pop(session_id + " ", TailReading(1))
        for index, ending in enumerate(endings[2:], 2):
            items = await read_items(engine, session_id + ending)
            expect_equal(items, make_items(index, index + 1), f"items after others were removed: {ending!r}")


CHECKS: tuple[Check, ...] = (
    items_come_back_in_the_order_in_which_they_were_appended,
    positions_are_issued_without_gaps_from_0,
    text_is_stored_as_it_is,
    sessions_are_isolated_from_each_other,
)
