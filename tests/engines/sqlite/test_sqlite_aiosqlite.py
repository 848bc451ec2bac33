"""Whatever a release of aiosqlite does within its documented interface, agentmem works and never waits for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from altered_aiosqlite import NAMES, write_copy
from processes import SUPPORT

import agentmem

TESTS = SUPPORT.parent

PLUGIN = """
def pytest_collection_finish():
    import aiosqlite
    from agentmem.engines.sqlite import opening

    assert aiosqlite.__file__.startswith({folder!r})
    opening.LET_GO_S = {let_go_s}
"""
"""Runs in the tests of an altered copy."""


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_the_core_works_on_an_aiosqlite_that_is_other_inside(tmp_path: Path, name: str) -> None:
    write_copy(name, tmp_path)
    # A connection costs the whole of it where aiosqlite never lets go.
    let_go_s = 0.01 if name == "closing never returns" else 5.0
    (tmp_path / "altered.py").write_text(PLUGIN.format(folder=str(tmp_path), let_go_s=let_go_s))
    source = Path(agentmem.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, source, SUPPORT)))}
    files = ["engines/test_conformance.py", "engines/sqlite/test_sqlite_order.py"]
    # Scripts that fork do not run the plugin, and would wait for the whole of LET_GO_S with each connection.
    which = "not postgres and not broken" + (" and not fork" if name == "closing never returns" else "")
    options = ["-q", "-x", "-p", "altered", "-p", "no:cacheprovider", "-k", which]
    options += ["-m", "not exhaustive", "-c", str(TESTS.parent / "pyproject.toml")]
    command = [sys.executable, "-m", "pytest", *options, *(str(TESTS / file) for file in files)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
