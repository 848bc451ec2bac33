"""The Agents SDK's side of the tests: scripted models, and the oracle for every input that reaches one.

Importing this skips the module that does so where the SDK is not installed.
"""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import AsyncIterator
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
from tools import NO_AGENTS_SDK

from agentmem.items import Item

# Any, to mypy: it checks the tests also where the SDK is not installed.
agents: Any = pytest.importorskip("agents", reason=NO_AGENTS_SDK)

from openai.types.responses import (  # noqa: E402  (the SDK brings an openai that has them)
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseReasoningItem,
)

agents.set_tracing_disabled(True)  # nothing goes out

VERSION = tuple(int(part) for part in version("openai-agents").split(".")[:2])

takes_sync_sessions = pytest.mark.skipif(VERSION < (0, 20), reason="the Agents SDK awaits sessions before 0.20")


def assert_whole(items: list[Item]) -> None:
    """Fail where the Responses API would answer 400: on a call without its output or an output without its call,
    reasoning without the item that it led to, or such an item without its reasoning.

    It shares no code with ``agentmem.replay``. An item that reasoning led to says so in its id.
    """
    calls = Counter(item["call_id"] for item in items if str(item.get("type")).endswith("_call"))
    outputs = Counter(item["call_id"] for item in items if str(item.get("type")).endswith("_call_output"))
    assert calls == outputs, f"calls and outputs differ: {outline(items)}"
    assert set(calls.values()) <= {1}, f"a call is there twice: {outline(items)}"
    seen = set()
    for before, item in zip([None, *items], items, strict=False):
        if str(item.get("type")).endswith("_call"):
            seen.add(item["call_id"])
        elif str(item.get("type")).endswith("_call_output"):
            assert item["call_id"] in seen, f"an output stands before its call: {outline(items)}"
        led_by = str(item.get("id")).partition("_after_")[2]
        reasoning = before["id"] if before and before.get("type") == "reasoning" else ""
        assert reasoning == led_by, f"{item} follows {before}: {outline(items)}"
    assert not items or items[-1].get("type") != "reasoning", f"reasoning led to nothing: {outline(items)}"


def outline(items: list[Item]) -> list[str]:
    """Each item in a few words, for lists of what is expected."""
    return [_brief(item) for item in items]


def _brief(item: Item) -> str:
    kind = item.get("type", "message")
    if kind == "message":
        content = item["content"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        return f"{item['role']}: {text}"
    if kind == "reasoning":
        return f"reasoning {item['id']}"
    if kind == "function_call":
        return f"call {item['call_id']}"
    if kind == "function_call_output":
        return f"output {item['call_id']}: {item['output']}"
    return str(kind)


def message(text: str, *, after: str | None = None) -> Any:
    """A message from the model; `after` is the id of the reasoning that led to it."""
    return ResponseOutputMessage.model_validate(
        {
            "id": f"msg_{text.partition(' ')[0]}" + (f"_after_{after}" if after else ""),
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": text, "annotations": []}],
        }
    )


def reasoning(reasoning_id: str) -> Any:
    """A reasoning item."""
    return ResponseReasoningItem(type="reasoning", id=reasoning_id, summary=[])


def call(call_id: str, name: str = "get_weather", arguments: str = "{}", *, after: str | None = None) -> Any:
    """A tool call; `after` is the id of the reasoning that led to it."""
    return ResponseFunctionToolCall(
        type="function_call",
        id=f"fc_{call_id}" + (f"_after_{after}" if after else ""),
        call_id=call_id,
        name=name,
        arguments=arguments,
    )


def get_weather() -> str:
    """The weather."""
    return "sunny"


def agent(*steps: Any, name: str = "Weather", tools: tuple[Any, ...] = (get_weather,), **options: Any) -> Any:
    """An SDK agent whose model answers with the steps, one after the other: lists of items, or an exception.

    What is sent to it is in ``sent``; half an exchange fails the run, as with the API.
    """
    made = [tool if hasattr(tool, "on_invoke_tool") else agents.function_tool(tool) for tool in tools]
    return agents.Agent(name=name, model=StrictModel(list(steps)), tools=made, **options)


async def run(agent: Any, input: Any, **options: Any) -> Any:
    """A run of the SDK's Runner, awaited."""
    return await agents.Runner.run(agent, input, **options)


async def stream(agent: Any, input: Any, **options: Any) -> Any:
    """The same run, streamed to its end."""
    result = agents.Runner.run_streamed(agent, input, **options)
    async for _ in result.stream_events():
        pass
    return result


async def stored(session: Any) -> list[str]:
    """Outline of all that a session holds, whatever it replays."""
    items = session.get_items(10_000)
    return outline(await items if inspect.isawaitable(items) else items)


def sent(agent: Any) -> list[list[str]]:
    """Outlines of everything that reached the agent's model, call by call."""
    return [outline(items_of(made.input)) for made in agent.model.calls]


def items_of(sent_input: Any) -> list[Item]:
    """A model's input as a list: the SDK may send a lone message as a string."""
    return [{"role": "user", "content": sent_input}] if isinstance(sent_input, str) else sent_input


class PlainScriptedModel(agents.Model):  # type: ignore[misc]  # its class is Any, as above
    """What ``agents.testing.ScriptedModel`` does, for releases of the SDK that have none."""

    def __init__(self, steps: list[Any]) -> None:
        self.calls: list[Any] = []
        self._steps = steps

    async def get_response(self, system_instructions: str | None, input: Any, *args: Any, **kwargs: Any) -> Any:
        output = self._answer(input)
        return agents.ModelResponse(output=output, usage=agents.Usage(requests=1), response_id="resp_1")

    async def stream_response(
        self, system_instructions: str | None, input: Any, *args: Any, **kwargs: Any
    ) -> AsyncIterator[Any]:
        response = Response(
            id="resp_1",
            created_at=0,
            model="scripted",
            object="response",
            output=self._answer(input),
            parallel_tool_calls=True,
            tool_choice="auto",
            tools=[],
        )
        yield ResponseCompletedEvent(type="response.completed", response=response, sequence_number=0)

    def _answer(self, input: Any) -> Any:
        self.calls.append(SimpleNamespace(input=input if isinstance(input, str) else [dict(item) for item in input]))
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


try:
    ScriptedModel: Any = importlib.import_module("agents.testing").ScriptedModel
except ModuleNotFoundError:  # an SDK older than 0.21
    ScriptedModel = PlainScriptedModel


class StrictModel(ScriptedModel):  # type: ignore[misc]  # its class is Any, as above
    """A scripted model that, like the API, refuses half an exchange."""

    async def get_response(self, system_instructions: str | None, input: Any, *args: Any, **kwargs: Any) -> Any:
        assert_whole(items_of(input))
        return await super().get_response(system_instructions, input, *args, **kwargs)

    async def stream_response(
        self, system_instructions: str | None, input: Any, *args: Any, **kwargs: Any
    ) -> AsyncIterator[Any]:
        assert_whole(items_of(input))
        async for event in super().stream_response(system_instructions, input, *args, **kwargs):
            yield event
