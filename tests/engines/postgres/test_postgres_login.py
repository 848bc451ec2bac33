"""How a URL proves who we are and checks who the server is: passwords and TLS, on a server that demands them."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_database import PostgresDatabase, postgres_database
from postgres_programs import Programs
from postgres_server import PostgresServer

from agentmem import AsyncPostgresSession, PostgresSession
from agentmem.engines import open_engine
from agentmem.errors import StorageError
from agentmem.items import Item

pytest.importorskip("asyncpg", reason="asyncpg is not installed")

from certificates import Certified, certify  # skips where there is no cryptography

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}
PASSWORD = "p/a?s#s@w:o%r d é"
"""All that a URL needs escaped."""


@pytest.fixture(scope="module")
def certified(postgres_server: PostgresServer) -> Certified:
    """The server's certificate; it takes TLS and plain connections from then on."""
    files = certify(postgres_server.folder, postgres_server.host)
    for file in files:
        Programs().hand_over(file)
    postgres_server.configure(ssl="on", ssl_cert_file=files.certificate, ssl_key_file=files.key)
    return files


@pytest.fixture(scope="module")
def closed_server(postgres_server: PostgresServer) -> PostgresServer:
    """The server; it lets `known` in with the password alone, and `unwelcome` not at all."""
    postgres_server.sql(f"CREATE ROLE known LOGIN PASSWORD '{PASSWORD}'; CREATE ROLE unwelcome LOGIN")
    rules = postgres_server.folder / "data" / "pg_hba.conf"
    first = "host all known all scram-sha-256\nhost all unwelcome all reject\n"
    rules.write_text(first + rules.read_text())
    postgres_server.configure(work_mem="4MB")  # has it read its files again
    return postgres_server


@pytest.fixture
def guarded(closed_server: PostgresServer) -> Iterator[PostgresDatabase]:
    """A database in which `known` may create schemas."""
    with postgres_database(closed_server) as database:
        database.sql(f"GRANT CREATE ON DATABASE {database.name} TO known")
        yield database


@pytest.fixture
def encrypted(postgres_server: PostgresServer, certified: Certified) -> Iterator[PostgresDatabase]:
    with postgres_database(postgres_server) as database:
        yield database


