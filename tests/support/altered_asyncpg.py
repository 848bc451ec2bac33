"""A copy of asyncpg whose private attributes have other names, as in a release that was refactored."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

HIDDEN = ("_loop", "_transport")
"""The private attributes that agentmem uses where they are there."""


def alter_asyncpg(folder: Path) -> str:
    """Make the copy in this folder.

    Returns:
        What a script begins with to import it: it fails where the attributes are still there.
    """
    spec = find_spec("asyncpg")
    assert spec is not None
    assert spec.origin is not None
    names = re.compile(rf"\b({'|'.join(HIDDEN)})\b")

    def copy(source: str, target: str) -> None:
        if source.endswith(".py"):
            text = names.sub(r"_altered\1", Path(source).read_text(encoding="utf-8"))
            Path(target).write_text(text, encoding="utf-8")
        else:
            Path(target).symlink_to(source)  # compiled, and large

    left_out = shutil.ignore_patterns("__pycache__", "_testbase")
    shutil.copytree(Path(spec.origin).parent, folder / "asyncpg", copy_function=copy, ignore=left_out)
    return f"""
import sys
sys.path.insert(0, {str(folder)!r})
import asyncpg
assert asyncpg.__file__.startswith({str(folder)!r})
for kind in (asyncpg.Connection, asyncpg.Pool):
    assert not {set(HIDDEN)!r} & set(kind.__slots__), kind
"""
