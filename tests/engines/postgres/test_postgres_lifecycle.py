"""On PostgreSQL, too, a program that closes nothing ends at once and silently, with everything stored."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from endings import ENDINGS, imports
from exhaustive import cases
from postgres_database import PostgresDatabase
from processes import STRICT, Child, run_quietly
from waiting import wait_until

from agentmem.items import Item

ONE: Item = {"role": "user", "content": "one"}

# The end of a program

IMPORTS = imports("PostgresSession", "AsyncPostgresSession") + "url = db\n"

SCRIPTS = {
    **ENDINGS,
    "sync, in threads": """
def add():
    PostgresSession(url, session_id=threading.current_thread().name).add_items([one])
threads = [threading.Thread(target=add, name=f"user_{number}") for number in range(119, 127)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
""",
    "sync, by the server's name": """
session = PostgresSession(url.replace("127.0.0.1", "localhost"), session_id="user_123")
session.add_items([one])
""",
}


QUICK = {"sync", "sync, from a daemon thread that never ends", "async", "async, with calls in flight"}
"""SQLite's tests take all of them."""


@pytest.mark.parametrize(
    ("name", "flags"),
    cases(
        [
            *((name, STRICT) for name in SCRIPTS),
            ("sync", ()),
            ("async", ()),
            ("async, two loops one after the other", ()),
        ],
        quick=lambda case: case[1] and case[0] in QUICK,
    ),
)
def test_a_script_that_closes_nothing_ends_silently_with_everything_stored(
    database: PostgresDatabase, name: str, flags: Sequence[str]
) -> None:
    assert run_quietly(IMPORTS + SCRIPTS[name], database.url, flags=flags) == ""
    assert database.stored() == [ONE]


# Ctrl+C

WRITING = """
session = PostgresSession(url, session_id="user_123")
number = 0
while True:
    session.add_items([{"number": number}, {"number": number}])
    number += 1
    print(number, flush=True)
"""


def test_ctrl_c_in_the_middle_of_writing_ends_the_program_and_keeps_what_was_acknowledged(
    database: PostgresDatabase,
) -> None:
    with Child(IMPORTS + WRITING, database.url) as child:
        while child.read_line() != "20":
            pass
        child.interrupt()
        code, output, errors = child.finish()
    assert code == -2
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    database.wait_until_left()
    items = database.stored()
    assert items[::2] == items[1::2] == [{"number": number} for number in range(len(items) // 2)]
    assert len(items) // 2 >= int((output.splitlines() or ["20"])[-1])


WAITING = """
from agentmem.engines.postgres import writes
writes.LOCK_TIMEOUT_S = 60  # it waits in the server all the time, where the test sees it
session = PostgresSession(url, session_id="user_123", busy_timeout_s=60)
session.add_items([one])
print("ready", flush=True)
sys.stdin.readline()
print("writing", flush=True)
try:
    session.add_items([one])
except KeyboardInterrupt:
    print("interrupted", flush=True)
session.add_items([{"after": "it"}])
"""


def test_ctrl_c_in_a_call_that_waits_for_another_connection_is_raised_when_that_is_done_and_the_session_goes_on(
    database: PostgresDatabase,
) -> None:
    with Child(IMPORTS + WAITING, database.url) as child:
        assert child.read_line() == "ready"
        with database.holding():
            child.write_line()
            assert child.read_line() == "writing"
            wait_until(database.is_waited_for)
            child.interrupt()
        assert child.read_line() == "interrupted"
        assert child.finish() == (0, "", "")
    # What had begun finishes, as a cancelled call does: it may be there.
    assert [item for item in database.stored() if item != ONE] == [{"after": "it"}]
