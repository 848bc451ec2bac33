"""The processes of this machine as the system lists them: whose children they are, and whether they run."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from waiting import wait_until


class Process(NamedTuple):
    """One line of the table; `state` is a letter as ``ps`` has it: T is stopped, Z has ended and nobody asked."""

    pid: int
    parent: int
    state: str


def children(pid: int) -> list[int]:
    """The running processes that this one has started."""
    return [process.pid for process in _processes() if process.parent == pid and process.state != "Z"]


def wait_until_stopped(pid: int) -> None:
    """Until the signal that stops it has arrived, or it has ended before."""
    wait_until(lambda: _state(pid) in ("T", "Z", ""))


def wait_until_ended(pid: int) -> None:
    """Until it holds nothing any more; it may remain in the table, where nobody asks how it ended."""
    wait_until(lambda: _state(pid) in ("Z", ""))


def _state(pid: int) -> str:
    return next((process.state for process in _processes(str(pid))), "")


def _processes(pid: str = "") -> Iterator[Process]:
    """All, or this one if there is one."""
    if not os.path.isdir("/proc/self"):
        which = ["-p", pid] if pid else ["-A"]
        told = subprocess.run(["ps", *which, "-o", "pid=,ppid=,state="], capture_output=True, text=True, check=False)
        for line in told.stdout.splitlines():
            number, parent, state = line.split()
            yield Process(int(number), int(parent), state[0])
        return
    for name in [pid] if pid else filter(str.isdecimal, os.listdir("/proc")):  # a slim container has no ps
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # What stands in brackets is the program's name, in which anything may be.
            fields = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()
            yield Process(int(name), int(fields[1]), fields[0].decode())
