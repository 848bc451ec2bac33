"""What one run is told beside its agents: settings, the replay window, a callback, a context object."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from responses_server import ResponsesServer, call, message

from agentmem import SessionSettings
from agentmem.errors import RunError, StorageError
from agentmem.items import Item
from agentmem.runner import (
    Agent,
    ModelRequest,
    ModelResponse,
    OfflineModel,
    OpenAIResponsesModel,
    RunConfig,
    RunContext,
    Runner,
    function_tool,
)
from agentmem.session import AsyncSQLiteSession
from agentmem.sync import SQLiteSession

pytestmark = pytest.mark.anyio


@pytest.fixture
async def model(server: ResponsesServer) -> AsyncIterator[OpenAIResponsesModel]:
    async with openai.AsyncOpenAI(api_key="k", base_url=server.url, max_retries=0) as client:
        yield OpenAIResponsesModel("test-model", client, settings={"temperature": 1, "top_p": 0.5})


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def weather_turn(number: int) -> list[Item]:
    output = {"type": "function_call_output", "call_id": f"c{number}", "output": "sunny"}
    return [user(f"Weather {number}?"), call("get_weather", f"c{number}"), output, message(f"Sunny {number}")]


class Recorder(OfflineModel):
    """The offline model, and what it was asked."""

    def __init__(self) -> None:
        self.requests: list[ModelRequest] = []

    async def respond(self, request: ModelRequest) -> ModelResponse:
        self.requests.append(request)
        return await super().respond(request)


# Model and its settings


async def test_the_settings_of_a_run_win_over_the_models_own(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    server.answer(message("Hello"))
    await Runner.run(Agent("A", None, model), "Hi", run_config=RunConfig(model_settings={"temperature": 0}))
    assert (server.requests[0]["temperature"], server.requests[0]["top_p"]) == (0, 0.5)
    server.answer(message("Hello"))
    await Runner.run(Agent("A", None, model), "Hi")
    assert server.requests[1]["temperature"] == 1  # of that run alone


async def test_the_model_of_a_run_serves_every_agent_of_it() -> None:
    recorder = Recorder()
    other = Agent("Billing", "Pay.", model="never-called")
    agent = Agent("Desk", "Help.", model="never-called", handoffs=[other])
    result = await Runner.run(agent, "I want billing.", run_config=RunConfig(model=recorder))
    assert result.last_agent is other
    assert [request.instructions for request in recorder.requests] == ["Help.", "Pay."]


async def test_a_model_of_ones_own_finds_the_settings_in_its_request() -> None:
    recorder = Recorder()
    await Runner.run(Agent("A", None, recorder), "Hi", run_config=RunConfig(model_settings={"temperature": 0}))
    assert recorder.requests[0].settings == {"temperature": 0}


# The replay window


async def test_a_run_may_have_a_replay_window_of_its_own(session: AsyncSQLiteSession) -> None:
    recorder = Recorder()
    for number in range(3):
        await session.add_items(weather_turn(number))
    config = RunConfig(session_settings=SessionSettings(limit=3))
    result = await Runner.run(Agent("A", None, recorder), "Hi", session=session, run_config=config)
    assert result.replayed == weather_turn(2)[1:]  # whole exchanges
    assert list(recorder.requests[0].input) == [*weather_turn(2)[1:], user("Hi")]
    assert len(await session.get_items()) == 14


def test_a_sync_session_replays_the_runs_window_too(tmp_path: Path) -> None:
    with SQLiteSession(tmp_path / "x.db", session_id="user_123", settings=SessionSettings(limit=1)) as session:
        session.add_items(weather_turn(0))
        config = RunConfig(session_settings=SessionSettings())
        result = Runner.run_sync(Agent("A", None, OfflineModel()), "Hi", session=session, run_config=config)
        assert result.replayed == weather_turn(0)


async def test_a_foreign_session_replays_the_runs_window_too() -> None:
    class Foreign:
        session_id = "foreign"

        def __init__(self) -> None:
            self.items: list[Item] = [*weather_turn(0), *weather_turn(1)]

        async def get_items(self, limit: int | None = None) -> list[Item]:
            return list(self.items) if limit is None else self.items[-limit:]

        async def add_items(self, items: list[Item]) -> None:
            self.items += items

    config = RunConfig(session_settings=SessionSettings(max_turns=1))
    result = await Runner.run(Agent("A", None, OfflineModel()), "Hi", session=Foreign(), run_config=config)
    assert result.replayed == weather_turn(1)


# The callback that merges history and input


async def test_the_callback_decides_what_is_sent_and_the_input_is_stored_as_it_is(session: AsyncSQLiteSession) -> None:
    recorder = Recorder()
    await session.add_items(weather_turn(0))
    seen = []

    def merge(history: list[Item], new: list[Item]) -> list[Item]:
        seen.append((history, new))
        return [{"role": "developer", "content": "Rhyme."}, *history[-1:], *new]

    config = RunConfig(session_input_callback=merge)
    result = await Runner.run(Agent("A", None, recorder), "Hi", session=session, run_config=config)
    assert seen == [(weather_turn(0), [user("Hi")])]
    assert list(recorder.requests[0].input) == [
        {"role": "developer", "content": "Rhyme."},
        message("Sunny 0"),
        user("Hi"),
    ]
    assert result.replayed == list(recorder.requests[0].input)[:-1]
    assert (await session.get_items())[:5] == [*weather_turn(0), user("Hi")]


async def test_the_callback_may_be_async_and_is_called_without_a_session_too() -> None:
    async def merge(history: list[Item], new: list[Item]) -> list[Item]:
        return [user("I like cats."), *history, *new]

    config = RunConfig(session_input_callback=merge)
    result = await Runner.run(Agent("A", None, OfflineModel()), "What do I like?", run_config=config)
    assert result.final_output == "You like cats."


async def test_half_an_exchange_that_the_callback_leaves_is_not_sent(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    for number in range(2):
        await session.add_items(weather_turn(number))
    for kept in range(1, 9):
        config = RunConfig(session_input_callback=lambda history, new, kept=kept: [*history[:8][-kept:], *new])  # type: ignore[misc]  # a default argument
        server.answer(message("Hello"))  # the server refuses half exchanges, as the API does
        await Runner.run(Agent("A", None, model), "Hi", session=session, run_config=config)
    assert [len(request["input"]) - 1 for request in server.requests] == [1, 1, 3, 4, 5, 5, 7, 8]


async def test_a_trigger_of_a_compaction_that_the_input_ends_with_is_sent_though_none_is_replayed() -> None:
    recorder, trigger = Recorder(), {"type": "compaction_trigger"}
    config = RunConfig(session_input_callback=lambda history, new: [trigger, *new])
    await Runner.run(Agent("A", None, recorder), [user("Hi"), trigger], run_config=config)
    assert list(recorder.requests[0].input) == [user("Hi"), trigger]


async def test_the_callback_sees_an_unfinished_turn_as_the_new_input(session: AsyncSQLiteSession) -> None:
    recorder = Recorder()
    await session.add_items([*weather_turn(0), *weather_turn(1)[:3]])
    config = RunConfig(session_input_callback=lambda history, new: new)
    await Runner.run(Agent("A", None, recorder), "Weather 1?", session=session, run_config=config)
    assert list(recorder.requests[0].input) == weather_turn(1)[:3]
    assert len(await session.get_items()) == 8


@pytest.mark.parametrize("result", [None, user("Hi"), [3], [{"a": float("nan")}]])
async def test_a_callback_that_fails_or_gives_no_items_ends_the_run_and_nothing_is_stored(
    session: AsyncSQLiteSession, result: Any
) -> None:
    config = RunConfig(session_input_callback=lambda history, new: result)
    with pytest.raises(RunError, match=r"the session_input_callback failed: .*nothing was added to the session"):
        await Runner.run(Agent("A", None, OfflineModel()), "Hi", session=session, run_config=config)
    assert await session.get_items() == []


# Instructions and the context object


@dataclass
class Deps:
    language: str


async def test_instructions_may_be_a_function_of_the_runs_context_sync_or_async(session: AsyncSQLiteSession) -> None:
    def plain(run: RunContext[Deps]) -> str:
        return f"{run.agent_name}: answer in {run.context.language}."

    async def later(run: RunContext[Deps]) -> str:
        return f"{run.agent_name} in {run.session_id}: pay in {run.context.language}."

    recorder = Recorder()
    desk = Agent("Desk", plain, recorder, handoffs=[Agent("Billing", later, recorder)])
    await Runner.run(desk, "I want billing.", session=session, context=Deps("French"))
    assert [request.instructions for request in recorder.requests] == [
        "Desk: answer in French.",
        "Billing in user_123: pay in French.",
    ]


async def test_tools_are_handed_the_context_object_itself(session: AsyncSQLiteSession) -> None:
    deps = Deps("French")
    seen = []

    @function_tool
    def language(run: RunContext[Deps]) -> str:
        """The language."""
        seen.append(run)
        return run.context.language

    result = await Runner.run(
        Agent("A", None, OfflineModel(), [language]), "Which language?", session=session, context=deps
    )
    assert result.final_output == "language says: French"
    assert seen == [RunContext(deps, "A", "user_123")]
    assert seen[0].context is deps


@pytest.mark.parametrize(
    ("instructions", "complaint"),
    [(lambda run: 1 / 0, "failed: ZeroDivisionError"), (lambda run: None, "returned None and not a string")],
)
async def test_instructions_that_fail_end_the_run_and_say_what_the_session_holds(
    session: AsyncSQLiteSession, instructions: Any, complaint: str
) -> None:
    with pytest.raises(RunError, match=rf"the instructions of 'A'.*{complaint}.*nothing was added"):
        await Runner.run(Agent("A", instructions, OfflineModel()), "Hi", session=session)
    assert await session.get_items() == []


# Bad arguments


@pytest.mark.parametrize(
    ("arguments", "kind", "complaint"),
    [
        ({"model": 3}, TypeError, "RunConfig: model is"),
        ({"model": OfflineModel}, TypeError, "make an object of it"),
        ({"model": ""}, ValueError, "must not be empty"),
        ({"model_settings": [1]}, TypeError, "model_settings is a mapping"),
        ({"session_settings": {"limit": 3}}, TypeError, "session_settings is an agentmem.SessionSettings"),
        ({"session_input_callback": "merge"}, TypeError, "session_input_callback is a function"),
        ({"session_wait_s": 0}, ValueError, "session_wait_s is a number of seconds above 0 or None, got 0"),
        ({"session_wait_s": "1"}, ValueError, "session_wait_s is a number of seconds"),
        ({"session_wait_s": float("nan")}, ValueError, "session_wait_s is a number of seconds"),
        ({"session_wait_s": True}, ValueError, "session_wait_s is a number of seconds"),
        ({"replay_reasoning": "some"}, ValueError, "replay_reasoning is one of 'all', 'encrypted', 'none', got 'some'"),
        ({"limit": 3}, TypeError, "limit"),
    ],
)
def test_a_setting_that_is_none_is_refused_by_name(
    arguments: dict[str, Any], kind: type[Exception], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint):
        RunConfig(**arguments)


async def test_a_run_config_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"run_config is an agentmem\.RunConfig, got \{'model': 'm'\}"):
        await Runner.run(Agent("A", None, OfflineModel()), "Hi", run_config={"model": "m"})


async def test_a_storage_error_midway_says_what_the_session_holds(tmp_path: Path) -> None:
    path = tmp_path / "conversations.db"

    @function_tool
    def vanish() -> str:
        """Deletes the file."""
        path.unlink()
        return "gone"

    session = AsyncSQLiteSession(path, session_id="user_123")
    await session.add_items([user("Hello")])
    with pytest.raises(StorageError, match=r"deleted.*; nothing was added to the session"):
        await Runner.run(Agent("A", None, OfflineModel(), [vanish]), "vanish", session=session)
    await session.close()
