"""The demonstration: ``demo``."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import click
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table

from ..arguments import check_sqlite_database
from ..items import message_text
from ..replay import SessionSettings
from ..runner import Agent, OfflineModel, Runner, RunResult
from ..sync import Session, SessionStore, SQLiteSession
from .program import Command
from .terminal import DatabasePath, output


@click.command(cls=Command)
@click.option("--db", type=DatabasePath(), help="SQLite file to use and to keep; by default a temporary one.")
def demo(db: str | None) -> None:
    """Show what agentmem does, on a real file; needs no API key."""
    go_on = ["chat", "--offline", "--session", "alice", "--db"]
    if db:
        path = _path_of(db)
        _demonstrate(path)
        output.print("Go on with Alice's conversation:")
        _print_command(*go_on, str(path))
    else:
        with tempfile.TemporaryDirectory(prefix="agentmem-demo-") as folder:
            _demonstrate(Path(folder) / "conversations.db")
        output.print("It was a temporary file, and is gone. Keep one, and go on with it:")
        _print_command("demo", "--db", "demo.db")
        _print_command(*go_on, "demo.db")
    output.print()


def _demonstrate(path: Path) -> None:
    agent = Agent("Assistant", "Answer briefly.", model=OfflineModel())
    output.print(
        "\n[bold]agentmem demo[/]: an agent that remembers, on a real SQLite file. The answers come from a small "
        "offline model that knows only what is replayed to it, so whatever it knows, agentmem remembered."
    )

    _print_heading(1, "Alice introduces herself")
    with SQLiteSession(path, session_id="alice") as alice:
        _say(agent, alice, "My name is Alice and I love Python.")

    _print_heading(2, "Later, a new handle on the same session, as another process would open it")
    with SQLiteSession(path, session_id="alice") as alice:
        _say(agent, alice, "What is my name, and what do I love?")

    _print_heading(3, "Two users in one file know nothing of each other")
    with SessionStore(path) as store:
        for session_id, text in (
            ("alice", "I like cats."),
            ("bob", "I like dogs."),
            ("alice", "What do I like?"),
            ("bob", "What do I like?"),
        ):
            _say(agent, store.session(session_id), text, shows_replayed=False)

    _print_heading(4, "A limit replays only the newest items, and deletes nothing")
    with SQLiteSession(path, session_id="alice", settings=SessionSettings(limit=2)) as limited:
        _say(agent, limited, "What is my name?")
    with SQLiteSession(path, session_id="alice") as alice:
        _say(agent, alice, "What is my name?", shows_replayed=False)
        stored = len(alice.get_items())

    output.print(Rule(style="dim"))
    size_kb = path.stat().st_size / 1000
    output.print(f"All {stored} items of Alice's conversation, and Bob's, are in this file ({size_kb:.0f} kB):")
    output.print(f"  {path}", style="bold", soft_wrap=True, markup=False)


def _print_command(*arguments: str) -> None:
    command = _quote_for_shell([*_this_program(), *arguments])
    output.print(f"  {command}", style="bold", soft_wrap=True, markup=False)


def _path_of(db: str) -> Path:
    """Return the absolute path of the file that a path or URL leads to."""
    return Path(SessionStore(check_sqlite_database(db)).name)


def _this_program() -> list[str]:
    """How this program was started, so that a printed command can be pasted even if the program is not on the PATH."""
    started_as = Path(sys.argv[0])
    if started_as.stem != "agentmem":
        return [sys.executable, "-m", "agentmem"]
    on_path = shutil.which("agentmem")
    is_on_path = on_path is not None and started_as.exists() and started_as.samefile(on_path)
    return ["agentmem"] if is_on_path else [sys.argv[0]]


def _quote_for_shell(command: list[str]) -> str:
    return shlex.join(command) if os.name == "posix" else subprocess.list2cmdline(command)


def _print_heading(number: int, title: str) -> None:
    output.print()
    output.print(Rule(f"[bold]{number}. {escape(title)}[/]", align="left", style="dim"))


def _say(agent: Agent, session: Session, text: str, *, shows_replayed: bool = True) -> None:
    """Run the agent on a text, and print the text, what was replayed to the model, and the answer."""
    result = Runner.run_sync(agent, text, session=session)
    table = Table.grid(padding=(0, 1))
    table.add_row(f"[bold cyan]{escape(session.session_id.capitalize())}[/]", escape(text))
    for line in _describe_replayed(result, shows_replayed):
        table.add_row("", f"[dim]{escape(line)}[/]")
    table.add_row(f"[bold green]{escape(agent.name)}[/]", escape(str(result.final_output)))
    output.print(table)


def _describe_replayed(result: RunResult, shows_items: bool) -> Iterable[str]:
    count = len(result.replayed)
    yield f"replayed to the model before this: {f'{count} items' if count else 'nothing'}"
    if shows_items:
        for item in result.replayed:
            yield f"  {item.get('role', item.get('type'))}: {message_text(item)}"


COMMANDS = (demo,)
