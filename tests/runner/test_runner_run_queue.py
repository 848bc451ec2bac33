"""The run queue: one at a time, in order, from anywhere; and no way to leave it jammed."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from waiting import WAIT_S

from agentmem.errors import RunError
from agentmem.runner.run_queue import RunQueue

pytestmark = pytest.mark.anyio


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

    holder = await queue.acquire("k", "s")
    unlucky = asyncio.create_task(visit("unlucky"))
    await until_waiting(queue, 1)
    after = asyncio.create_task(visit("next"))
    await until_waiting(queue, 2)
    queue.release(holder)  # the key is on its way to the first one
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


async def test_a_circle_through_other_waiters_is_refused_whoever_closes_it(queue: RunQueue) -> None:
    ready = {key: anyio.Event() for key in "abc"}

    async def visit(key: str, next_key: str, wait_for: str | None) -> None:
        async with queue.hold(key, key):
            ready[key].set()
            for one in ready.values():
                await one.wait()
            if wait_for is not None:
                while not queue.waiting_count(wait_for):
                    await anyio.lowlevel.checkpoint()
            async with queue.hold(next_key, next_key):
                pass

    with anyio.fail_after(WAIT_S):
        # b waits for c, then c for a, and a would close the circle.
        visits = [visit("a", "b", "a"), visit("b", "c", None), visit("c", "a", "c")]
        results = await asyncio.gather(*visits, return_exceptions=True)
    assert [type(result) for result in results] == [RunError, type(None), type(None)]
    assert str(results[0]).startswith(
        "runs would wait for each other: a tool of the run on the session 'a' started a run on 'b', "
        "that on 'b' waits for 'c', that on 'c' waits for 'a'; use another session in one of the tools"
    )
    assert repr(queue) == "<RunQueue: 0 held, 0 waiting>"


async def test_a_run_inside_of_another_waits_for_a_third_that_does_not_wait_for_it(queue: RunQueue) -> None:
    async with anyio.create_task_group() as group, held(queue):

        async def visit() -> None:
            async with queue.hold("outer", "s"), queue.hold("k", "s"):
                pass

        group.start_soon(visit)
        await until_waiting(queue, 1)
    assert repr(queue) == "<RunQueue: 0 held, 0 waiting>"


async def test_a_waiter_that_gave_up_closes_no_circle(queue: RunQueue) -> None:
    async def visit() -> None:
        async with queue.hold("k", "s"), queue.hold("other", "s"):
            pass

    other = await queue.acquire("other", "s")
    visiting = asyncio.create_task(visit())
    while not queue.waiting_count("other"):
        await anyio.lowlevel.checkpoint()
    visiting.cancel()
    await asyncio.wait([visiting])
    async with queue.hold("k", "s"):
        inner = asyncio.create_task(queue.acquire("other", "s"))
        while not queue.waiting_count("other"):
            await anyio.lowlevel.checkpoint()
        queue.release(other)
        queue.release(await inner)
    assert repr(queue) == "<RunQueue: 0 held, 0 waiting>"


# Steps of the holder, of which some may wait for the run that waits for them


class Holder:
    """A task that holds the key "k", and is in a step when it is told to."""

    def __init__(self, queue: RunQueue) -> None:
        self._queue = queue
        self._orders: asyncio.Queue[float | None] = asyncio.Queue()

    async def run(self) -> None:
        """Until it is told to release the key."""
        async with self._queue.hold("k", "user_123"):
            while (at_least_s := await self._orders.get()) is not None:
                with self._queue.step("its tool 'consult'", at_least_s=at_least_s):
                    self._orders.task_done()
                    if await self._orders.get() is None:
                        return
                self._orders.task_done()

    async def begin_step(self, at_least_s: float = 0.0) -> None:
        """Returns when it is in the step."""
        self._orders.put_nowait(at_least_s)
        await self._orders.join()

    async def end_step(self) -> None:
        """Returns when it is no longer in the step."""
        await self.begin_step()

    def release(self) -> None:
        """Let it end."""
        self._orders.put_nowait(None)


@pytest.fixture
async def holder(queue: RunQueue) -> AsyncIterator[Holder]:
    """It holds the key already."""
    one = Holder(queue)
    async with anyio.create_task_group() as group:
        group.start_soon(one.run)
        while not queue.is_held("k"):
            await anyio.lowlevel.checkpoint()
        yield one
        one.release()


async def pass_the_limits() -> None:
    """As many cycles of the loop as a limit of nearly no time lasts, many times over."""
    for _ in range(1_000):
        await anyio.lowlevel.checkpoint()


async def test_a_run_that_came_during_a_step_waits_only_so_long_for_it_and_says_for_what(
    queue: RunQueue, holder: Holder
) -> None:
    await holder.begin_step()
    with pytest.raises(RunError) as caught:
        await queue.acquire("k", "user_123", step_wait_s=0.001)
    said = str(caught.value)
    assert re.match(
        r"the session 'user_123' is held since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC by a run that is in", said
    )
    assert "that is in its tool 'consult', and this run waited 0.001 s for it; nothing was added to the session" in said
    assert "use another session there" in said
    assert repr(queue) == "<RunQueue: 1 held, 0 waiting>"


@pytest.mark.parametrize(
    "came", ["before the step", "during the step, which ended", "with no limit", "with a patient step"]
)
async def test_a_run_that_the_step_cannot_have_started_or_that_may_wait_longer_waits_its_turn(
    queue: RunQueue, holder: Holder, came: str
) -> None:
    limit_s = {"with no limit": None, "during the step, which ended": WAIT_S}.get(came, 1e-9)
    if came != "before the step":
        await holder.begin_step(at_least_s=WAIT_S if came == "with a patient step" else 0.0)
    waiting = asyncio.create_task(queue.acquire("k", "user_123", step_wait_s=limit_s))
    await until_waiting(queue, 1)
    if came == "before the step":
        await holder.begin_step()
    elif came == "during the step, which ended":
        await holder.end_step()
        await holder.begin_step()
    await pass_the_limits()
    assert queue.waiting_count("k") == 1
    holder.release()
    queue.release(await waiting)


async def test_a_run_that_is_handed_the_key_waits_for_no_step_any_more(queue: RunQueue, holder: Holder) -> None:
    await holder.begin_step()
    waiting = asyncio.create_task(queue.acquire("k", "user_123", step_wait_s=WAIT_S))
    await until_waiting(queue, 1)
    holder.release()
    queue.release(await waiting)


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
    holder = await queue.acquire("k", "s")
    waiting = queue.acquire("k", "s")
    waiting.send(None)
    queue.release(holder)
    del waiting  # its task went with its loop
    gc.collect()
    assert not queue.is_held("k")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX's")
def test_after_a_fork_the_child_waits_for_nobody(queue: RunQueue) -> None:
    async def hold_and_fork() -> int:
        await queue.acquire("k", "s")
        return os.fork()

    pid = asyncio.run(hold_and_fork())
    if pid == 0:
        os._exit(0 if not queue.is_held("k") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert queue.is_held("k")
