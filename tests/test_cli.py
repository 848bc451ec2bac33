"""The ``agentmem`` command: what it does and says, in a process of its own, in a pipe and in a terminal.

Most tests run it in their own process, which saves the start of a Python; :func:`process` starts one.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import select
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import click
import pytest
import version_1
from click.testing import CliRunner
from exhaustive import cases, exhaustive
from responses_server import ResponsesServer, message
from tools import NO_AGENTS_SDK
from waiting import WAIT_S, wait_until

from agentmem import SessionStore, SQLiteSession, __version__
from agentmem.cli import main
from agentmem.items import Item

SCRIPTS = Path(sysconfig.get_path("scripts"))
MODULE = [sys.executable, "-m", "agentmem"]
posix = pytest.mark.skipif(os.name != "posix", reason="signals and terminals as POSIX has them")


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """No key, no server, no colours, an unknown width, and no other setting than a test gives; warnings are errors."""
    changing = re.compile(r"(OPENAI_.*|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|.*_PROXY)$", re.IGNORECASE)
    inherited = {name: value for name, value in os.environ.items() if not changing.match(name)}
    return {**inherited, "PYTHONIOENCODING": "utf-8", "PYTHONWARNINGS": "error", "TERM": "xterm", **variables}


class Done(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def agentmem(folder: Path, *args: str, says: str | bytes = "", env: Mapping[str, str] = MappingProxyType({})) -> Done:
    """Runs the command in `folder`, with `says` on stdin, to its end."""
    wanted = environment(env)
    variables = {name: wanted.get(name) for name in {*os.environ, *wanted}}
    with chdir(folder):
        result = RUNNER.invoke(main, args, input=says, env=variables, prog_name="agentmem", catch_exceptions=False)
    return Done(result.exit_code, result.stdout, result.stderr)


# Before 8.2 click mixes the streams unless it is told not to; since then it does not know the option.
_SEPARATE: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
RUNNER = CliRunner(**_SEPARATE)


def process(
    folder: Path,
    *args: str,
    says: str = "",
    command: Sequence[str] = MODULE,
    env: Mapping[str, str] = MappingProxyType({}),
) -> Done:
    """The same in a process of its own."""
    done = subprocess.run(
        [*command, *args],
        input=says.encode(),
        cwd=folder,
        env=environment(env),
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def succeeded(done: Done) -> str:
    """What it printed; a traceback, a warning or anything else on stderr fails the test."""
    assert (done.code, done.stderr) == (0, ""), done.stdout
    return done.stdout


def online(server: ResponsesServer) -> dict[str, str]:
    """The environment in which `server` answers; a connection that is left open is a warning on stderr."""
    return {"OPENAI_BASE_URL": server.url, "PYTHONWARNINGS": "error"}


def items(database: Path, session_id: str = "default") -> list[Item]:
    """What a session holds, read without agentmem."""
    query = "SELECT item FROM agentmem_history WHERE session_id = ? ORDER BY position"
    with closing(sqlite3.connect(database)) as connection:
        return [json.loads(text) for (text,) in connection.execute(query, (session_id,))]


def contents(database: Path, session_id: str = "default") -> list[str]:
    return [item["content"] for item in items(database, session_id)]


def answers(output: str) -> list[str]:
    """What a chat answered."""
    return re.findall(r"^Assistant: (.*)$", output, re.MULTILINE)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Child processes react to Ctrl+C even where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# demo


CONVERSATION = [
    ("Alice", "My name is Alice and I love Python."),
    ("Assistant", "I will remember: your name is Alice; you love Python."),
    ("Alice", "What is my name, and what do I love?"),
    ("Assistant", "Your name is Alice. You love Python."),
    ("Alice", "I like cats."),
    ("Assistant", "I will remember: you like cats."),
    ("Bob", "I like dogs."),
    ("Assistant", "I will remember: you like dogs."),
    ("Alice", "What do I like?"),
    ("Assistant", "You like cats."),
    ("Bob", "What do I like?"),
    ("Assistant", "You like dogs."),
    ("Alice", "What is my name?"),
    ("Assistant", "I don't know your name: it is not in the 3 items that I was sent."),
    ("Alice", "What is my name?"),
    ("Assistant", "Your name is Alice."),
]


def said(output: str) -> list[tuple[str, str]]:
    """Who said what in the demo's output."""
    return re.findall(r"^(Alice|Bob|Assistant) +(.*?) *\r?$", output, re.MULTILINE)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder for temporary files in which a demo without a file ran, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, succeeded(process(folder, "demo", env={"TMPDIR": str(folder)}))


def test_demo_answers_rightly_and_shows_what_was_replayed(demo: tuple[Path, str]) -> None:
    _, output = demo
    assert said(output) == CONVERSATION
    replayed = re.findall(r"replayed to the model before this: (\w+)", output)
    assert replayed == ["nothing", "2", "4", "nothing", "6", "2", "2", "10"]
    in_full = re.findall(r"^ {10,}(user|assistant): (.*?) *$", output, re.MULTILINE)
    assert in_full == [
        ("user", "My name is Alice and I love Python."),
        ("assistant", "I will remember: your name is Alice; you love Python."),
        ("user", "What do I like?"),
        ("assistant", "You like cats."),
    ]


def test_demo_without_a_file_leaves_nothing_and_says_how_to_keep_one_and_go_on(
    demo: tuple[Path, str], tmp_path: Path
) -> None:
    folder, output = demo
    assert list(folder.iterdir()) == []
    assert "All 12 items of Alice's conversation" in output
    again, go_on = output.strip().splitlines()[-2:]
    for command in (again, go_on):
        succeeded(process(tmp_path, *shlex.split(command)[3:], says="What do I love?\n"))
    assert [path.name for path in tmp_path.iterdir()] == ["demo.db"]
    assert contents(tmp_path / "demo.db", "bob") == [text for who, text in _of("Bob")]
    asked = [text for who, text in _of("Alice")]
    assert contents(tmp_path / "demo.db", "alice") == [*asked, "What do I love?", "You love Python."]


