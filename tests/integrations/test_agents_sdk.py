"""Under the Agents SDK's own Runner an agentmem session is a session like any other: what a run does is stored once,
in its order, and replayed to the next one.

Every model here is strict (``sdk.StrictModel``): half an exchange in what reaches it fails the run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from exhaustive import exhaustive
from pydantic import BaseModel
from sdk import agent, agents, call, get_weather, message, reasoning, run, sent, stored, stream, takes_sync_sessions

from agentmem import AsyncSQLiteSession, SQLiteSession

pytestmark = pytest.mark.anyio

Drive = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["async", pytest.param("sync", marks=takes_sync_sessions)])
async def session(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncSQLiteSession | SQLiteSession]:
    """An empty session of each kind."""
    if request.param == "async":
        async with AsyncSQLiteSession(tmp_path / "sdk.db", session_id="user_123") as awaited:
            yield awaited
    else:
        with SQLiteSession(tmp_path / "sdk.db", session_id="user_123") as plain:
            yield plain


@pytest.fixture(params=[run, stream])
def drive(request: pytest.FixtureRequest) -> Drive:
    """A run to its end, awaited or streamed."""
    chosen: Drive = request.param
    return chosen


async def clear(session: Any) -> None:
    cleared = session.clear_session()
    if cleared is not None:
        await cleared


async def goes_on(session: Any) -> None:
    """The next run is sent all that is stored, and its own message."""
    before = await stored(session)
    next_agent = agent([message("Here I am.")])
    await run(next_agent, "Are you there?", session=session)
    assert sent(next_agent) == [[*before, "user: Are you there?"]]
    assert await stored(session) == [*before, "user: Are you there?", "assistant: Here I am."]


@pytest.mark.parametrize("kind", [AsyncSQLiteSession, SQLiteSession])
def test_a_session_meets_the_sdk_s_protocol(kind: type[Any], tmp_path: Path) -> None:
    assert isinstance(kind(tmp_path / "sdk.db", session_id="user_123"), agents.Session)


async def test_a_conversation_goes_on_in_the_next_run(session: Any, drive: Drive) -> None:
    await drive(agent([message("Hello Alice")]), "I am Alice", session=session)
    assert await stored(session) == ["user: I am Alice", "assistant: Hello Alice"]
    await goes_on(session)


async def test_parallel_calls_are_stored_once_with_the_reasoning_before_them(session: Any, drive: Drive) -> None:
    asked = agent(
        [reasoning("rs_1"), call("a", after="rs_1"), call("b")], [reasoning("rs_2"), message("Sunny.", after="rs_2")]
    )
    await drive(asked, "How is the weather?", session=session)
    everything = [
        "user: How is the weather?",
        *("reasoning rs_1", "call a", "call b", "output a: sunny", "output b: sunny"),
        *("reasoning rs_2", "assistant: Sunny."),
    ]
    assert await stored(session) == everything
    assert sent(asked) == [everything[:1], everything[:6]]
    await goes_on(session)


async def test_a_handoff_is_stored_once_and_replayed_to_the_agent_that_takes_over(session: Any, drive: Drive) -> None:
    billing = agent([call("a")], [reasoning("rs_2"), message("Paid.", after="rs_2")], name="billing")
    desk = agent([reasoning("rs_1"), call("h", "transfer_to_billing", after="rs_1")], handoffs=[billing])
    result = await drive(desk, "Pay me back", session=session)
    everything = [
        *("user: Pay me back", "reasoning rs_1", "call h", 'output h: {"assistant": "billing"}'),
        *("call a", "output a: sunny", "reasoning rs_2", "assistant: Paid."),
    ]
    assert result.last_agent is billing
    assert await stored(session) == everything
    assert sent(billing) == [everything[:4], everything[:6]]
    await goes_on(session)


class Sky(BaseModel):
    color: str


async def test_an_answer_of_an_output_type_is_stored_as_the_model_wrote_it(session: Any, drive: Drive) -> None:
    result = await drive(agent([message('{"color": "blue"}')], output_type=Sky), "The sky?", session=session)
    assert result.final_output == Sky(color="blue")
    assert await stored(session) == ["user: The sky?", 'assistant: {"color": "blue"}']
    await goes_on(session)


@pytest.mark.parametrize("beside_the_model", [True, False])
async def test_an_input_guardrail_that_trips_leaves_no_more_than_the_message(
    session: Any, drive: Drive, beside_the_model: bool
) -> None:
    guardrail = agents.InputGuardrail(guardrail_function=trip, run_in_parallel=beside_the_model)
    with pytest.raises(agents.InputGuardrailTripwireTriggered):
        await drive(agent([message("No.")], input_guardrails=[guardrail]), "Do evil", session=session)
    assert await stored(session) in ([], ["user: Do evil"])
    await goes_on(session)


async def test_an_output_guardrail_that_trips_leaves_the_whole_exchanges_before_it(session: Any, drive: Drive) -> None:
    asked = agent([call("a")], [message("Evil.")], output_guardrails=[agents.OutputGuardrail(guardrail_function=trip)])
    with pytest.raises(agents.OutputGuardrailTripwireTriggered):
        await drive(asked, "How is it?", session=session)
    everything = ["user: How is it?", "call a", "output a: sunny", "assistant: Evil."]
    assert await stored(session) in (everything[:3], everything)  # whether the answer is kept, the SDK decides
    await goes_on(session)


def trip(*_: Any) -> Any:
    """A guardrail that lets nothing pass."""
    return agents.GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)


async def test_a_run_that_takes_too_many_turns_leaves_those_it_took(session: Any, drive: Drive) -> None:
    with pytest.raises(agents.MaxTurnsExceeded):
        await drive(agent([call("a")], [call("b")]), "How is it?", session=session, max_turns=2)
    assert await stored(session) == ["user: How is it?", "call a", "output a: sunny", "call b", "output b: sunny"]
    await goes_on(session)


async def test_a_tool_that_fails_is_stored_with_what_the_model_was_told(session: Any, drive: Drive) -> None:
    failing = agents.function_tool(fail, failure_error_function=lambda _, error: f"failed: {error}")
    asked = agent([call("a", "fail"), call("b")], [message("Sorry.")], tools=(failing, get_weather))
    await drive(asked, "Try", session=session)
    everything = ["user: Try", "call a", "call b", "output a: failed: no network", "output b: sunny"]
    assert sent(asked) == [everything[:1], everything]
    assert await stored(session) == [*everything, "assistant: Sorry."]
    await goes_on(session)


async def test_a_tool_whose_failure_ends_the_run_leaves_no_call_without_output(session: Any, drive: Drive) -> None:
    failing = agents.function_tool(fail, failure_error_function=None)
    asked = agent([reasoning("rs_1"), call("a", "fail", after="rs_1"), call("b")], tools=(failing, get_weather))
    with pytest.raises(agents.UserError, match="no network"):
        await drive(asked, "Try", session=session)
    # Whether the call that succeeded beside it is kept, the SDK decides.
    assert await stored(session) in (["user: Try"], ["user: Try", "call b", "output b: sunny"])
    await goes_on(session)


def fail() -> str:
    """Fails."""
    raise OSError("no network")


async def test_a_model_that_fails_leaves_the_whole_exchanges_before_it(session: Any, drive: Drive) -> None:
    with pytest.raises(ConnectionError):
        await drive(agent([call("a")], ConnectionError("down")), "How is it?", session=session)
    assert await stored(session) == ["user: How is it?", "call a", "output a: sunny"]
    await goes_on(session)


@pytest.mark.parametrize("mode", ["immediate", pytest.param("after_turn", marks=exhaustive)])
async def test_a_stream_cancelled_at_any_event_leaves_whole_exchanges(session: Any, mode: str) -> None:
    everything = [
        *("user: How is it?", "reasoning rs_1", "call a", "call b", "output a: sunny", "output b: sunny"),
        *("call c", "output c: sunny", "assistant: Sunny."),
    ]
    whole = [everything[:count] for count in (0, 1, 6, 8, 9)]
    left: list[list[str]] = []
    while everything not in left:
        asked = agent([reasoning("rs_1"), call("a", after="rs_1"), call("b")], [call("c")], [message("Sunny.")])
        result = agents.Runner.run_streamed(asked, "How is it?", session=session)
        events = 0
        async for _ in result.stream_events():
            events += 1
            if events == len(left) + 1:
                result.cancel(mode=mode)
        left.append(await stored(session))
        assert left[-1] in whole
        await goes_on(session)
        await clear(session)
    assert len(left) > 1


async def test_a_limit_of_the_run_gives_it_exactly_so_many_of_the_latest_items(session: Any, drive: Drive) -> None:
    await drive(agent([message("Hello Alice")]), "I am Alice", session=session)
    asked = agent([message("Hello")])
    config = agents.RunConfig(session_settings=agents.SessionSettings(limit=1))
    await drive(asked, "Who am I?", session=session, run_config=config)
    assert sent(asked) == [["assistant: Hello Alice", "user: Who am I?"]]
    await goes_on(session)


async def test_a_callback_chooses_what_is_sent_and_not_what_is_stored(session: Any, drive: Drive) -> None:
    def last_and_new(history: list[Any], new: list[Any]) -> list[Any]:
        return history[-1:] + new

    await drive(agent([message("Hello Alice")]), "I am Alice", session=session)
    asked = agent([message("Alice")])
    config = agents.RunConfig(session_input_callback=last_and_new)
    await drive(asked, "Who am I?", session=session, run_config=config)
    assert sent(asked) == [["assistant: Hello Alice", "user: Who am I?"]]
    assert await stored(session) == [
        *("user: I am Alice", "assistant: Hello Alice"),
        *("user: Who am I?", "assistant: Alice"),
    ]
    await goes_on(session)


async def test_a_list_of_items_as_input_is_stored_once_behind_what_was_there(session: Any, drive: Drive) -> None:
    await drive(agent([message("Hello Alice")]), "I am Alice", session=session)
    given = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Who am I?"}]
    asked = agent([message("Alice")])
    await drive(asked, given, session=session)
    everything = ["user: I am Alice", "assistant: Hello Alice", "developer: Be brief.", "user: Who am I?"]
    assert sent(asked) == [everything]
    assert await stored(session) == [*everything, "assistant: Alice"]
    await goes_on(session)
