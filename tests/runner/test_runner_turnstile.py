"""The turnstile: one at a time, in order, from anywhere; and no way to leave it jammed."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from agentmem.errors import RunError
from agentmem.runner.turnstile import Turnstile

pytestmark = pytest.mark.anyio

WAIT_S = 30.0


@pytest.fixture
def turnstile() -> Turnstile:
    return Turnstile()


@asynccontextmanager
async def taken(turnstile: Turnstile) -> AsyncIterator[None]:
    """For the length of the block another task holds the turn (the block's own context does not)."""
    held, release = anyio.Event(), anyio.Event()

    async def holder() -> None:
        async with turnstile.turn("k", "s"):
            held.set()
            await release.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(holder)
        await held.wait()
        try:
            yield
        finally:
            release.set()


async def until_waiting(turnstile: Turnstile, count: int) -> None:
    """Lets everything else run until `count` wait for the turn."""
    with anyio.fail_after(WAIT_S):
        while len(turnstile._waiting.get("k", ())) != count:
            await anyio.lowlevel.checkpoint()


async def test_turns_are_taken_one_at_a_time_in_the_order_of_asking(turnstile: Turnstile) -> None:
    log: list[str] = []

    async def visit(name: str) -> None:
        async with turnstile.turn("k", "s"):
            log.append(f"{name} in")
            await anyio.lowlevel.checkpoint()
            log.append(f"{name} out")

    async with anyio.create_task_group() as group, taken(turnstile):
        for index, name in enumerate("abc"):
            group.start_soon(visit, name)
            await until_waiting(turnstile, index + 1)
        assert log == []
    assert log == ["a in", "a out", "b in", "b out", "c in", "c out"]


async def test_different_keys_do_not_wait_for_each_other(turnstile: Turnstile) -> None:
    with anyio.fail_after(WAIT_S):
        async with taken(turnstile), turnstile.turn("other", "s"):
            has_turn = True
    assert has_turn


async def test_turns_pass_between_threads_and_loops_in_order(turnstile: Turnstile) -> None:
    log: list[int] = []

    async def visit(number: int) -> None:
        async with turnstile.turn("k", "s"):
            log.append(number)

    threads = [threading.Thread(target=asyncio.run, args=(visit(number),)) for number in range(5)]
    async with anyio.create_task_group() as group, taken(turnstile):
        for number, thread in enumerate(threads):
            thread.start()
            await until_waiting(turnstile, number + 1)
        group.start_soon(visit, 5)
        await until_waiting(turnstile, 6)
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join, WAIT_S)
    assert log == [0, 1, 2, 3, 4, 5]


async def test_many_threads_never_meet_inside(turnstile: Turnstile) -> None:
    inside: list[int] = []
    most = 0

    async def visit() -> None:
        nonlocal most
        for _ in range(50):
            async with turnstile.turn("k", "s"):
                inside.append(1)
                most = max(most, len(inside))
                await anyio.lowlevel.checkpoint()
                inside.pop()

    async def in_thread() -> None:
        await anyio.to_thread.run_sync(asyncio.run, visit())

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(in_thread)
        for _ in range(4):
            group.start_soon(visit)
    assert most == 1
    assert turnstile._waiting == {}


async def test_a_cancelled_waiter_leaves_the_queue(turnstile: Turnstile) -> None:
    log: list[str] = []

    async def visit(name: str) -> None:
        async with turnstile.turn("k", "s"):
            log.append(name)

    async with anyio.create_task_group() as group, taken(turnstile):
        first = asyncio.create_task(visit("cancelled"))
        await until_waiting(turnstile, 1)
        group.start_soon(visit, "next")
        await until_waiting(turnstile, 2)
        first.cancel()
        await until_waiting(turnstile, 1)
    assert log == ["next"]
    assert first.cancelled()


async def test_a_turn_that_comes_to_a_waiter_just_cancelled_goes_on_to_the_next(turnstile: Turnstile) -> None:
    log: list[str] = []

    async def visit(name: str) -> None:
        async with turnstile.turn("k", "s"):
            log.append(name)

    await turnstile._take("k")
    unlucky = asyncio.create_task(visit("unlucky"))
    await until_waiting(turnstile, 1)
    after = asyncio.create_task(visit("next"))
    await until_waiting(turnstile, 2)
    turnstile._pass_on("k")  # the turn is on its way to the first one
    unlucky.cancel()
    with anyio.fail_after(WAIT_S):
        await after
    assert log == ["next"]
    assert unlucky.cancelled()
    assert turnstile._waiting == {}


async def test_a_waiter_whose_loop_is_gone_is_skipped(turnstile: Turnstile) -> None:
    dead = asyncio.new_event_loop()

    async def visit() -> None:
        async with turnstile.turn("k", "s"):
            pass

    async with taken(turnstile):
        # A loop that its owner stopped and closed without finishing its tasks.
        waiting = dead.create_task(visit())
        await anyio.to_thread.run_sync(dead.run_until_complete, until_waiting(turnstile, 1))
        dead.close()
    with anyio.fail_after(WAIT_S):
        await visit()
    coroutine = waiting.get_coro()
    assert coroutine is not None  # it is None only for an eager task that never waited
    coroutine.close()
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own switch for its complaint


async def test_nothing_is_kept_of_a_turn_that_is_over(turnstile: Turnstile) -> None:
    async with turnstile.turn("k", "s"):
        assert "k" in turnstile._waiting
    assert turnstile._waiting == {}
    with pytest.raises(ZeroDivisionError):
        async with turnstile.turn("k", "s"):
            _ = 1 / 0
    assert turnstile._waiting == {}


async def test_waiting_for_the_turn_that_one_holds_is_an_error_that_says_what_to_do(turnstile: Turnstile) -> None:
    async def inner() -> None:
        async with turnstile.turn("k", "user_123"):
            pass

    async with turnstile.turn("k", "user_123"):
        with pytest.raises(RunError, match=r"'user_123'.*use another session in the tool"):
            await inner()
        with pytest.raises(RunError):  # a worker thread is still inside
            await anyio.to_thread.run_sync(asyncio.run, inner())
        async with turnstile.turn("other", "s"):
            with pytest.raises(RunError):
                await inner()
    await inner()


async def test_a_task_that_a_holder_left_behind_may_take_the_turn_later(turnstile: Turnstile) -> None:
    over = anyio.Event()

    async def left_behind() -> str:
        await over.wait()
        async with turnstile.turn("k", "s"):
            return "done"

    async with turnstile.turn("k", "s"):
        task = asyncio.create_task(left_behind())
    over.set()
    assert await task == "done"


async def test_a_waiter_that_is_collected_with_its_turn_passes_it_on(turnstile: Turnstile) -> None:
    await turnstile._take("k")
    waiting = turnstile._take("k")
    waiting.send(None)
    turnstile._pass_on("k")
    del waiting  # its task went with its loop
    gc.collect()
    assert turnstile._waiting == {}


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX's")
def test_after_a_fork_the_child_waits_for_nobody(turnstile: Turnstile) -> None:
    async def hold_and_fork() -> int:
        await turnstile._take("k")
        return os.fork()

    pid = asyncio.run(hold_and_fork())
    if pid == 0:
        os._exit(0 if turnstile._waiting == {} else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "k" in turnstile._waiting
