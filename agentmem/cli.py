"""The command line: parsing and printing only; what it does is the library's."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.rule import Rule
from rich.table import Table

from .blocking import run_blocking
from .checking import CheckReport
from .copying import CopyReport
from .errors import AgentMemError, ModelError
from .integrations.openai_agents import import_history
from .items import message_text
from .replay import SessionSettings
from .runner import Agent, Model, OfflineModel, Runner, RunResult
from .sync import Session, SessionStore, SQLiteSession
from .version import __version__

# Text is shown as it is: ":cat:" in a path or in what a model says is no emoji.
_console = Console(highlight=False, emoji=False)
_errors = Console(highlight=False, emoji=False, stderr=True)


class _Command(click.Command):
    """A command whose failures are one line to a person and exit code 1, not a traceback."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except (AgentMemError, ValueError) as error:
            raise click.ClickException(str(error)) from error


@click.group(help="Conversation memory for agents.")
@click.version_option(__version__, prog_name="agentmem")
def main() -> None:
    """Entry point of the ``agentmem`` command."""
    for stream in (sys.stdout, sys.stderr):
        # What this terminal has no character for must not end a conversation.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


@main.command(cls=_Command)
@click.option("--db", type=click.Path(dir_okay=False), help="SQLite file to use; by default a new temporary one.")
def demo(db: str | None) -> None:
    """Show what agentmem does, on a real file; needs no API key."""
    path = Path(db).absolute() if db else Path(tempfile.mkdtemp(prefix="agentmem-demo-")) / "conversations.db"
    agent = Agent("Assistant", "Answer briefly.", model=OfflineModel())
    _console.print(
        "\n[bold]agentmem demo[/]: an agent that remembers, on a real SQLite file. The answers come from a small "
        "offline model that knows only what is replayed to it, so whatever it knows, agentmem remembered."
    )

    _chapter(1, "Alice introduces herself")
    with SQLiteSession(path, session_id="alice") as alice:
        _say(agent, alice, "My name is Alice and I love Python.")

    _chapter(2, "Later, a new handle on the same session, as another process would open it")
    with SQLiteSession(path, session_id="alice") as alice:
        _say(agent, alice, "What is my name, and what do I love?")

    _chapter(3, "Two users in one file know nothing of each other")
    with SessionStore(path) as store:
        for session_id, text in (
            ("alice", "I like cats."),
            ("bob", "I like dogs."),
            ("alice", "What do I like?"),
            ("bob", "What do I like?"),
        ):
            _say(agent, store.session(session_id), text, in_full=False)

    _chapter(4, "A limit replays only the newest items, and deletes nothing")
    with SQLiteSession(path, session_id="alice", settings=SessionSettings(limit=2)) as limited:
        _say(agent, limited, "What is my name?")
    with SQLiteSession(path, session_id="alice") as alice:
        _say(agent, alice, "What is my name?", in_full=False)
        stored = len(alice.get_items())

    _console.print(Rule(style="dim"))
    size_kb = path.stat().st_size / 1000
    _console.print(f"All {stored} items of Alice's conversation, and Bob's, are in this file ({size_kb:.0f} kB):")
    _console.print(f"  {path}", style="bold", soft_wrap=True, markup=False)
    _console.print("Go on with Alice's conversation:")
    command = _shell_form([*_this_command(), "chat", "--offline", "--session", "alice", "--db", str(path)])
    _console.print(f"  {command}\n", style="bold", soft_wrap=True, markup=False)


@main.command(cls=_Command)
@click.option("--session", "session_id", default="default", show_default=True, help="Which conversation.")
@click.option(
    "--db",
    type=click.Path(dir_okay=False),
    default="conversations.db",
    show_default=True,
    help="SQLite file, or the URL of a database.",
)
@click.option("--model", help="Name of a model; OPENAI_API_KEY and OPENAI_BASE_URL say where it is.")
@click.option("--offline", is_flag=True, help="A small rule-based model instead: no network, no key.")
def chat(session_id: str, db: str, model: str | None, offline: bool) -> None:
    """Talk to a model that remembers; an empty line or Ctrl+D ends.

    The exit code is 1 if the last message got no answer.
    """
    if offline and model:
        raise click.UsageError("--offline and --model exclude each other")
    chosen: str | Model | None = OfflineModel() if offline else model
    agent = Agent("Assistant", "You are a helpful assistant. Answer briefly.", model=chosen)
    answered = True
    store = SessionStore(db)
    session = store.session(session_id)
    with store:
        remembered = len(session.get_items())
        _write(f"Session {session_id!r} in {_shown(db, store)}: {remembered} items so far.", "dim")
        while text := _ask():
            try:
                result = Runner.run_sync(agent, text, session=session)
            except AgentMemError as error:
                # No reason to leave: the same words can be said again.
                answered = False
                _write(f"error: {error}", "red", _errors)
                if isinstance(error, ModelError) and not (offline or model):
                    _write("(--offline answers without a key, by a few rules)", "dim", _errors)
            else:
                answered = True
                _write(f"{agent.name}: {result.final_output}", "green")
    if not answered:
        sys.exit(1)


