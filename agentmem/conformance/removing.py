"""Checks of removals: pops and clears."""

from __future__ import annotations

from ..items import ERASED
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


async def pop_removes_the_newest_item(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        expect_equal(await engine.pop(session_id, TailReading(1)), [], "pop from a session that does not exist")
        await engine.append(session_id, make_rows(0, 2))
        expect_equal(await engine.pop(session_id, TailReading(1)), make_items(1, 2), "pop")
        expect_equal(await read_items(engine, session_id), make_items(0, 1), "items that a pop leaves")
        expect_equal(await engine.pop(session_id, TailReading(1)), make_items(0, 1), "pop of the last item")
        expect_equal(await engine.pop(session_id, TailReading(1)), [], "pop from an empty session")


async def pop_removes_corrupt_rows_above_the_newest_item_only(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        await engine.append(session_id, ["not JSON", *make_rows(0, 2), "{", "[]"])
        expect_equal(await engine.pop(session_id, TailReading(1)), make_items(1, 2), "pop below corrupt rows")
        expect_equal(await engine.read(session_id, PositionsReading()), [1, 0], "positions that it left")
        expect_equal(await engine.pop(session_id, TailReading(1)), make_items(0, 1), "pop of the last item")
        expect_equal(await engine.pop(session_id, TailReading(1)), [], "pop where no row can be read")
        expect_equal(await engine.read(session_id, PositionsReading()), [0], "rows that a pop must not remove")


async def pop_removes_the_erased_rows_above_the_newest_item(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        await engine.append(session_id, [ERASED, *make_rows(0, 2), ERASED, "{", ERASED])
        reading = TailReading(1)
        expect_equal(await engine.pop(session_id, reading), make_items(1, 2), "pop below erased rows")
        expect_equal(reading.corrupt, [4], "positions that could not be read")
        await engine.append(session_id, make_rows(5, 6))
        left = await engine.rows(session_id, 0, 10)
        expect_equal([position for position, _ in left], [0, 1, 2], "positions after the pop")
        expect_equal(left[0], (0, b""), "the erased row that it left")
        expect_equal(
            await engine.pop(session_id, TailReading(2)), [*make_items(0, 1), *make_items(5, 6)], "a pop of two"
        )
        expect_equal(await engine.pop(session_id, TailReading(1)), [], "pop where every item was erased")
        expect_equal(await engine.rows(session_id, 0, 10), [(0, b"")], "rows that a pop must not remove")


async def clear_leaves_nothing_behind(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        await engine.clear(session_id)  # of a session that does not exist
        await engine.append(session_id, make_rows(0, 1000))
        await engine.clear(session_id)
        expect_equal(await engine.read(session_id, PositionsReading()), [], "rows after clear")
        await engine.append(session_id, make_rows(5, 6))
        expect_equal(await engine.read(session_id, PositionsReading()), [0], "positions after clear")
        expect_equal(await read_items(engine, session_id), make_items(5, 6), "items after clear")


CHECKS: tuple[Check, ...] = (
    pop_removes_the_newest_item,
    pop_removes_corrupt_rows_above_the_newest_item_only,
    pop_removes_the_erased_rows_above_the_newest_item,
    clear_leaves_nothing_behind,
)
