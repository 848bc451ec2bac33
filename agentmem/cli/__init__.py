"""The command line. It only parses arguments and prints; everything else is done by the library.

A command is a function in the file of its subject, and is named like the method that it calls. Each file lists its
commands in ``COMMANDS``:

- ``conversations``: commands on one session, or for a person who talks with a model
- ``databases``: commands on a whole database
- ``agents_sdk``: commands on files of the OpenAI Agents SDK
- ``demo``: the demonstration

``terminal`` has what they print with.
"""

from __future__ import annotations

import io
import sys

import click

from ..version import __version__
from . import agents_sdk, conversations, databases, demo


@click.group(help="Conversation memory for agents.")
@click.version_option(__version__, prog_name="agentmem")
def main() -> None:
    """Entry point of the ``agentmem`` command."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show must not end a conversation.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


for command in (*conversations.COMMANDS, *databases.COMMANDS, *agents_sdk.COMMANDS, *demo.COMMANDS):
    main.add_command(command)
