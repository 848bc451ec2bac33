"""Which turn a run continues, and what is sent before it, on every engine.

The model is the real openai client against a real HTTP server, which refuses half exchanges and doubled outputs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from exhaustive import cases
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

from agentmem import AsyncSessionStore, SessionSettings
from agentmem.errors import ModelError
from agentmem.items import Item
from agentmem.runner import Agent, OpenAIResponsesModel, RunConfig, Runner, function_tool
from agentmem.session import AsyncSession

pytestmark = pytest.mark.anyio


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def output(call_id: str, text: str = "Sunny in Nice", **fields: Any) -> Item:
    return {"type": "function_call_output", "call_id": call_id, "output": text, **fields}


def approval(number: int, **fields: Any) -> tuple[Item, Item]:
    """A request for approval, and the response to it."""
    asked = {"id": f"r{number}", "type": "mcp_approval_request", "name": "n", "arguments": "{}", "server_label": "s"}
    return asked, {"type": "mcp_approval_response", "approval_request_id": f"r{number}", "approve": True, **fields}


CUSTOM_OUTPUT = {"type": "custom_tool_call_output", "call_id": "custom_1", "output": "y"}
PICTURE = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": "data:image/png;,"}]
EXCHANGE = [call("lookup", "x0"), output("x0", "found")]

INPUTS: dict[str, tuple[list[Item], list[Item]]] = {
    "a message": ([], [user("Weather?")]),
    "several messages": ([], [user("One."), {"role": "developer", "content": "Two."}, user("Three.")]),
    "equal messages": ([], [user("Weather?"), user("Weather?")]),
    "a message with a picture": ([], [{"type": "message", "role": "user", "content": PICTURE}]),
    "a message and an exchange": ([], [user("Weather?"), *EXCHANGE]),
    "an exchange and a message": ([], [*EXCHANGE, user("Weather?")]),
    "a conversation": ([], [user("Hi"), message("Hello"), user("Look it up."), *EXCHANGE]),
    "an exchange alone": ([user("Hi"), message("Hello")], EXCHANGE),
    "an exchange in an empty session": ([], EXCHANGE),
    "the answer to a call": ([user("Hi"), call("lookup", "x0")], [output("x0", "found")]),
    "an approval": ([user("Pay."), approval(1)[0]], [approval(1)[1]]),
    "two approvals": ([user("Pay."), approval(1)[0], approval(2)[0]], [approval(1)[1], approval(2)[1]]),
    "an approval and a message": ([user("Pay."), approval(1)[0]], [approval(1)[1], user("And hurry.")]),
    "a message and an approval": ([user("Pay."), approval(1)[0]], [user("I say:"), approval(1)[1]]),
    "the output of a custom tool": ([user("Go."), reasoning(), custom_call()], [CUSTOM_OUTPUT]),
    "the output of a program's tool": ([user("Go."), program(), custom_call(**OWNED_BY_P1)], [CUSTOM_OUTPUT]),
}
"""What a session holds before a run, and the input of the run."""


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


class Weather:
    """An agent with a tool that counts its calls."""

    def __init__(self, model: OpenAIResponsesModel) -> None:
        self.calls = 0

        @function_tool
        def get_weather(city: str) -> str:
            """The weather in a city."""
            self.calls += 1
            return f"Sunny in {city}"

        self.agent = Agent("A", None, model, [get_weather])


@pytest.fixture
def weather(model: OpenAIResponsesModel) -> Weather:
    return Weather(model)


async def everything(session: AsyncSession) -> list[Item]:
    """All that the session holds, whatever its window is."""
    return await session.get_items(limit=1_000)


async def fail_after_a_tool(
    server: ResponsesServer, weather: Weather, session: AsyncSession, given: list[Item], call_id: str = "c1"
) -> None:
    """A run whose second model call fails: the input, a call and its output are stored."""
    server.answer(call("get_weather", call_id, city="Nice"))
    server.fail(500, "Oops.")
    with pytest.raises(ModelError, match=r"Oops.*holds the input and 1 tool exchange of this turn"):
        await Runner.run(weather.agent, given, session=session)


@pytest.mark.parametrize(("before", "given"), INPUTS.values(), ids=INPUTS)
async def test_a_retry_stores_sends_and_runs_nothing_twice_whatever_the_input_is(
    server: ResponsesServer, weather: Weather, session: AsyncSession, before: list[Item], given: list[Item]
) -> None:
    await session.add_items([user("a"), message("b"), *before])
    await fail_after_a_tool(server, weather, session, given)
    so_far = [user("a"), message("b"), *before, *given, call("get_weather", "c1", city="Nice"), output("c1")]
    assert await everything(session) == so_far

    server.fail(500, "Again.")
    with pytest.raises(ModelError, match=r"Again.*holds the input and 1 tool exchange of this turn"):
        await Runner.run(weather.agent, given, session=session)
    server.answer(message("Sunny"))
    result = await Runner.run(weather.agent, given, session=session)
    assert result.final_output == "Sunny"
    assert weather.calls == 1
    assert await everything(session) == [*so_far, message("Sunny")]
    # Each request of the turn goes on from the one before it.
    first, second, third, fourth = [request["input"] for request in server.requests]
    assert second == [*first, *so_far[-2:]]
    assert third == fourth == result.replayed
    if not session.settings.has_caps:
        assert fourth == second == so_far
    else:  # the cap counts the items of the turn, once they are stored, so that less may be sent before it
        assert fourth == second[len(second) - len(fourth) :]
        assert fourth[-len(given) - 2 :] == so_far[-len(given) - 2 :]


@pytest.mark.parametrize("given", [[], [user("Weather?"), *EXCHANGE]], ids=["the same input", "an empty list"])
async def test_a_turn_can_be_continued_again_and_again(
    server: ResponsesServer, weather: Weather, session: AsyncSession, given: list[Item]
) -> None:
    await fail_after_a_tool(server, weather, session, [user("Weather?"), *EXCHANGE])
    for number in (2, 3):
        server.answer(call("get_weather", f"c{number}", city="Nice"))
        server.fail(500, "Oops.")
        with pytest.raises(ModelError, match=rf"holds the input and {number if given else number + 1} tool exchanges"):
            await Runner.run(weather.agent, given, session=session)
    server.answer(message("Sunny"))
    await Runner.run(weather.agent, given, session=session)
    exchanges = [(call("get_weather", f"c{number}", city="Nice"), output(f"c{number}")) for number in (1, 2, 3)]
    stored = [item for exchange in exchanges for item in exchange]
    assert await everything(session) == [user("Weather?"), *EXCHANGE, *stored, message("Sunny")]
    assert server.requests[-1]["input"] == (await everything(session))[:-1]


async def test_an_empty_list_continues_a_turn_from_the_first_of_its_messages(
    server: ResponsesServer, weather: Weather, session: AsyncSession
) -> None:
    given = [user(f"{number}.") for number in range(20)]
    await session.add_items([user("a"), message("b")])
    await fail_after_a_tool(server, weather, session, given)
    server.answer(message("Sunny"))
    await Runner.run(weather.agent, [], session=session)
    sent = server.requests[-1]["input"]
    assert sent[-22:] == [*given, call("get_weather", "c1", city="Nice"), output("c1")]
    assert len(sent) == (22 if session.settings.has_caps else 24)


async def test_another_input_after_a_failure_is_a_turn_of_its_own_with_a_retry_of_its_own(
    server: ResponsesServer, weather: Weather, session: AsyncSession
) -> None:
    first, second = [user("Weather?"), *EXCHANGE], [user("Never mind."), call("lookup", "x1"), output("x1")]
    await fail_after_a_tool(server, weather, session, first)
    await fail_after_a_tool(server, weather, session, second, "c2")
    server.answer(message("Bye"))
    await Runner.run(weather.agent, second, session=session)
    steps = [(call("get_weather", call_id, city="Nice"), output(call_id)) for call_id in ("c1", "c2")]
    assert await everything(session) == [*first, *steps[0], *second, *steps[1], message("Bye")]
    assert server.requests[-1]["input"][-5:] == [*second, *steps[1]]


async def test_an_input_that_differs_in_one_value_is_another_input(
    server: ResponsesServer, weather: Weather, session: AsyncSession
) -> None:
    asked, answer = approval(1)
    await session.add_items([user("Pay."), asked])
    await fail_after_a_tool(server, weather, session, [answer])
    server.answer(message("Refused"))
    other = {"type": "message", **user("No.")}
    await Runner.run(weather.agent, [user("No.")], session=session)
    await fail_after_a_tool(server, weather, session, [other], "c2")
    assert [item for item in await everything(session) if item.get("role") == "user"] == [
        user("Pay."),
        user("No."),
        other,
    ]


@pytest.mark.parametrize("given", [[user("Weather?"), *EXCHANGE], EXCHANGE], ids=["with a message", "without one"])
async def test_an_input_that_equals_an_earlier_turns_continues_the_last_one(
    server: ResponsesServer, weather: Weather, session: AsyncSession, given: list[Item]
) -> None:
    server.answer(call("get_weather", "c0", city="Nice"))
    server.answer(message("Sunny"))
    await Runner.run(weather.agent, given, session=session)
    await fail_after_a_tool(server, weather, session, given)
    server.answer(message("Sunny again"))
    await Runner.run(weather.agent, given, session=session)
    before = [*given, call("get_weather", "c0", city="Nice"), output("c0"), message("Sunny")]
    turn = [*given, call("get_weather", "c1", city="Nice"), output("c1")]
    assert await everything(session) == [*before, *turn, message("Sunny again")]
    sent = server.requests[-1]["input"]
    assert sent[-len(turn) :] == turn
    assert sent[: -len(turn)] in ([], before)  # the turn's own items count into the cap


async def test_a_finished_turn_with_the_same_input_is_followed_by_a_new_one(
    server: ResponsesServer, weather: Weather, session: AsyncSession
) -> None:
    given = [user("Weather?"), *EXCHANGE]
    for number in (1, 2):
        server.answer(call("get_weather", f"c{number}", city="Nice"))
        server.answer(message("Sunny"))
        await Runner.run(weather.agent, given, session=session)
    stored = await everything(session)
    assert [item for item in stored if item in given] == given * 2
    assert weather.calls == 2


async def test_a_model_that_repeats_the_input_does_not_hide_where_the_turn_begins(
    server: ResponsesServer, weather: Weather, session: AsyncSession
) -> None:
    """Some servers count the calls of each response from 1."""
    given = [call("get_weather", "c1", city="Nice"), output("c1")]
    await fail_after_a_tool(server, weather, session, given)
    server.answer(message("Sunny"))
    result = await Runner.run(weather.agent, given, session=session)
    assert result.replayed == given * 2
    assert await everything(session) == [*given * 2, message("Sunny")]


async def test_a_retry_in_a_window_without_the_program_that_the_turn_is_in_finds_it(
    server: ResponsesServer, weather: Weather, session: AsyncSession
) -> None:
    """A window leaves out a program that runs, so its last item is not the last one of the session."""
    server.answer(message("Wait."), program(), call("get_weather", "c1", city="Nice") | OWNED_BY_P1)
    server.fail(500, "Oops.")
    given = [user("Weather?"), *EXCHANGE]
    with pytest.raises(ModelError, match="holds the input and 1 tool exchange"):
        await Runner.run(weather.agent, given, session=session)
    server.answer(program_output(), message("Sunny"))
    assert (await Runner.run(weather.agent, given, session=session)).final_output == "Sunny"
    assert weather.calls == 1
    stored = await everything(session)
    assert server.requests[-1]["input"] == stored[:-2]
    assert stored.count(user("Weather?")) == 1


async def test_the_window_of_a_run_hides_no_turn_either(
    server: ResponsesServer, weather: Weather, session: AsyncSession
) -> None:
    given = [user("Weather?"), *EXCHANGE]
    config = RunConfig(session_settings=SessionSettings(limit=2))
    await fail_after_a_tool(server, weather, session, given)
    server.answer(message("Sunny"))
    await Runner.run(weather.agent, given, session=session, run_config=config)
    assert server.requests[-1]["input"] == (await everything(session))[:-1]
    assert len(await everything(session)) == 6
