"""An agentmem session under the OpenAI Agents SDK's own Runner: one line is different.

    python agents_sdk.py [FILE]             (default: conversations.db in the current folder)

Needs the SDK: `pip install openai-agents`. Run it again: it goes on where it stopped.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from agents import Agent, Model, ModelResponse, Runner, Usage, function_tool, set_tracing_disabled
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from agentmem import AsyncSQLiteSession, SessionSettings

set_tracing_disabled(True)  # else the SDK sends its traces to OpenAI


class OfflineModel(Model):
    """Needs no key: it calls the tool for each question, then says what it saw. For a real one, leave it out."""

    async def get_response(self, system_instructions: str | None, input: Any, *args: Any, **kwargs: Any) -> Any:
        answer: Any
        if input[-1].get("type") == "function_call_output":
            calls = sum(item.get("type") == "function_call" for item in input)
            outputs = sum(item.get("type") == "function_call_output" for item in input)
            text = f"It is {input[-1]['output']}. I was sent {len(input)} items, {calls} calls and {outputs} outputs."
            content = ResponseOutputText(type="output_text", text=text, annotations=[])
            answer = ResponseOutputMessage(
                type="message", id="msg", role="assistant", status="completed", content=[content]
            )
        else:
            city = input[-1]["content"].split()[-1].strip("?")
            answer = ResponseFunctionToolCall(
                type="function_call", call_id=uuid4().hex, name="get_weather", arguments=json.dumps({"city": city})
            )
        return ModelResponse(output=[answer], usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        raise NotImplementedError("this example does not stream")


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


async def main(db: str) -> None:
    agent = Agent(name="Assistant", model=OfflineModel(), tools=[get_weather])
    # Before: session = agents.SQLiteSession("user_123", db, session_settings=agents.SessionSettings(limit=6))
    async with AsyncSQLiteSession(db, session_id="user_123", settings=SessionSettings(limit=6)) as session:
        for city in ("Paris", "Rome", "Oslo"):
            result = await Runner.run(agent, f"How is the weather in {city}?", session=session)
            print(result.final_output)
        print(f"stored: {len(await session.get_items(limit=10_000))} items, replayed: {len(await session.get_items())}")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "conversations.db"))