def _of(user: str) -> list[tuple[str, str]]:
    """The user's part of the conversation, with the answers."""
    answered = zip(CONVERSATION[::2], CONVERSATION[1::2], strict=True)
    return [line for asked, answer in answered if asked[0] == user for line in (asked, answer)]


def test_demo_fits_in_80_columns_but_for_the_paths_of_its_file_and_of_python(demo: tuple[Path, str]) -> None:
    folder, output = demo
    lines = [line for line in output.splitlines() if str(folder) not in line and sys.executable not in line]
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in output  # no colours in a pipe


def test_demo_keeps_to_the_file_that_it_is_given_and_can_be_run_on_it_again(tmp_path: Path) -> None:
    output = succeeded(agentmem(tmp_path, "demo", "--db", "demo.db"))
    assert said(output) == CONVERSATION
    assert f"\n  {tmp_path / 'demo.db'}\n" in output
    assert "All 24 items" in succeeded(agentmem(tmp_path, "demo", "--db", "demo.db"))
    assert [path.name for path in tmp_path.iterdir()] == ["demo.db"]
    assert len(items(tmp_path / "demo.db", "alice")) == 24


@posix
def test_the_command_that_demo_ends_with_goes_on_with_the_conversation(tmp_path: Path) -> None:
    folder = tmp_path / "my :cat: [files]"
    folder.mkdir()
    output = succeeded(process(folder, "demo", "--db", "it's.db"))
    command = output.strip().splitlines()[-1]
    done = process(tmp_path, says="What do I love?\n", command=["sh", "-c", command])
    assert answers(succeeded(done)) == ["You love Python."]
    assert "12 items so far" in done.stdout
    assert [path.name for path in tmp_path.rglob("*.db")] == ["it's.db"]


