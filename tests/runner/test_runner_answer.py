"""What an answer asks for: programs go on with the outputs of their calls, and asynchronous calls wait for nobody.

The model is the real openai client against a real HTTP server, which refuses half exchanges and half programs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from exhaustive import cases
from pydantic import BaseModel
from responses_server import (
    OWNED_BY_P1,
    ResponsesServer,
    call,
    custom_call,
    message,
    program,
    program_output,
    reasoning,
)

from agentmem import AsyncSessionStore, SessionSettings, SQLiteSession
from agentmem.errors import MaxTurnsExceeded, ModelError
from agentmem.items import Item, ReasoningItem, RunItem, ToolCallItem, ToolCallOutputItem
from agentmem.runner import Agent, OpenAIResponsesModel, RunConfig, Runner, RunResult, function_tool
from agentmem.runner.answer import answer_text, call_output, calls_to_run, waits_for_caller
from agentmem.session import AsyncSession

pytestmark = pytest.mark.anyio


def user(text: str) -> Item:
    return {"role": "user", "content": text}


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}"


def weather(call_id: str = "c1", **fields: Any) -> tuple[Item, Item]:
    """A call of the tool, and the output that it gets."""
    output = {"type": "function_call_output", "call_id": call_id, "output": "Sunny in Nice"}
    return {**call("get_weather", call_id, city="Nice"), **fields}, output | {
        name: value for name, value in fields.items() if name == "caller"
    }


def custom_output(call_id: str = "custom_1", **fields: Any) -> Item:
    return {"type": "custom_tool_call_output", "call_id": call_id, "output": "y", **fields}


ASYNC: Item = {"async": True}


@pytest.fixture
def agent(model: OpenAIResponsesModel) -> Agent:
    return Agent("A", None, model, [get_weather])


ENGINES_AND_LIMITS = {
    "sqlite": ("sqlite", None),
    "sqlite, limit=2": ("sqlite", 2),
    "postgresql": ("postgresql", None),
    "postgresql, limit=2": ("postgresql", 2),
}


@pytest.fixture(params=cases(ENGINES_AND_LIMITS, quick=lambda name: name in ("sqlite, limit=2", "postgresql")))
async def session(request: pytest.FixtureRequest) -> AsyncIterator[AsyncSession]:
    """A session on each engine, with and without a narrow replay window."""
    engine, limit = ENGINES_AND_LIMITS[request.param]
    async with AsyncSessionStore(request.getfixturevalue(f"empty_{engine}")) as store:
        yield store.session("user_123", settings=SessionSettings(limit=limit))


async def everything(session: AsyncSession) -> list[Item]:
    """All that the session holds, whatever its window is."""
    return await session.get_items(limit=1_000)


# Programs


async def test_a_program_goes_on_with_the_outputs_of_its_calls(
    server: ResponsesServer, agent: Agent, session: AsyncSession
) -> None:
    (first, first_output), (second, second_output) = weather("c1", **OWNED_BY_P1), weather("c2", **OWNED_BY_P1)
    server.answer(reasoning(), program(), first)
    server.answer(second)  # the program that runs is not sent again by the API
    server.answer(program_output(), message("Sunny twice"))
    result = await Runner.run(agent, "Weather?", session=session)
    assert result.final_output == "Sunny twice"
    begun = [user("Weather?"), reasoning(), program(), first, first_output]
    assert server.requests[1]["input"] == begun
    assert server.requests[2]["input"] == [*begun, second, second_output]
    assert await everything(session) == [*begun, second, second_output, program_output(), message("Sunny twice")]


async def test_the_output_of_a_programs_call_names_the_program() -> None:
    asked, answer = weather(**OWNED_BY_P1)
    assert call_output(asked, "Sunny in Nice") == answer
    assert answer["caller"] == asked["caller"]
    assert "caller" not in call_output(call("f"), "x")


@pytest.mark.parametrize("again", ["Weather?", []])
async def test_a_retry_goes_on_with_the_program(
    server: ResponsesServer, agent: Agent, session: AsyncSession, again: Any
) -> None:
    asked, answer = weather(**OWNED_BY_P1)
    await session.add_items([user("a"), message("b")])
    server.answer(program(), asked)
    server.fail(500, "Oops.")
    with pytest.raises(ModelError, match="holds the input and 1 tool exchange"):
        await Runner.run(agent, "Weather?", session=session)
    server.answer(program_output(), message("Sunny"))
    result = await Runner.run(agent, again, session=session)
    assert result.final_output == "Sunny"
    assert server.requests[2]["input"][-4:] == [user("Weather?"), program(), asked, answer]
    assert (await everything(session))[2:] == [
        user("Weather?"),
        program(),
        asked,
        answer,
        program_output(),
        message("Sunny"),
    ]


async def test_a_run_that_is_out_of_turns_in_a_program_can_go_on_with_it(
    server: ResponsesServer, agent: Agent, session: AsyncSession
) -> None:
    asked, answer = weather(**OWNED_BY_P1)
    server.answer(program(), asked)
    with pytest.raises(MaxTurnsExceeded, match="holds the input and 1 tool exchange"):
        await Runner.run(agent, "Weather?", session=session, max_turns=1)
    server.answer(program_output(), message("Sunny"))
    assert (await Runner.run(agent, "Weather?", session=session, max_turns=1)).final_output == "Sunny"
    assert server.requests[1]["input"] == [user("Weather?"), program(), asked, answer]


async def test_a_callback_can_hand_on_a_program_that_runs(
    server: ResponsesServer, agent: Agent, session: AsyncSession
) -> None:
    asked, answer = weather(**OWNED_BY_P1)
    server.answer(program(), asked)
    with pytest.raises(MaxTurnsExceeded):
        await Runner.run(agent, "Weather?", session=session, max_turns=1)
    server.answer(program_output(), message("Sunny"))
    config = RunConfig(session_input_callback=lambda history, new: [user("Rhyme."), *new])
    await Runner.run(agent, "Weather?", session=session, run_config=config)
    assert server.requests[1]["input"] == [user("Rhyme."), user("Weather?"), program(), asked, answer]


async def test_a_program_that_a_later_turn_left_behind_is_not_sent(
    server: ResponsesServer, agent: Agent, session: AsyncSession
) -> None:
    server.answer(program(), weather(**OWNED_BY_P1)[0])
    with pytest.raises(MaxTurnsExceeded):
        await Runner.run(agent, "Weather?", session=session, max_turns=1)
    server.answer(message("Bye"))
    await Runner.run(agent, "Never mind.", session=session)
    assert server.requests[1]["input"][-1] == user("Never mind.")
    assert program() not in server.requests[1]["input"]


async def test_the_answer_to_a_programs_call_is_sent_with_all_of_the_program(
    server: ResponsesServer, agent: Agent, session: AsyncSession
) -> None:
    """One call of the program is run, and one only the caller can answer; the next one, too."""
    asked, answer = weather(**OWNED_BY_P1)
    custom, custom_2 = custom_call(**OWNED_BY_P1), custom_call("custom_2", **OWNED_BY_P1)
    server.answer(reasoning(), program(), asked, custom)
    result = await Runner.run(agent, "Go.", session=session)
    assert result.final_output is None
    begun = [reasoning(), program(), asked, custom, answer]
    assert [item.raw_item for item in result.new_items] == begun

    server.answer(custom_2)
    first_answer = custom_output(**OWNED_BY_P1)
    assert (await Runner.run(agent, [first_answer], session=session)).final_output is None
    assert server.requests[1]["input"][-6:] == [*begun, first_answer]

    server.answer(program_output(), message("Done"))
    second_answer = custom_output("custom_2")  # the caller need not name the program
    result = await Runner.run(agent, [second_answer, user("Hurry.")], session=session)
    assert result.final_output == "Done"
    assert server.requests[2]["input"][-9:] == [*begun, first_answer, custom_2, second_answer, user("Hurry.")]
    # From now on it is an exchange like any other.
    server.answer(message("Bye"))
    await Runner.run(agent, "Thanks.", session=session, run_config=RunConfig(session_settings=SessionSettings()))
    assert server.requests[3]["input"] == [*(await everything(session))[:-1]]


async def test_a_retry_of_an_answer_to_a_program_is_sent_with_all_of_it(
    server: ResponsesServer, agent: Agent, session: AsyncSession
) -> None:
    custom, (asked, answer) = custom_call(**OWNED_BY_P1), weather(**OWNED_BY_P1)
    server.answer(program(), custom)
    await Runner.run(agent, "Go.", session=session)
    server.answer(asked)
    server.fail(500, "Oops.")
    with pytest.raises(ModelError):
        await Runner.run(agent, [custom_output()], session=session)
    server.answer(program_output(), message("Done"))
    assert (await Runner.run(agent, [custom_output()], session=session)).final_output == "Done"
    assert server.requests[3]["input"][-5:] == [program(), custom, custom_output(), asked, answer]
    assert len(await everything(session)) == 8


async def test_a_program_may_hand_the_conversation_over(server: ResponsesServer, model: OpenAIResponsesModel) -> None:
    b = Agent("B", "I am B.", model)
    handoff = {**call("transfer_to_b"), **OWNED_BY_P1}
    server.answer(program(), handoff)
    server.answer(program_output(), message("Hello"))
    result = await Runner.run(Agent("A", None, model, handoffs=[b]), "Hi")
    assert (result.final_output, result.last_agent) == ("Hello", b)
    assert server.requests[1]["input"][-1] == call_output(handoff, '{"assistant":"B"}')


async def test_a_streamed_program_gives_its_calls_and_outputs_as_events(server: ResponsesServer, agent: Agent) -> None:
    asked, answer = weather(**OWNED_BY_P1)
    server.answer(program(), asked)
    server.answer(program_output(result="42"), message("Sunny"))
    async with Runner.run_streamed(agent, "Weather?") as stream:
        events = [event async for event in stream]
    result = events.pop()
    assert isinstance(result, RunResult)
    assert result.final_output == "Sunny"
    assert [event for event in events if isinstance(event, RunItem)] == result.new_items
    assert result.new_items[:4] == [
        ToolCallItem(program(), "A"),
        ToolCallItem(asked, "A"),
        ToolCallOutputItem(answer, "A", output="Sunny in Nice"),
        ToolCallOutputItem(program_output(result="42"), "A", output="42"),
    ]


async def test_a_program_runs_in_run_sync(server: ResponsesServer, agent: Agent, db: Path) -> None:
    server.answer(program(), weather(**OWNED_BY_P1)[0])
    server.answer(program_output(), message("Sunny"))
    with SQLiteSession(db, session_id="s") as session:

        def run() -> Any:
            return Runner.run_sync(Agent("A", None, OpenAIResponsesModel("m"), [get_weather]), "Hi", session=session)

        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("OPENAI_BASE_URL", server.url)
            assert (await anyio.to_thread.run_sync(run)).final_output == "Sunny"


@pytest.mark.parametrize(
    ("output", "waits"),
    [
        ([message("x")], False),
        ([program(), *weather(**OWNED_BY_P1)], False),
        ([*weather("c2", **OWNED_BY_P1)], False),
        ([program_output(), message("x")], False),
        ([program()], True),
        ([program(), {"type": "mcp_call", "id": "m1", **OWNED_BY_P1}], True),
        ([program(), custom_call(**OWNED_BY_P1)], True),
        ([program(), *weather(**OWNED_BY_P1), custom_call(**OWNED_BY_P1)], True),
        ([program(), *weather(**OWNED_BY_P1), program("p2")], True),
        ([custom_call(**ASYNC), message("x")], False),
        ([custom_call(**ASYNC), custom_call("custom_2")], True),
        ([custom_call(**ASYNC), {"type": "computer_call", "call_id": "k1", "id": "k"}], True),
        ([{**custom_call(), "async": "yes"}], True),
        ([{**custom_call(), "async": False}], True),
        ([{"type": "mcp_approval_request", "id": "r1"}, message("x")], True),
    ],
)
def test_an_answer_waits_for_the_caller_where_only_the_caller_has_an_output(output: list[Item], waits: bool) -> None:
    assert waits_for_caller(output) is waits


# Asynchronous calls


async def test_a_message_beside_an_asynchronous_call_is_the_answer(
    server: ResponsesServer, agent: Agent, session: AsyncSession
) -> None:
    pending = custom_call(**ASYNC)
    server.answer(reasoning(), pending, message("It is under way."))
    result = await Runner.run(agent, "Go.", session=session)
    assert result.final_output == "It is under way."
    assert [type(item) for item in result.new_items[:2]] == [ReasoningItem, ToolCallItem]
    assert await everything(session) == [user("Go."), reasoning(), pending, message("It is under way.")]


async def test_a_pending_call_is_sent_with_its_reasoning_until_its_output_comes_and_ever_after(
    server: ResponsesServer, agent: Agent, database_url: str
) -> None:
    pending = custom_call(**ASYNC)
    async with AsyncSessionStore(database_url) as store:
        session = store.session("user_123", settings=SessionSettings(limit=100))
        server.answer(reasoning(), pending, message("It is under way."))
        await Runner.run(agent, "Go.", session=session)
        for text in ("Well?", "And now?"):
            server.answer(message("Not yet."))
            await Runner.run(agent, text, session=session)
            assert server.requests[-1]["input"] == (await everything(session))[:-1]
        server.answer(message("Here it is."))
        result = await Runner.run(agent, [custom_output()], session=session)
        assert result.final_output == "Here it is."
        assert result.replayed == (await everything(session))[:-2]
        server.answer(message("Bye"))
        await Runner.run(agent, "Thanks.", session=session)
        assert server.requests[-1]["input"] == (await everything(session))[:-1]
        assert server.requests[-1]["input"][1:3] == [reasoning(), pending]


@pytest.mark.parametrize(
    "given", [[custom_output()], [custom_output(), user("Here.")], [user("Here:"), custom_output()]]
)
async def test_the_output_of_a_pending_call_is_taken_however_late_it_comes_and_however_narrow_the_window(
    server: ResponsesServer, agent: Agent, session: AsyncSession, given: list[Item]
) -> None:
    pending = custom_call(**ASYNC)
    await session.add_items([user("Go."), reasoning(), pending, message("It is under way.")])
    await session.add_items([item for number in range(40) for item in (user(f"a{number}"), message("b"))])
    server.answer(message("Done"))
    result = await Runner.run(agent, given, session=session)
    assert result.final_output == "Done"
    sent, limit = server.requests[0]["input"], session.settings.limit
    assert sent == [*result.replayed, *given]
    if limit is None:
        assert sent == (await everything(session))[:-1]
    else:
        window = (await everything(session))[84 - limit : 84]
        assert result.replayed == [reasoning(), pending, *window]


async def test_a_retry_of_the_output_of_a_pending_call_stores_nothing_twice(
    server: ResponsesServer, agent: Agent, session: AsyncSession
) -> None:
    pending, (asked, answer) = custom_call(**ASYNC), weather()
    begun = [user("Go."), reasoning(), pending, message("It is under way.")]
    begun += [item for number in range(40) for item in (user(f"a{number}"), message("b"))]
    await session.add_items(begun)
    server.answer(asked)
    server.fail(500, "Oops.")
    with pytest.raises(ModelError):
        await Runner.run(agent, [custom_output()], session=session)
    server.answer(message("Done"))
    await Runner.run(agent, [custom_output()], session=session)
    assert await everything(session) == [*begun, custom_output(), asked, answer, message("Done")]
    sent = server.requests[-1]["input"]
    assert sent[-3:] == [custom_output(), asked, answer]
    assert [item for item in sent if item in (reasoning(), pending)] == [reasoning(), pending]


async def test_a_run_goes_on_with_its_tools_while_an_asynchronous_call_is_pending(
    server: ResponsesServer, agent: Agent, session: AsyncSession
) -> None:
    pending, (asked, answer) = custom_call(**ASYNC), weather()
    server.answer(reasoning(), pending, asked)
    server.answer(message("Sunny, and the rest is under way."))
    result = await Runner.run(agent, "Go.", session=session)
    assert result.final_output == "Sunny, and the rest is under way."
    assert server.requests[1]["input"] == [user("Go."), reasoning(), pending, asked, answer]


async def test_an_asynchronous_call_of_a_tool_of_the_agent_is_run_and_its_output_sent(
    server: ResponsesServer, agent: Agent, session: AsyncSession
) -> None:
    asked, answer = weather(**ASYNC)
    server.answer(asked, message("Let me see."))
    server.answer(message("Sunny"))
    assert (await Runner.run(agent, "Weather?", session=session)).final_output == "Sunny"
    assert server.requests[1]["input"] == [user("Weather?"), asked, message("Let me see."), answer]


async def test_an_asynchronous_call_of_a_function_of_the_callers_stays_pending(
    server: ResponsesServer, agent: Agent, session: AsyncSession
) -> None:
    pending = {**call("build", "b1"), **ASYNC}
    server.answer(pending, message("It is being built."))
    assert (await Runner.run(agent, "Build.", session=session)).final_output == "It is being built."
    server.answer(message("Built."))
    built = {"type": "function_call_output", "call_id": "b1", "output": "ok"}
    assert (await Runner.run(agent, [built], session=session)).final_output == "Built."
    assert pending in server.requests[1]["input"]


async def test_an_asynchronous_call_without_a_message_gives_no_final_output(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    class Weather(BaseModel):
        sunny: bool

    server.answer(custom_call(**ASYNC))
    assert (await Runner.run(Agent("A", None, model, output_type=Weather), "Go.")).final_output is None
    server.answer(custom_call(**ASYNC), message('{"sunny": true}'))
    result = await Runner.run(Agent("A", None, model, output_type=Weather), "Go.")
    assert result.final_output == Weather(sunny=True)


async def test_a_pending_call_beside_a_request_waits_for_the_request_alone(
    server: ResponsesServer, agent: Agent, session: AsyncSession
) -> None:
    pending, asked = custom_call(**ASYNC), custom_call("custom_2")
    server.answer(pending, asked)
    assert (await Runner.run(agent, "Go.", session=session)).final_output is None
    server.answer(message("Done"))
    assert (await Runner.run(agent, [custom_output("custom_2")], session=session)).final_output == "Done"
    assert server.requests[1]["input"][-2:] == [asked, custom_output("custom_2")]


async def test_a_handoff_leaves_a_call_pending(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSession
) -> None:
    b = Agent("B", "I am B.", model)
    pending, handoff = custom_call(**ASYNC), call("transfer_to_b")
    server.answer(pending, handoff)
    server.answer(message("Hello"))
    result = await Runner.run(Agent("A", None, model, handoffs=[b]), "Hi", session=session)
    assert (result.final_output, result.last_agent) == ("Hello", b)
    assert server.requests[1]["input"][1] == pending


def test_the_runner_runs_function_calls_and_of_the_asynchronous_ones_those_that_it_knows() -> None:
    known, unknown = {**call("f", "1"), **ASYNC}, {**call("g", "2"), **ASYNC}
    output = [known, unknown, call("g", "3"), custom_call(), message("x")]
    assert calls_to_run(output, {"f"}) == [known, call("g", "3")]


def test_the_text_of_an_answer_is_its_last_messages() -> None:
    assert answer_text([message("a"), custom_call(**ASYNC), message("b"), reasoning()]) == "b"
    assert answer_text([{"role": "assistant", "content": "c"}]) == "c"
    assert answer_text([]) == ""
    assert answer_text([reasoning(), custom_call(**ASYNC)]) is None
