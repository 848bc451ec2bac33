"""Appends to one session are stored in the order in which they were asked for, whatever happens to connections."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path

import pytest
from appending import Appending
from database import connections, stored
from exhaustive import cases
from processes import STRICT, SUPPORT, needs_fork, run_quietly
from stepping import CycleLoop, cycle_loops

from agentmem import AsyncSessionStore
from agentmem.engines.sqlite.sender import Step, next_step
from agentmem.errors import StorageError

FORKING = (*STRICT, "-W", "ignore:This process:DeprecationWarning")
"""Python from 3.12 on warns of a fork with threads; agentmem's may be there."""

FIRST, MORE = (1, 40), 20
"""How many appends come at once, to form one batch or two; and how many come while these are on their way, to form
another."""


def close_connections(path: Path) -> None:
    """What a fork does to them first; it happens between two batches, in whichever thread forks."""
    for connection in connections(path):
        connection.disconnect()


def close_writer(path: Path) -> None:
    for connection in connections(path):
        if connection.is_writer:
            connection.disconnect()


def end_connections(path: Path) -> None:
    """What the end of an event loop does to them."""
    for connection in connections(path):
        connection.end()


LOSSES = {"all closed": close_connections, "the writer closed": close_writer, "all ended": end_connections}


@pytest.mark.parametrize(
    ("lost", "reads", "first"),
    cases(
        itertools.product(LOSSES, [True, False], FIRST),
        quick=lambda case: case[0] == "all closed" or case == ("the writer closed", False, 1),
    ),
)
def test_appends_keep_their_order_at_whatever_moment_more_come_after_connections_were_lost(
    tmp_path: Path, lost: str, reads: bool, first: int
) -> None:
    for number, loop in enumerate(cycle_loops()):
        path = tmp_path / f"{number}.db"

        async def main(loop: CycleLoop = loop, path: Path = path) -> None:
            async with AsyncSessionStore(path) as store:
                session = store.session("user_123")
                appending = Appending(session)
                appending.begin(1)
                await asyncio.gather(*appending.calls, session.get_items())
                LOSSES[lost](path)
                others = [asyncio.ensure_future(session.get_items()), asyncio.ensure_future(store.open())] * reads
                appending.begin(first)
                loop.arm(lambda: appending.begin_unless_done(MORE))
                await asyncio.gather(*others, *appending.calls)
                loop.disarm()
                await asyncio.gather(*appending.calls)
                items = await session.get_items()
            assert items == appending.in_order() == stored(path)

        loop.run(main())


@pytest.mark.parametrize("first", cases(FIRST, quick=lambda first: first == 1))
def test_appends_keep_their_order_at_whatever_moment_connections_are_lost_under_them(
    tmp_path: Path, first: int
) -> None:
    for number, loop in enumerate(cycle_loops(times=3)):
        path = tmp_path / f"{number}.db"

        async def main(loop: CycleLoop = loop, path: Path = path) -> None:
            async with AsyncSessionStore(path) as store:
                session = store.session("user_123")
                appending = Appending(session)
                appending.begin(1)
                await asyncio.gather(*appending.calls)

                def lose_and_begin_more() -> bool:
                    close_connections(path)
                    return appending.begin_unless_done(MORE)

                appending.begin(first)
                loop.arm(lose_and_begin_more)
                reading = asyncio.ensure_future(session.get_items())
                await asyncio.gather(*appending.calls, reading)
                loop.disarm()
                await asyncio.gather(*appending.calls)
            assert stored(path) == appending.in_order()

        loop.run(main())


