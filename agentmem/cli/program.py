"""How the command line ends: its exit codes, and one line on stderr for what failed.

=====  ================================================================================================================
code   meaning
=====  ================================================================================================================
0      the command did what it was asked for
1      damage: ``check`` found problems, ``copy`` could not copy all or copied what cannot be read, or a database is
       damaged or is none
2      wrong usage: an unknown command, option or argument, or a value out of range
3      it failed for another reason: no such file, a lock, a full disk, a model that did not answer, a defect
130    interrupted (Ctrl+C), as a shell reports a process that SIGINT ended
141    the reader of the output went away, as a shell reports a process that SIGPIPE ended
=====  ================================================================================================================
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import click

from ..errors import AgentMemError, StorageCorruptError

_PASSWORD = re.compile(r"(://[^\s:@/]*):\S*@")


class ExitCode(IntEnum):
    """The exit codes of every command; see the module."""

    DAMAGE = 1
    USAGE = 2
    FAILED = 3
    INTERRUPTED = 130
    READER_GONE = 141


class ReaderGoneError(Exception):
    """Nobody reads the output any more: the other end of the pipe is closed."""


class _DamageError(click.ClickException):
    exit_code = ExitCode.DAMAGE


class _FailedError(click.ClickException):
    exit_code = ExitCode.FAILED


class _WrongValueError(click.ClickException):
    exit_code = ExitCode.USAGE


class Command(click.Command):
    """A command that ends with one line and an exit code if it fails, and not with a traceback."""

    def invoke(self, context: click.Context) -> object:
        """Run the command; turn agentmem's errors and ValueErrors into click's."""
        try:
            return super().invoke(context)
        except StorageCorruptError as error:
            raise _DamageError(str(error)) from error
        except AgentMemError as error:
            raise _FailedError(str(error)) from error
        except ValueError as error:  # an argument out of range
            raise _WrongValueError(str(error)) from error


class Program(click.Group):
    """All commands. It ends with the exit codes of the module."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command that the arguments name, and end the process; return instead without `standalone_mode`."""
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        try:
            code = run(*args, standalone_mode=False, **extra)
        except click.ClickException as error:
            _show(error)
            code = error.exit_code
        except click.Abort:
            click.echo("Aborted!", err=True)
            code = ExitCode.INTERRUPTED
        except ReaderGoneError:
            _write_nowhere()
            code = ExitCode.READER_GONE
        except OSError as error:  # the output's: the disk that it goes to is full
            click.echo(f"Error: {error}", err=True)
            code = ExitCode.FAILED
        except Exception:  # a defect; Python's own exit code for it would mean damage
            click.echo(traceback.format_exc(), nl=False, err=True)
            code = ExitCode.FAILED
        sys.exit(code if isinstance(code, int) else 0)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the arguments; ``--help`` prints here."""
        with _closed_pipe_named():
            return super().make_context(*args, **extra)

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        with _closed_pipe_named():
            return super().invoke(context)


def _show(error: click.ClickException) -> None:
    """Print an error without passwords: click quotes arguments, which may be URLs."""
    text = io.StringIO()
    error.show(file=text)
    click.echo(_PASSWORD.sub(r"\1@", text.getvalue()), nl=False, err=True)


@contextmanager
def _closed_pipe_named() -> Iterator[None]:
    """Raise ReaderGoneError for a closed pipe, which click would turn into exit code 1."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise ReaderGoneError from error
        raise


def _write_nowhere() -> None:
    """Have what is still buffered for stdout go nowhere; the interpreter would complain at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
