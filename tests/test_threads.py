"""Calls in threads: as many as there are, each with its caller's context, and none left over."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from processes import run_quietly
from waiting import WAIT_S, wait_until

from agentmem.threads import call_in_thread

MANY = 100
"""More than the threads that anyio and asyncio share among all who ask them."""

pytestmark = pytest.mark.anyio

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def call_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "agentmem-call"]


async def test_a_call_runs_in_another_thread_with_a_copy_of_the_context() -> None:
    def call() -> tuple[int, str]:
        seen = variable.get()
        variable.set("of the call")
        return threading.get_ident(), seen

    variable.set("of the caller")
    thread, seen = await call_in_thread(call)
    assert thread != threading.get_ident()
    assert (seen, variable.get()) == ("of the caller", "of the caller")


async def test_any_number_of_calls_run_at_once_and_take_no_thread_of_anyios() -> None:
    meeting = threading.Barrier(MANY)  # nobody gets past it before all have come
    limiter = anyio.to_thread.current_default_thread_limiter()

    def meet() -> float:
        meeting.wait(WAIT_S)
        return limiter.borrowed_tokens

    assert await asyncio.gather(*(call_in_thread(meet) for _ in range(MANY))) == [0] * MANY


async def test_a_thread_ends_with_its_call() -> None:
    for _ in range(MANY):
        await call_in_thread(threading.get_ident)
    wait_until(lambda: not call_threads())


async def test_an_error_of_the_call_is_raised_where_it_is_awaited() -> None:
    with pytest.raises(ZeroDivisionError):
        await call_in_thread(lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        await call_in_thread(lambda: next(iter([])))
    assert isinstance(caught.value.__cause__, StopIteration)
    with pytest.raises(SystemExit):  # and the event loop goes on
        await call_in_thread(sys.exit)


async def test_a_call_may_run_an_event_loop_of_its_own_of_either_library() -> None:
    async def number() -> int:
        return 1

    assert await call_in_thread(lambda: asyncio.run(number())) == 1
    assert await call_in_thread(lambda: anyio.run(number)) == 1
    # Under anyio.run, which notes in the context that a loop runs.
    assert await call_in_thread(lambda: anyio.run(call_in_thread, lambda: anyio.run(number))) == 1


@pytest.mark.parametrize("by", ["task", "scope"])
async def test_a_cancelled_call_is_waited_for(by: str) -> None:
    started, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        release.wait(WAIT_S)
        ended.set()

    scope = anyio.CancelScope()

    async def in_scope() -> None:
        with scope:
            await call_in_thread(work)
            await anyio.lowlevel.checkpoint()
            pytest.fail("the scope is cancelled")

    task = asyncio.create_task(call_in_thread(work) if by == "task" else in_scope())
    await anyio.to_thread.run_sync(started.wait, WAIT_S)
    task.cancel() if by == "task" else scope.cancel()
    for _ in range(MANY):  # far more than the loop needs to deliver the cancellation
        await anyio.lowlevel.checkpoint()
    assert not task.done()
    release.set()
    await asyncio.wait([task])
    assert ended.is_set()
    assert task.cancelled() is (by == "task")


async def test_a_cancelled_call_that_fails_raises_the_cancellation_with_the_error_as_its_cause() -> None:
    started, release = threading.Event(), threading.Event()

    def fail() -> None:
        started.set()
        release.wait(WAIT_S)
        raise LookupError("x")

    task = asyncio.create_task(call_in_thread(fail))
    await anyio.to_thread.run_sync(started.wait, WAIT_S)
    task.cancel()
    await anyio.lowlevel.checkpoint()
    release.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert isinstance(caught.value.__cause__, LookupError)


async def test_a_call_whose_scope_was_cancelled_before_does_not_begin() -> None:
    called = threading.Event()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await call_in_thread(called.set)
    assert not called.is_set()


@pytest.mark.parametrize("fails", [True, False])
async def test_an_abandoned_call_is_left_to_its_thread_which_drops_the_outcome(fails: bool) -> None:
    started, release = threading.Event(), threading.Event()

    def work() -> float:
        started.set()
        release.wait(WAIT_S)
        return 1 / (not fails)

    task = asyncio.create_task(call_in_thread(work, abandon_on_cancel=True))
    await anyio.to_thread.run_sync(started.wait, WAIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call_threads()
    release.set()
    while call_threads():
        await anyio.lowlevel.checkpoint()


def test_an_abandoned_call_may_outlive_its_event_loop() -> None:
    started, release = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        release.wait(WAIT_S)

    async def main() -> None:
        task = asyncio.create_task(call_in_thread(work, abandon_on_cancel=True))
        await anyio.to_thread.run_sync(started.wait, WAIT_S)
        task.cancel()

    asyncio.run(main())
    release.set()
    wait_until(lambda: not call_threads())  # and an error in the thread would be a warning, which is an error


TOOL_PAST_ITS_TIME = """
import asyncio, sys, threading
from agentmem import Agent, Runner, SQLiteSession, function_tool
from agentmem.runner import OfflineModel

release = threading.Event()

@function_tool(timeout_s=0.2)  # the thread must have begun by then
def weather() -> str:
    release.wait()
    session.add_items([{"role": "user", "content": "stored at the end"}])
    print("ended")

agent = Agent("A", "", OfflineModel(), [weather])
session = SQLiteSession(sys.argv[1], session_id="s")
"""


def test_a_program_ends_though_a_tool_of_run_sync_never_does(tmp_path: Path) -> None:
    script = TOOL_PAST_ITS_TIME + 'print(Runner.run_sync(agent, "weather?").final_output)\n'
    shown = run_quietly(script, tmp_path / "s.db")
    assert shown == "weather says: Error: weather failed: TimeoutError: took longer than 0.2 s\n"


def test_a_program_waits_for_a_tool_that_outlived_asyncio_run_and_still_stores_what_it_adds(tmp_path: Path) -> None:
    script = (
        TOOL_PAST_ITS_TIME
        + """
asyncio.run(Runner.run(agent, "weather?"))
print("main is over")
release.set()
"""
    )
    assert run_quietly(script, tmp_path / "s.db") == "main is over\nended\n"
