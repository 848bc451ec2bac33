"""What a Runner does to a session whoever made it: the README compares the SDK's Runner and agentmem's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sdk import StrictModel, agent, agents, message, stored

import agentmem
from agentmem import AsyncSQLiteSession
from agentmem.errors import ModelError
from agentmem.runner import ModelRequest, ModelResponse

pytestmark = pytest.mark.anyio

RUNNERS = {"the SDK's": agents.Runner, "agentmem's": agentmem.Runner}


@pytest.fixture(params=["agentmem's", "the SDK's"])
async def session(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """An empty session."""
    if request.param == "the SDK's":
        theirs = agents.SQLiteSession("user_123", tmp_path / "sdk.db")
        yield theirs
        theirs.close()
    else:
        async with AsyncSQLiteSession(tmp_path / "own.db", session_id="user_123") as own:
            yield own


@pytest.mark.parametrize("runner", RUNNERS.values(), ids=RUNNERS)
async def test_an_sdk_agent_whose_first_call_fails_leaves_the_message_and_the_retry_stores_it_twice(
    session: Any, runner: Any
) -> None:
    asked = agent(ConnectionError("the model is down"), [message("Hello.")])
    with pytest.raises(ConnectionError):
        await runner.run(asked, "Hi", session=session)
    assert await stored(session) == ["user: Hi"]
    await runner.run(asked, "Hi", session=session)
    assert await stored(session) == ["user: Hi", "user: Hi", "assistant: Hello."]


class Own:
    """A model of agentmem's, which answers with what it is asked, or fails."""

    is_down = False

    def __init__(self) -> None:
        self.under_way = 0

    async def respond(self, request: ModelRequest) -> ModelResponse:
        if self.is_down:
            raise ConnectionError("the model is down")
        self.under_way += 1
        for _ in range(20):
            assert self.under_way == 1
            await asyncio.sleep(0)
        self.under_way -= 1
        return ModelResponse([{"role": "assistant", "content": f"to {request.input[-1]['content']}"}])


async def test_an_agentmem_agent_whose_first_call_fails_adds_nothing(session: Any) -> None:
    model = Own()
    asked = agentmem.Agent("Assistant", None, model=model)
    model.is_down = True
    with pytest.raises(ModelError):
        await agentmem.Runner.run(asked, "Hi", session=session)
    assert await stored(session) == []
    model.is_down = False
    await agentmem.Runner.run(asked, "Hi", session=session)
    assert await stored(session) == ["user: Hi", "assistant: to Hi"]


async def test_runs_of_the_sdk_s_runner_on_one_session_interleave(session: Any) -> None:
    all_ask = asyncio.Event()
    asking = 0

    class Waits(StrictModel):
        async def get_response(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal asking
            asking += 1
            if asking == 3:
                all_ask.set()
            await all_ask.wait()
            return await super().get_response(*args, **kwargs)

    def asked(number: int) -> Any:
        return agents.Agent(name="Assistant", model=Waits([[message(f"to {number}")]]))

    await asyncio.gather(*(agents.Runner.run(asked(number), f"{number}", session=session) for number in range(3)))
    said = await stored(session)
    assert sorted(said[:3]) == ["user: 0", "user: 1", "user: 2"]
    assert sorted(said[3:]) == ["assistant: to 0", "assistant: to 1", "assistant: to 2"]


@pytest.mark.parametrize("whose", ["agentmem's", "the SDK's"])
async def test_runs_of_agentmem_s_runner_on_one_session_take_turns(session: Any, whose: str) -> None:
    model = Own()

    def asked(number: int) -> Any:
        if whose == "agentmem's":
            return agentmem.Agent("Assistant", None, model=model)
        return agent([message(f"to {number}")])

    await asyncio.gather(*(agentmem.Runner.run(asked(number), f"{number}", session=session) for number in range(3)))
    said = await stored(session)
    assert said == [line for text in said[::2] for line in (text, f"assistant: to {text.removeprefix('user: ')}")]
    assert sorted(said[::2]) == ["user: 0", "user: 1", "user: 2"]
