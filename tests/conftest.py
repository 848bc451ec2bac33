"""What all tests share: where the repository is, what is under test, and how async and property tests run."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import openai
import pytest
import tools
from empty_databases import POSTGRES_URL, ask, empty_schema, postgres_header
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
from agentmem.engines.sqlite.connection import open_connections
from agentmem.runner import OpenAIResponsesModel

# New random cases on each run, also under CI, where hypothesis's own profile would repeat the same ones for ever; the
# blob that a failure prints reproduces it. No deadline: a disk flush takes as long as the machine needs.
settings.register_profile(
    "agentmem",
    max_examples=25,
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("exhaustive", settings.get_profile("agentmem"), max_examples=200)
settings.register_profile("thorough", settings.get_profile("agentmem"), max_examples=2_000)
settings.load_profile("agentmem")  # --hypothesis-profile=exhaustive overrides it, or =thorough


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


@pytest.fixture(autouse=True)
def _leaves_no_connection() -> Iterator[None]:
    """A connection that one test leaves open fails others that count them, whichever run after it in its process."""
    before = open_connections()
    yield
    wait_until(lambda: not set(open_connections()) - set(before))


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's folder."""
    return REPO


REQUIREMENTS = {"--require-engine": sorted(ENGINES), "--require-tool": sorted(tools.TOOLS)}


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options under which what is missing fails the tests that need it, instead of skipping them."""
    for option, names in REQUIREMENTS.items():
        what = f"fail the tests that miss it, instead of skipping them: {', '.join(names)}"
        parser.addoption(option, action="append", default=[], choices=names, metavar="NAME", help=what)


def pytest_configure(config: pytest.Config) -> None:
    """Tell the tests what they may not be skipped for."""
    for option in REQUIREMENTS:
        tools.require(option, config.getoption(option))


_left_out = pytest.StashKey[int]()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count what ``-m "not exhaustive"`` leaves out."""
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.config.stash[_left_out] = item.config.stash.get(_left_out, 0) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Each process of pytest-xdist has left out the same; the one that reports hears of it here."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(_left_out, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The other end of :func:`pytest_sessionfinish`. A process that crashed has nothing to tell."""
    node.config.stash[_left_out] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out, and what runs it."""
    if left_out := config.stash.get(_left_out, 0):
        terminalreporter.section("left out", sep="-")
        terminalreporter.write_line(f"{left_out} exhaustive tests: nox -s tests_exhaustive")


@pytest.fixture(params=sorted(ENGINES))
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each engine in turn, from the fixture that is named after it."""
    url: str = request.getfixturevalue(f"empty_{request.param}")
    return url


@pytest.fixture
def empty_sqlite(tmp_path: Path) -> str:
    """A file that there is not yet."""
    return f"sqlite:///{tmp_path / 'sessions.db'}"


@pytest.fixture
def empty_postgresql(postgres_url: str) -> Iterator[str]:
    """A schema of the test's own."""
    with empty_schema(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> str:
    """A database in which schemas may be made: the one that AGENTMEM_TEST_POSTGRES names, or a private server's."""
    if POSTGRES_URL is None:
        return str(request.getfixturevalue("quiet_postgres_server").url)
    try:
        ask(POSTGRES_URL, "SELECT 1")
    except (ImportError, OSError) as error:
        tools.is_missing("postgresql", f"there is no PostgreSQL server: {error}")
    return POSTGRES_URL


@contextmanager
def _server(**settings: object) -> Iterator[PostgresServer]:
    with ExitStack() as until_the_end:
        try:
            import_module("asyncpg")
            server = until_the_end.enter_context(PostgresServer(**settings))
        except (ImportError, OSError) as error:
            tools.is_missing("postgresql", f"there is no PostgreSQL server: {error}")
        yield server


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server that the tests of one module may stop, kill and configure; each leaves it as it was."""
    with _server() as server:
        yield server


@pytest.fixture(scope="session")
def quiet_postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server that no test stops, kills or configures; each has a database of its own there."""
    with _server(fsync="off") as server:  # the power is not cut either
        yield server


@pytest.fixture
def database(quiet_postgres_server: PostgresServer) -> Iterator[PostgresDatabase]:
    """An empty database there; nobody may be connected to it any more when the test is over."""
    with postgres_database(quiet_postgres_server) as empty:
        yield empty


@pytest.fixture(scope="session")
def private_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that a test may do anything to; :func:`postgres` is it, cleared."""
    # Its processes are killed, never the machine: what it has written is in the system's hands without fsync.
    with _server(fsync="off", max_connections=40) as server:
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
