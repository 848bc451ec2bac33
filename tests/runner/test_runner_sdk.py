"""Given an agent of the Agents SDK, agentmem's Runner hands the run to the SDK, with the session."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import anyio
import pytest
from openai import AsyncOpenAI
from responses_server import ResponsesServer
from responses_server import message as said
from tools import NO_AGENTS_SDK, NO_SCRIPTED_MODEL
from waiting import WAIT_S

from agentmem.errors import RunError
from agentmem.runner import Agent, OfflineModel, RunConfig, Runner
from agentmem.session import AsyncSQLiteSession
from agentmem.sync import SQLiteSession

# `nox -s lowest` tests with an openai that is older than the SDK allows.
agents = pytest.importorskip("agents", reason=NO_AGENTS_SDK)
testing = pytest.importorskip("agents.testing", reason=NO_SCRIPTED_MODEL)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_tracing() -> None:
    agents.set_tracing_disabled(True)


def message(text: str) -> Any:
    from openai.types.responses import ResponseOutputMessage

    content = [{"type": "output_text", "text": text, "annotations": []}]
    return ResponseOutputMessage.model_validate(
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}
    )


def call(name: str) -> Any:
    from openai.types.responses import ResponseFunctionToolCall

    return ResponseFunctionToolCall(type="function_call", call_id="call_1", name=name, arguments="{}")


def sdk_agent(*steps: Any, **options: Any) -> Any:
    return agents.Agent(name="SDK", model=testing.ScriptedModel([[step] for step in steps]), **options)


def roles(items: list[dict[str, Any]]) -> list[str]:
    return [item.get("role") or item["type"] for item in items]


async def test_run_gives_back_the_sdk_s_result_and_fills_the_session(tmp_path: Path) -> None:
    async with AsyncSQLiteSession(tmp_path / "x.db", session_id="user_123") as session:
        result = await Runner.run(sdk_agent(message("Hello")), "Hi", session=session)
        assert isinstance(result, agents.RunResult)
        assert result.final_output == "Hello"
        again = sdk_agent(message("Bye"))
        await Runner.run(again, "Bye", session=session)
        assert roles(again.model.calls[0].input) == ["user", "assistant", "user"]
        # The same session goes on under agentmem's own agents.
        own = await Runner.run(Agent("A", None, OfflineModel()), "Summarize.", session=session)
        assert own.final_output == "You said: Hi / Bye"
        assert len(await session.get_items()) == 6


def test_run_sync_takes_a_sync_session_and_works_under_a_running_loop(tmp_path: Path) -> None:
    session = SQLiteSession(tmp_path / "x.db", session_id="user_123")
    result = Runner.run_sync(sdk_agent(message("Hello")), "Hi", session=session)
    assert result.final_output == "Hello"

    async def notebook() -> Any:
        return Runner.run_sync(sdk_agent(message("Bye")), "Bye", session=session)

    assert asyncio.run(notebook()).final_output == "Bye"
    assert roles(session.get_items()) == ["user", "assistant"] * 2
    session.close()


async def test_run_streamed_gives_back_the_sdk_s_stream(tmp_path: Path) -> None:
    async with AsyncSQLiteSession(tmp_path / "x.db", session_id="user_123") as session:
        stream = Runner.run_streamed(sdk_agent(message("Hello")), "Hi", session=session)
        assert isinstance(stream, agents.RunResultStreaming)
        kinds = [event.type async for event in stream.stream_events()]
        assert "run_item_stream_event" in kinds
        assert stream.final_output == "Hello"
        assert roles(await session.get_items()) == ["user", "assistant"]


async def test_context_run_config_and_max_turns_are_the_sdk_s(tmp_path: Path) -> None:
    seen = []

    def look(run: Any) -> str:
        seen.append(run.context)
        return "looked"

    look.__annotations__["run"] = agents.RunContextWrapper[Any]
    tool = agents.function_tool(look)
    context = object()
    other = testing.ScriptedModel([[call("look")], [message("Done")]])
    async with AsyncSQLiteSession(tmp_path / "x.db", session_id="user_123") as session:
        result = await Runner.run(
            sdk_agent(tools=[tool]),
            "Hi",
            session=session,
            context=context,
            run_config=agents.RunConfig(model=other, session_settings=agents.SessionSettings(limit=1)),
        )
        assert result.final_output == "Done"
        assert seen == [context]
        with pytest.raises(agents.MaxTurnsExceeded):
            await Runner.run(sdk_agent(call("look"), call("look"), tools=[tool]), "Hi", session=session, max_turns=1)


async def test_a_run_config_of_agentmem_s_is_refused_for_an_agent_of_the_sdk() -> None:
    for run in (Runner.run, Runner.run_streamed):
        with pytest.raises(TypeError, match=r"takes a run_config of the SDK's, agents\.RunConfig"):
            await run(sdk_agent(), "Hi", run_config=RunConfig())


async def test_runs_of_both_kinds_on_one_session_take_turns(tmp_path: Path) -> None:
    async with AsyncSQLiteSession(tmp_path / "x.db", session_id="user_123") as session:

        async def run(agent: Any, text: str) -> None:
            await Runner.run(agent, text, session=session)

        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(run, sdk_agent(message("Hello")), str(number))
                group.start_soon(run, Agent("A", None, OfflineModel()), "own")
        assert roles(await session.get_items()) == ["user", "assistant"] * 10


async def test_a_tool_of_the_sdk_s_that_runs_on_its_own_session_is_told_so(tmp_path: Path) -> None:
    async with AsyncSQLiteSession(tmp_path / "x.db", session_id="user_123") as session:

        async def nested() -> str:
            await Runner.run(sdk_agent(message("never")), "Hi", session=session)
            return "unreachable"

        tool = agents.function_tool(nested, failure_error_function=None)
        with pytest.raises(Exception, match="started another run on it") as caught, anyio.fail_after(WAIT_S):
            await Runner.run(sdk_agent(call("nested"), tools=[tool]), "Hi", session=session)
        assert isinstance(caught.value, RunError) or isinstance(caught.value.__cause__, RunError)


# Event loops


def default_client(url: str) -> dict[str, Any]:
    agents.set_default_openai_client(AsyncOpenAI(base_url=url, api_key="none"))
    return {}


CONFIGS: dict[str, Any] = {
    "no config": lambda url: {},
    "a config": lambda url: {"run_config": agents.RunConfig(model="other")},
    "a dict": lambda url: {"run_config": {"model": "other"}},
    "a provider": lambda url: {"run_config": agents.RunConfig(model_provider=agents.OpenAIProvider(base_url=url))},
    "a provider of many": lambda url: {
        "run_config": agents.RunConfig(model_provider=agents.MultiProvider(openai_base_url=url))
    },
    "a default client": default_client,
}


@pytest.fixture
def api(server: ResponsesServer, monkeypatch: pytest.MonkeyPatch) -> ResponsesServer:
    """A server that answers "Hello" ten times, for models that are given by name."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    # The SDK has no function that takes a default client back.
    monkeypatch.setattr("agents.models._openai_shared._default_openai_client", None)
    for _ in range(10):
        server.answer(said("Hello"))
    return server


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_runs_on_several_event_loops_share_no_connection(api: ResponsesServer, config: Any) -> None:
    model = "other" if config in (CONFIGS["a config"], CONFIGS["a dict"]) else "m"
    if config is CONFIGS["a dict"] and "dict" not in inspect.get_annotations(agents.Runner.run)["run_config"]:
        pytest.skip("this Agents SDK takes no dict as run_config")
    agent = agents.Agent(name="SDK", model="m")
    options = config(api.url)
    answers = []

    async def notebook() -> None:
        answers.append(await Runner.run(agent, "Hi", **options))
        answers.append(Runner.run_sync(agent, "Hi", **options))
        answers.append(Runner.run_sync(agent, "Hi", **options))
        answers.append(await Runner.run(agent, "Hi", **options))

    asyncio.run(notebook())
    answers.append(Runner.run_sync(agent, "Hi", **options))
    answers.append(asyncio.run(Runner.run(agent, "Hi", **options)))
    assert [answer.final_output for answer in answers] == ["Hello"] * 6
    assert len(api.connections) == 3  # one for each event loop, kept between its runs
    assert {request["model"] for request in api.requests} == {model}


def test_a_model_object_s_own_client_on_a_second_event_loop_is_an_error_that_says_what_to_do(
    api: ResponsesServer,
) -> None:
    async def main() -> None:
        async with AsyncOpenAI(base_url=api.url, api_key="none") as client:
            agent = agents.Agent(name="SDK", model=agents.OpenAIResponsesModel("m", client))
            assert (await Runner.run(agent, "Hi")).final_output == "Hello"
            with pytest.raises(RuntimeError, match="different event loop") as caught:
                Runner.run_sync(agent, "Hi")
            assert "works on one event loop only" in caught.value.__notes__[0]

    asyncio.run(main())


async def test_a_provider_is_closed_after_the_run_if_it_was_made_for_it(
    api: ResponsesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    close = agents.MultiProvider.aclose

    async def aclose(provider: Any) -> None:
        await close(provider)
        closed.append(provider)

    monkeypatch.setattr(agents.MultiProvider, "aclose", aclose)
    agent = agents.Agent(name="SDK", model="m")
    given = agents.MultiProvider()
    config = agents.RunConfig(model_provider=given)
    await Runner.run(agent, "Hi", run_config=config)
    assert closed == []
    assert config.model_provider is given
    await Runner.run(agent, "Hi")
    assert len(closed) == 1
