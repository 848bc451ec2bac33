"""Runs: only whole exchanges are stored, a retry repeats nothing, and runs on one session take turns.

The model is the real openai client against a real HTTP server, which refuses half exchanges; the session is
a real SQLite file.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import inspect
import json
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import openai
import pytest
from openai.types.responses import ResponseOutputMessage
from pydantic import BaseModel
from responses_server import ResponsesServer, call, message, reasoning
from waiting import WAIT_S

from agentmem.errors import InvalidItemError, MaxTurnsExceeded, ModelError, RunError, ToolError
from agentmem.items import (
    HandoffCallItem,
    HandoffOutputItem,
    MessageOutputItem,
    ReasoningItem,
    ToolCallItem,
    ToolCallOutputItem,
)
from agentmem.replay import SessionSettings
from agentmem.runner import (
    Agent,
    ModelResponse,
    OfflineModel,
    OpenAIResponsesModel,
    Runner,
    Usage,
    function_tool,
)
from agentmem.runner.model import ModelRequest
from agentmem.session import AsyncSQLiteSession
from agentmem.sync import SQLiteSession

pytestmark = pytest.mark.anyio


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def output(text: str, call_id: str = "call_1") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


class ListSession:
    """A session of somebody else: the least that the Agents SDK's protocol asks for."""

    def __init__(self) -> None:
        self.session_id = "foreign"
        self.batches: list[list[dict[str, Any]]] = []

    async def get_items(self, limit: int | None = None) -> list[dict[str, Any]]:
        items = [item for batch in self.batches for item in batch]
        return items if limit is None else items[max(0, len(items) - limit) :]

    async def add_items(self, items: list[dict[str, Any]]) -> None:
        self.batches.append(items)


class Counter:
    """A tool's calls, counted."""

    def __init__(self) -> None:
        self.calls = 0

        @function_tool
        def get_weather(city: str) -> str:
            """The weather in a city."""
            self.calls += 1
            return f"Sunny in {city}"

        self.tool = get_weather


# What is sent, given back and stored


