"""Commands on a whole database: ``check``, ``backup``, ``restore``, ``upgrade``, ``copy``."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from ..sync import SessionStore
from ..sync import restore as restore_backup
from ..sync import upgrade as upgrade_database
from .program import Command
from .terminal import DatabasePath, database_name, end_with_report, progress_bar, write


@click.command(cls=Command)
@click.argument("file", type=DatabasePath())
def check(file: str) -> None:
    """Say what is wrong with the sessions in FILE; the exit code is 1 if anything is.

    FILE, which may be the URL of a database, is only read, while others may write to it.
    """
    with closing(SessionStore(file)) as store, progress_bar("checking") as progress:
        report = store.check(progress=progress)
    end_with_report(report, f"{report.items} items of {report.sessions} sessions in {database_name(file, store)}")


@click.command(cls=Command)
@click.argument("file", type=DatabasePath())
@click.argument("target", type=DatabasePath())
def backup(file: str, target: str) -> None:
    """Copy FILE to TARGET, a new file, while others may write to it."""
    SessionStore(file).backup(target)
    write(f"{file} copied to {target} ({Path(target).expanduser().stat().st_size / 1000:.0f} kB).", "green")


@click.command(cls=Command)
@click.argument("backup", type=DatabasePath())
@click.argument("target", type=DatabasePath())
def restore(backup: str, target: str) -> None:
    """Put BACKUP in the place of the database TARGET, whole or not at all.

    Nobody may have TARGET open. A WAL that a crash left beside it is removed.
    """
    restore_backup(backup, target)
    write(f"{target} restored from {backup}.", "green")


@click.command(cls=Command)
@click.argument("db", type=DatabasePath())
def upgrade(db: str) -> None:
    """Bring the database DB of an older version to this one, whole or not at all.

    Opening a database does this by itself, except for an SQLite file of more than 100 MB. Nobody may have DB open, and
    its folder needs room for a second one.
    """
    with progress_bar("upgrading") as progress:
        upgrade_database(db, progress=progress)
    write(f"{db} has the newest version.", "green")


@click.command(cls=Command)
@click.argument("source", type=DatabasePath())
@click.argument("target", type=DatabasePath())
def copy(source: str, target: str) -> None:
    """Copy every session from SOURCE to TARGET, each a file or the URL of a database.

    Run again, it copies what is new. A session that differs in TARGET is left as it is there, and named, and so is an
    item that cannot be read, which is copied as it is; the exit code is 1 then. SOURCE is only read, while others may
    write to it. The times at which items were stored are not copied.
    """
    with (
        closing(SessionStore(source)) as store,
        closing(SessionStore(target)) as other,
        progress_bar("copying") as progress,
    ):
        report = store.copy_to(other, progress=progress)
    already = f", {report.already_there} were there already" if report.already_there else ""
    end_with_report(report, f"{report.items} items copied{already}; {report.sessions} sessions in the source")


COMMANDS = (check, backup, restore, upgrade, copy)
