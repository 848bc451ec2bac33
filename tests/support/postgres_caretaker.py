"""Whoever outlives the tests to end their PostgreSQL server: also where they are killed, nothing of it is left.

A process of its own, which waits for the end of a pipe that only the tests' process writes to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from process_table import children, wait_until_ended


class Caretaker:
    """Looks after one server until :meth:`dismiss`.

    Args:
        folder: the server's, which is removed at the end.
    """

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl+C is for the tests
        )

    def watch(self, postmaster: int) -> None:
        """The server's process from now on; 0 while it does not run."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{postmaster}\n")
        self._process.stdin.flush()

    def dismiss(self) -> None:
        """End what it looks after, as at the end of the tests' process; returns when that is done."""
        self._process.communicate()


def main(folder: str) -> None:
    """What the caretaker's process does."""
    postmaster = int((sys.stdin.read().split() or ["0"])[-1])
    if postmaster:
        with contextlib.suppress(ProcessLookupError):
            for process in (postmaster, *children(postmaster)):
                os.kill(process, signal.SIGCONT)  # they may be frozen
            os.kill(postmaster, signal.SIGQUIT)
            wait_until_ended(postmaster)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
