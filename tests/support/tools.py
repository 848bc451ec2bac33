"""What some tests need beside Python: servers, programs and rights. Without it a test is skipped, with the reason.

Under ``--require-engine NAME`` or ``--require-tool NAME`` it fails instead, as in CI.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

TOOLS = ("pgbouncer", "setpriv", "strace", "tmpfs")
"""What ``--require-tool`` takes. ``tmpfs`` is the right to mount one."""

NO_AGENTS_SDK = "the Agents SDK is not installed; none takes the oldest openai, with which nox -s lowest runs"
NO_SCRIPTED_MODEL = "the Agents SDK has no scripted model before 0.21"

_required: dict[str, str] = {}
"""The option that requires it, by name."""


def require(option: str, names: list[str]) -> None:
    """Let each of these fail the tests that miss it."""
    _required.update(dict.fromkeys(names, option))


def is_missing(name: str, reason: str) -> NoReturn:
    """Skip the test that runs now, or fail it where the engine or tool is required."""
    if name in _required:
        pytest.fail(f"{_required[name]} {name}, but {reason}")
    pytest.skip(reason)


def program(name: str) -> str:
    """The path of a program, which may be among those that are meant for root."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        is_missing(name, f"{name} is not installed")
    return found


def need_setpriv_under_root() -> None:
    """Root may use any file; tests that expect a refusal give up that right with setpriv."""
    if os.geteuid() == 0:
        program("setpriv")