def shown(error: BaseException) -> str:
    """All that a log would have of it."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


# Passwords


@pytest.mark.parametrize("how", ["before the host", "as an option"])
async def test_a_password_is_escaped_in_a_url_and_never_shown(guarded: PostgresDatabase, how: str) -> None:
    url = guarded.url_of("known", PASSWORD) if how == "before the host" else guarded.url_of("known", password=PASSWORD)
    async with AsyncPostgresSession(url, session_id="user_123") as session:
        await session.add_items([ONE])
        assert repr(session) == (
            f"<AsyncPostgresSession 'user_123' in postgresql://known@{guarded.server.host}:{guarded.server.port}"
            f"/{guarded.name}>"
        )
        for text in (repr(session.run_key), str(session.run_key), repr(vars(open_engine(url)))):
            assert PASSWORD not in text
            assert "p%2Fa" not in text
            assert "p%2fa" not in text
    assert guarded.stored() == [ONE]


@pytest.mark.parametrize(
    ("role", "password", "match"),
    [
        ("known", "wr0ng-secret", r"password authentication failed for user \"known\".*check the URL's user and passw"),
        ("known", "", r"password authentication failed|no password supplied"),
        ("nobody", "wr0ng-secret", r"role \"nobody\" does not exist.*check the URL's user and password"),
        ("unwelcome", "wr0ng-secret", r"pg_hba\.conf rejects connection.*check the URL's user and password"),
    ],
)
async def test_who_is_not_let_in_is_told_so_at_once_without_the_password(
    guarded: PostgresDatabase, role: str, password: str, match: str
) -> None:
    session = AsyncPostgresSession(guarded.url_of(role, password), session_id="user_123", busy_timeout_s=10_000)
    for call in (session.__aenter__, session.get_items, lambda: session.add_items([ONE])):
        with pytest.raises(StorageError, match=match) as raised:
            await call()
        assert type(raised.value) is StorageError
        assert "wr0ng-secret" not in shown(raised.value)
    await session.close()


def test_the_sync_class_shows_no_password_either(guarded: PostgresDatabase) -> None:
    with PostgresSession(guarded.url_of("known", PASSWORD), session_id="user_123") as session:
        session.add_items([ONE])
        for text in (repr(session), repr(session.run_key), repr(session.async_session)):
            assert PASSWORD not in text
            assert "p%2Fa" not in text


@pytest.mark.parametrize("password", ["hun/ter2", "hun?ter2", "hun#ter2", "hun:ter2", "hun@ter2", "hun/te@r2"])
async def test_a_password_that_is_not_escaped_is_an_error_that_does_not_show_it(password: str) -> None:
    # With "@" it is still a URL, of another host: what that cannot be reached for is said of.
    with pytest.raises((ValueError, StorageError)) as raised:
        async with AsyncPostgresSession(f"postgresql://me:{password}@nowhere.invalid/db", session_id="user_123"):
            pass
    assert "hun" not in shown(raised.value)


# TLS


async def is_encrypted(database: PostgresDatabase, url: str) -> bool:
    """Write and read through this URL, and ask the server how the connections were."""
    async with AsyncPostgresSession(url, session_id="user_123") as session:
        await session.clear_session()
        await session.add_items([ONE])
        assert await session.get_items() == [ONE]
        of_us = f"FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE datname = '{database.name}'"
        (how,) = database.sql(f"SELECT DISTINCT ssl {of_us} AND usename = 'agentmem'").splitlines()
        return how == "t"


@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-ca", "verify-full"])
async def test_sslmode_in_the_url_decides_how_a_connection_is_made(
    encrypted: PostgresDatabase, certified: Certified, mode: str
) -> None:
    options: dict[str, Any] = {"sslrootcert": certified.authority} if mode.startswith("verify") else {}
    assert await is_encrypted(encrypted, encrypted.url_of(sslmode=mode, **options)) == (mode != "disable")


async def test_a_server_that_another_authority_certified_is_refused(
    encrypted: PostgresDatabase, tmp_path: Path
) -> None:
    wrong = certify(tmp_path, encrypted.server.host).authority
    url = encrypted.url_of(sslmode="verify-full", sslrootcert=wrong)
    session = AsyncPostgresSession(url, session_id="user_123", busy_timeout_s=10_000)
    for call in (session.__aenter__, session.get_items):
        with pytest.raises(StorageError, match=r"certificate verify failed.*check .* its certificate"):
            await call()
    await session.close()
    assert encrypted.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'agentmem'") == "0"


async def test_a_server_with_a_certificate_for_another_host_is_refused(
    encrypted: PostgresDatabase, certified: Certified
) -> None:
    url = encrypted.url_of(sslmode="verify-full", sslrootcert=certified.authority)
    with pytest.raises(StorageError, match=r"certificate verify failed.*localhost"):
        async with AsyncPostgresSession(url.replace("127.0.0.1", "localhost"), session_id="user_123"):
            pass


async def test_a_certificate_s_file_that_is_missing_is_an_error_that_says_where_to_look(
    encrypted: PostgresDatabase,
) -> None:
    url = encrypted.url_of(sslmode="verify-full", sslrootcert="/nowhere/root.crt")
    with pytest.raises(StorageError, match=r"No such file.*check .* the files that the URL names"):
        async with AsyncPostgresSession(url, session_id="user_123"):
            pass


async def test_a_server_without_tls_is_refused_where_the_url_requires_it(database: PostgresDatabase) -> None:
    with pytest.raises(StorageError, match="rejected SSL upgrade"):
        async with AsyncPostgresSession(database.url_of(sslmode="require"), session_id="user_123"):
            pass