@posix
@pytest.mark.parametrize(
    "args",
    cases(
        [
            ["demo", "--db", "demo.db"],
            ["check", "app.db"],
            ["copy", "app.db", "new.db"],
            ["--help"],
            ["check", "--help"],
        ],
        quick=["copy", "app.db", "new.db"].__eq__,
    ),
    ids=" ".join,
)
def test_every_command_ends_with_code_141_and_without_a_word_where_its_reader_is_gone(
    tmp_path: Path, args: list[str]
) -> None:
    fill(tmp_path / "app.db", alice=3)
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as output:
        done = subprocess.run(
            [*MODULE, *args], cwd=tmp_path, env=environment({}), stdout=output, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


@posix
def test_demo_ends_where_its_reader_has_seen_enough(tmp_path: Path) -> None:
    command = ["sh", "-c", f"{sys.executable} -m agentmem demo --db demo.db | head -n 2"]
    done = process(tmp_path, command=command)
    assert (done.stdout.count("\n"), done.stderr) == (2, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full, as Linux has it")
def test_an_output_that_cannot_be_written_is_one_line_and_code_3(tmp_path: Path) -> None:
    fill(tmp_path / "app.db", alice=3)
    with open("/dev/full", "wb") as output:
        done = subprocess.run(
            [*MODULE, "check", "app.db"],
            cwd=tmp_path,
            env=environment({}),
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 3
    assert re.fullmatch(rb"Error: .*No space left on device\n", done.stderr)


def test_a_defect_shows_its_traceback_and_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("agentmem.cli.databases.SessionStore", broken)
    done = agentmem(tmp_path, "check", "app.db")
    assert done.code == 3
    assert "Traceback (most recent call last)" in done.stderr + done.stdout
    assert "ZeroDivisionError: a defect" in done.stderr + done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["demo", "--db", "postgresql://me:hunter2@host/db"],
        ["import-sdk", "postgresql://me:hunter2@host/db"],
        ["backup", "app.db", "postgresql://me:hunter2@host/db"],
        ["check", "postgresql:/me:hunter2@host/db"],
        ["check", "me:hunter2@host/db"],
        ["copy", "app.db", "postgre://me:hunter2@host/db"],
        ["restore", "postgresql://me:hunter2@host/db", "new.db"],
        ["demo", "--db", "sqlite:x.db"],
    ],
    ids=" ".join,
)
def test_an_address_in_the_place_of_a_file_is_one_line_without_its_password(tmp_path: Path, args: list[str]) -> None:
    fill(tmp_path / "app.db", alice=1)
    done = agentmem(tmp_path, *args)
    _failed_in_one_line(done, code=2)
    assert "hunter2" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["app.db"]


def test_a_password_in_an_argument_too_many_is_not_shown(tmp_path: Path) -> None:
    done = agentmem(tmp_path, "check", "app.db", "postgresql://me:hunter2@host/db")
    assert (done.code, "me@host/db" in done.stderr) == (2, True)
    assert "hunter2" not in done.stderr


# chat


def test_chat_remembers_in_a_second_process_and_keeps_sessions_apart(tmp_path: Path) -> None:
    first = process(tmp_path, "chat", "--offline", says="My name is Alice and I love Python.\n")
    assert "Session 'default' in conversations.db: 0 items so far." in succeeded(first)
    assert answers(first.stdout) == ["I will remember: your name is Alice; you love Python."]
    second = process(tmp_path, "chat", "--offline", says="What is my name?\nWhat do I love?\n")
    assert "Session 'default' in conversations.db: 2 items so far." in succeeded(second)
    assert answers(second.stdout) == ["Your name is Alice.", "You love Python."]
    other = agentmem(tmp_path, "chat", "--offline", "--session", "bob", says="What is my name?\n")
    assert answers(succeeded(other)) == ["I don't know your name: it is not in the 1 items that I was sent."]
    assert len(items(tmp_path / "conversations.db")) == 6
    assert len(items(tmp_path / "conversations.db", "bob")) == 2


def test_chat_goes_on_with_what_a_program_stored_in_the_file(tmp_path: Path) -> None:
    with SQLiteSession(tmp_path / "app.db", session_id="user_123") as session:
        session.add_items([{"role": "user", "content": "My name is Alice."}])
    done = agentmem(tmp_path, "chat", "--offline", "--db", "app.db", "--session", "user_123", says="What is my name?\n")
    assert answers(succeeded(done)) == ["Your name is Alice."]


def test_the_installed_script_is_the_same_command(tmp_path: Path) -> None:
    script = [str(SCRIPTS / "agentmem")]
    done = process(tmp_path, "chat", "--offline", says="My name is Alice.\n", command=script)
    assert answers(succeeded(done)) == ["I will remember: your name is Alice."]
    assert succeeded(process(tmp_path, "--version", command=script)) == f"agentmem, version {__version__}\n"
    assert succeeded(process(tmp_path, "--version")) == f"agentmem, version {__version__}\n"


def test_a_chat_in_a_pipe_writes_its_answers_and_no_prompt(tmp_path: Path) -> None:
    done = process(tmp_path, "chat", "--offline", says="My name is Alice.\nWhat is my name?\n")
    assert succeeded(done).splitlines() == [
        "Session 'default' in conversations.db: 0 items so far.",
        "Assistant: I will remember: your name is Alice.",
        "Assistant: Your name is Alice.",
    ]


def test_an_empty_line_ends_a_chat(tmp_path: Path) -> None:
    done = agentmem(tmp_path, "chat", "--offline", says="My name is Alice.\n \nMy name is Bob.\n")
    assert answers(succeeded(done)) == ["I will remember: your name is Alice."]
    assert len(items(tmp_path / "conversations.db")) == 2


def test_chat_sends_a_model_the_whole_conversation_and_shows_its_words_as_they_are(
    tmp_path: Path, server: ResponsesServer
) -> None:
    odd = "See [bold]a.py[/bold] :cat:, " + "a line far longer than a terminal is wide, " * 5 + "\N{CAT FACE}"
    server.answer(message("Hello Alice"))
    server.answer(message(odd))
    done = process(tmp_path, "chat", "--model", "test-model", says="I am Alice.\nWho am I?\n", env=online(server))
    assert answers(succeeded(done)) == ["Hello Alice", odd]
    assert [request["model"] for request in server.requests] == ["test-model"] * 2
    first, second = (request["input"] for request in server.requests)
    assert first == [{"role": "user", "content": "I am Alice."}]
    assert [item["role"] for item in second] == ["user", "assistant", "user"]
    assert [item["role"] for item in items(tmp_path / "conversations.db")] == ["user", "assistant"] * 2


def test_chat_shows_an_answer_that_the_terminal_has_no_characters_for(tmp_path: Path, server: ResponsesServer) -> None:
    server.answer(message("caf\xe9, half an emoji: \ud83d"))
    done = process(tmp_path, "chat", "--model", "m", says="Hi\n", env={**online(server), "PYTHONIOENCODING": "ascii"})
    assert answers(succeeded(done)) == [r"caf\xe9, half an emoji: \ud83d"]


def test_chat_goes_on_after_a_failure_and_the_session_is_as_it_was(tmp_path: Path, server: ResponsesServer) -> None:
    server.fail(400, "that model is asleep")
    server.answer(message("Hello"))
    done = agentmem(tmp_path, "chat", "--model", "m", says="One\nTwo\n", env=online(server))
    assert (done.code, answers(done.stdout)) == (0, ["Hello"]), done.stderr
    assert re.fullmatch(r"error: m: .* 400: that model is asleep; nothing was added to .*\n", done.stderr)
    assert [item["role"] for item in items(tmp_path / "conversations.db")] == ["user", "assistant"]
    assert items(tmp_path / "conversations.db")[0]["content"] == "Two"


def test_chat_ends_with_code_3_where_the_last_message_got_no_answer(tmp_path: Path, server: ResponsesServer) -> None:
    server.answer(message("Hello"))
    server.fail(400, "that model is asleep")
    done = agentmem(tmp_path, "chat", "--model", "m", says="One\nTwo\n", env=online(server))
    assert (done.code, answers(done.stdout)) == (3, ["Hello"])
    assert len(items(tmp_path / "conversations.db")) == 2


def test_chat_without_key_and_model_names_the_three_ways_out_and_stores_nothing(tmp_path: Path) -> None:
    done = agentmem(tmp_path, "chat", says="Hello\n")
    assert done.code == 3
    error, hint = done.stderr.splitlines()
    for way in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OfflineModel()", "nothing was added to the session 'default'"):
        assert way in error
    assert "--offline" in hint
    assert items(tmp_path / "conversations.db") == []


def test_chat_waits_for_a_busy_file_then_says_so_and_goes_on(
    tmp_path: Path, server: ResponsesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmem.cli.conversations.SessionStore", partial(SessionStore, busy_timeout_s=0.1))
    database = tmp_path / "conversations.db"
    with SQLiteSession(database, session_id="default") as session:
        session.add_items([{"role": "user", "content": "My name is Alice."}])
    first, second = threading.Event(), threading.Event()
    server.answer(message("One"), gate=first)
    server.answer(message("Two"), gate=second)

    def hold_the_file() -> None:
        server.wait_for_request()
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            first.set()
            server.wait_for_request()  # the first was given up
        second.set()

    other_program = threading.Thread(target=hold_the_file)
    other_program.start()
    done = agentmem(tmp_path, "chat", "--model", "m", says="First\nSecond\n", env=online(server))
    other_program.join()
    assert (done.code, answers(done.stdout)) == (0, ["Two"])
    assert re.fullmatch(r"error: .*conversations\.db.*(busy|lock).*\n", done.stderr), done.stderr
    assert contents(database)[1] == "Second"
    assert len(items(database)) == 3


# import-sdk


@pytest.fixture(scope="module")
def written_by_sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that the Agents SDK wrote, in a process of its own: 3 items in 2 sessions."""
    pytest.importorskip("agents", reason=NO_AGENTS_SDK)
    script = """
import asyncio, sys
from agents import SQLiteSession
for session_id, count in (("alice", 2), ("bob", 1)):
    session = SQLiteSession(session_id, sys.argv[1])
    asyncio.run(session.add_items([{"role": "user", "content": str(number)} for number in range(count)]))
    session.close()
"""
    path = tmp_path_factory.mktemp("sdk") / "sdk.db"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    return path


@pytest.fixture
def sdk_file(written_by_sdk: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copy(written_by_sdk, tmp_path))


def test_import_sdk_says_what_it_took_over_and_the_file_is_agentmem_s_then(tmp_path: Path, sdk_file: Path) -> None:
    done = agentmem(tmp_path, "chat", "--offline", "--db", "sdk.db", says="Hello\n")
    _failed_in_one_line(done, "sdk.db", "agentmem import-sdk FILE", "agentmem.integrations.openai_agents")
    output = succeeded(agentmem(tmp_path, "import-sdk", "sdk.db"))
    assert output == "3 items of 2 sessions taken over into sdk.db.\n"
    assert contents(sdk_file, "alice") == ["0", "1"]
    again = succeeded(agentmem(tmp_path, "import-sdk", "sdk.db")).splitlines()
    assert again == ["0 items of 0 sessions taken over into sdk.db.", "3 items had been taken over before."]
    assert "1 items so far" in succeeded(agentmem(tmp_path, "chat", "--offline", "--db", "sdk.db", "--session", "bob"))


def test_import_sdk_into_another_database_leaves_the_file_as_it_is(tmp_path: Path, sdk_file: Path) -> None:
    before = sdk_file.read_bytes()
    output = succeeded(agentmem(tmp_path, "import-sdk", "sdk.db", "--into", "new.db"))
    assert output == "3 items of 2 sessions taken over into new.db.\n"
    assert sdk_file.read_bytes() == before
    assert contents(tmp_path / "new.db", "bob") == ["0"]


def test_import_sdk_names_the_sessions_that_it_skips(tmp_path: Path, sdk_file: Path) -> None:
    with closing(sqlite3.connect(sdk_file)) as connection, connection:
        connection.execute("UPDATE agent_messages SET session_id = '' WHERE session_id = 'bob'")
    done = agentmem(tmp_path, "import-sdk", "sdk.db")
    assert (done.code, done.stdout) == (0, "2 items of 1 sessions taken over into sdk.db.\n")
    assert done.stderr == "skipped: session '', an id that agentmem refuses; its items stay in sdk.db\n"


def test_import_sdk_of_what_is_no_history_is_one_line(tmp_path: Path) -> None:
    _failed_in_one_line(agentmem(tmp_path, "import-sdk", "no.db"), "there is no file", "no.db")
    (tmp_path / "notes.db").write_text("Dear diary. " * 1000)
    _failed_in_one_line(agentmem(tmp_path, "import-sdk", "notes.db"), "notes.db", "not a database", code=1)
    with closing(sqlite3.connect(tmp_path / "photos.db")) as connection:
        connection.execute("CREATE TABLE photos (id, name)")
    done = agentmem(tmp_path, "import-sdk", "photos.db", "--into", "new.db")
    _failed_in_one_line(done, "photos.db", "no table 'agent_messages'", "--messages-table")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.db", "photos.db"}


# check


def test_check_says_that_a_file_is_whole_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    with SQLiteSession(tmp_path / "app.db", session_id="user_123") as session:
        session.add_items([{"role": "user", "content": "one"}] * 3)
    before = (tmp_path / "app.db").read_bytes()
    output = succeeded(agentmem(tmp_path, "check", "app.db"))
    assert output == "3 items of 1 sessions in app.db: no problems.\n"
    assert (tmp_path / "app.db").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["app.db"]


def test_check_names_each_problem_in_a_line_and_exits_with_1(tmp_path: Path) -> None:
    with SQLiteSession(tmp_path / "app.db", session_id="user [red]\n") as session:
        session.add_items([{"role": "user", "content": "one"}] * 6)
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection, connection:
        connection.execute("DELETE FROM agentmem_items WHERE position = 2")
    one = agentmem(tmp_path, "check", "app.db")
    assert (one.code, one.stderr) == (1, "")
    assert one.stdout.splitlines() == [
        r"session 'user [red]\n', position 2: missing",
        "5 items of 1 sessions in app.db: 1 problem.",
    ]
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection, connection:
        connection.execute("UPDATE agentmem_items SET item = '[1]' WHERE position = 4")
    assert agentmem(tmp_path, "check", "app.db").stdout.splitlines() == [
        r"session 'user [red]\n', position 2: missing",
        r"session 'user [red]\n', position 4: cannot be read: not a JSON object but list",
        "5 items of 1 sessions in app.db: 2 problems.",
    ]


def test_check_counts_what_nobody_would_read(tmp_path: Path) -> None:
    with SQLiteSession(tmp_path / "app.db", session_id="user_123") as session:
        session.add_items([{"role": "user", "content": "one"}] * 250)
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection, connection:
        connection.execute("UPDATE agentmem_items SET item = '{'")
    done = agentmem(tmp_path, "check", "app.db")
    *problems, more, summary = done.stdout.splitlines()
    assert (done.code, len(problems)) == (1, 100)
    assert (more, summary) == ("and 150 more", "250 items of 1 sessions in app.db: 250 problems.")


@pytest.mark.parametrize(
    "command", [["check", "no.db"], ["backup", "no.db", "copy.db"], ["copy", "no.db", "new.db"]], ids=lambda c: c[0]
)
def test_a_missing_file_is_one_line_and_code_3_and_is_not_made(tmp_path: Path, command: list[str]) -> None:
    _failed_in_one_line(agentmem(tmp_path, *command), "there is no file", "no.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [["check", "notes.db"], ["backup", "notes.db", "copy.db"], ["copy", "notes.db", "new.db"]],
    ids=lambda c: c[0],
)
def test_a_file_that_is_none_of_agentmem_s_is_one_line(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "notes.db").write_text("Dear diary. " * 1000)
    _failed_in_one_line(agentmem(tmp_path, *command), "notes.db", "not a database", code=1)
    (tmp_path / "notes.db").unlink()
    with closing(sqlite3.connect(tmp_path / "notes.db")) as connection:
        connection.execute("CREATE TABLE notes (text)")
    _failed_in_one_line(agentmem(tmp_path, *command), "notes.db", "another program's database")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.db"]


# backup


def test_backup_copies_a_file_that_is_then_used_like_any_and_overwrites_nothing(tmp_path: Path) -> None:
    with SQLiteSession(tmp_path / "app.db", session_id="default") as session:
        session.add_items([{"role": "user", "content": "one"}] * 3)
        output = succeeded(agentmem(tmp_path, "backup", "app.db", "copy.db"))
        assert re.fullmatch(r"app\.db copied to copy\.db \(\d+ kB\)\.\n", output)
        session.add_items([{"role": "user", "content": "two"}])
    assert succeeded(agentmem(tmp_path, "check", "copy.db")) == "3 items of 1 sessions in copy.db: no problems.\n"
    assert contents(tmp_path / "copy.db") == ["one"] * 3
    _failed_in_one_line(agentmem(tmp_path, "backup", "app.db", "copy.db"), "copy.db exists")
    _failed_in_one_line(agentmem(tmp_path, "backup", "app.db", "no/copy.db"), "no/copy.db", "create its folder")
    assert contents(tmp_path / "copy.db") == ["one"] * 3


# restore


def test_restore_puts_a_backup_in_a_database_s_place_unless_somebody_has_it_open(tmp_path: Path) -> None:
    fill(tmp_path / "app.db", default=3)
    succeeded(agentmem(tmp_path, "backup", "app.db", "copy.db"))
    with SQLiteSession(tmp_path / "app.db", session_id="default") as session:
        session.add_items([{"role": "user", "content": "new"}])
        done = agentmem(tmp_path, "restore", "copy.db", "app.db")
        _failed_in_one_line(done, "app.db is open in this program or in another, and was not replaced")
    assert contents(tmp_path / "app.db")[-1] == "new"
    assert succeeded(agentmem(tmp_path, "restore", "copy.db", "app.db")) == "app.db restored from copy.db.\n"
    assert contents(tmp_path / "app.db") == contents(tmp_path / "copy.db") == ["0", "1", "2"]
    assert {path.name for path in tmp_path.iterdir()} == {"app.db", "copy.db"}
    _failed_in_one_line(agentmem(tmp_path, "restore", "no.db", "app.db"), "there is no file", "no.db")
    _failed_in_one_line(agentmem(tmp_path, "restore", "copy.db", "copy.db"), "are the same file", code=2)
    (tmp_path / "app.db").write_text("Dear diary. " * 1000)
    _failed_in_one_line(agentmem(tmp_path, "restore", "copy.db", "app.db"), "is not a database", code=1)


# upgrade


def test_upgrade_brings_a_file_of_an_older_version_to_this_one_unless_somebody_has_it_open(tmp_path: Path) -> None:
    version_1.make(tmp_path / "app.db", [("default", 1.0, ['{"role":"user","content":"one"}'])])
    with closing(sqlite3.connect(tmp_path / "app.db")) as other:
        other.execute("SELECT * FROM agentmem_items").fetchall()
        done = agentmem(tmp_path, "upgrade", "app.db")
        _failed_in_one_line(done, "app.db is open in this program or in another, and was not replaced")
    for _ in range(2):
        assert succeeded(agentmem(tmp_path, "upgrade", "app.db")) == "app.db has the newest version.\n"
    assert contents(tmp_path / "app.db") == ["one"]
    assert {path.name for path in tmp_path.iterdir()} == {"app.db"}
    _failed_in_one_line(agentmem(tmp_path, "upgrade", "no.db"), "there is no file", "no.db")


# copy


def fill(database: Path, **sessions: int) -> None:
    """Adds so many items to each session."""
    for session_id, count in sessions.items():
        with SQLiteSession(database, session_id=session_id) as session:
            start = len(session.get_items())
            session.add_items([{"role": "user", "content": str(number)} for number in range(start, start + count)])


def test_copy_says_what_it_copied_and_run_again_copies_what_is_new(tmp_path: Path) -> None:
    fill(tmp_path / "app.db", alice=3, bob=2)
    before = (tmp_path / "app.db").read_bytes()
    output = succeeded(agentmem(tmp_path, "copy", "app.db", "new.db"))
    assert output == "5 items copied; 2 sessions in the source: no problems.\n"
    assert (tmp_path / "app.db").read_bytes() == before
    assert contents(tmp_path / "new.db", "alice") == ["0", "1", "2"]
    fill(tmp_path / "app.db", bob=1, carol=4)
    output = succeeded(agentmem(tmp_path, "copy", f"sqlite:///{tmp_path}/app.db", f"sqlite:///{tmp_path}/new.db"))
    assert output == "5 items copied, 5 were there already; 3 sessions in the source: no problems.\n"
    assert contents(tmp_path / "new.db", "bob") == ["0", "1", "2"]
    assert {path.name for path in tmp_path.iterdir()} == {"app.db", "new.db"}


def test_every_command_serves_every_engine_and_shows_no_password(tmp_path: Path, database_url: str) -> None:
    url = database_url.replace("@", ":s3cret@") if "@" in database_url else database_url
    for _ in range(2):
        chat = agentmem(tmp_path, "chat", "--offline", "--session", "alice", "--db", url, says="I like cats.\n")
    assert "2 items so far" in succeeded(chat)
    checked = agentmem(tmp_path, "check", url)
    assert succeeded(checked).startswith("4 items of 1 sessions in ")
    copied = agentmem(tmp_path, "copy", url, "copy.db")
    assert succeeded(copied) == "4 items copied; 1 sessions in the source: no problems.\n"
    assert contents(tmp_path / "copy.db", "alice")[::2] == ["I like cats.", "I like cats."]
    itself = agentmem(tmp_path, "copy", url, url)
    assert (itself.code, itself.stderr.count("\n")) == (2, 1)
    assert not any("s3cret" in done.stdout + done.stderr for done in (chat, checked, copied, itself))


def test_copy_names_each_session_that_it_did_not_copy_and_exits_with_1(tmp_path: Path) -> None:
    fill(tmp_path / "app.db", alice=3, bob=2, **{"carol [red]\n": 1})
    fill(tmp_path / "new.db", bob=4, **{"carol [red]\n": 2})
    done = agentmem(tmp_path, "copy", "app.db", "new.db")
    assert (done.code, done.stderr) == (1, "")
    bob, carol, summary = done.stdout.splitlines()
    assert bob.startswith("session 'bob', position 2: not copied: ")
    assert carol.startswith(r"session 'carol [red]\n', position 1: not copied: ")
    assert summary == "3 items copied; 3 sessions in the source: 2 problems."
    assert contents(tmp_path / "new.db", "alice") == ["0", "1", "2"]
    assert contents(tmp_path / "new.db", "bob") == ["0", "1", "2", "3"]


def test_copy_names_an_item_that_cannot_be_read_copies_it_as_it_is_and_exits_with_1(tmp_path: Path) -> None:
    fill(tmp_path / "app.db", alice=3, bob=1)
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection, connection:
        connection.execute("UPDATE agentmem_items SET item = '[1]' WHERE position = 2")
    for copied in ("4 items copied", "0 items copied, 4 were there already"):
        done = agentmem(tmp_path, "copy", "app.db", "new.db")
        assert (done.code, done.stderr) == (1, "")
        assert done.stdout.splitlines() == [
            "session 'alice', position 2: copied as it is, but cannot be read: not a JSON object but list",
            f"{copied}; 2 sessions in the source: 1 problem.",
        ]
    with closing(sqlite3.connect(tmp_path / "new.db")) as connection:
        assert connection.execute("SELECT item FROM agentmem_history WHERE position = 2").fetchall() == [("[1]",)]


def test_copy_to_what_cannot_be_a_target_is_one_line(tmp_path: Path) -> None:
    fill(tmp_path / "app.db", alice=3)
    before = (tmp_path / "app.db").read_bytes()
    for same in ("app.db", "./app.db", f"sqlite:///{tmp_path}/app.db"):
        _failed_in_one_line(agentmem(tmp_path, "copy", "app.db", same), "the same database", "app.db", code=2)
    (tmp_path / "notes.db").write_text("Dear diary. " * 1000)
    _failed_in_one_line(agentmem(tmp_path, "copy", "app.db", "notes.db"), "notes.db", "not a database", code=1)
    _failed_in_one_line(agentmem(tmp_path, "copy", "app.db", "no/new.db"), "no/new.db", "create its folder")
    _failed_in_one_line(agentmem(tmp_path, "copy", "app.db", "oracle://new"), "unknown database URL oracle://", code=2)
    assert (tmp_path / "app.db").read_bytes() == before
    assert (tmp_path / "notes.db").read_text() == "Dear diary. " * 1000
    assert {path.name for path in tmp_path.iterdir()} == {"app.db", "notes.db"}


# What cannot work


@pytest.mark.parametrize("command", ["demo", "chat"])
def test_a_missing_folder_is_one_line_and_code_3(tmp_path: Path, command: str) -> None:
    done = agentmem(tmp_path, command, "--db", str(tmp_path / "no" / "folder.db"))
    _failed_in_one_line(done, "no/folder.db", "create its folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["demo", "chat"])
def test_a_file_that_is_no_database_is_one_line_and_code_1_and_stays_as_it_is(tmp_path: Path, command: str) -> None:
    notes = tmp_path / "notes.db"
    notes.write_text("Dear diary. " * 1000)
    done = agentmem(tmp_path, command, "--db", "notes.db")
    _failed_in_one_line(done, "notes.db", "not a database", code=1)
    assert notes.read_text() == "Dear diary. " * 1000
    assert list(tmp_path.iterdir()) == [notes]


@pytest.mark.parametrize("command", ["demo", "chat"])
def test_another_programs_database_is_one_line_and_code_3_and_stays_as_it_is(tmp_path: Path, command: str) -> None:
    with closing(sqlite3.connect(tmp_path / "photos.db")) as connection:
        connection.executescript("PRAGMA user_version = 7; CREATE TABLE photos (id, name)")
    before = (tmp_path / "photos.db").read_bytes()
    done = agentmem(tmp_path, command, "--db", "photos.db")
    _failed_in_one_line(done, "photos.db")
    assert (tmp_path / "photos.db").read_bytes() == before


def _failed_in_one_line(done: Done, *parts: str, code: int = 3) -> None:
    assert done.code == code, done.stdout
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["chat", "--offline", "--model", "m"], "--offline and --model exclude each other"),
        (["chat", "--db", "."], "is a directory"),
        (["chat", "--limit", "3"], "--limit"),
        (["chat", "alice"], "alice"),
        (["talk"], "talk"),
        (["check"], "FILE"),
        (["check", "."], "is a directory"),
        (["backup", "app.db"], "TARGET"),
        (["backup", "app.db", "."], "is a directory"),
        (["restore", "copy.db"], "TARGET"),
        (["restore", "copy.db", "."], "is a directory"),
        (["copy", "app.db"], "TARGET"),
        (["copy", "app.db", "."], "is a directory"),
    ],
)
def test_a_wrong_use_is_a_usage_error_and_touches_no_file(tmp_path: Path, args: list[str], problem: str) -> None:
    done = agentmem(tmp_path, *args, says="Hello\n")
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: ")
    assert problem in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("memory", [":memory:", "sqlite:///:memory:"])
@pytest.mark.parametrize(
    "args",
    [
        "check {}",
        "backup {} new.db",
        "backup app.db {}",
        "copy {} new.db",
        "copy app.db {}",
        "import-sdk app.db --into {}",
        "demo --db {}",
    ],
)
def test_a_database_in_memory_is_refused_where_it_can_only_be_empty(tmp_path: Path, args: str, memory: str) -> None:
    fill(tmp_path / "app.db", alice=1)
    done = agentmem(tmp_path, *args.format(memory).split())
    assert (done.code, done.stdout) == (2, "")
    assert "a database in memory is empty, and gone when the command ends; give a file" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["app.db"]


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--session", ""], "session_id is 1 to 1024 bytes long"),
        (["--session", "x" * 1025], "session_id is 1 to 1024 bytes long"),
        (["--db", ""], "db is a path"),
    ],
)
def test_an_argument_out_of_range_is_one_line_and_code_2(tmp_path: Path, args: list[str], problem: str) -> None:
    _failed_in_one_line(agentmem(tmp_path, "chat", "--offline", *args, says="Hello\n"), problem, code=2)
    assert list(tmp_path.iterdir()) == []


def test_input_that_is_no_text_is_one_line_and_code_2(tmp_path: Path) -> None:
    done = agentmem(tmp_path, "chat", "--offline", says=b"My name is Alice.\n\xff\xfe\n")
    _failed_in_one_line(done, "can't decode byte 0xff", code=2)


# Help


def _commands(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from _commands(below, *path, name)


COMMANDS = dict(_commands(main))


def test_every_command_and_every_option_says_what_it_is_for() -> None:
    silent = [path for path, command in COMMANDS.items() if not command.help]
    silent += [
        (*path, str(parameter.name))
        for path, command in COMMANDS.items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert {("demo",), ("chat",), ("import-sdk",), ("check",), ("backup",), ("restore",), ("copy",)} <= set(COMMANDS)
    assert not silent


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_fits_in_80_columns_and_names_every_option(tmp_path: Path, path: tuple[str, ...]) -> None:
    output = succeeded(agentmem(tmp_path, *path, "--help"))
    assert output.startswith(" ".join(("Usage: agentmem", *path)))
    assert max(map(len, output.splitlines())) <= 80
    for parameter in COMMANDS[path].params:
        # An argument stands for itself, in capitals.
        argument = str(parameter.name).upper()
        assert all(name in output for name in parameter.opts) or argument in output.partition("\n")[0].split()


# People at a terminal


class _Chat:
    """A chat under way, its streams in pipes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def wait_for(self, text: str) -> None:
        """Reads until `text` has been printed; pytest's timeout ends what never comes."""
        assert self.process.stdout is not None
        seen = ""
        while text not in seen:
            character = self.process.stdout.read(1)
            assert character, f"ended after {seen!r}"
            seen += character

    def end(self) -> int:
        return self.process.wait(WAIT_S)


@contextmanager
def _chatting(folder: Path, *args: str, env: Mapping[str, str] = MappingProxyType({})) -> Iterator[_Chat]:
    process = subprocess.Popen(
        [*MODULE, "chat", *args],
        cwd=folder,
        env=environment(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    with process:
        try:
            yield _Chat(process)
        finally:
            process.kill()


@posix
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_at_the_prompt_ends_the_chat_cleanly(tmp_path: Path) -> None:
    with _terminal(tmp_path, "chat", "--offline") as terminal:
        terminal.wait_for("you>")
        terminal.type("My name is Alice.\r")
        terminal.wait_for("I will remember")
        terminal.wait_for("you>")  # only here is it sure to wait for a line; in a pipe nothing says so
        terminal.interrupt()
        assert terminal.end() == 0
    assert not {"Traceback", "Aborted", "error"} & set(re.findall(r"\w+", terminal.output))
    assert contents(tmp_path / "conversations.db") == ["My name is Alice.", "I will remember: your name is Alice."]


@posix
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_the_model_thinks_ends_at_once_and_stores_nothing(tmp_path: Path, server: ResponsesServer) -> None:
    gate = threading.Event()
    server.answer(message("Too late"), gate=gate)
    try:
        with _chatting(tmp_path, "--model", "m", env=online(server)) as chat:
            chat.type("Hello\n")
            server.wait_for_request()
            chat.process.send_signal(signal.SIGINT)
            assert chat.end() == 130
            assert chat.process.stderr is not None
            assert chat.process.stderr.read().strip() == "Aborted!"
    finally:
        gate.set()
    assert items(tmp_path / "conversations.db") == []


def _until_ended(process: subprocess.Popen[str] | subprocess.Popen[bytes], interrupt: Callable[[], object]) -> None:
    """Interrupts as a person does: again where nothing happens, because Python's prompt misses what comes in the moment
    before it begins to wait."""
    deadline = time.monotonic() + WAIT_S
    while process.poll() is None and time.monotonic() < deadline:
        interrupt()
        with suppress(subprocess.TimeoutExpired):
            process.wait(WAIT_S / 10)  # to end takes the slowest machine less, and a second ^C would be an error


class _Terminal:
    """A pseudo-terminal of 80 columns, and a process that has it as its controlling terminal."""

    def __init__(self, folder: Path, *args: str, stdout: str = "") -> None:
        import fcntl
        import pty
        import struct
        import termios

        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        # The leader of a new session gets the terminal that it opens first as its own, so that ^C reaches it.
        opening = ["sh", "-c", 'tty=$1; out=$2; shift 2; exec "$@" <"$tty" 2>"$tty" >"$out"', "sh"]
        opening += [os.ttyname(slave), stdout or os.ttyname(slave)]
        self._process = subprocess.Popen(
            [*opening, *MODULE, *args], cwd=folder, env=environment({}), start_new_session=True
        )
        self._slave = slave  # open to the end, so that reading never meets a terminal without a process
        self.output = ""
        self._seen = 0

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        """Reads until `text` has come after what was waited for before."""
        deadline = time.monotonic() + WAIT_S
        while (found := self.output.find(text, self._seen)) < 0:
            readable, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"no {text!r} in {self.output!r}"
            self.output += os.read(self._master, 4096).decode(errors="replace")
        self._seen = found + len(text)

    def interrupt(self) -> None:
        """Types ^C."""
        _until_ended(self._process, lambda: self.type("\x03"))

    def end(self) -> int:
        code = self._process.wait(WAIT_S)
        while select.select([self._master], [], [], 0)[0]:
            self.output += os.read(self._master, 4096).decode(errors="replace")
        return code

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)
        os.close(self._slave)


@contextmanager
def _terminal(folder: Path, *args: str, stdout: str = "") -> Iterator[_Terminal]:
    """A command in a terminal; its output goes to the file `stdout`, if there is one."""
    terminal = _Terminal(folder, *args, stdout=stdout)
    try:
        yield terminal
    finally:
        terminal.close()


@posix
@pytest.mark.usefixtures("interruptible")
def test_a_person_at_a_terminal_chats_and_leaves_by_ctrl_d_or_ctrl_c(tmp_path: Path) -> None:
    with _terminal(tmp_path, "chat", "--offline") as terminal:
        terminal.wait_for("you>")
        terminal.type("My name is Bobx\x7f.\r")  # with a correction
        terminal.wait_for("I will remember: your name is Bob.")
        terminal.wait_for("you>")
        terminal.type("\x04")
        assert terminal.end() == 0
        assert "\x1b[" in terminal.output  # colours
        assert "Traceback" not in terminal.output
    with _terminal(tmp_path, "chat", "--offline") as terminal:
        terminal.wait_for("2 items so far")
        terminal.type("What is my name?\r")
        terminal.wait_for("Your name is Bob.")
        terminal.wait_for("you>")
        terminal.interrupt()
        assert terminal.end() == 0
        assert "Traceback" not in terminal.output
    assert contents(tmp_path / "conversations.db")[-1] == "Your name is Bob."


@exhaustive
@posix
@pytest.mark.usefixtures("interruptible")
def test_a_person_whose_chat_is_written_to_a_file_is_prompted_on_the_terminal(tmp_path: Path) -> None:
    with _terminal(tmp_path, "chat", "--offline", stdout="chat.txt") as terminal:
        terminal.wait_for("you>")
        terminal.type("My name is Bob.\r")
        terminal.wait_for("you>")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert answers((tmp_path / "chat.txt").read_text()) == ["I will remember: your name is Bob."]
    assert "you>" not in (tmp_path / "chat.txt").read_text()


@exhaustive
@posix
def test_demo_in_a_terminal_of_80_columns_has_colours_and_no_longer_line(tmp_path: Path) -> None:
    with _terminal(tmp_path, "demo", "--db", "demo.db") as terminal:
        terminal.wait_for("Go on with Alice's conversation:")
        assert terminal.end() == 0
    plain = re.sub(r"\x1b\[[\d;]*m", "", terminal.output)
    assert plain != terminal.output
    assert said(plain) == CONVERSATION
    assert max(len(line) for line in plain.splitlines() if str(tmp_path) not in line) <= 80


@posix
def test_check_in_a_terminal_shows_how_far_it_is_and_leaves_only_its_report(tmp_path: Path) -> None:
    with SQLiteSession(tmp_path / "app.db", session_id="user_123") as session:
        session.add_items([{"role": "user", "content": "one"}] * 5000)
    with _terminal(tmp_path, "check", "app.db") as terminal:
        terminal.wait_for("checking")
        terminal.wait_for("5000/5000")
        terminal.wait_for("5000 items of 1 sessions in app.db: no problems.")
        assert terminal.end() == 0
    assert "\x1b[2K" in terminal.output  # the line of the bar is erased
    assert "Traceback" not in terminal.output


@exhaustive
@posix
def test_copy_in_a_terminal_shows_how_far_it_is_and_leaves_only_its_report(tmp_path: Path) -> None:
    fill(tmp_path / "app.db", alice=5000)
    with _terminal(tmp_path, "copy", "app.db", "new.db") as terminal:
        terminal.wait_for("copying")
        terminal.wait_for("5000/5000")
        terminal.wait_for("5000 items copied; 1 sessions in the source: no problems.")
        assert terminal.end() == 0
    assert "\x1b[2K" in terminal.output  # the line of the bar is erased
    assert "Traceback" not in terminal.output


@posix
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_a_copy_and_the_next_one_completes_it(tmp_path: Path) -> None:
    fill(tmp_path / "app.db", alice=20_000)
    with _terminal(tmp_path, "copy", "app.db", "new.db") as terminal:
        terminal.wait_for("copying")
        terminal.wait_for("/20000")
        terminal.interrupt()
        assert terminal.end() in (0, 130)  # 0 where it was faster
        assert "Traceback" not in terminal.output
    there = contents(tmp_path / "new.db", "alice")
    assert there == [str(number) for number in range(len(there))]
    succeeded(agentmem(tmp_path, "copy", "app.db", "new.db"))
    assert len(contents(tmp_path / "new.db", "alice")) == 20_000


@exhaustive
@posix
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_a_backup_at_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with SQLiteSession(tmp_path / "app.db", session_id="user_123") as session:
        for _ in range(30):
            session.add_items([{"role": "user", "content": "x" * 2_000_000}])
    backups = tmp_path / "backups"
    backups.mkdir()
    for _ in range(100):
        with subprocess.Popen(
            [*MODULE, "backup", "app.db", "backups/copy.db"],
            cwd=tmp_path,
            env=environment({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as running:
            wait_until(lambda: list(backups.iterdir()))  # the copy under its temporary name
            running.send_signal(signal.SIGINT)
            output, errors = running.communicate(timeout=WAIT_S)
        if not (backups / "copy.db").exists():
            break
        (backups / "copy.db").unlink()  # it was complete before the signal came, also where the command was not over
    assert (running.returncode, output, errors.strip()) == (130, b"", b"Aborted!")
    assert list(backups.iterdir()) == []
