"""Checks of calls that end early: cancelled ones, and those on a closed handle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from ..errors import SessionClosedError
from ..reading import TailReading
from .fixtures import (
    Check,
    NotConforming,
    OpenEngine,
    PositionsReading,
    expect_equal,
    make_items,
    make_rows,
    read_items,
    scratch_session,
)


async def a_cancelled_write_is_stored_whole_or_not_at_all(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        stored = 0
        for steps in range(60):
            task = asyncio.ensure_future(engine.append(session_id, make_rows(0, 3)))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait([task])
            expect_equal(len(done), 1, "number of cancelled tasks that end")
            count = len(await read_items(engine, session_id))
            expected = (stored,) if steps == 0 else (stored, stored + 3)
            if count not in expected:
                raise NotConforming(f"cancelled after {steps} steps, a batch of 3 left {count - stored} items")
            if not task.cancelled() and count != stored + 3:
                raise NotConforming(f"cancelled after {steps} steps, append returned, but nothing was stored")
            stored = count
        await engine.append(session_id, make_rows(0, 1))
        positions = await engine.read(session_id, PositionsReading())
        expect_equal(positions, list(range(stored, -1, -1)), "positions after cancelled writes")


async def a_cancelled_read_leaves_the_others_alone(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        await engine.append(session_id, make_rows(0, 600))
        for steps in range(30):
            cancelled = asyncio.ensure_future(read_items(engine, session_id))
            others = [asyncio.ensure_future(read_items(engine, session_id, 5)) for _ in range(3)]
            for _ in range(steps):
                await asyncio.sleep(0)
            cancelled.cancel()
            for items in await asyncio.gather(*others):
                expect_equal(items, make_items(595, 600), "items of the other reads")


async def a_closed_handle_raises_session_closed_error_and_its_data_stays(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        closing = open_engine()
        await closing.append(session_id, make_rows(0, 2))
        await closing.close()
        await closing.close()
        calls: list[Awaitable[object]] = [
            closing.append(session_id, make_rows(0, 1)),
            closing.read(session_id, TailReading(1)),
            closing.pop(session_id, TailReading(1)),
            closing.clear(session_id),
            closing.sessions(None, 1),
            closing.rows(session_id, 0, 1),
            closing.open(),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        kinds = [type(outcome) for outcome in outcomes]
        expect_equal(kinds, [SessionClosedError] * len(calls), "outcomes of calls on a closed handle")
        expect_equal(await read_items(engine, session_id), make_items(0, 2), "items that the closed handle had stored")


CHECKS: tuple[Check, ...] = (
    a_cancelled_write_is_stored_whole_or_not_at_all,
    a_cancelled_read_leaves_the_others_alone,
    a_closed_handle_raises_session_closed_error_and_its_data_stays,
)
