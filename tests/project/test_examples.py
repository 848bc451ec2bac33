"""Every example does what it says, run as a person would run it: in a process of its own, in an empty folder."""

from __future__ import annotations

import asyncio
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from exhaustive import exhaustive
from tools import NO_AGENTS_SDK
from waiting import WAIT_S
from web_client import EXAMPLES, ROUNDS, USERS, client_of, converse, environment, history, say, serving

PAGE_LINES = 70


def run(folder: Path, name: str, *args: str) -> list[str]:
    """The lines that an example prints. A warning, or anything else on stderr, fails the test."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *args]
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, encoding="utf-8", timeout=WAIT_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout.splitlines()


def stored(database: Path) -> int:
    """How many items the file holds, read without agentmem."""
    with closing(sqlite3.connect(database)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM agentmem_history").fetchone()
    return int(count)


def test_every_example_has_a_test() -> None:
    examples = {path.stem for path in EXAMPLES.glob("*.py")}
    untested = {name for name in examples if not any(test.startswith(f"test_{name}_") for test in globals())}
    assert len(examples) >= 5
    assert not untested


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_at_most_a_page_and_begins_with_how_to_run_it(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    docstring = source.split('"""')[1]
    assert source.startswith('"""')
    assert re.search(rf"^    (python {path.name}|uvicorn {path.stem}:app)\b", docstring, re.MULTILINE)
    assert len(source.splitlines()) <= PAGE_LINES


def test_sync_script_remembers_across_handles_and_runs(tmp_path: Path) -> None:
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
    summary = " / ".join(f"Remind me of my {day} meeting." for day in days)

    def expected(before: int, strangers: int) -> list[str]:
        return [
            f"user_123 so far: {before} items",
            "I will remember: your name is Alice; you love Python.",
            "Your name is Alice. You love Python.",
            f"I don't know your name: it is not in the {strangers - 1} items that I was sent.",
            "taken back: Remind me of my Saturday meeting. On Saturday you meet Bob.",
            f"You said: {summary} (replayed: 10 items)",
            f"user_123 now: {before + 16} items, user_456: {strangers}, in conversations.db",
        ]

    assert run(tmp_path, "sync_script") == expected(0, 2)
    assert run(tmp_path, "sync_script") == expected(16, 4)
    assert stored(tmp_path / "conversations.db") == 36


def test_sync_script_keeps_its_conversations_in_the_file_that_it_is_given(tmp_path: Path) -> None:
    *_, last = run(tmp_path, "sync_script", "elsewhere.db")
    assert last == "user_123 now: 16 items, user_456: 2, in elsewhere.db"
    assert stored(tmp_path / "elsewhere.db") == 18
    assert not (tmp_path / "conversations.db").exists()


def test_async_app_keeps_a_hundred_users_apart_and_the_messages_of_one_in_order(tmp_path: Path) -> None:
    lines = run(tmp_path, "async_app", "app.db")
    assert lines[:4] == [
        "user_0: Your favorite number is 0.",
        "user_42: Your favorite number is 42.",
        "user_99: Your favorite number is 99.",
        "100 of 100 users were answered rightly",
    ]
    together = [f"eve's session, {line}" for pin in range(5) for line in _pin(pin)]
    assert lines[4:] == together
    assert stored(tmp_path / "app.db") == 100 * 4 + 5 * 2


def _pin(pin: int) -> tuple[str, str]:
    return f"user: My pin is {pin}.", f"assistant: I will remember: your pin is {pin}."


def test_tools_and_handoffs_shows_each_new_item_with_its_type_and_agent(tmp_path: Path) -> None:
    lines = [line.split(maxsplit=2) for line in _one_word_names(run(tmp_path, "tools_and_handoffs", "trip.db"))]
    refused = "Error: invalid arguments for refund: order: Input should be greater than or equal to 1"
    assert lines == [
        ["Travel-desk", "tool_call_item", 'get_weather({"city":"Paris"})'],
        ["Travel-desk", "tool_call_output_item", "returned {'city': 'Paris', 'sky': 'sunny', 'celsius': 21}"],
        ["Travel-desk", "message_output_item", 'get_weather says: {"city":"Paris","sky":"sunny","celsius":21}'],
        ["Travel-desk", "handoff_call_item", "transfer_to_billing"],
        ["Travel-desk", "handoff_output_item", "goes on: Billing"],
        ["Billing", "tool_call_item", 'refund({"order":1234})'],
        ["Billing", "tool_call_output_item", "returned 'order 1234 is paid back'"],
        ["Billing", "message_output_item", "Billing here. refund says: order 1234 is paid back"],
        ["Billing", "tool_call_item", 'refund({"order":0})'],
        ["Billing", "tool_call_output_item", f"returned '{refused}'"],
        ["Billing", "message_output_item", f"refund says: {refused}"],
    ]
    assert stored(tmp_path / "trip.db") == len(lines) + 3  # the three messages of the user