async def test_a_run_stores_the_input_with_the_response_and_gives_back_text(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    agent = Agent("A", "Be kind.", model)
    server.answer(reasoning(), message("Hello"))
    result = await Runner.run(agent, "Hi", session=session)
    assert result.final_output == "Hello"
    assert result.last_agent is agent
    assert result.input == [user("Hi")]
    assert result.replayed == []
    assert result.usage == Usage(1, 10, 5, 15)
    assert await session.get_items() == [user("Hi"), reasoning(), message("Hello")]
    assert result.to_input_list() == await session.get_items()
    assert server.requests[0]["instructions"] == "Be kind."


async def test_the_next_run_is_sent_what_the_session_holds(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession, db: Path
) -> None:
    agent = Agent("A", None, model)
    server.answer(message("Hello"))
    await Runner.run(agent, "Hi", session=session)
    server.answer(message("Good"))
    async with AsyncSQLiteSession(db, session_id="user_123") as second_handle:
        result = await Runner.run(agent, "How are you?", session=second_handle)
    assert result.replayed == [user("Hi"), message("Hello")]
    assert server.requests[1]["input"] == [user("Hi"), message("Hello"), user("How are you?")]


async def test_only_the_replay_window_is_sent_and_nothing_is_deleted(
    server: ResponsesServer, model: OpenAIResponsesModel, db: Path
) -> None:
    agent = Agent("A", None, model)
    async with AsyncSQLiteSession(db, session_id="s", settings=SessionSettings(limit=2)) as session:
        for text in ("1", "2", "3"):
            server.answer(message(text))
            result = await Runner.run(agent, text, session=session)
        assert result.replayed == [user("2"), message("2")]
        assert server.requests[-1]["input"] == [user("2"), message("2"), user("3")]
        assert len(await session.get_items(limit=100)) == 6


async def test_without_a_session_nothing_is_remembered(server: ResponsesServer, model: OpenAIResponsesModel) -> None:
    agent = Agent("A", None, model)
    for _ in range(2):
        server.answer(message("Hello"))
        await Runner.run(agent, "Hi")
    assert server.requests[1]["input"] == [user("Hi")]


async def test_half_exchanges_in_the_session_are_not_sent(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    await session.add_items([user("a"), call("f", "dangling"), message("b"), output("x", "unknown")])
    server.answer(message("c"))
    result = await Runner.run(Agent("A", None, model), "Hi", session=session)
    assert result.replayed == [user("a"), message("b")]


async def test_the_input_may_be_items_also_as_pydantic_objects(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    typed = ResponseOutputMessage.model_validate(message("Hello"))
    server.answer(message("Good"))
    result = await Runner.run(Agent("A", None, model), [user("Hi"), typed, user("Well?")], session=session)
    assert result.input == [user("Hi"), message("Hello"), user("Well?")]
    assert server.requests[0]["input"] == result.input
    assert await session.get_items() == [*result.input, message("Good")]


REQUESTS = {
    "approval": (
        {"id": "mcpr_1", "type": "mcp_approval_request", "name": "n", "arguments": "{}", "server_label": "s"},
        {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
    ),
    "custom tool": (
        {"id": "ctc_1", "type": "custom_tool_call", "call_id": "custom_1", "name": "n", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "custom_1", "output": "y"},
    ),
}


@pytest.mark.parametrize("request_and_answer", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("limit", [None, 0, 1, 2, 3, 4, 30])
async def test_a_request_that_the_input_answers_is_sent_with_it_however_narrow_the_window(
    server: ResponsesServer, model: OpenAIResponsesModel, db: Path, request_and_answer: Any, limit: int | None
) -> None:
    asked, answer = request_and_answer
    async with AsyncSQLiteSession(db, session_id="user_123", settings=SessionSettings(limit=limit)) as session:
        await session.add_items([item for number in range(20) for item in (user(f"a{number}"), message("b"))])
        server.answer(reasoning(), asked)
        result = await Runner.run(Agent("A", None, model), "Do it.", session=session)
        assert result.final_output is None
        assert [item.raw_item for item in result.new_items] == [reasoning(), asked]
        server.answer(message("Done"))
        result = await Runner.run(Agent("A", None, model), [answer], session=session)
        assert result.final_output == "Done"
        sent = server.requests[1]["input"]
        assert sent[-3:] == [reasoning(), asked, answer]
        assert len(sent) - 3 <= (limit if limit is not None else 100)
        assert sent == [*result.replayed, answer]
        assert (await session.get_items(limit=5))[1:] == [reasoning(), asked, answer, message("Done")]


@pytest.mark.parametrize("request_and_answer", REQUESTS.values(), ids=REQUESTS)
async def test_a_request_beside_a_call_ends_the_run_when_the_call_is_answered(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession, request_and_answer: Any
) -> None:
    asked, answer = request_and_answer
    weather = Counter()
    agent = Agent("A", None, model, [weather.tool])
    server.answer(call("get_weather", city="Nice"), asked)
    result = await Runner.run(agent, "Do it.", session=session)
    assert (result.final_output, weather.calls, len(server.requests)) == (None, 1, 1)
    server.answer(message("Done"))
    await Runner.run(agent, [answer], session=session)
    sent = [user("Do it."), call("get_weather", city="Nice"), asked, output("Sunny in Nice"), answer]
    assert server.requests[1]["input"] == sent
    assert await session.get_items() == [*sent, message("Done")]


async def test_a_hosted_call_that_comes_with_its_output_is_no_request(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    hosted = {
        "id": "sh_1",
        "type": "shell_call",
        "call_id": "s1",
        "action": {"commands": ["ls"]},
        "status": "completed",
    }
    gave: dict[str, Any] = {
        "id": "so_1",
        "type": "shell_call_output",
        "call_id": "s1",
        "output": [],
        "max_output_length": None,
    }
    server.answer(hosted, gave, message("Listed"))
    assert (await Runner.run(Agent("A", None, model), "List.")).final_output == "Listed"


async def test_a_sync_session_is_used_through_its_async_core(
    server: ResponsesServer, model: OpenAIResponsesModel, db: Path
) -> None:
    with SQLiteSession(db, session_id="s") as session:
        server.answer(message("Hello"))
        await Runner.run(Agent("A", None, model), "Hi", session=session)
        assert await anyio.to_thread.run_sync(session.get_items) == [user("Hi"), message("Hello")]


async def test_a_foreign_session_gets_one_batch_for_each_model_call(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    session = ListSession()
    server.answer(call("get_weather", city="Nice"))
    server.answer(message("Sunny"))
    await Runner.run(Agent("A", None, model, [Counter().tool]), "Weather?", session=session)
    assert session.batches == [
        [user("Weather?"), call("get_weather", city="Nice"), output("Sunny in Nice")],
        [message("Sunny")],
    ]


# Tools and handoffs


async def test_a_call_is_answered_and_the_answer_sent_back(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    server.answer(reasoning(), call("get_weather", city="Nice"))
    server.answer(message("It is sunny."))
    result = await Runner.run(Agent("A", None, model, [Counter().tool]), "Weather?", session=session)
    assert result.final_output == "It is sunny."
    first = [user("Weather?"), reasoning(), call("get_weather", city="Nice"), output("Sunny in Nice")]
    assert server.requests[1]["input"] == first
    assert await session.get_items() == [*first, message("It is sunny.")]
    assert result.usage.requests == 2
    assert result.usage.total_tokens == 30


async def test_new_items_are_typed_with_their_agent(server: ResponsesServer, model: OpenAIResponsesModel) -> None:
    @function_tool
    def count(text: str) -> int:
        return len(text)

    b = Agent("B", None, model)
    a = Agent("A", None, model, [count], [b])
    search = {"id": "ws_1", "type": "web_search_call", "status": "completed"}
    server.answer(reasoning(), search, call("count", text="abc"))
    server.answer(call("transfer_to_b", "call_2"))
    server.answer(message("Hello"))
    result = await Runner.run(a, "Hi")
    assert result.new_items == [
        ReasoningItem(reasoning(), "A"),
        ToolCallItem(search, "A"),
        ToolCallItem(call("count", text="abc"), "A"),
        ToolCallOutputItem(output("3"), "A", output=3),
        HandoffCallItem(call("transfer_to_b", "call_2"), "A"),
        HandoffOutputItem(output('{"assistant":"B"}', "call_2"), "A", target_agent_name="B"),
        MessageOutputItem(message("Hello"), "B"),
    ]
    assert [type(item).__name__ for item in result.new_items if isinstance(item, MessageOutputItem)]
    assert result.last_agent is b


async def test_a_hosted_tools_own_output_item_is_a_tool_output(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    shell = {"id": "s", "type": "shell_call_output", "call_id": "c", "output": [], "status": "completed"}
    server.answer(shell, message("Hello"))
    result = await Runner.run(Agent("A", None, model), "Hi")
    assert result.new_items[0] == ToolCallOutputItem(shell, "A", output=[])


async def test_calls_of_one_response_run_at_once_and_are_stored_together(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    meeting = threading.Barrier(2)  # only two that run at once get past it

    @function_tool
    def meet(name: str) -> str:
        meeting.wait(WAIT_S)
        return name

    calls = [call("meet", "c1", name="x"), call("meet", "c2", name="y")]
    server.answer(*calls)
    server.answer(message("Done"))
    await Runner.run(Agent("A", None, model, [meet]), "Hi", session=session)
    assert (await session.get_items())[1:5] == [*calls, output("x", "c1"), output("y", "c2")]


async def test_a_handoff_changes_instructions_tools_and_model(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    b = Agent("Spanish agent", "Habla.", model, [Counter().tool])
    a = Agent("A", "Talk.", model, handoffs=[b])
    server.answer(call("transfer_to_spanish_agent"))
    server.answer(message("Hola"))
    result = await Runner.run(a, "Hi", session=session)
    assert result.last_agent is b
    assert server.requests[1]["instructions"] == "Habla."
    assert [tool["name"] for tool in server.requests[0]["tools"]] == ["transfer_to_spanish_agent"]
    assert [tool["name"] for tool in server.requests[1]["tools"]] == ["get_weather"]
    assert (await session.get_items())[2] == output('{"assistant":"Spanish agent"}')


async def test_of_several_handoffs_the_first_wins_and_every_call_is_answered(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    b, c = Agent("B", None, model), Agent("C", None, model)
    weather = Counter()
    agent = Agent("A", None, model, [weather.tool], [b, c])
    server.answer(call("transfer_to_c", "1"), call("get_weather", "2", city="Nice"), call("transfer_to_b", "3"))
    server.answer(message("Hello from C"))
    result = await Runner.run(agent, "Hi", session=session)
    assert result.last_agent is c
    assert weather.calls == 1
    answers = [item["output"] for item in await session.get_items() if item.get("type") == "function_call_output"]
    assert answers == ['{"assistant":"C"}', "Sunny in Nice", "Error: the conversation was already handed over to C"]


async def test_a_tool_error_is_told_to_the_model_and_the_run_goes_on(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    @function_tool
    def fail() -> None:
        raise LookupError("no such row")

    server.answer(call("fail"), call("unknown", "call_2"))
    server.answer(message("Sorry"))
    result = await Runner.run(Agent("A", None, model, [fail]), "Hi", session=session)
    assert result.final_output == "Sorry"
    sent = [item["output"] for item in server.requests[1]["input"] if "output" in item]
    assert sent == [
        "Error: fail failed: LookupError: no such row",
        "Error: there is no tool called 'unknown'; there are: fail",
    ]


async def test_a_tool_that_raises_ends_the_run_and_its_step_is_not_stored(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    @function_tool(raise_errors=True)
    def fail() -> None:
        raise LookupError("no such row")

    agent = Agent("A", None, model, [fail, Counter().tool])
    server.answer(call("fail"))
    with pytest.raises(ToolError, match=r"'fail' failed.*; nothing was added to the session 'user_123'") as caught:
        await Runner.run(agent, "Hi", session=session)
    assert isinstance(caught.value.__cause__, LookupError)
    assert await session.get_items() == []
    server.answer(call("get_weather", city="Nice"))
    server.answer(call("fail", "call_2"))
    with pytest.raises(ToolError, match="holds the input and 1 tool exchange of this turn"):
        await Runner.run(agent, "Hi", session=session)
    assert await session.get_items() == [user("Hi"), call("get_weather", city="Nice"), output("Sunny in Nice")]


async def test_max_turns_counts_model_calls_and_what_they_gave_is_stored(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    agent = Agent("A", None, model, [Counter().tool])
    for number in range(2):
        server.answer(call("get_weather", f"c{number}", city="Nice"))
    with pytest.raises(MaxTurnsExceeded, match=r"after 2 calls.*holds the input and 2 tool exchanges"):
        await Runner.run(agent, "Weather?", session=session, max_turns=2)
    assert len(server.requests) == 2
    assert len(await session.get_items()) == 5
    server.answer(message("Sunny"))
    result = await Runner.run(agent, "Weather?", session=session)
    assert result.final_output == "Sunny"
    assert len(await session.get_items()) == 6


async def test_an_output_type_is_the_final_output(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    class Weather(BaseModel):
        city: str
        sunny: bool

    agent = Agent("A", None, model, output_type=Weather)
    server.answer(message("no JSON"))
    with pytest.raises(ModelError, match=r"not a valid Weather.*nothing was added"):
        await Runner.run(agent, "Weather?", session=session)
    assert await session.get_items() == []
    server.answer(message('{"city": "Nice", "sunny": true}'))
    result = await Runner.run(agent, "Weather?", session=session)
    assert result.final_output == Weather(city="Nice", sunny=True)
    assert server.requests[0]["text"]["format"]["schema"]["required"] == ["city", "sunny"]


async def test_the_last_message_is_the_final_output(server: ResponsesServer, model: OpenAIResponsesModel) -> None:
    server.answer(message("Let me think."), message("42", id="msg_2"))
    assert (await Runner.run(Agent("A", None, model), "Hi")).final_output == "42"


# Failure and retry


async def test_a_first_call_that_fails_leaves_the_session_as_it_was(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    await session.add_items([user("a"), message("b")])
    server.fail(500, "Oops.")
    with pytest.raises(ModelError, match=r"Oops\.; nothing was added to the session 'user_123'") as caught:
        await Runner.run(Agent("A", None, model), "Hi", session=session)
    assert isinstance(caught.value.__cause__, openai.InternalServerError)
    assert await session.get_items() == [user("a"), message("b")]


async def fail_after_a_tool(server: ResponsesServer, agent: Agent, session: Any) -> None:
    server.answer(call("get_weather", city="Nice"))
    server.fail(500, "Oops.")
    with pytest.raises(ModelError, match=r"Oops.*holds the input and 1 tool exchange of this turn; run again"):
        await Runner.run(agent, "Weather?", session=session)


@pytest.mark.parametrize("again", ["Weather?", []])
async def test_a_retry_after_a_later_failure_repeats_neither_input_nor_tools(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession, again: Any
) -> None:
    weather = Counter()
    agent = Agent("A", None, model, [weather.tool])
    await session.add_items([user("a"), message("b")])
    await fail_after_a_tool(server, agent, session)
    so_far = [user("Weather?"), call("get_weather", city="Nice"), output("Sunny in Nice")]
    assert await session.get_items() == [user("a"), message("b"), *so_far]

    server.answer(message("Sunny"))
    result = await Runner.run(agent, again, session=session)
    assert result.final_output == "Sunny"
    assert weather.calls == 1
    assert server.requests[-1]["input"] == result.replayed == [user("a"), message("b"), *so_far]
    assert await session.get_items() == [user("a"), message("b"), *so_far, message("Sunny")]
    assert [item.type for item in result.new_items] == ["message_output_item"]


async def test_a_retry_that_fails_too_still_says_what_the_session_holds(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    agent = Agent("A", None, model, [Counter().tool])
    await fail_after_a_tool(server, agent, session)
    server.fail(500, "Again.")
    with pytest.raises(ModelError, match="holds the input and 1 tool exchange of this turn"):
        await Runner.run(agent, "Weather?", session=session)
    assert len(await session.get_items()) == 3


async def test_another_input_after_a_failure_is_a_turn_of_its_own(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    agent = Agent("A", None, model, [Counter().tool])
    await fail_after_a_tool(server, agent, session)
    server.answer(message("Bye"))
    await Runner.run(agent, "Never mind.", session=session)
    assert [item.get("content") for item in await session.get_items() if item.get("role") == "user"] == [
        "Weather?",
        "Never mind.",
    ]


async def test_the_same_input_after_an_answer_is_a_new_turn(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    for _ in range(2):
        server.answer(message("Hello"))
        await Runner.run(Agent("A", None, model), "Hi", session=session)
    assert await session.get_items() == [user("Hi"), message("Hello")] * 2


async def test_a_retry_finds_a_long_turn_whole_however_narrow_the_window(
    server: ResponsesServer, model: OpenAIResponsesModel, db: Path
) -> None:
    weather = Counter()
    agent = Agent("A", None, model, [weather.tool])
    async with AsyncSQLiteSession(db, session_id="s", settings=SessionSettings(limit=1)) as session:
        await session.add_items([user("a"), message("b")])
        for number in range(40):
            server.answer(call("get_weather", f"c{number}", city="Nice"))
        server.fail(500, "Oops.")
        with pytest.raises(ModelError, match="40 tool exchanges"):
            await Runner.run(agent, [user("One."), user("Weather?")], session=session, max_turns=50)
        server.answer(message("Sunny"))
        result = await Runner.run(agent, [user("One."), user("Weather?")], session=session)
        assert len(await session.get_items(limit=100)) == 2 + 2 + 80 + 1
    assert len(result.replayed) == 82
    assert result.replayed[:2] == [user("One."), user("Weather?")]
    assert weather.calls == 40


async def test_a_retry_after_a_handoff_goes_on_with_the_agent_that_was_handed_to(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    friends: list[Agent] = []
    c = Agent("C", "I am C.", model, handoffs=friends)
    b = Agent("B", "I am B.", model, handoffs=[c])
    friends.append(b)
    a = Agent("A", "I am A.", model, handoffs=[b])
    for number, name in enumerate(("b", "c", "b")):
        server.answer(call(f"transfer_to_{name}", f"c{number}"))
    server.fail(500, "Oops.")
    with pytest.raises(ModelError):
        await Runner.run(a, "Hi", session=session)
    server.answer(message("Hello"))
    result = await Runner.run(a, "Hi", session=session)
    assert result.last_agent is b
    assert server.requests[-1]["instructions"] == "I am B."


async def test_a_handoff_that_was_refused_is_not_followed_by_a_retry(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    b = Agent("B", None, model)
    c = Agent("C", None, model, handoffs=[b])
    agent = Agent("A", None, model, handoffs=[b, c])
    server.answer(call("transfer_to_c", "1"), call("transfer_to_b", "2"))
    server.fail(500, "Oops.")
    with pytest.raises(ModelError):
        await Runner.run(agent, "Hi", session=session)
    server.answer(message("Hello"))
    assert (await Runner.run(agent, "Hi", session=session)).last_agent is c


async def test_a_tools_output_that_looks_like_a_handoff_is_none(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    @function_tool
    def fake() -> str:
        return '{"assistant":"B"}'

    agent = Agent("A", "I am A.", model, [fake], [Agent("B", "I am B.", model)])
    server.answer(call("fake"))
    server.fail(500, "Oops.")
    with pytest.raises(ModelError):
        await Runner.run(agent, "Hi", session=session)
    server.answer(message("Hello"))
    assert (await Runner.run(agent, "Hi", session=session)).last_agent is agent


async def test_an_empty_input_answers_a_message_that_was_added_before(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    await session.add_items([user("Hi")])
    server.answer(message("Hello"))
    await Runner.run(Agent("A", None, model), [], session=session)
    assert server.requests[0]["input"] == [user("Hi")]
    assert await session.get_items() == [user("Hi"), message("Hello")]


async def test_outputs_without_any_user_message_are_no_unfinished_turn(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    await session.add_items([call("f"), output("x")])
    server.answer(message("Hello"))
    await Runner.run(Agent("A", None, model), "Hi", session=session)
    assert server.requests[0]["input"] == [call("f"), output("x"), user("Hi")]


async def test_what_a_foreign_model_raises_is_a_model_error_from_it(session: AsyncSQLiteSession) -> None:
    class Broken:
        async def respond(self, request: ModelRequest) -> ModelResponse:
            raise KeyError("gone")

    with pytest.raises(ModelError, match="Broken failed: KeyError: 'gone'; nothing was added") as caught:
        await Runner.run(Agent("A", None, Broken()), "Hi", session=session)
    assert isinstance(caught.value.__cause__, KeyError)


async def test_an_answer_that_cannot_be_stored_stores_nothing(session: AsyncSQLiteSession) -> None:
    class Odd:
        async def respond(self, request: ModelRequest) -> ModelResponse:
            return ModelResponse([{"type": "message", "role": "assistant", "content": "x", "odd": {1, 2}}])

    with pytest.raises(InvalidItemError):
        await Runner.run(Agent("A", None, Odd()), "Hi", session=session)
    assert await session.get_items() == []


# Cancellation


async def test_cancelling_a_model_call_stores_nothing_and_lets_the_next_run_in(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    agent = Agent("A", None, model)
    gate = threading.Event()
    server.answer(message("too late"), gate=gate)
    run = asyncio.create_task(Runner.run(agent, "Hi", session=session))
    await anyio.to_thread.run_sync(server.wait_for_request)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    gate.set()
    assert await session.get_items() == []
    server.answer(message("Hello"))
    with anyio.fail_after(WAIT_S):
        assert (await Runner.run(agent, "Hi", session=session)).final_output == "Hello"


async def test_cancelling_in_a_tool_stores_the_steps_before_it_only(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    started = anyio.Event()

    @function_tool
    async def endless() -> None:
        started.set()
        await anyio.sleep_forever()

    agent = Agent("A", None, model, [endless, Counter().tool])
    server.answer(call("get_weather", city="Nice"))
    server.answer(call("endless", "call_2"))
    run = asyncio.create_task(Runner.run(agent, "Hi", session=session))
    await started.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    so_far = [user("Hi"), call("get_weather", city="Nice"), output("Sunny in Nice")]
    assert await session.get_items() == so_far
    server.answer(message("Done"))
    await Runner.run(agent, "Hi", session=session)
    assert await session.get_items() == [*so_far, message("Done")]


# Turns


async def test_runs_on_one_session_wait_for_each_other(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession, db: Path
) -> None:
    agent = Agent("A", None, model)
    gate = threading.Event()
    server.answer(message("first"), gate=gate)
    for _ in range(3):
        server.answer(message("later"))
    first = asyncio.create_task(Runner.run(agent, "1", session=session))
    await anyio.to_thread.run_sync(server.wait_for_request)
    async with AsyncSQLiteSession(db, session_id="user_123") as other, anyio.create_task_group() as group:
        for text in ("2", "3", "4"):
            group.start_soon(functools.partial(Runner.run, agent, text, session=other))
        # A run elsewhere is over while these still wait.
        async with AsyncSQLiteSession(db, session_id="elsewhere") as elsewhere:
            await Runner.run(Agent("A", None, OfflineModel()), "Hi", session=elsewhere)
        assert len(server.requests) == 1
        gate.set()
    await first
    items = await session.get_items()
    assert [item["role"] for item in items] == ["user", "assistant"] * 4
    assert [len(request["input"]) for request in server.requests] == [1, 3, 5, 7]


async def test_runs_take_turns_across_threads_and_loops(db: Path, session: AsyncSQLiteSession) -> None:
    """The sync wrapper runs on the background loop, asyncio.run on a third one, the test on its own."""
    agent = Agent("A", None, OfflineModel())

    def with_sync_session() -> None:
        with SQLiteSession(db, session_id="user_123") as own:
            for _ in range(5):
                Runner.run_sync(agent, "Hi", session=own)

    async def with_own_loop() -> None:
        async with AsyncSQLiteSession(db, session_id="user_123") as own:
            for _ in range(5):
                await Runner.run(agent, "Hi", session=own)

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, with_sync_session)
        group.start_soon(anyio.to_thread.run_sync, with_sync_session)
        group.start_soon(anyio.to_thread.run_sync, lambda: asyncio.run(with_own_loop()))
        group.start_soon(with_own_loop)
    items = await session.get_items()
    assert [item["role"] for item in items] == ["user", "assistant"] * 20
    # Each saw all that came before it.
    seen = [int(item["content"].split("I saw ")[1].split()[0]) for item in items[1::2]]
    assert seen == list(range(1, 40, 2))


@pytest.mark.parametrize("how", ["async", "sync"])
async def test_a_tool_that_runs_on_its_own_session_gets_an_error_instead_of_a_deadlock(
    server: ResponsesServer, model: OpenAIResponsesModel, db: Path, session: AsyncSQLiteSession, how: str
) -> None:
    inner = Agent("Inner", None, OfflineModel())

    async def ask_async() -> str:
        return str((await Runner.run(inner, "Hi", session=session)).final_output)

    def ask_sync() -> str:
        with SQLiteSession(db, session_id="user_123") as own:
            return str(Runner.run_sync(inner, "Hi", session=own).final_output)

    ask = function_tool(name="ask", raise_errors=True)(ask_async if how == "async" else ask_sync)
    server.answer(call("ask"))
    with anyio.fail_after(WAIT_S), pytest.raises(ToolError, match="use another session in the tool") as caught:
        await Runner.run(Agent("A", None, model, [ask]), "Hi", session=session)
    assert isinstance(caught.value.__cause__, RunError)


async def test_a_tool_may_run_an_agent_on_another_session(
    server: ResponsesServer, model: OpenAIResponsesModel, db: Path, session: AsyncSQLiteSession
) -> None:
    @function_tool
    async def ask(question: str) -> str:
        async with AsyncSQLiteSession(db, session_id="inner") as own:
            return str((await Runner.run(Agent("B", None, OfflineModel()), question, session=own)).final_output)

    server.answer(call("ask", question="I like cats."))
    server.answer(message("Done"))
    await Runner.run(Agent("A", None, model, [ask]), "Hi", session=session)
    assert "you like cats" in (await session.get_items())[2]["output"]


# run_sync


def test_run_sync_runs_in_a_script(db: Path) -> None:
    agent = Agent("A", None, OfflineModel())
    with SQLiteSession(db, session_id="s") as session:
        Runner.run_sync(agent, "My name is Alice and I love Python.", session=session)
        assert Runner.run_sync(agent, "What's my name?", session=session).final_output == "Your name is Alice."


async def test_run_sync_runs_under_a_running_loop(db: Path) -> None:
    with SQLiteSession(db, session_id="s") as session:
        result = Runner.run_sync(Agent("A", None, OfflineModel()), "I like cats.", session=session)
    assert result.final_output == "I will remember: you like cats."


async def test_run_sync_in_an_async_tool_of_a_sync_run_says_what_to_do() -> None:
    agent = Agent("B", None, OfflineModel())

    @function_tool(raise_errors=True)
    async def weather() -> str:
        return str(Runner.run_sync(agent, "Hi").final_output)

    outer = Agent("A", None, OfflineModel(), [weather])
    with pytest.raises(ToolError, match="await"):
        await anyio.to_thread.run_sync(Runner.run_sync, outer, "weather?")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("in_a_thread", [True, False])
def test_a_tool_that_ends_the_program_ends_the_run_and_not_the_loop_of_all_sync_calls(
    db: Path, kind: type[BaseException], in_a_thread: bool
) -> None:
    def end() -> None:
        raise kind

    async def end_async() -> None:
        raise kind

    agent = Agent("A", None, OfflineModel(), [function_tool(name="end")(end if in_a_thread else end_async)])
    with SQLiteSession(db, session_id="s") as session:
        with pytest.raises(kind):
            Runner.run_sync(agent, "The end", session=session)
        assert session.get_items() == []


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        ({"agent": "A"}, TypeError, "an agent of the Agents SDK, got builtins.str"),
        ({"input": 3}, TypeError, "a string or a list of items, got int"),
        ({"input": user("Hi")}, TypeError, "put it in a list"),
        ({"input": ["Hi"]}, InvalidItemError, "item 0"),
        ({"input": []}, ValueError, "empty and there is no session"),
        ({"max_turns": 0}, ValueError, "1 or more"),
        ({"max_turns": True}, ValueError, "1 or more"),
        ({"session": "user_123"}, TypeError, "session is an agentmem session"),
    ],
)
async def test_an_argument_that_is_none_is_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    given: dict[str, Any] = {"agent": Agent("A", None, OfflineModel()), "input": "Hi", **arguments}
    with pytest.raises(error, match=complaint):
        await Runner.run(given.pop("agent"), given.pop("input"), **given)


async def test_an_empty_string_is_a_message_like_any_other(session: AsyncSQLiteSession) -> None:
    await Runner.run(Agent("A", None, OfflineModel()), "", session=session)
    assert (await session.get_items())[0] == user("")


async def test_what_the_caller_changes_afterwards_is_not_in_the_result(session: AsyncSQLiteSession) -> None:
    given = [user("Hi")]
    result = await Runner.run(Agent("A", None, OfflineModel()), given, session=session)
    given[0]["content"] = "changed"
    assert result.input == [user("Hi")] == json.loads(json.dumps(result.input))


@pytest.mark.parametrize("name", ["run", "run_sync", "run_streamed"])
def test_a_method_of_the_runner_names_its_parameters_where_static_tools_look(name: str) -> None:
    source = ast.parse(Path(inspect.getfile(Runner)).read_bytes())
    (runner,) = [node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "Runner"]
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    *overloads, written = [node for node in runner.body if isinstance(node, functions) and node.name == name]
    assert len(overloads) == 2
    assert ast.get_docstring(written)
    for seen in [*overloads, written]:
        assert seen.args.kwarg is None
        given = [*seen.args.args, *seen.args.kwonlyargs]
        assert [argument.arg for argument in given] == list(inspect.signature(getattr(Runner, name)).parameters)
        assert [*map(ast.unparse, filter(None, seen.args.kw_defaults))] == ["None", "10", "None", "None"]
