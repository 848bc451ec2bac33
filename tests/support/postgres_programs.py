"""PostgreSQL's own programs: where they are, and how a test runs them. Needs the standard library alone.

``python3 tests/support/postgres_programs.py`` says where they are, or fails where there are none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from waiting import WAIT_S

if os.name == "posix":
    import pwd

NEEDED = ("postgres", "initdb", "pg_basebackup", "psql")

# Nothing that says which other server the tests' user works with, and messages in English.
ENVIRONMENT = {**{name: value for name, value in os.environ.items() if not name.startswith("PG")}, "LC_ALL": "C"}


def find_folder() -> Path:
    """The folder with PostgreSQL's programs: on PATH, where ``pg_config`` says, or Debian's newest.

    Raises:
        OSError: there is none with all of them.
    """
    for folder in _candidates():
        if all(shutil.which(program, path=str(folder)) for program in NEEDED):
            return folder
    raise OSError("no PostgreSQL programs on PATH, at `pg_config --bindir` or in /usr/lib/postgresql")


def _candidates() -> Iterator[Path]:
    yield from map(Path, os.get_exec_path())
    with contextlib.suppress(OSError):
        told = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, timeout=WAIT_S, check=False)
        if told.returncode == 0:
            yield Path(told.stdout.strip())
    releases = [p for p in Path("/usr/lib/postgresql").glob("*/bin") if p.parent.name.isdecimal()]
    yield from sorted(releases, key=lambda p: int(p.parent.name), reverse=True)


class Programs:
    """The programs, run in a folder that is theirs.

    PostgreSQL refuses to run as root; root starts its programs as ``postgres``, or where there is none as ``nobody``.

    Raises:
        OSError: this machine has none, or may not run them.
    """

    def __init__(self) -> None:
        if os.name != "posix":
            raise OSError("a private PostgreSQL server is started and stopped with POSIX signals")
        self._folder = find_folder()
        self._as_another: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = _unprivileged()
            self._as_another = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()}

    def hand_over(self, folder: Path) -> None:
        """Make a folder theirs."""
        if self._as_another:
            os.chown(folder, self._as_another["user"], self._as_another["group"])

    def start(self, program: str, *args: str, folder: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start one that goes on running. Ctrl+C is not for it: the tests get it, and stop what they started."""
        with log.open("ab") as output:
            return subprocess.Popen(
                [str(self._folder / program), *args],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=ENVIRONMENT,
                start_new_session=True,
                **self._as_another,
            )

    def run(self, program: str, *args: str, folder: Path) -> str:
        """Run one to its end; returns its output.

        Raises:
            RuntimeError: it failed; the message is its own.
        """
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [str(self._folder / program), *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=WAIT_S,
            check=False,
            cwd=folder,
            env=ENVIRONMENT,
            **self._as_another,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {(done.stderr or done.stdout).strip()}")
        return done.stdout


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise OSError("PostgreSQL does not run as root, and there is no user postgres or nobody")


if __name__ == "__main__":
    try:
        print(find_folder())
    except OSError as error:
        sys.exit(str(error))
