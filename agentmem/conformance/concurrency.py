"""Checks of many calls at once: whole batches, their order, and reads of one state."""

from __future__ import annotations

import asyncio

from ..items import encode_items
from ..reading import TailReading
from .fixtures import (
    Check,
    FailingReading,
    OpenEngine,
    PositionsReading,
    ReadingError,
    expect_equal,
    make_items,
    make_rows,
    read_items,
    scratch_session,
)


async def batches_of_many_tasks_are_whole_and_in_order(open_engine: OpenEngine) -> None:
    tasks, batches, size = 64, 5, 3
    async with scratch_session(open_engine) as (engine, session_id):

        async def add(task: int) -> None:
            for batch in range(batches):
                rows = encode_items([{"task": task, "batch": batch, "place": place} for place in range(size)])
                await engine.append(session_id, rows)

        await asyncio.gather(*(add(task) for task in range(tasks)))
        items = await read_items(engine, session_id)
        expect_equal(len(items), tasks * batches * size, "number of items")
        next_batch = [0] * tasks
        for start in range(0, len(items), size):
            task, batch = items[start]["task"], next_batch[items[start]["task"]]
            expected = [{"task": task, "batch": batch, "place": place} for place in range(size)]
            expect_equal(items[start : start + size], expected, "a batch")
            next_batch[task] += 1


async def a_read_sees_one_state(open_engine: OpenEngine) -> None:
    size = 700  # more than one slice, so that a read of several states can see half a batch
    async with scratch_session(open_engine) as (engine, session_id):

        async def add() -> None:
            for _ in range(10):
                await engine.append(session_id, make_rows(0, size))

        async def look() -> None:
            while not adding.done():
                rest = len(await read_items(engine, session_id)) % size
                expect_equal(rest, 0, "items of an incomplete batch in a read")

        adding = asyncio.ensure_future(add())
        await asyncio.gather(adding, look(), look())


async def a_write_that_returned_is_seen_by_every_handle(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        other = open_engine()
        try:
            for count in range(1, 20):
                await engine.append(session_id, make_rows(count - 1, count))
                expect_equal(len(await read_items(engine, session_id)), count, "items that the writer's handle reads")
                expect_equal(len(await read_items(other, session_id)), count, "items that another handle reads")
        finally:
            await other.close()


async def many_pops_at_once_remove_each_item_once(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        await engine.append(session_id, make_rows(0, 20))
        popped = await asyncio.gather(*(engine.pop(session_id, TailReading(1)) for _ in range(25)))
        numbers = [item["n"] for items in popped for item in items]
        expect_equal(sorted(numbers), list(range(20)), "items that 25 pops of 20 items returned")
        expect_equal(await read_items(engine, session_id), [], "items that they left")


async def writes_that_wait_together_are_done_in_the_order_of_their_calls(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        other = session_id + "-other"
        await asyncio.gather(
            engine.append(session_id, make_rows(0, 2)),
            engine.append(other, make_rows(0, 1)),
            engine.append(session_id, make_rows(2, 3)),
            engine.clear(session_id),
            engine.append(session_id, make_rows(3, 5)),
            engine.append(other, make_rows(1, 2)),
            engine.append(session_id, make_rows(5, 6)),
            engine.pop(other, TailReading(1)),
            engine.append(other, make_rows(2, 4)),
        )
        expect_equal(await read_items(engine, session_id), make_items(3, 6), "items after appends, a clear and appends")
        expect_equal(await engine.read(session_id, PositionsReading()), [2, 1, 0], "their positions, newest first")
        items = await read_items(engine, other)
        expect_equal(items, [*make_items(0, 1), *make_items(2, 4)], "items after appends, a pop and an append")
        expect_equal(await engine.read(other, PositionsReading()), [2, 1, 0], "their positions, newest first")


async def a_write_that_fails_fails_alone(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        await engine.append(session_id, make_rows(0, 1))
        outcomes = await asyncio.gather(
            engine.append(session_id, make_rows(1, 2)),
            engine.pop(session_id, FailingReading()),
            engine.append(session_id, make_rows(2, 3)),
            engine.read(session_id, FailingReading()),
            return_exceptions=True,
        )
        kinds = [type(outcome) for outcome in outcomes]
        expect_equal(kinds, [type(None), ReadingError, type(None), ReadingError], "outcomes of the calls")
        expect_equal(await read_items(engine, session_id), make_items(0, 3), "items of the other writes")


CHECKS: tuple[Check, ...] = (
    batches_of_many_tasks_are_whole_and_in_order,
    a_read_sees_one_state,
    a_write_that_returned_is_seen_by_every_handle,
    many_pops_at_once_remove_each_item_once,
    writes_that_wait_together_are_done_in_the_order_of_their_calls,
    a_write_that_fails_fails_alone,
)