def _one_word_names(lines: list[str]) -> list[str]:
    return [line.replace("Travel desk", "Travel-desk") for line in lines]


def test_streaming_shows_words_and_tools_as_they_come(tmp_path: Path) -> None:
    assert run(tmp_path, "streaming", "stream.db") == [
        "you> My name is Alice.",
        "I |will |remember: |your |name |is |Alice.| [1 model calls]",
        "you> How is the weather?",
        "(calls get_weather)",
        "(sunny in Nice)",
        "get_weather |says: |sunny |in |Nice| [2 model calls]",
        "you> What is my name?",
        "Your |name |is |Alice.| [1 model calls]",
    ]
    assert stored(tmp_path / "stream.db") == 8


def test_notebook_makes_plain_calls_under_a_running_loop_and_awaits_on_it_too(tmp_path: Path) -> None:
    expected = [
        "an event loop is running: True",
        "[1] I will remember: your name is Alice; you study whales.",
        "[2] You study whales.",
        "    user: My name is Alice and I study whales.",
        "    assistant: I will remember: your name is Alice; you study whales.",
        "    user: What do I study?",
        "    assistant: You study whales.",
        "[3] Your name is Alice.",
        "    6 items",
    ]
    assert run(tmp_path, "notebook", "notebook.db") == expected
    assert run(tmp_path, "notebook", "notebook.db") == expected  # all cells again
    assert stored(tmp_path / "notebook.db") == 6


def test_agents_sdk_goes_on_where_it_stopped_and_replays_whole_exchanges(tmp_path: Path) -> None:
    pytest.importorskip("agents", reason=NO_AGENTS_SDK)

    def expected(sent: list[int], stored: int) -> list[str]:
        return [
            f"It is sunny in {city}. I was sent {count} items, {calls} calls and {calls} outputs."
            for city, count in zip(("Paris", "Rome", "Oslo"), sent, strict=True)
            for calls in (1 if count == 3 else 2,)
        ] + [f"stored: {stored} items, replayed: 5"]

    assert run(tmp_path, "agents_sdk", "chat.db") == expected([3, 7, 8], 12)
    assert run(tmp_path, "agents_sdk", "chat.db") == expected([8, 8, 8], 24)
    assert stored(tmp_path / "chat.db") == 24


# The FastAPI app, behind a real server.


@pytest.mark.anyio
async def test_fastapi_app_remembers_each_of_many_users_at_once_and_after_a_restart(tmp_path: Path) -> None:
    ids = [f"user{number}" for number in range(USERS)]
    with serving(tmp_path) as server:
        async with client_of(server) as client:
            expected = await asyncio.gather(*(converse(client, user_id) for user_id in ids))
            assert await asyncio.gather(*(history(client, user_id) for user_id in ids)) == expected
        # With no warning: what was answered is on the disk.
        server.end(signal.SIGKILL)
    assert stored(tmp_path / "conversations.db") == USERS * ROUNDS * 4
    with serving(tmp_path) as server:
        async with client_of(server) as client:
            assert await asyncio.gather(*(history(client, user_id) for user_id in ids)) == expected
            last = ROUNDS - 1
            for user_id in ids[:3]:
                assert await say(client, user_id, "What is my code?") == f"Your code is {user_id}-{last}."
            assert await say(client, "stranger", "What is my code?") == (
                "I don't know your code: it is not in the 1 items that I was sent."
            )


