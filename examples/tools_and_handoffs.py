"""An agent with tools, and another one that it hands the conversation to.

    python tools_and_handoffs.py [FILE]     (default: conversations.db in the current folder)

Prints each item that the runs added to the session, with its type and the agent that it came from.
"""

import asyncio
import sys
from typing import Annotated

from pydantic import Field

from agentmem import Agent, Runner, RunResult, SQLiteSession, function_tool
from agentmem.items import HandoffOutputItem, MessageOutputItem, ToolCallItem, ToolCallOutputItem
from agentmem.runner import OfflineModel

# OfflineModel needs no key and calls the tool whose name is in the message. For a real model set OPENAI_API_KEY
# and leave `model` out, or name one: model="gpt-5.6-luna".
model = OfflineModel()


@function_tool
def get_weather(city: Annotated[str, Field(description="Name of the city, such as Paris")]) -> dict[str, object]:
    """The weather in a city today."""
    return {"city": city, "sky": "sunny", "celsius": 21}  # a plain function may block: it runs in a worker thread


@function_tool
async def refund(order: Annotated[int, Field(description="Number of the order", ge=1)]) -> str:
    """Pays an order back."""
    await asyncio.sleep(0)  # an async function may await: the database, another service
    return f"order {order} is paid back"


billing = Agent("Billing", "You pay orders back.", model=model, tools=[refund])
travel_desk = Agent(
    "Travel desk",
    "You help with trips. Whatever is about money goes to Billing.",
    model=model,
    tools=[get_weather],
    handoffs=[billing],
)


def show(result: RunResult) -> None:
    for item in result.new_items:
        match item:
            case ToolCallItem():
                what = f"{item.raw_item['name']}({item.raw_item['arguments']})"
            case ToolCallOutputItem():
                what = f"returned {item.output!r}"
            case HandoffOutputItem():
                what = f"goes on: {item.target_agent_name}"
            case MessageOutputItem():
                what = item.text
            case _:
                what = str(item.raw_item.get("name", ""))
        print(f"{item.agent_name:11} {item.type:21} {what}")


session = SQLiteSession(sys.argv[1] if len(sys.argv) > 1 else "conversations.db", session_id="trip")
show(Runner.run_sync(travel_desk, "How is the weather in Paris?", session=session))
result = Runner.run_sync(travel_desk, "I want billing to refund order 1234.", session=session)
show(result)
# The next message goes to the agent that has the conversation now. What does not fit the tool's signature is told
# to the model, not raised.
show(Runner.run_sync(result.last_agent, "Please refund order 0, too.", session=session))
