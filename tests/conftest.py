"""What all tests share: where the repository is, what is under test, and how async and property tests run."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import openai
import pytest
from empty_databases import EMPTY_DATABASES, postgres_header
from hypothesis import HealthCheck, settings
from postgres_database import PostgresDatabase, postgres_database
from postgres_server import PostgresServer
from repository import REPO, package_dir
from responses_server import ResponsesServer, responses_server
from waiting import wait_until

from agentmem import AsyncSQLiteSession
from agentmem.engines import ENGINES
from agentmem.engines import open_engine as open_by_url
from agentmem.engines.base import Engine
from agentmem.runner import OpenAIResponsesModel

# New random cases on each run, also under CI, where hypothesis's own profile would repeat the same ones for ever; the
# blob that a failure prints reproduces it. No deadline: a disk flush takes as long as the machine needs.
settings.register_profile(
    "agentmem", deadline=None, derandomize=False, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("agentmem"), max_examples=2_000)
settings.load_profile("agentmem")  # --hypothesis-profile=thorough overrides it


def pytest_report_header() -> str:
    """Which agentmem is tested, and on which databases."""
    return f"agentmem: {package_dir()}, SQLite {sqlite3.sqlite_version}, {postgres_header()}"


def pytest_sessionstart() -> None:
    """Refuse to test the source tree where the caller meant the built wheel."""
    if "AGENTMEM_REPO" in os.environ and package_dir() == REPO / "agentmem":
        raise pytest.UsageError("AGENTMEM_REPO asks for the installed agentmem, but the source tree hides it")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Tests marked ``anyio`` run on asyncio: aiosqlite and the Agents SDK know no other loop."""
    return "asyncio"


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's folder."""
    return REPO


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--require-engine NAME``: an engine whose server is missing fails the run instead of being skipped."""
    parser.addoption("--require-engine", action="append", default=[], choices=sorted(ENGINES), metavar="NAME")


def _is_missing(request: pytest.FixtureRequest, name: str, error: Exception) -> NoReturn:
    if name in request.config.getoption("--require-engine"):
        pytest.fail(f"--require-engine {name}, but there is none: {error}")
    pytest.skip(f"no {name} server here: {error}")


@pytest.fixture(params=sorted(ENGINES))
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each engine in turn."""
    name: str = request.param
    with ExitStack() as until_the_end:
        try:
            url = until_the_end.enter_context(EMPTY_DATABASES[name](tmp_path))
        except OSError as error:
            _is_missing(request, name, error)
        yield url


@contextmanager
def _server(request: pytest.FixtureRequest, **settings: object) -> Iterator[PostgresServer]:
    with ExitStack() as until_the_end:
        try:
            import_module("asyncpg")
            server = until_the_end.enter_context(PostgresServer(**settings))
        except (ImportError, OSError) as error:
            _is_missing(request, "postgresql", error)
        yield server


@pytest.fixture(scope="module")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A PostgreSQL server that the tests of one module may stop, kill and configure; each leaves it as it was."""
    with _server(request) as server:
        yield server


@pytest.fixture(scope="session")
def quiet_postgres_server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A PostgreSQL server that no test stops, kills or configures; each has a database of its own there."""
    with _server(request, fsync="off") as server:  # the power is not cut either
        yield server


@pytest.fixture
def database(quiet_postgres_server: PostgresServer) -> Iterator[PostgresDatabase]:
    """An empty database there; nobody may be connected to it any more when the test is over."""
    with postgres_database(quiet_postgres_server) as empty:
        yield empty


@pytest.fixture(scope="session")
def private_postgres(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A PostgreSQL server that a test may do anything to; :func:`postgres` is it, cleared."""
    # Its processes are killed, never the machine: what it has written is in the system's hands without fsync.
    with _server(request, fsync="off", max_connections=40) as server:
        yield server


@pytest.fixture
def postgres(private_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test's own, with an empty database."""
    server = private_postgres
    yield server
    if not server.is_running:
        server.start()
    server.go_on()
    # What a test leaves open would hold up the next one.
    gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE usename = 'agentmem'"
    wait_until(lambda: server.sql(gone) == "t")
    server.sql("SET client_min_messages = warning; DROP SCHEMA IF EXISTS agentmem CASCADE")


@pytest.fixture
def open_engine(database_url: str) -> Callable[[], Engine]:
    """Opens the same database anew with each call, as another handle would."""
    return lambda: open_by_url(database_url)


@pytest.fixture
def server() -> Iterator[ResponsesServer]:
    """A real server that speaks the Responses API."""
    with responses_server() as running:
        yield running


@pytest.fixture
async def model(server: ResponsesServer) -> AsyncIterator[OpenAIResponsesModel]:
    """A model behind that server, through a real client that does not retry."""
    async with openai.AsyncOpenAI(api_key="k", base_url=server.url, max_retries=0) as client:
        yield OpenAIResponsesModel("test-model", client)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """Where the session's file is."""
    return tmp_path / "conversations.db"


@pytest.fixture
async def session(db: Path) -> AsyncIterator[AsyncSQLiteSession]:
    """A real session that is open."""
    async with AsyncSQLiteSession(db, session_id="user_123") as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database may be made; there is none yet."""
    return tmp_path / "conversations.db"