@pytest.mark.anyio
async def test_fastapi_app_answers_requests_of_one_user_one_after_the_other(tmp_path: Path) -> None:
    requests = 16
    with serving(tmp_path) as server:
        async with client_of(server) as client:
            answers = await asyncio.gather(*(say(client, "eve", f"Hello {number}") for number in range(requests)))
            items = await history(client, "eve")
    # The offline model says how many items it was sent: with each request two more, those of the request before it.
    seen = [int(found[1]) for answer in answers if (found := re.search(r"I saw (\d+) items", answer))]
    assert sorted(seen) == list(range(1, 2 * requests, 2))
    arrival = sorted(range(requests), key=lambda number: seen[number])
    assert items == [
        line for number in arrival for line in (("user", f"Hello {number}"), ("assistant", answers[number]))
    ]


@pytest.mark.anyio
async def test_fastapi_app_stops_cleanly_when_it_is_told_to(tmp_path: Path) -> None:
    with serving(tmp_path, CHAT_DB="chats.db") as server:
        async with client_of(server) as client:
            await say(client, "alice", "My name is Alice.")
        server.end(signal.SIGTERM)
    assert server.log[-1].startswith("INFO:     Finished server process")
    assert [line for line in server.log if not line.startswith("INFO: ")] == []
    # Closed, not dropped: SQLite removes its log when the last connection closes.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.db"]


@exhaustive
@pytest.mark.anyio
async def test_fastapi_app_answers_503_while_another_process_holds_the_database_and_loses_nothing(
    tmp_path: Path,
) -> None:
    with serving(tmp_path) as server:
        async with client_of(server) as client:
            await say(client, "alice", "My name is Alice.")
            before = await history(client, "alice")
            with closing(sqlite3.connect(tmp_path / "conversations.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                response = await client.post("/chat/alice", json={"message": "What is my name?"})
                assert (response.status_code, response.json()) == (503, {"detail": "not answered: StorageBusyError"})
                assert await history(client, "alice") == before  # reads never wait for writes
            assert await say(client, "alice", "What is my name?") == "Your name is Alice."
            assert len(await history(client, "alice")) == 4
    errors = [line for line in server.log if line.startswith("ERROR: ")]
    assert len(errors) == 1
    assert "POST /chat/alice" in errors[0]


@pytest.mark.anyio
async def test_fastapi_app_answers_502_when_the_model_fails_and_stores_nothing(tmp_path: Path) -> None:
    keyless = "import fastapi_app\nfastapi_app.agent = fastapi_app.Agent('Assistant', '')\napp = fastapi_app.app\n"
    (tmp_path / "keyless_app.py").write_text(keyless)
    with serving(tmp_path, "keyless_app:app") as server:
        async with client_of(server) as client:
            response = await client.post("/chat/alice", json={"message": "Hi"})
            assert (response.status_code, response.json()) == (502, {"detail": "not answered: ModelError"})
            assert await history(client, "alice") == []
    assert any("OPENAI_API_KEY" in line for line in server.log)


@pytest.mark.anyio
async def test_fastapi_app_refuses_what_is_no_user_message_or_limit(tmp_path: Path) -> None:
    bad: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/chat/a%00b", {"json": {"message": "Hi"}}),
        ("POST", f"/chat/{'x' * 2000}", {"json": {"message": "Hi"}}),
        ("POST", "/chat/alice", {"json": {"message": ""}}),
        ("POST", "/chat/alice", {"json": {"message": ["Hi"]}}),
        ("POST", "/chat/alice", {"json": {}}),
        ("POST", "/chat/alice", {"content": b"{"}),
        ("GET", "/chat/alice", {"params": {"limit": -1}}),
        ("GET", "/chat/alice", {"params": {"limit": "all"}}),
    ]
    with serving(tmp_path) as server:
        async with client_of(server) as client:
            for method, path, arguments in bad:
                response = await client.request(method, path, **arguments)
                assert response.status_code == 422, (method, path, arguments)
            assert await say(client, "zoë", "My name is Zoë.") == "I will remember: your name is Zoë."
    assert stored(tmp_path / "conversations.db") == 2


def test_fastapi_app_says_at_its_start_that_the_database_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "conversations.db").write_text("These are the notes of another program, and no database. " * 20)
    with pytest.raises(AssertionError, match=r"(?s)StorageCorruptError.*Application startup failed"), serving(tmp_path):
        pytest.fail("it serves")