@pytest.mark.parametrize("first", cases(FIRST, quick=lambda first: first == 1))
def test_appends_keep_their_order_at_whatever_moment_they_come_while_the_file_is_opened_first(
    tmp_path: Path, first: int
) -> None:
    for number, loop in enumerate(cycle_loops()):
        path = tmp_path / f"{number}.db"

        async def main(loop: CycleLoop = loop, path: Path = path) -> None:
            store = AsyncSessionStore(path)
            session = store.session("user_123")
            appending = Appending(session)
            others = [asyncio.ensure_future(session.get_items()), asyncio.ensure_future(store.open())]
            await asyncio.sleep(0)
            appending.begin(first)
            loop.arm(lambda: appending.begin_unless_done(MORE))
            await asyncio.gather(*others, *appending.calls)
            loop.disarm()
            await asyncio.gather(*appending.calls)
            await store.close()
            assert stored(path) == appending.in_order()

        loop.run(main())


@pytest.mark.parametrize("first", cases(FIRST, quick=lambda first: first == 1))
def test_appends_keep_their_order_at_whatever_moment_the_file_is_replaced(tmp_path: Path, first: int) -> None:
    # Those that meet the old file fail; of those that went to the new one, none has overtaken another.
    for number, loop in enumerate(cycle_loops()):
        path, other = tmp_path / f"{number}.db", tmp_path / f"{number}-other.db"

        async def main(loop: CycleLoop = loop, path: Path = path, other: Path = other) -> None:
            async with AsyncSessionStore(other):
                pass  # it makes the tables
            old, new = AsyncSessionStore(path), AsyncSessionStore(path)
            await old.session("user_123").add_items([{"number": 0}])
            before, after = Appending(old.session("user_123")), Appending(new.session("user_123"))

            def replace() -> bool:
                if all(call.done() for call in before.calls):
                    return False
                os.replace(other, path)
                after.begin(first)
                return True

            before.begin(first)
            loop.arm(replace)
            outcomes = await asyncio.gather(*before.calls, return_exceptions=True)
            loop.disarm()
            assert all(outcome is None or isinstance(outcome, StorageError) for outcome in outcomes)
            after.begin(MORE)
            await asyncio.gather(*after.calls)
            await old.close()
            await new.close()
            if not other.exists():
                assert stored(path) == after.in_order()

        loop.run(main())


@needs_fork
def test_appends_keep_their_order_after_a_fork_at_whatever_moment_they_come(path: Path) -> None:
    script = """
import asyncio, os, sys
path = sys.argv[1]
sys.path.insert(0, sys.argv[2])
from agentmem import AsyncSessionStore
from forking import fork
from stepping import cycle_loops

async def once(loop, number):
    async with AsyncSessionStore(path) as store:
        session = store.session(str(number))
        await session.add_items([{"n": 0}])
        await session.get_items()
        fork(lambda: None)
        calls = []
        def come():
            if reading.done():
                return False
            calls.extend(asyncio.ensure_future(session.add_items([{"n": n}])) for n in range(1, 41))
        loop.arm(come)
        reading = asyncio.ensure_future(session.get_items())
        await reading
        loop.disarm()
        await asyncio.gather(*calls)
        stored = [item["n"] for item in await session.get_items()]
        assert stored == list(range(1 + len(calls))), (number, stored)

for number, loop in enumerate(cycle_loops()):
    loop.run(once(loop, number))
print("in order")
"""
    assert run_quietly(script, path, SUPPORT, flags=FORKING) == "in order\n"


@pytest.mark.parametrize("has_unsent", [True, False])
@pytest.mark.parametrize("has_sent", [True, False])
@pytest.mark.parametrize("is_connected", [True, False])
@pytest.mark.parametrize("is_connecting", [True, False])
def test_a_connection_is_replaced_only_when_everything_that_was_sent_has_come_back(
    has_unsent: bool, has_sent: bool, is_connected: bool, is_connecting: bool
) -> None:
    step = next_step(has_unsent=has_unsent, has_sent=has_sent, is_connected=is_connected, is_connecting=is_connecting)
    assert (step is Step.SEND) == (has_unsent and is_connected and not is_connecting)
    assert (step is Step.CONNECT) == (has_unsent and not is_connected and not is_connecting and not has_sent)
