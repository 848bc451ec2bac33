"""A URL leads to its engine, which is imported only then; what leads to none is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from processes import run_quietly

from agentmem import AsyncSessionStore
from agentmem.engines import ENGINES, Entry, open_engine
from agentmem.errors import MissingDependencyError


@pytest.mark.parametrize("form", ["{}", "sqlite:///{}"])
def test_a_path_and_its_url_lead_to_one_database(tmp_path: Path, form: str) -> None:
    path = tmp_path / "conversations.db"
    assert open_engine(form.format(path)).key == open_engine(path).key


@pytest.mark.parametrize(
    ("db", "options", "error", "message"),
    [
        ("nosql://host/x", {}, ValueError, r"unknown database URL nosql://…; agentmem knows sqlite://"),
        ("sqlite:///", {}, ValueError, "names no file; write sqlite:///:memory:"),
        ("sqlite://x.db", {}, ValueError, r"names a host; write sqlite:///x\.db for a relative path"),
        ("x.db", {"timeout": 5}, TypeError, "timeout"),
        ("x.db", {"busy_timeout_s": -1}, ValueError, "busy_timeout_s is a number of seconds, 0 or more, got -1"),
    ],
)
def test_what_leads_to_no_engine_is_refused_by_name(
    db: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        AsyncSessionStore(db, **options)


def test_a_driver_that_is_not_installed_is_an_error_whose_message_is_the_pip_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ENGINES, "other", Entry("agentmem.engines.no_such_module", "OtherEngine", extra="other"))
    with pytest.raises(MissingDependencyError) as raised:
        AsyncSessionStore("other://host/database")
    assert str(raised.value) == "pip install 'agentmem[other]'"
    assert isinstance(raised.value.__cause__, ImportError)


def test_an_engine_is_imported_with_the_first_database_of_its_kind() -> None:
    script = """
import sys
from agentmem.engines import ENGINES, open_engine
modules = {entry.module for entry in ENGINES.values()}
assert not modules & set(sys.modules)
open_engine(":memory:")
assert modules & set(sys.modules) == {"agentmem.engines.sqlite"}
"""
    assert run_quietly(script) == ""
