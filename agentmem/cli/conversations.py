"""Commands for conversations: ``chat``."""

from __future__ import annotations

import sys

import click

from ..errors import AgentMemError, ModelError
from ..runner import Agent, Model, OfflineModel, Runner
from ..runner.responses_api import DEFAULT_MODEL
from ..sync import SessionStore
from .program import Command, ExitCode
from .terminal import database_name, errors, output, write


@click.command(cls=Command)
@click.option("--session", "session_id", default="default", show_default=True, help="Which conversation.")
@click.option(
    "--db",
    type=click.Path(dir_okay=False),
    default="conversations.db",
    show_default=True,
    help="SQLite file, or the URL of a database.",
)
@click.option(
    "--model",
    help="Name of a model; OPENAI_API_KEY and OPENAI_BASE_URL say where it is. "
    f"Default: OPENAI_DEFAULT_MODEL, else {DEFAULT_MODEL}.",
)
@click.option("--offline", is_flag=True, help="A small rule-based model instead: no network, no key.")
def chat(session_id: str, db: str, model: str | None, offline: bool) -> None:
    """Talk to a model that remembers; an empty line or Ctrl+D ends.

    The exit code is 3 if the last message got no answer.
    """
    if offline and model:
        raise click.UsageError("--offline and --model exclude each other")
    chosen_model: str | Model | None = OfflineModel() if offline else model
    agent = Agent("Assistant", "You are a helpful assistant. Answer briefly.", model=chosen_model)
    was_answered = True
    store = SessionStore(db)
    session = store.session(session_id)
    with store:
        stored_count = len(session.get_items())
        write(f"Session {session_id!r} in {database_name(db, store)}: {stored_count} items so far.", "dim")
        while text := _ask():
            try:
                result = Runner.run_sync(agent, text, session=session)
            except AgentMemError as error:
                # The conversation goes on, because the user can send the same words again.
                was_answered = False
                write(f"error: {error}", "red", errors)
                if isinstance(error, ModelError) and not (offline or model):
                    write("(--offline answers without a key, by a few rules)", "dim", errors)
            else:
                was_answered = True
                write(f"{agent.name}: {result.final_output}", "green")
    if not was_answered:
        sys.exit(ExitCode.FAILED)


def _ask() -> str:
    """Read a line; "" at the end of the input. There is a prompt where a person types, and none in a pipe or a file."""
    is_typed = sys.stdin.isatty()
    console = output if sys.stdout.isatty() else errors
    try:
        return (console.input("[bold]you>[/] ") if is_typed else input()).strip()
    except (EOFError, KeyboardInterrupt):
        if is_typed:
            console.print()  # the prompt's line ends here
        return ""


COMMANDS = (chat,)
