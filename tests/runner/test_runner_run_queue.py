"""The run queue: one at a time, in order, from anywhere; and no way to leave it jammed."""

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
from agentmem.runner.run_queue import RunQueue

pytestmark = pytest.mark.anyio

WAIT_S = 30.0


@pytest.fixture
def queue() -> RunQueue:
    return RunQueue()


@asynccontextmanager
async def held(queue: RunQueue) -> AsyncIterator[None]:
    """For the length of the block another task holds the key (the block's own context does not)."""
    is_held, release = anyio.Event(), anyio.Event()

    async def holder() -> None:
        async with queue.hold("k", "s"):
            is_held.set()
            await release.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(holder)
        await is_held.wait()
        try:
            yield
        finally:
            release.set()


async def until_waiting(queue: RunQueue, count: int) -> None:
    """Lets everything else run until `count` wait for the key."""
    with anyio.fail_after(WAIT_S):
        while queue.waiting_count("k") != count:
            await anyio.lowlevel.checkpoint()


async def test_a_key_is_held_by_one_at_a_time_in_the_order_of_asking(queue: RunQueue) -> None:
    log: list[str] = []

    async def visit(name: str) -> None:
        async with queue.hold("k", "s"):
            log.append(f"{name} in")
            await anyio.lowlevel.checkpoint()
            log.append(f"{name} out")

    async with anyio.create_task_group() as group, held(queue):
        for index, name in enumerate("abc"):
            group.start_soon(visit, name)
            await until_waiting(queue, index + 1)
        assert log == []
    assert log == ["a in", "a out", "b in", "b out", "c in", "c out"]


async def test_different_keys_do_not_wait_for_each_other(queue: RunQueue) -> None:
    with anyio.fail_after(WAIT_S):
        async with held(queue), queue.hold("other", "s"):
            has_key = True
    assert has_key


async def test_a_key_is_handed_on_between_threads_and_loops_in_order(queue: RunQueue) -> None:
    log: list[int] = []

    async def visit(number: int) -> None:
        async with queue.hold("k", "s"):
            log.append(number)

    threads = [threading.Thread(target=asyncio.run, args=(visit(number),)) for number in range(5)]
    async with anyio.create_task_group() as group, held(queue):
        for number, thread in enumerate(threads):
            thread.start()
            await until_waiting(queue, number + 1)
        group.start_soon(visit, 5)
        await until_waiting(queue, 6)
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join, WAIT_S)
    assert log == [0, 1, 2, 3, 4, 5]


async def test_many_threads_never_meet_inside(queue: RunQueue) -> None:
    inside: list[int] = []
    most = 0

    async def visit() -> None:
        nonlocal most
        for _ in range(50):
            async with queue.hold("k", "s"):
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
    assert not queue.is_held("k")


async def test_a_cancelled_waiter_leaves_the_queue(queue: RunQueue) -> None:
    log: list[str] = []

    async def visit(name: str) -> None:
        async with queue.hold("k", "s"):
            log.append(name)

    async with anyio.create_task_group() as group, held(queue):
        first = asyncio.create_task(visit("cancelled"))
        await until_waiting(queue, 1)
        group.start_soon(visit, "next")
        await until_waiting(queue, 2)
        first.cancel()
        await until_waiting(queue, 1)
    assert log == ["next"]
    assert first.cancelled()


async def test_a_key_that_is_handed_to_a_waiter_just_cancelled_goes_on_to_the_next(queue: RunQueue) -> None:
    log: list[str] = []

    async def visit(name: str) -> None:
        async with queue.hold("k", "s"):
            log.append(name)

    await queue.acquire("k")
    unlucky = asyncio.create_task(visit("unlucky"))
    await until_waiting(queue, 1)
    after = asyncio.create_task(visit("next"))
    await until_waiting(queue, 2)
    queue.release("k")  # the key is on its way to the first one
    unlucky.cancel()
    with anyio.fail_after(WAIT_S):
        await after
    assert log == ["next"]
    assert unlucky.cancelled()
    assert not queue.is_held("k")


async def test_a_waiter_whose_loop_is_gone_is_skipped(queue: RunQueue) -> None:
    dead = asyncio.new_event_loop()

    async def visit() -> None:
        async with queue.hold("k", "s"):
            pass

    async with held(queue):
        # A loop that its owner stopped and closed without finishing its tasks.
        waiting = dead.create_task(visit())
        await anyio.to_thread.run_sync(dead.run_until_complete, until_waiting(queue, 1))
        dead.close()
    with anyio.fail_after(WAIT_S):
        await visit()
    coroutine = waiting.get_coro()
    assert coroutine is not None  # it is None only for an eager task that never waited
    coroutine.close()
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own switch for its complaint


async def test_a_key_that_was_released_is_not_kept(queue: RunQueue) -> None:
    async with queue.hold("k", "s"):
        assert queue.is_held("k")
    assert repr(queue) == "<RunQueue: 0 held, 0 waiting>"
    with pytest.raises(ZeroDivisionError):
        async with queue.hold("k", "s"):
            _ = 1 / 0
    assert not queue.is_held("k")


async def test_waiting_for_the_key_that_one_holds_is_an_error_that_says_what_to_do(queue: RunQueue) -> None:
    async def inner() -> None:
        async with queue.hold("k", "user_123"):
            pass

    async with queue.hold("k", "user_123"):
        with pytest.raises(RunError, match=r"'user_123'.*use another session in the tool"):
            await inner()
        with pytest.raises(RunError):  # a worker thread is still inside
            await anyio.to_thread.run_sync(asyncio.run, inner())
        async with queue.hold("other", "s"):
            with pytest.raises(RunError):
                await inner()
    await inner()


async def test_a_task_that_a_holder_left_behind_may_hold_the_key_later(queue: RunQueue) -> None:
    over = anyio.Event()

    async def left_behind() -> str:
        await over.wait()
        async with queue.hold("k", "s"):
            return "done"

    async with queue.hold("k", "s"):
        task = asyncio.create_task(left_behind())
    over.set()
    assert await task == "done"


async def test_a_waiter_that_is_collected_with_its_key_hands_it_on(queue: RunQueue) -> None:
    await queue.acquire("k")
    waiting = queue.acquire("k")
    waiting.send(None)
    queue.release("k")
    del waiting  # its task went with its loop
    gc.collect()
    assert not queue.is_held("k")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX's")
def test_after_a_fork_the_child_waits_for_nobody(queue: RunQueue) -> None:
    async def hold_and_fork() -> int:
        await queue.acquire("k")
        return os.fork()

    pid = asyncio.run(hold_and_fork())
    if pid == 0:
        os._exit(0 if not queue.is_held("k") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert queue.is_held("k")
