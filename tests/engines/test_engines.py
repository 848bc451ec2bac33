"""A URL leads to its engine, which is imported only then; what leads to none is refused by name."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path
from traceback import format_exception
from typing import Any

import pytest
from processes import run_quietly

from agentmem import AsyncSessionStore, PostgresSession, SessionStore, SQLiteSession
from agentmem.engines import ENGINES, Entry, open_engine, scheme_of
from agentmem.engines.base import Engine
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
        ("sqlite://", {}, ValueError, "names no file; write sqlite:///:memory:"),
        (
            "sqlite:///x.db?timeout=30",
            {},
            ValueError,
            r"no options after a \?; give them by keyword, such as busy_time",
        ),
        ("sqlite:////x.db?mode=ro&cache=shared", {}, ValueError, r"no options after a \?"),
        ("sqlite+aiosqlite:///x.db", {}, ValueError, r"unknown database URL sqlite\+aiosqlite://…"),
        ("postgre://host/x", {}, ValueError, "unknown database URL postgre://…; agentmem knows .*postgresql://"),
        ("x.db", {"timeout": 5}, TypeError, "AsyncSessionStore on sqlite has no option 'timeout'; it has busy_timeout"),
        ("x.db", {"schema": "s"}, TypeError, "AsyncSessionStore on sqlite has no option 'schema'; it has .*durability"),
        ("x.db", {"busy_timeout_s": -1}, ValueError, "busy_timeout_s is a number of seconds, 0 or more, got -1"),
    ],
)
def test_what_leads_to_no_engine_is_refused_by_name(
    db: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        AsyncSessionStore(db, **options)


def test_the_sync_store_names_itself_where_an_option_is_unknown() -> None:
    with pytest.raises(TypeError, match=r"^SessionStore on sqlite has no option 'a', 'b'; it has busy_timeout_s, dur"):
        SessionStore("x.db", a=1, b=2, durability="full")


def test_the_scheme_of_a_url_may_be_in_capitals(tmp_path: Path) -> None:
    assert open_engine(f"SQLite:///{tmp_path / 'x.db'}").key == open_engine(tmp_path / "x.db").key


@pytest.mark.parametrize(
    "db",
    [
        "sqlite://me:hunter2@host/x.db",
        "postgresql+asyncpg://me:hunter2@host/db",
        "me:hunter2@postgresql://host/db",
        "postgres:/me:hunter2@host/db",
        "postgresql:me:hunter2@host/db",
        "me:hunter2@host:5432/db",
        "me:hunter2@host",
        ":hunter2@host/db",
        "me:\nhunter2@host/db",
        "host=h dbname=d password=hunter2",
        "dbname = d\npassword = hunter2",
        Path("postgresql://me:hunter2@host/db"),
        Path("mysql://me:hunter2@host/db"),
    ],
    ids=str,
)
def test_what_looks_like_an_address_with_a_password_is_refused_and_not_shown(db: Any) -> None:
    for make in (AsyncSessionStore, SessionStore, _sqlite_session, _postgres_session):
        with pytest.raises((ValueError, TypeError)) as raised:
            make(db)
        assert "hunter2" not in "".join(format_exception(raised.value))


def _sqlite_session(db: Any) -> SQLiteSession:
    return SQLiteSession(db, session_id="user_123")


def _postgres_session(db: Any) -> PostgresSession:
    return PostgresSession(db, session_id="user_123")


def test_a_driver_that_is_not_installed_is_an_error_whose_message_is_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engine_of_other.py").write_text("import other.connections")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ENGINES, "other", Entry("engine_of_other", "OtherEngine", driver="other"))
    with pytest.raises(MissingDependencyError) as raised:
        AsyncSessionStore("other://host/database")
    assert str(raised.value) == "pip install other"
    assert isinstance(raised.value.__cause__, ImportError)


def test_a_module_that_is_missing_elsewhere_is_not_taken_for_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "other", Entry("agentmem.engines.no_such_module", "OtherEngine", driver="other"))
    with pytest.raises(ModuleNotFoundError, match=r"agentmem\.engines\.no_such_module"):
        AsyncSessionStore("other://host/database")


def test_an_engine_is_imported_with_the_first_database_of_its_kind() -> None:
    script = """
import sys
from agentmem.engines import ENGINES, open_engine
modules = {entry.module for entry in ENGINES.values()}
assert not modules & set(sys.modules)
open_engine(":memory:")
assert modules & set(sys.modules) == {"agentmem.engines.sqlite.engine"}
"""
    assert run_quietly(script) == ""


@pytest.mark.parametrize(
    ("db", "scheme"),
    [
        ("conversations.db", "sqlite"),
        (Path("postgresql:/host/db"), "sqlite"),
        (":memory:", "sqlite"),
        ("sqlite:///conversations.db", "sqlite"),
        ("postgresql://host/db", "postgresql"),
        ("postgres://host/db", "postgresql"),
        ("postgresql://host/db?options=-c%20x%3Dsqlite%3A%2F%2F", "postgresql"),
    ],
    ids=str,
)
def test_a_scheme_its_alias_or_a_path_says_which_engine_serves(db: Any, scheme: str) -> None:
    assert scheme_of(db) == scheme


def test_a_driver_s_own_object_leads_to_its_engine_also_where_its_class_is_another_s() -> None:
    asyncpg = pytest.importorskip("asyncpg", reason="asyncpg is not installed")
    theirs: Any = type("Theirs", (asyncpg.Pool,), {})

    async def make() -> None:
        for pool in (asyncpg.create_pool("postgresql://host/db", min_size=0), theirs.__new__(theirs)):
            assert scheme_of(pool) == "postgresql"
            assert open_engine(pool).name == "the given asyncpg pool"

    asyncio.run(make())


@pytest.mark.parametrize("db", [7, None, object(), b"postgresql://host/db"], ids=lambda db: type(db).__name__)
def test_what_is_neither_a_path_nor_a_driver_s_is_refused(db: Any) -> None:
    with pytest.raises(TypeError):
        AsyncSessionStore(db)


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_is_found_where_the_registry_says(name: str) -> None:
    entry = ENGINES[name]
    if entry.driver:
        pytest.importorskip(entry.driver, reason=f"{entry.driver} is not installed")
    assert issubclass(getattr(import_module(entry.module), entry.name), Engine)
    assert entry.alias not in ENGINES


def test_a_postgresql_url_imports_its_driver_and_nothing_of_sqlite_s() -> None:
    pytest.importorskip("asyncpg", reason="asyncpg is not installed")
    script = """
import sys
from agentmem.engines import open_engine
import agentmem
assert "asyncpg" not in sys.modules
open_engine("postgresql://host/db")
assert "asyncpg" in sys.modules
assert not {"aiosqlite", "agentmem.engines.sqlite.engine"} & set(sys.modules)
"""
    assert run_quietly(script) == ""
