"""A run shown while it happens: text as it is written, tools as they work, with settings of this run alone.

    python streaming.py [FILE]          (default: conversations.db in the current folder)

Leaving the stream early (the user closes the window) ends the run. The session holds the steps that were complete.
"""

import asyncio
import sys
from dataclasses import dataclass

from agentmem import (
    Agent,
    AsyncSQLiteSession,
    RunConfig,
    RunContext,
    Runner,
    RunResult,
    SessionSettings,
    TextDelta,
    function_tool,
)
from agentmem.items import ToolCallItem, ToolCallOutputItem
from agentmem.runner import OfflineModel


@dataclass
class User:
    """Whatever tools and instructions need to know; the model never sees it."""

    name: str
    city: str


@function_tool(timeout_s=10)
async def get_weather(run: RunContext[User]) -> str:
    """The weather where the user is."""
    return f"sunny in {run.context.city}"


def instructions(run: RunContext[User]) -> str:
    return f"You help {run.context.name}. Answer briefly."


# OfflineModel needs no key and streams word by word. For a real model set OPENAI_API_KEY and leave `model` out, or
# name one: model="gpt-5.6-luna".
agent = Agent("Assistant", instructions, model=OfflineModel(), tools=[get_weather])


async def main(db: str) -> None:
    config = RunConfig(model_settings={"temperature": 0}, session_settings=SessionSettings(max_turns=5))
    async with AsyncSQLiteSession(db, session_id="alice") as session:
        for text in ("My name is Alice.", "How is the weather?", "What is my name?"):
            print(f"you> {text}")
            run = Runner.run_streamed(agent, text, session=session, context=User("Alice", "Nice"), run_config=config)
            async with run as stream:
                async for event in stream:
                    match event:
                        case TextDelta():
                            print(event.text, end="|", flush=True)
                        case ToolCallItem():
                            print(f"(calls {event.raw_item['name']})")
                        case ToolCallOutputItem():
                            print(f"({event.raw_item['output']})")
                        case RunResult():
                            print(f" [{event.usage.requests} model calls]")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "conversations.db"))
