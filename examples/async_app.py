"""Many users talk to one agent at the same time; each has a conversation of their own in one database.

    python async_app.py [FILE]          (default: conversations.db in the current folder)

The store is opened once. A session costs nothing: make one wherever you know whose turn it is, and drop it.
"""

import asyncio
import sys

from agentmem import Agent, AsyncSessionStore, Runner, SessionSettings, message_text
from agentmem.runner import OfflineModel

# OfflineModel needs no key and answers by a few fixed rules. For a real model set OPENAI_API_KEY and leave
# `model` out, or name one: model="gpt-5.6-luna".
agent = Agent("Assistant", "Answer briefly.", model=OfflineModel())

# What is replayed to the model: at most the latest 20 turns, and of those what fits into 8,000 tokens.
memory = SessionSettings(max_turns=20, max_tokens=8_000)


async def handle_message(store: AsyncSessionStore, user_id: str, text: str) -> str:
    """What an app does for each message that comes in, over a websocket, from a queue, from a bot."""
    session = store.session(user_id, settings=memory)
    result = await Runner.run(agent, text, session=session)
    return str(result.final_output)


async def one_user(store: AsyncSessionStore, number: int) -> str:
    user_id = f"user_{number}"
    await handle_message(store, user_id, f"My favorite number is {number}.")
    return await handle_message(store, user_id, "What is my favorite number?")


async def main(db: str) -> None:
    async with AsyncSessionStore(db) as store:
        answers = await asyncio.gather(*(one_user(store, number) for number in range(100)))
        for number in (0, 42, 99):
            print(f"user_{number}: {answers[number]}")
        right = sum(answer == f"Your favorite number is {number}." for number, answer in enumerate(answers))
        print(f"{right} of {len(answers)} users were answered rightly")

        # Messages of one user that come together are answered one after the other, each with its answer after it.
        await asyncio.gather(*(handle_message(store, "eve", f"My pin is {pin}.") for pin in range(5)))
        for item in await store.session("eve").get_items():
            print(f"eve's session, {item.get('role')}: {message_text(item)}")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "conversations.db"))