@main.command("import-sdk", cls=_Command)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--into", type=click.Path(dir_okay=False), help="Another database; by default FILE itself.")
@click.option("--sessions-table", default="agent_sessions", show_default=True, help="The SDK's table of sessions.")
@click.option("--messages-table", default="agent_messages", show_default=True, help="The SDK's table of items.")
def import_sdk(file: str, into: str | None, sessions_table: str, messages_table: str) -> None:
    """Take over what the OpenAI Agents SDK's SQLite sessions wrote to FILE.

    The SDK's own rows stay as they are. Run again, it takes what is new.
    """
    done = run_blocking(import_history, file, into=into, sessions_table=sessions_table, messages_table=messages_table)
    _write(f"{done.items} items of {done.sessions} sessions taken over into {into or file}.", "green")
    if done.already_taken:
        _write(f"{done.already_taken} items had been taken over before.", "dim")
    for session_id in done.skipped:
        _write(f"skipped: session {session_id}, an id that agentmem refuses; its items stay in {file}", "red", _errors)


@main.command(cls=_Command)
@click.argument("file", type=click.Path(dir_okay=False))
def check(file: str) -> None:
    """Say what is wrong with the sessions in FILE; the exit code is 1 if anything is.

    FILE, which may be the URL of a database, is only read, while others may write to it.
    """
    with closing(SessionStore(file)) as store, _progress_bar("checking") as progress:
        report = store.check(progress=progress)
    _end_with(report, f"{report.items} items of {report.sessions} sessions in {_shown(file, store)}")


@main.command(cls=_Command)
@click.argument("file", type=click.Path(dir_okay=False))
@click.argument("target", type=click.Path(dir_okay=False))
def backup(file: str, target: str) -> None:
    """Copy FILE to TARGET, a new file, while others may write to it."""
    SessionStore(file).backup(target)
    _write(f"{file} copied to {target} ({Path(target).expanduser().stat().st_size / 1000:.0f} kB).", "green")


@main.command(cls=_Command)
@click.argument("source", type=click.Path(dir_okay=False))
@click.argument("target", type=click.Path(dir_okay=False))
def copy(source: str, target: str) -> None:
    """Copy every session from SOURCE to TARGET, each a file or the URL of a database.

    Run again, it copies what is new. A session that differs in TARGET is left as it is there, and named; the exit code
    is 1 then. SOURCE is only read, while others may write to it. The times at which items were stored are not copied.
    """
    with (
        closing(SessionStore(source)) as store,
        closing(SessionStore(target)) as other,
        _progress_bar("copying") as progress,
    ):
        report = store.copy_to(other, progress=progress)
    already = f", {report.already_there} were there already" if report.already_there else ""
    _end_with(report, f"{report.items} items copied{already}; {report.sessions} sessions in the source")


def _shown(db: str, store: SessionStore) -> str:
    """The database as it was given, but for the password in a URL."""
    return store.name if "://" in db else db


@contextmanager
def _progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar in a terminal, gone at the end; yields what is to be told how much is done, of how much."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_errors, transient=True, disable=not _errors.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _end_with(report: CheckReport | CopyReport, summary: str) -> None:
    """The problems, one a line, then the summary; ends with code 1 where there are any."""
    for problem in report.problems:
        _write(str(problem), "red")
    if report.problem_count > len(report.problems):
        _write(f"and {report.problem_count - len(report.problems)} more", "red")
    problems = "1 problem" if report.problem_count == 1 else f"{report.problem_count or 'no'} problems"
    _write(f"{summary}: {problems}.", "dim")
    if report.problem_count:
        sys.exit(1)


def _ask() -> str:
    try:
        return _console.input("[bold]you>[/] ").strip()
    except (EOFError, KeyboardInterrupt):
        _console.print()
        return ""


def _write(text: str, style: str, console: Console = _console) -> None:
    # Never wrapped: a terminal does that itself, and a file or a pipe gets what was said.
    console.print(text, style=style, markup=False, soft_wrap=True)


def _this_command() -> list[str]:
    """How this program was called, so that a line with it can be pasted, also where it is not on the PATH."""
    called = Path(sys.argv[0])
    if called.stem != "agentmem":
        return [sys.executable, "-m", "agentmem"]
    found = shutil.which("agentmem")
    return ["agentmem"] if found and called.exists() and called.samefile(found) else [sys.argv[0]]


def _shell_form(command: list[str]) -> str:
    return shlex.join(command) if os.name == "posix" else subprocess.list2cmdline(command)


def _chapter(number: int, title: str) -> None:
    _console.print()
    _console.print(Rule(f"[bold]{number}. {escape(title)}[/]", align="left", style="dim"))


def _say(agent: Agent, session: Session, text: str, *, in_full: bool = True) -> None:
    result = Runner.run_sync(agent, text, session=session)
    table = Table.grid(padding=(0, 1))
    table.add_row(f"[bold cyan]{escape(session.session_id.capitalize())}[/]", escape(text))
    for line in _replayed(result, in_full):
        table.add_row("", f"[dim]{escape(line)}[/]")
    table.add_row(f"[bold green]{escape(agent.name)}[/]", escape(str(result.final_output)))
    _console.print(table)


def _replayed(result: RunResult, in_full: bool) -> Iterable[str]:
    count = len(result.replayed)
    yield f"replayed to the model before this: {f'{count} items' if count else 'nothing'}"
    if in_full:
        for item in result.replayed:
            yield f"  {item.get('role', item.get('type'))}: {message_text(item)}"
