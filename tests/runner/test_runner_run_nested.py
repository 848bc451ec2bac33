"""Runs that tools start: any number of them, at any depth, also on sessions for which other runs wait."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from waiting import WAIT_S

from agentmem import Agent, AsyncSessionStore, AsyncSQLiteSession, RunConfig, Runner, SQLiteSession, function_tool
from agentmem.items import Item
from agentmem.runner import FunctionTool, ModelRequest, ModelResponse, OfflineModel

pytestmark = pytest.mark.anyio

AT_ONCE = 60
"""More calls than anyio has threads to share among all who ask it for one."""

ANSWERS = Agent("Answers", None, OfflineModel())


class Calls:
    """A model that calls the tools that it has, each a number of times, and answers with what they gave."""

    def __init__(self, times: int = 1) -> None:
        self._times = times

    async def respond(self, request: ModelRequest) -> ModelResponse:
        """The calls; then, as a message, a JSON list of their outputs."""
        outputs = [item["output"] for item in request.input if item.get("type") == "function_call_output"]
        if outputs:
            return ModelResponse([{"role": "assistant", "content": json.dumps(outputs)}])
        names = [tool["name"] for tool in request.tools for _ in range(self._times)]
        return ModelResponse([function_call(name, index) for index, name in enumerate(names)])


def function_call(name: str, index: int) -> Item:
    return {"type": "function_call", "call_id": f"c{index}", "name": name, "arguments": "{}"}


def calling(tool: Callable[[], Any] | FunctionTool[..., Any], times: int = 1) -> Agent:
    decorated = tool if isinstance(tool, FunctionTool) else function_tool(name="consult")(tool)
    return Agent("Calling", None, Calls(times), [decorated])


def outputs_of(result: Any) -> list[str]:
    outputs: list[str] = json.loads(result.final_output)
    return outputs


# Threads


def test_any_number_of_tools_start_runs_at_once_whose_tools_do_too() -> None:
    meeting = threading.Barrier(2 * AT_ONCE)  # the innermost calls are all under way before one returns

    def meet() -> str:
        meeting.wait(WAIT_S)
        return "met"

    def consult() -> list[str]:
        return outputs_of(Runner.run_sync(calling(meet, 2), "Hi"))

    outputs = outputs_of(Runner.run_sync(calling(consult, AT_ONCE), "Hi"))
    assert outputs == ['["met","met"]'] * AT_ONCE


@pytest.mark.parametrize("kind", ["plain", "async", "awaits a thread"])
def test_a_tool_starts_a_run_whose_tool_starts_a_run_and_so_on_at_any_depth(kind: str) -> None:
    def deeper(depth: int) -> Agent:
        def consult() -> str:
            return "bottom" if depth == 0 else outputs_of(Runner.run_sync(deeper(depth - 1), "Hi"))[0]

        async def consult_async() -> str:
            return "bottom" if depth == 0 else outputs_of(await Runner.run(deeper(depth - 1), "Hi"))[0]

        async def consult_in_thread() -> str:
            return await asyncio.to_thread(consult)

        tools: dict[str, Callable[[], Any]] = {"plain": consult, "async": consult_async}
        return calling(tools.get(kind, consult_in_thread))

    assert outputs_of(Runner.run_sync(deeper(AT_ONCE), "Hi")) == ["bottom"]


async def test_tools_leave_the_threads_that_an_application_shares_with_its_web_framework(session: Any) -> None:
    limiter = anyio.to_thread.current_default_thread_limiter()
    borrowed: list[float] = []
    meeting = threading.Barrier(AT_ONCE)

    def meet() -> None:
        meeting.wait(WAIT_S)
        borrowed.append(limiter.borrowed_tokens)

    await Runner.run(calling(meet, AT_ONCE), "Hi", session=session)
    assert borrowed == [0] * AT_ONCE


async def test_runs_go_on_while_all_threads_of_anyio_are_taken_by_those_that_wait_for_them() -> None:
    """An app whose sync endpoints wait for runs on its own loop."""
    loop = asyncio.get_running_loop()

    def endpoint() -> list[str]:
        run = Runner.run(calling(lambda: "done"), "Hi")
        return outputs_of(asyncio.run_coroutine_threadsafe(run, loop).result(WAIT_S))

    async with anyio.create_task_group() as group:
        limiter = anyio.to_thread.current_default_thread_limiter()
        for _ in range(int(limiter.total_tokens)):
            group.start_soon(anyio.to_thread.run_sync, endpoint)


# Runs that wait for each other


Consult = Callable[[str], Callable[[], Any]]


def consult_by_run_sync(db: Path, meeting: threading.Barrier) -> Consult:
    def to(session_id: str) -> Callable[[], Any]:
        def consult() -> str:
            meeting.wait(WAIT_S)  # each run holds its session now
            with SQLiteSession(db, session_id=session_id) as session:
                return str(Runner.run_sync(ANSWERS, "Hi", session=session).final_output)

        return consult

    return to


def consult_by_await(db: Path, meeting: threading.Barrier) -> Consult:
    def to(session_id: str) -> Callable[[], Any]:
        async def consult() -> str:
            await anyio.to_thread.run_sync(meeting.wait, WAIT_S)
            async with AsyncSQLiteSession(db, session_id=session_id) as session:
                return str((await Runner.run(ANSWERS, "Hi", session=session)).final_output)

        return consult

    return to


async def run_in_thread(agent: Agent, db: Path, session_id: str) -> list[str]:
    with SQLiteSession(db, session_id=session_id) as session:
        return outputs_of(await anyio.to_thread.run_sync(lambda: Runner.run_sync(agent, "Hi", session=session)))


async def run_here(agent: Agent, db: Path, session_id: str) -> list[str]:
    async with AsyncSQLiteSession(db, session_id=session_id) as session:
        return outputs_of(await Runner.run(agent, "Hi", session=session))


async def run_streamed_here(agent: Agent, db: Path, session_id: str) -> list[str]:
    async with AsyncSQLiteSession(db, session_id=session_id) as session:
        return outputs_of(await Runner.run_streamed(agent, "Hi", session=session).result())


Run = Callable[[Agent, Path, str], Coroutine[Any, Any, list[str]]]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("consult", [consult_by_run_sync, consult_by_await])
@pytest.mark.parametrize("runs", [[run_here], [run_in_thread], [run_streamed_here], [run_here, run_in_thread]])
async def test_of_runs_whose_tools_consult_each_others_sessions_in_a_circle_one_is_refused_by_name(
    db: Path, count: int, consult: Callable[[Path, threading.Barrier], Consult], runs: list[Run]
) -> None:
    to = consult(db, threading.Barrier(count))
    names = [f"session_{index}" for index in range(count)]
    started = [
        runs[index % len(runs)](calling(to(names[(index + 1) % count])), db, name) for index, name in enumerate(names)
    ]
    outputs = [one for outputs in await asyncio.gather(*started) for one in outputs]
    refused = [output for output in outputs if "runs would wait for each other" in output]
    answered = [output for output in outputs if "offline model" in output]
    assert (len(refused), len(answered)) == (1, count - 1)
    assert all(f"'{name}'" in refused[0] for name in names)
    async with AsyncSessionStore(db) as store:
        for name in names:  # each whole
            roles = [item.get("role") or item["type"] for item in await store.session(name).get_items()]
            assert roles[:4] == ["user", "function_call", "function_call_output", "assistant"]


async def test_tools_of_one_run_that_consult_the_same_other_session_wait_for_each_other_alone(db: Path) -> None:
    to = consult_by_run_sync(db, threading.Barrier(3))
    outputs = await run_here(calling(to("other"), 3), db, "one")
    assert ["offline model" in output for output in outputs] == [True] * 3


@pytest.mark.parametrize("run", [run_here, run_in_thread])
async def test_a_tool_that_starts_a_run_on_its_own_session_in_a_thread_of_its_own_is_refused_in_bounded_time(
    db: Path, run: Run
) -> None:
    config = RunConfig(session_wait_s=0.01)  # thirty seconds, unless one says so
    with ThreadPoolExecutor() as pool:

        def consult() -> str:
            with SQLiteSession(db, session_id="one") as own:
                run = pool.submit(Runner.run_sync, ANSWERS, "Hi", session=own, run_config=config)
                return str(run.result().final_output)

        [output] = await run(calling(consult), db, "one")
    assert "RunError: the session 'one' is held since " in output
    assert "by a run that is in its tool 'consult'" in output
    assert "RunConfig(session_wait_s=...)" in output


async def test_a_circle_through_threads_that_agentmem_knows_nothing_of_ends(db: Path) -> None:
    config = RunConfig(session_wait_s=0.01)
    meeting = threading.Barrier(2)
    with ThreadPoolExecutor() as pool:

        def to(session_id: str) -> Callable[[], str]:
            def consult() -> str:
                meeting.wait(WAIT_S)
                with SQLiteSession(db, session_id=session_id) as other:
                    run = pool.submit(Runner.run_sync, ANSWERS, "Hi", session=other, run_config=config)
                    return str(run.result().final_output)

            return consult

        outputs = await asyncio.gather(
            run_here(calling(to("two")), db, "one"), run_in_thread(calling(to("one")), db, "two")
        )
    assert any("RunError: the session" in output for [output] in outputs)
