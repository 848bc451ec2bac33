"""Child interpreters, which really start, end, fork and are killed; and what a process holds open."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest
from waiting import WAIT_S
from waiting import wait_until as wait_until

import agentmem

SUPPORT = Path(__file__).parent
"""The folder with what the tests share, for the ``sys.path`` of a child."""

STRICT = ("-X", "dev", "-W", "error")
"""Every warning is an error, and asyncio watches itself."""

# Of asyncio's debug messages only the errors: how long a callback took depends on the machine.
# And Ctrl+C works also where the tests run in the background of a shell, which has it ignored.
_PRELUDE = """
import logging, signal
logging.getLogger("asyncio").setLevel(logging.ERROR)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_sigstop = pytest.mark.skipif(os.name != "posix", reason="stopping a process from outside is POSIX's")


class Child:
    """A Python script in a process of its own; killed at the end of the ``with`` if it still runs."""

    def __init__(self, source: str, *args: str | Path, flags: Sequence[str] = STRICT) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *flags, "-c", _PRELUDE + source, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, (Path(agentmem.__file__).parents[1], SUPPORT))),
                "PYTHONIOENCODING": "utf-8",
            },
        )
        self._unread = b""  # of its output

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def read_line(self) -> str:
        """The next line that the child prints; fails with its stderr when it ends instead."""
        assert self._process.stdout is not None
        # Not readline(): communicate() reads past its buffer, and what came together with this line would be lost.
        while b"\n" not in self._unread:
            piece = os.read(self._process.stdout.fileno(), 65536)
            if not piece:
                pytest.fail(f"the child ended early: {self._process.communicate(timeout=WAIT_S)[1]}")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def write_line(self, line: str = "") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def interrupt(self) -> None:
        """What Ctrl+C does."""
        self._process.send_signal(signal.SIGINT)

    def stop(self) -> None:
        """Stop it wherever it is; it holds what it holds until :meth:`go_on` or :meth:`kill`."""
        self._process.send_signal(signal.SIGSTOP)
        self.wait_until_stopped()

    def wait_until_stopped(self) -> None:
        assert os.WIFSTOPPED(os.waitpid(self._process.pid, os.WUNTRACED)[1])

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end; returns its exit code, the rest of its output, and its stderr."""
        try:
            output, errors = self._process.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, errors = self._process.communicate()
            pytest.fail(f"the child did not end by itself; it said {self._unread.decode() + output!r}, {errors!r}")
        return self._process.returncode, self._unread.decode() + output, errors


def run(source: str, *args: str | Path, flags: Sequence[str] = STRICT) -> tuple[int, str, str]:
    """Run a script to its end; returns its exit code, output and stderr."""
    with Child(source, *args, flags=flags) as child:
        return child.finish()


def run_quietly(source: str, *args: str | Path, flags: Sequence[str] = STRICT) -> str:
    """Run a script that must succeed and write nothing to stderr; returns its output."""
    code, output, errors = run(source, *args, flags=flags)
    assert (code, errors) == (0, ""), f"exit code {code}; {errors}; it said {output[-2000:]!r}"
    return output


def writer_lock(path: str | Path) -> Child:
    """Another process in the middle of a write transaction; it commits and ends at the next line written to it."""
    child = Child(_LOCK, path)
    assert child.read_line() == "locked"
    return child


_LOCK = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
other.execute("COMMIT")
other.close()
"""


def running_threads() -> frozenset[threading.Thread]:
    """The threads of this process, for :func:`started_since`."""
    return frozenset(threading.enumerate())


def started_since(before: frozenset[threading.Thread]) -> list[str]:
    """The names of the threads that run now and did not then; one of an earlier test's may have ended meanwhile."""
    return [thread.name for thread in threading.enumerate() if thread not in before and thread.name != "agentmem-end"]


def threads() -> Counter[str]:
    """The threads of this process by name, without the one that waits for the program's end."""
    names = (thread.name for thread in threading.enumerate() if thread.name != "agentmem-end")
    return Counter(name.partition(" (")[2] or name for name in names)


def descriptors() -> Counter[str]:
    """What this process has open, by name; nothing where the system does not tell (only Linux does)."""
    found: Counter[str] = Counter()
    if os.path.isdir("/proc/self/fd"):
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                name = os.readlink(f"/proc/self/fd/{descriptor}")
            except FileNotFoundError:
                continue  # the one that the listing itself used
            found[name.partition(":")[0] if not name.startswith("/") else name] += 1
    return found


def holdings() -> tuple[Counter[str], Counter[str]]:
    """The threads and what is open; equal before and after where nothing leaks."""
    return threads(), descriptors()


def files(path: Path) -> set[str]:
    """What SQLite has left of a database: its file, and -wal and -shm where it was not closed."""
    return {found.name for found in path.parent.iterdir() if found.name.startswith(path.name)}


def holds_again(before: tuple[Counter[str], Counter[str]]) -> None:
    """Nothing more is held than before; a thread that has closed its connection may take a moment to end."""
    deadline = time.monotonic() + WAIT_S
    while (more := [now - then for now, then in zip(holdings(), before, strict=True)]) != [Counter(), Counter()]:
        assert time.monotonic() < deadline, more
        time.sleep(0.001)


KILLED_AT_STEP = """
import os, signal, sys
import agentmem
path, left = sys.argv[1], int(sys.argv[2])

def kill(event, args):
    global left
    if event in ("open", "os.rename", "os.link", "os.remove", "os.chmod", "sqlite3.connect"):
        if any(path in str(arg) or ".agentmem-" in str(arg) for arg in args):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
"""
"""Begins a script, whose first arguments are a file's path and a number: it is killed as it takes the step of that
number with this file or one that is to take its place."""
