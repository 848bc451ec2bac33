"""The command line. It only parses arguments and prints; everything else is done by the library.

A command is a function in the file of its subject, and is named like the method that it calls. Each file lists its
commands in ``COMMANDS``:

- ``conversations``: commands on one session, or for a person who talks with a model
- ``databases``: commands on a whole database
- ``agents_sdk``: commands on files of the OpenAI Agents SDK
- ``demo``: the demonstration

``program`` has their exit codes, ``terminal`` what they print with.
"""

from __future__ import annotations

import io
import sys

import click

from ..version import __version__
from . import agents_sdk, conversations, databases, demo
from .program import Program

_EXIT_CODES = (
    "Exit codes: 0 done; 1 damage (check and copy name it); 2 wrong usage; 3 failed, such as a missing file; "
    "130 interrupted; 141 the reader of the output went away."
)


@click.group(cls=Program, help="Conversation memory for agents.", epilog=_EXIT_CODES)
@click.version_option(__version__, prog_name="agentmem")
def main() -> None:
    """Entry point of the ``agentmem`` command."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show must not end a conversation.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


for command in (*conversations.COMMANDS, *databases.COMMANDS, *agents_sdk.COMMANDS, *demo.COMMANDS):
    main.add_command(command)
