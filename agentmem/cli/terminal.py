"""What commands print with: two consoles, lines, a progress bar, reports."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..checking import CheckReport
from ..copying import CopyReport
from ..sync import SessionStore
from .program import ExitCode, ReaderGoneError


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Say that nobody reads any more; rich would end the program with exit code 1."""
        raise ReaderGoneError


# Text is printed as it is: ":cat:" in a path or in a model's answer is not an emoji.
output = _Console(highlight=False, emoji=False)
"""Writes to stdout."""
errors = _Console(highlight=False, emoji=False, stderr=True)
"""Writes to stderr."""


class DatabasePath(click.Path):
    """The type of an argument that names a database: a path or a URL. A database in memory is refused.

    It would be a new one, which is empty and gone when the command ends, so any report on it would be misleading.
    """

    def __init__(self) -> None:
        super().__init__(dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        """Check the argument; a wrong one ends the command with click's exit code 2."""
        if str(value).removeprefix("sqlite:///") == ":memory:":
            self.fail("a database in memory is empty, and gone when the command ends; give a file", param, context)
        return super().convert(value, param, context)


def write(text: str, style: str, console: Console = output) -> None:
    """Print a line. It is not wrapped: a terminal does that itself, and a file or a pipe gets the line as it is."""
    console.print(text, style=style, markup=False, soft_wrap=True)


def database_name(db: str, store: SessionStore) -> str:
    """Return the database as it was given; a URL without its password."""
    return store.name if "://" in db else db


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while the block runs, if stderr is a terminal; yield a function of how much is done, and of how much.

    Args:
        what: the text before the bar.
    """
    if not errors.is_terminal:  # rich before 14.3 ends also a disabled bar with an empty line
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def end_with_report(report: CheckReport | CopyReport, summary: str) -> None:
    """Print the problems, one in a line, and a summary. If there are problems, end with the exit code for damage."""
    for problem in report.problems:
        write(str(problem), "red")
    if report.problem_count > len(report.problems):
        write(f"and {report.problem_count - len(report.problems)} more", "red")
    problems = "1 problem" if report.problem_count == 1 else f"{report.problem_count or 'no'} problems"
    write(f"{summary}: {problems}.", "dim")
    if report.problem_count:
        sys.exit(ExitCode.DAMAGE)
