"""Commands on files of the OpenAI Agents SDK: ``import-sdk``."""

from __future__ import annotations

import click

from ..blocking import run_blocking
from ..integrations.openai_agents import import_history
from .program import Command
from .terminal import DatabasePath, errors, write


@click.command("import-sdk", cls=Command)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--into", type=DatabasePath(), help="Another database; by default FILE itself.")
@click.option("--sessions-table", default="agent_sessions", show_default=True, help="The SDK's table of sessions.")
@click.option("--messages-table", default="agent_messages", show_default=True, help="The SDK's table of items.")
def import_sdk(file: str, into: str | None, sessions_table: str, messages_table: str) -> None:
    """Take over what the OpenAI Agents SDK's SQLite sessions wrote to FILE.

    The SDK's own rows stay as they are. Run again, it takes what is new.
    """
    done = run_blocking(import_history, file, into=into, sessions_table=sessions_table, messages_table=messages_table)
    write(f"{done.items} items of {done.sessions} sessions taken over into {into or file}.", "green")
    if done.already_taken:
        write(f"{done.already_taken} items had been taken over before.", "dim")
    for session_id in done.skipped:
        write(f"skipped: session {session_id}, an id that agentmem refuses; its items stay in {file}", "red", errors)


COMMANDS = (import_sdk,)
