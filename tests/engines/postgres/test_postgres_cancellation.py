"""Calls to PostgreSQL that are cancelled at any moment: carried out or not, and nothing of them is left there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
from exhaustive import cases
from held import HeldReading
from in_postgres import all_stored, connections, left_open, locked, wait_for_waiters
from postgres_server import PostgresServer
from processes import holdings, holds_again
from stepping import LOOPS, TASK_FACTORIES, CycleLoop, cycle_loops
from waiting import wait_until

from agentmem import AsyncSessionStore
from agentmem.engines import open_engine
from agentmem.items import Item

ONE, TWO, THREE = ({"number": number} for number in (1, 2, 3))
LONG = 600
"""Items of a session that takes more than one slice to read."""

Call = Callable[[AsyncSessionStore, str], Coroutine[Any, Any, object]]


async def append(store: AsyncSessionStore, name: str) -> object:
    await store.session(name).add_items([TWO, THREE])
    return None


async def append_to_many(store: AsyncSessionStore, name: str) -> object:
    await asyncio.gather(*(store.session(f"{name}{rest}").add_items([TWO, THREE]) for rest in ("", "b", "c")))
    return None


async def pop(store: AsyncSessionStore, name: str) -> object:
    return await store.session(name).pop_item()


async def clear(store: AsyncSessionStore, name: str) -> object:
    await store.session(name).clear_session()
    return None


async def read(store: AsyncSessionStore, name: str) -> object:
    return await store.session(name).get_items()


async def read_long(store: AsyncSessionStore, name: str) -> object:
    return await store.session("long").get_items()


CALLS: dict[str, tuple[Call, set[str], dict[str, list[Item]]]] = {
    "append": (append, {""}, {"": [ONE, TWO, THREE]}),
    "append to many": (append_to_many, {"", "b", "c"}, {"": [ONE, TWO, THREE], "b": [TWO, THREE], "c": [TWO, THREE]}),
    "pop": (pop, {""}, {"": []}),
    "clear": (clear, {""}, {}),
    "read": (read, {""}, {"": [ONE]}),
    "read of many items": (read_long, {""}, {"": [ONE]}),
}
"""For each call, the sessions that it is about, and what each of them has after it; by what the name goes on with."""


# SQLite's tests go through every loop and kind of task with the same queue.
@pytest.mark.parametrize(
    ("name", "is_used", "kind", "eager"),
    cases(
        [
            *((name, False, "asyncio", False) for name in CALLS),
            *((name, True, [*LOOPS][-1], TASK_FACTORIES[-1]) for name in CALLS),
        ],
        quick=lambda case: case[:2] in [("append to many", True), ("pop", False)],
    ),
)
def test_a_call_that_is_cancelled_at_any_moment_is_carried_out_or_not_and_leaves_nothing_behind(
    postgres: PostgresServer, name: str, is_used: bool, kind: str, eager: bool
) -> None:
    call, about, after = CALLS[name]
    asyncio.run(_fill(postgres))
    before_all = holdings()
    outcomes: dict[str, bool] = {}
    for nth, loop in enumerate(cycle_loops(kind=kind, eager=eager)):
        session_id = f"user_{nth:03}"

        async def main(loop: CycleLoop = loop, session_id: str = session_id) -> bool:
            async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
                if is_used:
                    await call(store, "warm")
                task = asyncio.ensure_future(call(store, session_id))
                loop.arm(task.cancel)
                try:
                    await task
                except asyncio.CancelledError:
                    cancelled = True
                else:
                    cancelled = False
                loop.disarm()
                assert not is_used or not left_open(postgres)
                # The connections that the call used serve the next ones.
                await store.session("next").add_items([ONE])
                assert await store.session("next").pop_item() == ONE
                assert await store.session("next").get_items() == []
            return cancelled

        outcomes[session_id] = loop.run(main())
        holds_again(before_all)
    wait_until(lambda: not connections(postgres))
    found = all_stored(postgres)
    begun = False
    for session_id, cancelled in outcomes.items():
        left = {rest: found[session_id + rest] for rest in ("", "b", "c") if session_id + rest in found}
        if name == "append to many":  # three calls: each is carried out or not
            for rest in about:
                assert left.get(rest, []) in ([ONE] if rest == "" else [], after[rest])
        else:
            assert left in ({"": [ONE]}, after)
            # What has begun finishes, and every later moment is one where it has begun.
            if not cancelled or begun:
                assert left == after, session_id
            begun = begun or (cancelled and left == after != {"": [ONE]})
    assert any(outcomes.values())
    assert not all(outcomes.values())


async def _fill(server: PostgresServer) -> None:
    async with AsyncSessionStore(server.url) as store:
        await store.session("long").add_items([ONE] * LONG)
        await asyncio.gather(*(store.session(f"user_{nth:03}").add_items([ONE]) for nth in range(300)))


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["task.cancel", "anyio"])
async def test_a_cancelled_write_that_waits_for_a_lock_finishes_and_its_cancellation_is_raised_then(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("agentmem.engines.postgres.writes.LOCK_TIMEOUT_S", 60)
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        session = store.session("user_123")
        await session.add_items([ONE])
        scope = anyio.CancelScope()

        async def add() -> None:
            with scope:
                await session.add_items([TWO])

        async with locked(postgres):
            begun = asyncio.create_task(add())
            await wait_for_waiters(postgres, 1)
            queued = asyncio.create_task(session.add_items([THREE]))
            await asyncio.sleep(0)
            queued.cancel()
            with pytest.raises(asyncio.CancelledError):
                await queued
            if way == "anyio":
                scope.cancel()
            else:
                begun.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
            assert not begun.done()
        await asyncio.wait([begun])
        assert begun.cancelled() == (way == "task.cancel")
        assert scope.cancelled_caught == (way == "anyio")
        assert await session.get_items() == [ONE, TWO]
    assert not left_open(postgres)


class HeldJoined(HeldReading):
    """The same for rows that come as one text."""

    def feed_joined(self, joined: bytes, count: int, oldest: int) -> bool:
        self.feed([], at_start=True)
        return True


@pytest.mark.anyio
async def test_a_read_that_is_cancelled_while_a_thread_decodes_its_rows_waits_for_the_thread(
    postgres: PostgresServer,
) -> None:
    # Else the thread would tell its result to an event loop that may be closed by then.
    engine = open_engine(postgres.url)
    await engine.append("user_123", ["{}"])
    begun = threading.Event()
    reading = HeldJoined(begun.set)
    call = asyncio.ensure_future(engine.read("user_123", reading))
    await asyncio.to_thread(begun.wait)
    call.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not call.done()
    reading.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    await engine.close()
