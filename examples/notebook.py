"""Plain calls in a notebook. Jupyter runs every cell under an event loop, where `asyncio.run` is refused;
agentmem's plain calls work there, because they run on a loop of their own.

    python notebook.py [FILE]           (default: conversations.db in the current folder)

To try it in Jupyter, paste the lines of the cells. Here `kernel` is the loop that Jupyter would have running.
"""

import asyncio
import sys

from agentmem import Agent, AsyncSQLiteSession, Runner, SQLiteSession, message_text
from agentmem.runner import OfflineModel

db = sys.argv[1] if len(sys.argv) > 1 else "conversations.db"

# OfflineModel needs no key and answers by a few fixed rules. For a real model set OPENAI_API_KEY and leave
# `model` out, or name one: model="gpt-5.6-luna".
agent = Agent("Assistant", "Answer briefly.", model=OfflineModel())


def first_cell() -> None:
    session = SQLiteSession(db, session_id="notebook")
    session.clear_session()  # so that running all cells again begins anew
    result = Runner.run_sync(agent, "My name is Alice and I study whales.", session=session)
    print(f"[1] {result.final_output}")


def second_cell() -> None:
    session = SQLiteSession(db, session_id="notebook")
    result = Runner.run_sync(agent, "What do I study?", session=session)
    print(f"[2] {result.final_output}")
    for item in session.get_items():
        print(f"    {item.get('role')}: {message_text(item)}")


async def third_cell() -> None:
    """A cell may await as well; both ways see the same conversation."""
    async with AsyncSQLiteSession(db, session_id="notebook") as session:
        result = await Runner.run(agent, "What is my name?", session=session)
        print(f"[3] {result.final_output}")
    print(f"    {len(SQLiteSession(db, session_id='notebook').get_items())} items")


async def kernel() -> None:
    print(f"an event loop is running: {asyncio.get_running_loop().is_running()}")
    first_cell()
    second_cell()
    await third_cell()


asyncio.run(kernel())
