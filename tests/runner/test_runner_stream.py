"""Streamed runs: events come while they happen, and whoever leaves early finds whole exchanges only.

The model is the real openai client on server-sent events from a real HTTP server; the session is a real SQLite file.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import openai
import pytest
from responses_server import ResponsesServer, call, message, reasoning, response
from stepping import TASK_FACTORIES, CycleLoop, cycle_loops
from waiting import WAIT_S

from agentmem.cancellation import UncancellableTask
from agentmem.errors import MaxTurnsExceeded, ModelError, RunError, StorageError, ToolError
from agentmem.items import (
    HandoffCallItem,
    HandoffOutputItem,
    MessageOutputItem,
    ReasoningItem,
    ToolCallItem,
    ToolCallOutputItem,
)
from agentmem.runner import (
    Agent,
    ModelRequest,
    ModelResponse,
    OfflineModel,
    OpenAIResponsesModel,
    RunEvent,
    Runner,
    RunResult,
    RunStream,
    TextDelta,
    Usage,
    function_tool,
)
from agentmem.session import AsyncSQLiteSession

pytestmark = pytest.mark.anyio

HI = {"role": "user", "content": "Hi"}


def output(text: str, call_id: str = "call_1") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}"


def text_of(events: list[RunEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def take(stream: RunStream, events: list[RunEvent]) -> None:
    async for event in stream:
        events.append(event)  # noqa: PERF401  those before an error, too


async def first_delta(stream: RunStream) -> TextDelta:
    """Iterates up to the first piece of text, and leaves."""
    async for event in stream:
        if isinstance(event, TextDelta):
            return event
    raise AssertionError("no text came")


# What comes, and when


async def test_text_comes_in_pieces_then_the_typed_items_and_the_result(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    server.answer(reasoning(), message("Hello Alice"))
    events = [event async for event in Runner.run_streamed(Agent("A", None, model), "Hi", session=session)]
    assert [type(event) for event in events] == [ReasoningItem, *[TextDelta] * 4, MessageOutputItem, RunResult]
    assert text_of(events) == "Hello Alice"
    assert isinstance(events[1], TextDelta)
    assert events[1].agent_name == "A"
    result = events[-1]
    assert isinstance(result, RunResult)
    assert (result.final_output, result.usage) == ("Hello Alice", Usage(1, 10, 5, 15))
    assert result.new_items == [event for event in events if isinstance(event, (ReasoningItem, MessageOutputItem))]
    assert await session.get_items() == [HI, reasoning(), message("Hello Alice")]
    assert server.requests[0]["stream"] is True


async def test_calls_outputs_and_handoffs_are_events_of_the_agents_that_they_come_from(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    billing = Agent("Billing", None, model)
    desk = Agent("Desk", None, model, [get_weather], [billing])
    server.answer(call("get_weather", city="Nice"))
    server.answer(call("transfer_to_billing", "call_2"))
    server.answer(message("Paid"))
    events = [event async for event in Runner.run_streamed(desk, "Hi", session=session)]
    shown = [(type(event), getattr(event, "agent_name", None)) for event in events if not isinstance(event, TextDelta)]
    assert shown == [
        (ToolCallItem, "Desk"),
        (ToolCallOutputItem, "Desk"),
        (HandoffCallItem, "Desk"),
        (HandoffOutputItem, "Desk"),
        (MessageOutputItem, "Billing"),
        (RunResult, None),
    ]
    result = events[-1]
    assert isinstance(result, RunResult)
    assert [*result.new_items, result] == [event for event in events if not isinstance(event, TextDelta)]
    assert result.last_agent is billing
    assert await session.get_items() == result.to_input_list()


async def test_a_streamed_run_sends_and_stores_what_a_plain_one_does(
    server: ResponsesServer, model: OpenAIResponsesModel, tmp_path: Path
) -> None:
    agent = Agent("A", "Be kind.", model, [get_weather])
    stored, sent = [], []
    for name in ("plain", "streamed"):
        async with AsyncSQLiteSession(tmp_path / "both.db", session_id=name) as session:
            server.requests.clear()
            for _ in range(2):
                server.answer(
                    reasoning(), call("get_weather", "c1", city="Nice"), call("get_weather", "c2", city="Rome")
                )
                server.answer(message("Sunny"))
                if name == "plain":
                    await Runner.run(agent, "Weather?", session=session)
                else:
                    await Runner.run_streamed(agent, "Weather?", session=session).result()
            stored.append(await session.get_items())
            sent.append([{key: body[key] for key in body if key != "stream"} for body in server.requests])
    assert stored[0] == stored[1]
    assert sent[0] == sent[1]


async def test_text_is_there_before_the_answer_is_whole(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    rest = threading.Event()
    server.answer(message("Hello Alice"), gate=rest)
    async with Runner.run_streamed(Agent("A", None, model), "Hi", session=session) as stream:
        events = aiter(stream)
        assert await anext(events) == TextDelta("Hel", "A")
        assert await session.get_items() == []
        rest.set()
        assert text_of([event async for event in events]) == "lo Alice"
    assert len(await session.get_items()) == 2


async def test_a_tools_output_is_there_while_another_tool_runs(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    release = anyio.Event()

    @function_tool
    async def slow() -> str:
        await release.wait()
        return "slow"

    @function_tool
    async def quick() -> str:
        return "quick"

    server.answer(call("slow", "c1"), call("quick", "c2"))
    server.answer(message("Done"))
    outputs = []
    async for event in Runner.run_streamed(Agent("A", None, model, [slow, quick]), "Hi", session=session):
        if isinstance(event, ToolCallOutputItem):
            outputs.append(event.output)
            release.set()
    assert outputs == ["quick", "slow"]
    # Stored in the order of the calls, whichever was done first.
    assert [item["output"] for item in await session.get_items() if "output" in item] == ["slow", "quick"]


async def test_nothing_happens_before_the_first_event_is_asked_for(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    stream = Runner.run_streamed(Agent("A", None, model), "Hi", session=session)
    await stream.close()
    with pytest.raises(RuntimeError, match="iterated once"):
        aiter(stream)
    assert server.requests == []


async def test_a_stream_is_iterated_once(session: AsyncSQLiteSession) -> None:
    stream = Runner.run_streamed(Agent("A", None, OfflineModel()), "Hi", session=session)
    await stream.result()
    with pytest.raises(RuntimeError, match="iterated once"):
        await stream.result()
    assert len(await session.get_items()) == 2


async def test_a_model_that_cannot_stream_is_shown_answer_by_answer(session: AsyncSQLiteSession) -> None:
    class Whole:
        async def respond(self, request: ModelRequest) -> ModelResponse:
            return ModelResponse([message("Hello")])

    events = [event async for event in Runner.run_streamed(Agent("A", None, Whole()), "Hi", session=session)]
    assert [type(event) for event in events] == [TextDelta, MessageOutputItem, RunResult]
    assert text_of(events) == "Hello"


async def test_the_offline_model_streams_word_by_word() -> None:
    events = [event async for event in Runner.run_streamed(Agent("A", None, OfflineModel()), "My name is Alice.")]
    assert [event.text for event in events if isinstance(event, TextDelta)][:3] == ["I ", "will ", "remember: "]
    result = events[-1]
    assert isinstance(result, RunResult)
    assert text_of(events) == result.final_output


async def test_a_refusal_streams_as_text(server: ResponsesServer, model: OpenAIResponsesModel) -> None:
    server.answer(message("", content=[{"type": "refusal", "refusal": "I cannot."}]))
    events = [event async for event in Runner.run_streamed(Agent("A", None, model), "Hi")]
    assert text_of(events) == "I cannot."


# Failures


async def test_a_stream_that_breaks_off_is_a_model_error_and_stores_nothing(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    server.answer(message("Hello"), cut=True)
    events: list[RunEvent] = []
    with pytest.raises(ModelError, match=r"ended before the answer did.*nothing was added to the session 'user_123'"):
        await take(Runner.run_streamed(Agent("A", None, model), "Hi", session=session), events)
    assert text_of(events) == "Hello"  # what had come was shown first
    assert await session.get_items() == []


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"status": "failed", "error": {"code": "server_error", "message": "Oops."}}, r"'failed' \(server_error: Oops"),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            "cut short .max_output_tokens",
        ),
    ],
)
async def test_an_answer_that_fails_midway_is_a_model_error(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession, fields: Any, complaint: str
) -> None:
    server.answer(message("Hello"), **fields)
    with pytest.raises(ModelError, match=complaint):
        await Runner.run_streamed(Agent("A", None, model), "Hi", session=session).result()
    assert await session.get_items() == []


@pytest.mark.parametrize(
    "event",
    [
        b'{"type": "error", "code": "rate", "message": "Slow down.", "param": null, "sequence_number": 1}',
        b'{"error": {"message": "Slow down.", "code": "rate"}}',
    ],
)
async def test_an_error_in_the_stream_is_a_model_error(
    server: ResponsesServer, model: OpenAIResponsesModel, event: bytes
) -> None:
    server.answer_raw(b"event: error\ndata: " + event + b"\n\n", "text/event-stream")
    # The oldest client that is allowed (1.90) drops the first kind, and leaves a stream without an end.
    dropped = openai.__version__.startswith("1.") and event.startswith(b'{"type"')
    with pytest.raises(ModelError, match="ended before the answer did" if dropped else "Slow down"):
        await Runner.run_streamed(Agent("A", None, model), "Hi").result()


async def test_an_http_error_is_the_same_model_error_as_without_streaming(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    server.fail(429, "Slow down.")
    with pytest.raises(ModelError, match=r"answered 429: Slow down\."):
        await Runner.run_streamed(Agent("A", None, model), "Hi").result()


async def test_a_server_that_does_not_stream_is_named(server: ResponsesServer, model: OpenAIResponsesModel) -> None:
    server.answer_raw(b'{"id": "resp_1", "output": []}')
    with pytest.raises(ModelError, match="does the server stream the Responses API"):
        await Runner.run_streamed(Agent("A", None, model), "Hi").result()


async def test_a_failed_run_is_continued_by_streaming_it_again(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    agent = Agent("A", None, model, [get_weather])
    server.answer(call("get_weather", city="Nice"))
    server.fail(500, "Oops.")
    with pytest.raises(ModelError, match="holds the input and 1 tool exchange of this turn"):
        await Runner.run_streamed(agent, "Hi", session=session).result()
    server.answer(message("Sunny"))
    events = [event async for event in Runner.run_streamed(agent, "Hi", session=session)]
    assert [type(event) for event in events] == [TextDelta, TextDelta, MessageOutputItem, RunResult]
    assert await session.get_items() == [
        HI,
        call("get_weather", city="Nice"),
        output("Sunny in Nice"),
        message("Sunny"),
    ]


async def test_max_turns_and_tool_errors_come_from_the_stream(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    @function_tool(raise_errors=True)
    def fail() -> None:
        raise LookupError("no such row")

    agent = Agent("A", None, model, [get_weather, fail])
    server.answer(call("get_weather", city="Nice"))
    with pytest.raises(MaxTurnsExceeded, match="holds the input and 1 tool exchange"):
        await Runner.run_streamed(agent, "Hi", session=session, max_turns=1).result()
    server.answer(call("fail", "call_2"))
    with pytest.raises(ToolError, match="holds the input and 1 tool exchange"):
        await Runner.run_streamed(agent, "Hi", session=session).result()


async def test_an_argument_that_is_none_is_refused_at_the_call() -> None:
    with pytest.raises(ValueError, match="max_turns"):
        Runner.run_streamed(Agent("A", None, OfflineModel()), "Hi", max_turns=0)


async def test_a_model_whose_stream_has_no_response_is_a_model_error() -> None:
    class Endless(OfflineModel):
        async def stream(self, request: ModelRequest) -> Any:
            yield "Hello"

    with pytest.raises(ModelError, match="Endless ended its stream without a ModelResponse"):
        await Runner.run_streamed(Agent("A", None, Endless()), "Hi").result()


# Leaving early


async def leave_with_aexit(stream: RunStream) -> None:
    async with stream:
        await first_delta(stream)


async def leave_with_close(stream: RunStream) -> None:
    await first_delta(stream)
    await stream.close()


async def leave_by_cancellation(stream: RunStream) -> None:
    seen = anyio.Event()

    async def consume() -> None:
        async for event in stream:
            if isinstance(event, TextDelta):
                seen.set()

    task = asyncio.create_task(consume())
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def leave_by_dropping_it(stream: RunStream) -> None:
    await first_delta(stream)
    del stream
    gc.collect()


@pytest.mark.parametrize(
    "leave", [leave_with_aexit, leave_with_close, leave_by_cancellation], ids=lambda leave: leave.__name__
)
async def test_leaving_early_stores_the_steps_that_were_complete_and_leaves_nothing_behind(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession, leave: Any
) -> None:
    agent = Agent("A", None, model, [get_weather])
    tasks = asyncio.all_tasks()
    rest = threading.Event()
    server.answer(message("Hello"), gate=rest)
    with anyio.fail_after(WAIT_S):
        await leave(Runner.run_streamed(agent, "Hi", session=session))
    rest.set()
    assert await session.get_items() == []  # not even the first step was complete

    rest.clear()
    server.answer(call("get_weather", city="Nice"))
    server.answer(message("Sunny"), gate=rest)
    with anyio.fail_after(WAIT_S):
        await leave(Runner.run_streamed(agent, "Hi", session=session))
    rest.set()
    so_far = [HI, call("get_weather", city="Nice"), output("Sunny in Nice")]
    assert await session.get_items() == so_far
    left = asyncio.all_tasks() - tasks
    assert [task for task in left if not isinstance(task, UncancellableTask)] == []  # those are the pool's

    # The session's turn was given back, and the same input goes on where the run was left.
    server.answer(message("Sunny"))
    with anyio.fail_after(WAIT_S):
        await Runner.run(agent, "Hi", session=session)
    assert await session.get_items() == [*so_far, message("Sunny")]


async def test_a_stream_that_is_dropped_ends_its_run(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    rest = threading.Event()
    server.answer(message("Hello"), gate=rest)
    await leave_by_dropping_it(Runner.run_streamed(Agent("A", None, model), "Hi", session=session))
    server.answer(message("Bye"))
    with anyio.fail_after(WAIT_S):  # it waits for the turn that the dropped run held
        await Runner.run(Agent("A", None, model), "Bye", session=session)
    rest.set()
    assert await session.get_items() == [{"role": "user", "content": "Bye"}, message("Bye")]


async def test_a_tool_that_is_under_way_when_the_stream_is_closed_is_cancelled(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    started, cancelled = anyio.Event(), anyio.Event()

    @function_tool
    async def endless() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    server.answer(call("endless"))
    async with Runner.run_streamed(Agent("A", None, model, [endless]), "Hi", session=session) as stream:
        events = aiter(stream)
        assert isinstance(await anext(events), ToolCallItem)
        await started.wait()
    assert cancelled.is_set()
    assert await session.get_items() == []


async def test_closing_raises_what_the_run_had_failed_with_if_nobody_was_told(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    server.answer(message("Hello"), cut=True)
    stream = Runner.run_streamed(Agent("A", None, model), "Hi")
    events = aiter(stream)  # kept: dropping it would end the run
    assert isinstance(await anext(events), TextDelta)
    while "running" in repr(stream):
        await anyio.lowlevel.checkpoint()
    assert repr(stream) == "<RunStream: ended>"
    with pytest.raises(ModelError, match="ended before the answer did"):
        await stream.close()
    await stream.close()


async def test_closing_in_another_task_ends_the_iteration_with_an_error_that_says_so(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    rest = threading.Event()
    server.answer(call("get_weather", city="Nice"))
    server.answer(message("Hello"), gate=rest)
    stream = Runner.run_streamed(Agent("A", None, model, [get_weather]), "Hi", session=session)
    events: list[RunEvent] = []
    iterating = asyncio.create_task(take(stream, events))
    while not (events and isinstance(events[-1], TextDelta)):
        await anyio.lowlevel.checkpoint()
    await stream.close()
    with pytest.raises(RunError, match="the run's stream was closed before the run ended; the session holds the steps"):
        await iterating
    assert [type(event) for event in events] == [ToolCallItem, ToolCallOutputItem, TextDelta]
    assert len(await session.get_items()) == 3
    rest.set()


async def test_closing_while_another_task_waits_for_the_result_gives_that_one_an_error(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    rest = threading.Event()
    server.answer(message("Hello"), gate=rest)
    stream = Runner.run_streamed(Agent("A", None, model), "Hi")
    waiting = asyncio.create_task(stream.result())
    while "running" not in repr(stream):
        await anyio.lowlevel.checkpoint()
    await stream.close()
    with pytest.raises(RunError, match="closed before the run ended"):
        await waiting
    rest.set()


async def test_a_stream_that_is_closed_before_its_first_event_was_asked_for_never_runs(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    stream = Runner.run_streamed(Agent("A", None, model), "Hi")
    events = aiter(stream)
    await stream.close()
    with pytest.raises(RunError, match="closed before the run began; nothing was stored"):
        await anext(events)
    assert server.requests == []
    assert repr(stream) == "<RunStream: not started>"


async def test_the_task_that_iterates_is_cancelled_as_it_was_though_another_closes_the_stream(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    rest = threading.Event()
    server.answer(message("Hello"), gate=rest)
    stream = Runner.run_streamed(Agent("A", None, model), "Hi")
    iterating = asyncio.create_task(take(stream, []))
    while "running" not in repr(stream):
        await anyio.lowlevel.checkpoint()
    iterating.cancel()
    await stream.close()
    await asyncio.wait([iterating])
    assert iterating.cancelled()
    rest.set()


async def test_an_error_of_the_consumers_is_not_hidden_by_the_runs(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    rest = threading.Event()
    server.answer(message("Hello"), gate=rest)

    async def consume(stream: RunStream) -> None:
        async with stream:
            await first_delta(stream)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await consume(Runner.run_streamed(Agent("A", None, model), "Hi", session=session))
    rest.set()
    assert await session.get_items() == []


@pytest.mark.parametrize("eager", TASK_FACTORIES)
def test_a_streamed_run_may_be_cancelled_in_every_cycle_of_its_loop(tmp_path: Path, eager: bool) -> None:
    agent = Agent("A", None, OfflineModel(), [get_weather])
    seen = set()
    for loop in cycle_loops(eager=eager):

        async def main(loop: CycleLoop) -> None:
            async with AsyncSQLiteSession(tmp_path / "x.db", session_id="user_123") as session:
                await session.clear_session()
                task = asyncio.ensure_future(
                    Runner.run_streamed(agent, "get weather in Nice", session=session).result()
                )
                loop.arm(task.cancel)
                await asyncio.wait([task])
                loop.disarm()
                stored = len(await session.get_items())
                seen.add(stored)
                assert task.cancelled() or stored == 4
                await Runner.run(agent, "get weather in Nice", session=session)  # the session's turn is free
                assert len(await session.get_items()) in (4, 8)

        loop.run(main(loop))
    assert seen == {0, 3, 4}


async def test_streamed_runs_on_one_session_take_turns(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    agent = Agent("A", None, model)
    server.answer_with(_echo)
    server.answer_with(_echo)
    texts = ["one", "two"]
    async with anyio.create_task_group() as group:
        for text in texts:
            group.start_soon(Runner.run_streamed(agent, text, session=session).result)
    stored = [item.get("content") for item in await session.get_items() if item.get("role") == "user"]
    assert sorted(map(str, stored)) == texts
    assert [item.get("role") for item in await session.get_items()] == ["user", "assistant"] * 2


def _echo(body: dict[str, Any]) -> dict[str, Any]:
    return response(message(str(body["input"][-1]["content"])))


async def test_a_slow_consumer_does_not_keep_the_session_from_the_next_run(
    server: ResponsesServer, model: OpenAIResponsesModel, session: AsyncSQLiteSession
) -> None:
    agent = Agent("A", None, model)
    server.answer(message("Hello"))
    stream = Runner.run_streamed(agent, "Hi", session=session)
    events = aiter(stream)
    await anext(events)
    server.answer(message("Bye"))
    with anyio.fail_after(WAIT_S):
        await Runner.run(agent, "Bye", session=session)
    assert len(await session.get_items()) == 4
    assert [type(event) async for event in events][-1] is RunResult


async def test_a_sessions_own_error_says_what_it_holds(tmp_path: Path) -> None:
    session = AsyncSQLiteSession(tmp_path, session_id="user_123")  # a folder
    with pytest.raises(StorageError, match=r"nothing was added to the session 'user_123'$"):
        await Runner.run_streamed(Agent("A", None, OfflineModel()), "Hi", session=session).result()
    await session.close()


def test_a_stream_works_in_asyncio_run(tmp_path: Path) -> None:
    async def main() -> str:
        async with AsyncSQLiteSession(tmp_path / "x.db", session_id="user_123") as session:
            result = await Runner.run_streamed(
                Agent("A", None, OfflineModel()), "I like cats.", session=session
            ).result()
        return str(result.final_output)

    assert asyncio.run(main()) == "I will remember: you like cats."
