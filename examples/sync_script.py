"""A plain script that remembers a conversation in an SQLite file. Run it again: it still knows.

    python sync_script.py [FILE]        (default: conversations.db in the current folder)

Nothing is closed at the end, and nothing has to be: what a call stored is on the disk when it returns.
"""

import sys

from agentmem import Agent, Runner, SessionSettings, SQLiteSession
from agentmem.runner import OfflineModel

db = sys.argv[1] if len(sys.argv) > 1 else "conversations.db"

# OfflineModel needs no key and answers by a few fixed rules. For a real model set OPENAI_API_KEY and leave
# `model` out, or name one: model="gpt-5.6-luna".
agent = Agent("Assistant", "Answer briefly.", model=OfflineModel())

# One conversation: the file and the session id name it.
session = SQLiteSession(db, session_id="user_123")
print(f"user_123 so far: {len(session.get_items())} items")
result = Runner.run_sync(agent, "My name is Alice and I love Python.", session=session)
print(result.final_output)

# A second handle, here or in another process, goes on where the first one stopped.
later = SQLiteSession(db, session_id="user_123")
result = Runner.run_sync(agent, "What is my name, and what do I love?", session=later)
print(result.final_output)

# Another id is another conversation.
stranger = SQLiteSession(db, session_id="user_456")
result = Runner.run_sync(agent, "What is my name?", session=stranger)
print(result.final_output)

# The items are plain dicts in the format of the OpenAI Responses API, and can be added by hand: say, a chat from
# before you had agentmem.
for day in ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"):
    session.add_items(
        [
            {"role": "user", "content": f"Remind me of my {day} meeting."},
            {"role": "assistant", "content": f"On {day} you meet Bob."},
        ]
    )

# "No meeting on Saturday": take back the newest item and the one before it.
answer = session.pop_item()
question = session.pop_item()
if answer and question:
    print(f"taken back: {question['content']} {answer['content']}")

# Replay only the latest items to the model. That deletes nothing: whoever asks for all still gets all.
recent = SQLiteSession(db, session_id="user_123", settings=SessionSettings(limit=10))
result = Runner.run_sync(agent, "Summarize our conversation.", session=recent)
print(f"{result.final_output} (replayed: {len(result.replayed)} items)")
print(f"user_123 now: {len(session.get_items())} items, user_456: {len(stranger.get_items())}, in {db}")
