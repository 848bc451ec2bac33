"""The private PostgreSQL server does what the tests of the engine take for granted."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from postgres_server import IDLE, PostgresServer
from process_table import wait_until_ended
from processes import SUPPORT, Child
from tcp_proxy import TcpProxy
from waiting import WAIT_S, wait_until

pytestmark = pytest.mark.exhaustive

_STARTUP = b"\x00\x00\x00\x25\x00\x03\x00\x00user\x00agentmem\x00database\x00test\x00\x00"


@pytest.fixture
def server(postgres_server: PostgresServer) -> PostgresServer:
    """The module's, with an empty table."""
    postgres_server.sql("DROP TABLE IF EXISTS numbers; CREATE TABLE numbers (n int); GRANT ALL ON numbers TO agentmem")
    return postgres_server


class Client:
    """One connection, in the protocol itself, without any driver's opinion of it."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        try:
            self._socket.sendall(_STARTUP)
            self.read_to(IDLE)
        except BaseException:
            self.close()
            raise

    def send(self, statement: str) -> None:
        text = statement.encode() + b"\x00"
        self._socket.sendall(b"Q" + (len(text) + 4).to_bytes(4, "big") + text)

    def read_to(self, end: bytes) -> bytes:
        """What comes up to these bytes; ConnectionError where the connection ends before."""
        answer = b""
        while end not in answer:
            answer += (more := self._socket.recv(1 << 16))
            if not more:
                raise ConnectionAbortedError(answer.decode(errors="replace"))
        return answer

    def ask(self, statement: str) -> bytes:
        self.send(statement)
        return self.read_to(IDLE)

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def client(port: int) -> Iterator[Client]:
    with contextlib.closing(Client(port)) as connected:
        yield connected


def test_its_url_leads_to_a_database_that_the_role_owns_and_to_no_more(server: PostgresServer) -> None:
    parts = urlsplit(server.url)
    assert (parts.scheme, parts.username, parts.port, parts.path) == ("postgresql", "agentmem", server.port, "/test")
    with client(server.port) as connected:
        assert b"CREATE SCHEMA" in connected.ask("CREATE SCHEMA own; DROP SCHEMA own; CREATE SCHEMA own")
        assert b"permission denied" in connected.ask("ALTER SYSTEM SET work_mem = '1MB'")
    assert server.sql("SELECT current_user; DROP SCHEMA own; SELECT 1, NULL, 'a'") == "postgres\n1||a"


def test_a_statement_that_fails_says_why(server: PostgresServer) -> None:
    with pytest.raises(RuntimeError, match='relation "none" does not exist'):
        server.sql("SELECT * FROM none; DROP TABLE numbers")
    assert server.sql("SELECT count(*) FROM numbers") == "0"


@pytest.mark.parametrize("how", ["fast", "immediate", "kill", "kill frozen"])
def test_however_it_ends_connections_end_and_what_was_committed_is_there_when_it_starts_again(
    server: PostgresServer, how: str
) -> None:
    with client(server.port) as connected, client(server.port) as open_transaction:
        connected.ask("INSERT INTO numbers VALUES (1)")
        open_transaction.send("BEGIN; INSERT INTO numbers VALUES (2)")
        open_transaction.read_to(b"Z\x00\x00\x00\x05T")
        if how == "kill frozen":
            server.freeze()
        if how.startswith("kill"):
            server.kill()
        else:
            server.stop(how)
        assert not server.is_running
        with pytest.raises(ConnectionError):
            connected.ask("SELECT 1")
        with pytest.raises(ConnectionRefusedError):
            Client(server.port)
    server.start()
    assert server.sql("SELECT n FROM numbers") == "1"


def test_frozen_it_keeps_connections_and_answers_when_it_goes_on(server: PostgresServer) -> None:
    with client(server.port) as connected:
        server.freeze()
        connected.send("INSERT INTO numbers VALUES (1)")
        with socket.create_connection((server.host, server.port), timeout=WAIT_S):
            pass  # the system takes connections for it
        server.go_on()
        assert b"INSERT 0 1" in connected.read_to(IDLE)


def test_a_setting_holds_for_open_and_new_connections_until_the_end_of_the_with(server: PostgresServer) -> None:
    with client(server.port) as connected:
        with server.configured(default_transaction_read_only=True):
            assert b"read-only transaction" in connected.ask("INSERT INTO numbers VALUES (1)")
            with client(server.port) as new:
                assert b"read-only transaction" in new.ask("INSERT INTO numbers VALUES (1)")
        assert b"INSERT 0 1" in connected.ask("INSERT INTO numbers VALUES (1)")


def test_a_setting_that_needs_a_restart_gets_one_and_controls_work_where_no_connection_is_left(
    server: PostgresServer,
) -> None:
    with contextlib.ExitStack() as until_the_end, server.configured(max_connections=5):
        for _ in range(2):  # three are kept for superusers
            until_the_end.enter_context(client(server.port))
        with pytest.raises(ConnectionAbortedError, match="remaining connection slots"):
            Client(server.port)
        assert server.sql("SHOW max_connections") == "5"
    assert server.sql("SHOW max_connections") == "100"


def test_a_wrong_setting_is_refused_by_name(server: PostgresServer) -> None:
    with pytest.raises(RuntimeError, match="unrecognized configuration parameter"):
        server.configure(no_such=1)


def test_a_standby_follows_and_can_be_read_and_takes_over_when_it_is_promoted(server: PostgresServer) -> None:
    with server.standby() as standby:
        server.sql("INSERT INTO numbers VALUES (1)")
        standby.catch_up()
        with client(standby.port) as connected:
            assert b"SELECT 1" in connected.ask("SELECT n FROM numbers")
            assert b"read-only transaction" in connected.ask("INSERT INTO numbers VALUES (2)")
            server.kill()
            standby.promote()
            assert b"INSERT 0 1" in connected.ask("INSERT INTO numbers VALUES (2)")
        assert standby.sql("SELECT n FROM numbers ORDER BY n") == "1\n2"
    server.start()
    assert server.sql("SELECT n FROM numbers") == "1"


@pytest.mark.parametrize("is_executed", [False, True])
def test_behind_the_proxy_a_statement_can_be_committed_or_not_and_its_client_knows_neither(
    server: PostgresServer, is_executed: bool
) -> None:
    with TcpProxy(server.port) as proxy, client(proxy.port) as connected:
        connected.ask("SELECT 1")
        moment = proxy.cut_after(b"INSERT", answer=IDLE) if is_executed else proxy.cut_before(b"INSERT")
        connected.send("INSERT INTO numbers VALUES (1)")
        moment.wait()
        with pytest.raises(ConnectionResetError):
            connected.read_to(b"INSERT")
    assert server.sql("SELECT count(*) FROM numbers") == str(int(is_executed))


def shared_memory(server: PostgresServer) -> set[str]:
    """What the server's first process has of the system's; nothing where the system does not tell (only Linux does)."""
    maps = Path("/proc", str(server.processes()[0]), "maps")
    mapped = [line.split(maxsplit=5) for line in maps.read_text().splitlines()] if maps.exists() else []
    files = {fields[5] for fields in mapped if len(fields) > 5 and fields[5].startswith("/dev/shm/")}
    return files | {fields[4] for fields in mapped if len(fields) > 5 and fields[5].startswith("/SYSV")}


def is_there(memory: str) -> bool:
    """Whether the system still has this file or segment."""
    if memory.startswith("/"):
        return Path(memory).exists()
    segments = Path("/proc/sysvipc/shm").read_text().splitlines()
    return memory in [line.split()[1] for line in segments]


@pytest.mark.parametrize("end", ["running", "frozen", "stopped", "killed", "killed and started"])
def test_nothing_of_it_is_left_however_it_was(end: str) -> None:
    with PostgresServer(max_connections=10) as server:
        memory = shared_memory(server)
        assert all(map(is_there, memory))
        if end == "frozen":
            server.freeze()
        elif end == "stopped":
            server.stop()
        elif end != "running":
            server.kill()
        if end == "killed and started":
            server.start()
            memory |= shared_memory(server)
    assert not any(map(is_there, memory))
    assert not server.folder.exists()
    assert not server.is_running


_KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from postgres_server import PostgresServer
with PostgresServer() as server:
    if sys.argv[2] == "frozen":
        server.freeze()
    print(server.folder, flush=True)
    print(server.processes()[0], flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["running", "frozen"])
def test_nothing_of_it_is_left_where_the_tests_are_killed(state: str) -> None:
    with Child(_KILLED, SUPPORT, state) as tests:
        folder, postmaster = Path(tests.read_line()), int(tests.read_line())
        tests.kill()
        wait_until_ended(postmaster)
        wait_until(lambda: not folder.exists())
    assert not folder.exists()


def test_one_that_does_not_start_says_why_and_leaves_nothing() -> None:
    server = PostgresServer(shared_buffers="none")
    with pytest.raises(OSError, match="invalid value for parameter"), server:
        pass
    assert not server.folder.exists()
