"""A PostgreSQL server that restarts, dies, freezes, is full, only reads, or is replaced by its standby."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
from exhaustive import cases, exhaustive
from in_postgres import all_stored, connected, left_open, numbered, served, stored, until
from postgres_server import PostgresServer
from tcp_proxy import TcpProxy
from waiting import WAIT_S

from agentmem import AsyncSession, AsyncSessionStore
from agentmem.engines.postgres.retry import Retries
from agentmem.errors import SessionClosedError, StorageBusyError, StorageError

pytestmark = pytest.mark.anyio

SESSIONS = 30


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[TcpProxy]:
    with TcpProxy(postgres.port) as running:
        yield running


class Load:
    """Tasks that append and read, each in a session of its own, until the end of the ``async with``.

    Attributes:
        acknowledged: how many items each session has.
    """

    def __init__(self, store: AsyncSessionStore) -> None:
        self.acknowledged = [0] * SESSIONS
        self._store = store
        self._tasks: list[asyncio.Task[None]] = []
        self._is_over = False

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(SESSIONS)]
        await self.goes_on()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)  # an error of any call fails the test

    async def _write(self, task: int) -> None:
        session = self._store.session(f"session_{task:02}")
        while not self._is_over:
            number = self.acknowledged[task]
            await session.add_items(numbered(number))
            assert await session.get_items(1) == numbered(number)
            self.acknowledged[task] += 1

    async def goes_on(self) -> None:
        """Until each session has two more items."""
        before = list(self.acknowledged)
        await until(lambda: self._has_failed() or min(map(int.__sub__, self.acknowledged, before)) >= 2)

    def _has_failed(self) -> bool:
        return any(task.done() for task in self._tasks)

    def check(self, server: PostgresServer) -> None:
        """All that was acknowledged is there, in order and once."""
        expected = {f"session_{task:02}": numbered(*range(count)) for task, count in enumerate(self.acknowledged)}
        assert all_stored(server) == expected


@pytest.mark.parametrize(
    ("way", "flush"),
    cases(
        itertools.product(["fast", "immediate", "kill -9"], ["on", "off"]),
        quick=lambda case: case in [("fast", "off"), ("kill -9", "on")],
    ),
)
async def test_a_server_that_is_restarted_under_load_loses_and_doubles_nothing_and_no_call_fails(
    postgres: PostgresServer, way: str, flush: str
) -> None:
    postgres.sql(f"ALTER ROLE agentmem SET synchronous_commit = '{flush}'")
    try:
        async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store, Load(store) as load:
            for _ in range(2):
                # In a thread: what the server sends last is to be seen when it comes.
                await asyncio.to_thread(postgres.kill if way == "kill -9" else lambda: postgres.stop(way))
                await asyncio.to_thread(postgres.start)
                await load.goes_on()
        load.check(postgres)
    finally:
        postgres.sql("ALTER ROLE agentmem RESET synchronous_commit")


CALLS: dict[str, Callable[[AsyncSession], Coroutine[Any, Any, object]]] = {
    "append": lambda session: session.add_items(numbered(1)),
    "pop": AsyncSession.pop_item,
    "clear": AsyncSession.clear_session,
    "read": AsyncSession.get_items,
}


@pytest.mark.parametrize("way", [pytest.param("fast", marks=exhaustive), "kill -9"])
async def test_without_a_server_each_call_fails_by_name_in_time_and_the_same_handle_works_when_it_is_back(
    postgres: PostgresServer, way: str
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=0.3) as store:
        session = store.session("user_123")
        await served(lambda: session.add_items(numbered(0)))
        await served(session.get_items)
        (postgres.stop if way == "fast" else postgres.kill)()
        for _ in range(2):
            for call in CALLS.values():
                with pytest.raises(StorageError):
                    await call(session)
        postgres.start()
        await served(lambda: session.add_items(numbered(1)))
        assert await served(session.get_items) == numbered(0, 1)
    assert stored(postgres) == numbered(0, 1)


async def test_calls_that_come_while_the_server_is_away_wait_for_it(postgres: PostgresServer) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        sessions = [store.session(f"session_{number}") for number in range(20)]
        await asyncio.gather(*(session.add_items(numbered(0)) for session in sessions))
        postgres.kill()
        calls = [asyncio.ensure_future(session.add_items(numbered(1))) for session in sessions]
        reads = [asyncio.ensure_future(session.get_items()) for session in sessions]
        for _ in range(100):
            await asyncio.sleep(0)
        assert not any(call.done() for call in [*calls, *reads])
        await asyncio.to_thread(postgres.start)
        await asyncio.gather(*calls)
        assert all(items[0] == {"number": 0} for items in await asyncio.gather(*reads))
    assert all_stored(postgres) == {f"session_{number}": numbered(0, 1) for number in range(20)}


# Nobody answers


@contextlib.contextmanager
def silence(server: PostgresServer, proxy: TcpProxy, way: str) -> Iterator[None]:
    if way == "network":
        proxy.stall()
    else:
        server.freeze()
    try:
        yield
    finally:
        proxy.go_on()
        server.go_on()


@pytest.mark.parametrize("way", ["network", pytest.param("server", marks=exhaustive)])
async def test_where_nobody_answers_any_more_each_call_ends_in_time_and_a_write_says_that_it_is_in_doubt(
    postgres: PostgresServer, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    async with AsyncSessionStore(postgres.url_at(proxy.port), busy_timeout_s=0.2) as store:
        session = store.session("user_123")
        await served(lambda: session.add_items(numbered(0, 1, 2)))
        await served(session.get_items)
        with silence(postgres, proxy, way), monkeypatch.context() as impatient:
            impatient.setattr("agentmem.engines.postgres.retry.ANSWER_TIMEOUT_S", 0.1)
            with pytest.raises(StorageError, match="look before you write it again") as raised:
                await session.add_items(numbered(3))
            assert raised.value.in_doubt
            for name in ("append", "read"):  # on connections that are still to be made
                with pytest.raises(StorageBusyError, match="in time; try again or raise busy_timeout_s") as certain:
                    await CALLS[name](session)
                assert not certain.value.in_doubt
        # What was in doubt may still arrive, until the server has seen the end of those connections.
        await until(lambda: proxy.connections == 0 and not left_open(postgres))
        items = await served(session.get_items)
        assert items in (numbered(0, 1, 2), numbered(0, 1, 2, 3))
        await served(lambda: session.add_items(numbered(4)))
        assert await served(session.get_items) == items + numbered(4)
    assert stored(postgres) == items + numbered(4)


async def one_is_given_up(proxy: TcpProxy) -> None:
    """Until a connection was made in place of one that does not answer."""
    before = proxy.accepted
    await until(lambda: proxy.accepted > before)


class Impatient(Retries):
    """Each statement is given up after a second, and tried again for as long as the slowest machine needs."""

    def __init__(self, now: float, deadline: float, settle_by: float | None = None) -> None:
        super().__init__(now, deadline, settle_by)
        self.statement_limit_s = 1.0  # however long the call has waited for its turn; it never grows


@pytest.mark.parametrize("way", ["network", "server"])
async def test_a_silence_that_ends_in_time_loses_and_doubles_nothing_and_no_call_fails(
    postgres: PostgresServer, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("agentmem.engines.postgres.lane.Retries", Impatient)
    async with AsyncSessionStore(postgres.url_at(proxy.port), busy_timeout_s=WAIT_S) as store, Load(store) as load:
        for _ in range(2):
            with silence(postgres, proxy, way):
                await one_is_given_up(proxy)
            await load.goes_on()
    load.check(postgres)


async def test_closing_a_store_ends_also_where_nobody_answers(postgres: PostgresServer, proxy: TcpProxy) -> None:
    store = AsyncSessionStore(postgres.url_at(proxy.port))
    await store.session("user_123").add_items(numbered(0))
    await store.session("user_123").get_items()
    with silence(postgres, proxy, "network"):
        await asyncio.wait_for(store.close(), WAIT_S)
        with pytest.raises(SessionClosedError):
            await store.open()
    assert stored(postgres) == numbered(0)


# No connection is left

FULL = r"\(SQLSTATE 53300\); raise the server's max_connections"


@contextlib.asynccontextmanager
async def none_left(server: PostgresServer) -> AsyncIterator[contextlib.AsyncExitStack]:
    """Others hold all connections there are, until the end or until the stack is closed."""
    import asyncpg  # where it is missing, these tests are skipped

    async with contextlib.AsyncExitStack() as held:
        try:
            while True:
                await held.enter_async_context(connected(server))
        except asyncpg.TooManyConnectionsError:
            yield held


async def test_a_server_that_is_full_is_an_error_by_name_and_the_same_store_works_when_it_is_not_any_more(
    postgres: PostgresServer,
) -> None:
    store = AsyncSessionStore(postgres.url, busy_timeout_s=0.3)
    async with none_left(postgres):
        with pytest.raises(StorageBusyError, match=FULL):
            await store.open()
        for call in CALLS.values():
            with pytest.raises(StorageBusyError, match=FULL):
                await call(store.session("user_123"))
    await served(lambda: store.session("user_123").add_items(numbered(0)))
    await store.close()
    assert stored(postgres) == numbered(0)


async def test_a_call_that_finds_the_server_full_goes_on_when_a_connection_is_free(postgres: PostgresServer) -> None:
    async with none_left(postgres) as held:
        before = postgres.log().count("FATAL")
        store = AsyncSessionStore(postgres.url, busy_timeout_s=60)
        call = asyncio.create_task(store.session("user_123").add_items(numbered(0)))
        await until(lambda: postgres.log().count("FATAL") > before + 1)
        assert not call.done()
        await held.aclose()
        await call
        await store.close()
    assert stored(postgres) == numbered(0)


# A server that only reads, and its standby


async def test_a_server_that_only_reads_says_so_to_writes_and_goes_on_to_serve_reads(postgres: PostgresServer) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=0.3) as store:
        session = store.session("user_123")
        await served(lambda: session.add_items(numbered(0)))
        with postgres.configured(default_transaction_read_only="on"):
            for name in ("append", "pop", "clear"):
                with pytest.raises(StorageError, match=r"the server only reads: .*; nothing was written"):
                    await CALLS[name](session)
                assert await served(session.get_items) == numbered(0)
        await served(lambda: session.add_items(numbered(1)))
    assert stored(postgres) == numbered(0, 1)


@pytest.mark.parametrize("wish", ["any", "read-write"])
@pytest.mark.parametrize("name", cases(["append", "pop", "clear"], quick="append".__eq__))
async def test_a_write_to_a_server_that_only_reads_is_done_when_it_may_be_written_to(
    postgres: PostgresServer, proxy: TcpProxy, name: str, wish: str
) -> None:
    url = f"{postgres.url_at(proxy.port)}?target_session_attrs={wish}"
    async with AsyncSessionStore(url, busy_timeout_s=60) as store:
        session = store.session("user_123")
        await session.add_items(numbered(0))
        with postgres.configured(default_transaction_read_only="on"):
            before = proxy.accepted
            call = asyncio.create_task(CALLS[name](session))
            await until(lambda: proxy.accepted > before + 3)  # it is tried again and again
            assert not call.done()
        await call
    assert stored(postgres) == {"append": numbered(0, 1), "pop": [], "clear": []}[name]


async def test_where_no_server_may_be_written_to_as_the_url_asks_for_that_is_an_error_by_name(
    postgres: PostgresServer,
) -> None:
    with postgres.configured(default_transaction_read_only="on"):
        store = AsyncSessionStore(f"{postgres.url}?target_session_attrs=read-write", busy_timeout_s=0.1)
        with pytest.raises(StorageError, match="target attribute"):
            await store.open()
        await store.close()


@exhaustive
@pytest.mark.parametrize("way", ["two hosts", "one address"])
@pytest.mark.usefixtures("private_postgres")  # which skips it where there is no PostgreSQL
async def test_when_a_standby_takes_over_all_that_was_acknowledged_is_there_and_appends_go_on(way: str) -> None:
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(PostgresServer(fsync="off"))
        standby = primary.standby(fsync="off")
        stack.enter_context(standby)
        proxy = stack.enter_context(TcpProxy(primary.port))
        primary.configure(synchronous_standby_names="*", synchronous_commit="remote_apply")
        if way == "two hosts":
            hosts = f"{primary.host}:{primary.port},{standby.host}:{standby.port}"
            url = f"postgresql://agentmem@{hosts}/test?target_session_attrs=read-write"
        else:
            url = primary.url_at(proxy.port)
        async with AsyncSessionStore(url, busy_timeout_s=60) as store, Load(store) as load:
            await asyncio.to_thread(primary.kill)
            proxy.forward_to(standby.port)
            await asyncio.to_thread(standby.promote)
            await load.goes_on()
        load.check(standby)
