"""Connections to PostgreSQL that are cut at any moment: what was asked for happens once, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest
from exhaustive import cases
from in_postgres import all_stored, locked, numbered, served, until, wait_for_waiters
from postgres_server import PostgresServer
from processes import needs_sigstop
from proxied import Moment
from tcp_proxy import TcpProxy

from agentmem import AsyncSessionStore
from agentmem.errors import StorageError
from agentmem.items import Item
from agentmem.runner import Agent, OfflineModel, Runner

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def opened(server: PostgresServer, proxy: TcpProxy, way: str, **options: Any) -> AsyncIterator[AsyncSessionStore]:
    """A store behind the proxy, on connections of its own or on those of a pool of the caller's."""
    options.setdefault("busy_timeout_s", 60)
    url = server.url_at(proxy.port)
    if way == "url":
        async with AsyncSessionStore(url, **options) as store:
            yield store
    else:
        import asyncpg  # where it is missing, these tests are skipped

        async with asyncpg.create_pool(url, min_size=0) as pool, AsyncSessionStore(pool, **options) as store:
            yield store


Operation = Callable[[AsyncSessionStore, str], Coroutine[Any, Any, object]]
"""Does something to the session with this id, or to those whose ids begin with it."""


async def append(store: AsyncSessionStore, session_id: str) -> object:
    await store.session(session_id).add_items(numbered(3, 4, 5))
    return None


async def append_to_many(store: AsyncSessionStore, session_id: str) -> object:
    calls = (store.session(f"{session_id}, {number:02}").add_items(numbered(number)) for number in range(64))
    return set(await asyncio.gather(*calls))


async def pop(store: AsyncSessionStore, session_id: str) -> object:
    return await store.session(session_id).pop_item()


async def clear(store: AsyncSessionStore, session_id: str) -> object:
    await store.session(session_id).clear_session()
    return None


async def read(store: AsyncSessionStore, session_id: str) -> object:
    return await store.session(session_id).get_items()


MANY = {f", {number:02}": numbered(number) for number in range(64)}

OPERATIONS: dict[str, tuple[Operation, object, dict[str, list[Item]]]] = {
    "append": (append, None, {"": numbered(0, 1, 2, 3, 4, 5)}),
    "append to many": (append_to_many, {None}, {"": numbered(0, 1, 2), **MANY}),
    "pop": (pop, {"number": 2}, {"": numbered(0, 1)}),
    "clear": (clear, None, {}),
    "read": (read, numbered(0, 1, 2), {"": numbered(0, 1, 2)}),
}
"""For each operation: what it returns, and what is there after it, by what the id goes on with."""


class Piece:
    """The `nth` piece of what clients send from now on."""

    def __init__(self, nth: int) -> None:
        self._left = nth
        self._seen = 0
        self._is_statement = False

    def is_sent(self, sent: bytes) -> bool:
        piece, self._seen = sent[self._seen :], len(sent)
        self._is_statement = piece.startswith(b"Q") or piece.endswith(SYNC)
        self._left -= 1
        return self._left <= 0

    def is_answered(self, answer: bytes) -> bool:
        return READY in answer or not self._is_statement


SYNC = b"S\x00\x00\x00\x04"
READY = b"Z\x00\x00\x00\x05"
"""What the server ends its answer with to a statement, or to the Sync after one; in a transaction or not."""


def cut(proxy: TcpProxy, when: str, piece: Piece) -> Moment:
    return proxy.cut_before(piece.is_sent) if when == "before" else proxy.cut_after(piece.is_sent, piece.is_answered)


# What the first use of a connection sends before its own is the same for all.
@pytest.mark.parametrize(
    ("name", "use", "cuts", "way"),
    cases(
        [
            *((name, "first", 1, "url") for name in ("append", "pop")),
            *((name, "later", 3, "url") for name in OPERATIONS),
            *((name, "later", 1, "pool") for name in OPERATIONS),
        ],
        quick=lambda case: case in [("append", "later", 1, "pool"), ("pop", "later", 3, "url")],
    ),
)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_call_whose_connection_is_cut_at_any_moment_is_carried_out_once(
    postgres: PostgresServer, name: str, when: str, use: str, cuts: int, way: str
) -> None:
    operation, result, after = OPERATIONS[name]
    expected: dict[str, list[Item]] = {"next": []}
    await fill(postgres, [f"user_{nth:02}" for nth in range(1, 40)])
    for nth in range(1, 40):
        session_id = f"user_{nth:02}"
        with TcpProxy(postgres.port) as proxy:
            async with opened(postgres, proxy, way) as store:
                if use == "later":
                    await store.session("next").add_items(numbered(0))
                    expected["next"] += numbered(0)
                moments = [cut(proxy, when, Piece(nth + 2 * more)) for more in range(cuts)]
                assert await operation(store, session_id) == result, nth
                is_over = not moments[0].outcome.done()
                # Whatever was cut, it goes on.
                await store.session("next").add_items(numbered(nth))
                assert await store.session("next").get_items(1) == numbered(nth)
                expected["next"] += numbered(nth)
        expected |= {session_id + rest: items for rest, items in after.items()}
        if is_over:
            break
    assert is_over
    assert nth > 1, "nothing was ever cut"
    expected |= {f"user_{later:02}": numbered(0, 1, 2) for later in range(nth + 1, 40)}
    assert all_stored(postgres) == expected


async def fill(server: PostgresServer, session_ids: Sequence[str]) -> None:
    """Three items in each session."""
    async with AsyncSessionStore(server.url) as store:
        await asyncio.gather(*(store.session(session_id).add_items(numbered(0, 1, 2)) for session_id in session_ids))


COMMITS: dict[str, tuple[Operation, object, dict[str, list[Item]]]] = {
    name: OPERATIONS[name] for name in ("append", "append to many", "pop", "clear")
}


@contextlib.contextmanager
def commits_held(server: PostgresServer) -> Iterator[None]:
    """No commit is answered before the end of the ``with``: each waits for a standby that there is not."""
    server.configure(synchronous_standby_names="nobody")
    try:
        # It is the checkpointer that has commits wait, once it has read the setting: what is asked of it now may meet
        # it in the middle of its round, what is asked of it then comes after that.
        server.sql("CHECKPOINT; CHECKPOINT")
        yield
    finally:
        server.configure(synchronous_standby_names=None)


@pytest.mark.parametrize("name", cases(COMMITS, quick=("append to many", "pop").__contains__))
async def test_a_call_that_is_tried_again_while_the_first_attempt_still_commits_waits_for_it(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("agentmem.engines.postgres.writes.LOCK_TIMEOUT_S", 0.001)
    operation, result, after = COMMITS[name]
    await fill(postgres, ["user_1"])
    with TcpProxy(postgres.port) as proxy:
        async with opened(postgres, proxy, "url") as store:
            await store.session("warm").clear_session()
            with commits_held(postgres):
                call = asyncio.create_task(operation(store, "user_1"))
                await wait_for_waiters(postgres, 1, "IPC")  # it commits
                proxy.cut()
                before = postgres.log().count("lock timeout")
                # It was told more than once that it may not have the lock yet.
                await until(lambda: postgres.log().count("lock timeout") >= before + 3)
                assert not call.done()
            assert await call == result
    assert all_stored(postgres) == {f"user_1{rest}": items for rest, items in after.items()}


@pytest.mark.parametrize("name", cases(COMMITS, quick=("append to many", "pop").__contains__))
async def test_a_call_whose_first_attempt_does_not_end_in_time_says_that_it_is_in_doubt(
    postgres: PostgresServer, name: str
) -> None:
    operation, _, after = COMMITS[name]
    await fill(postgres, ["user_1"])
    with TcpProxy(postgres.port) as proxy:
        async with opened(postgres, proxy, "url", busy_timeout_s=0.5) as store:
            await served(store.session("warm").clear_session)
            with commits_held(postgres):
                call = asyncio.create_task(operation(store, "user_1"))
                await wait_for_waiters(postgres, 1, "IPC")
                proxy.cut()
                with pytest.raises(StorageError, match="look before you write it again") as raised:
                    await call
            assert raised.value.in_doubt
            await served(lambda: store.session("next").add_items(numbered(0)))
    assert all_stored(postgres) == {f"user_1{rest}": items for rest, items in after.items()} | {"next": numbered(0)}


@pytest.mark.parametrize("name", cases(COMMITS, quick=("append to many", "pop").__contains__))
async def test_a_call_whose_connection_is_cut_while_it_waits_for_a_lock_is_carried_out_once_after_that(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("agentmem.engines.postgres.writes.LOCK_TIMEOUT_S", 60)
    operation, result, after = COMMITS[name]
    await fill(postgres, ["user_1", *(f"user_1{rest}" for rest in MANY)])
    before = all_stored(postgres)
    with TcpProxy(postgres.port) as proxy:
        async with opened(postgres, proxy, "url") as store:
            await store.session("warm").clear_session()
            async with locked(postgres, ["user_1", "user_1, 00", "user_1, 63"]):
                call = asyncio.create_task(operation(store, "user_1"))
                for attempts in range(1, 4):
                    await wait_for_waiters(postgres, attempts)  # those before, too, of which the server knows nothing
                    proxy.cut()
                await wait_for_waiters(postgres, 4)
                assert all_stored(postgres) == before
                assert not call.done()
            assert await call == result
    many = {name: before[name] for name in before if name != "user_1"}
    for rest, items in after.items():
        many[f"user_1{rest}"] = many.get(f"user_1{rest}", []) + items
    assert all_stored(postgres) == many


@needs_sigstop
async def test_an_attempt_that_goes_on_only_after_the_store_was_closed_is_not_carried_out_again(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmem.engines.postgres.writes.LOCK_TIMEOUT_S", 60)
    await fill(postgres, ["user_1"])
    newest = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' ORDER BY query_start DESC LIMIT 1"
    with TcpProxy(postgres.port) as proxy, contextlib.ExitStack() as stopped:
        async with opened(postgres, proxy, "url") as store:
            await served(store.session("warm").clear_session)
            async with locked(postgres, ["user_1"]):
                call = asyncio.create_task(append(store, "user_1"))
                for attempts in (1, 2):
                    await wait_for_waiters(postgres, attempts)
                    if attempts == 2:
                        process = int(postgres.sql(newest))
                        os.kill(process, signal.SIGSTOP)
                        stopped.callback(os.kill, process, signal.SIGCONT)
                    proxy.cut()
                await wait_for_waiters(postgres, 3)
            await call
        stopped.close()
        # It has done what it was asked for before it notices that its client is gone.
        await until(lambda: postgres.sql(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {process}") == "0")
    assert all_stored(postgres) == {"user_1": numbered(0, 1, 2, 3, 4, 5)}


@pytest.mark.parametrize("name", cases(["append", "pop", "clear"], quick="append".__eq__))
async def test_a_call_that_is_cancelled_while_it_commits_tells_in_the_cause_that_it_is_in_doubt(
    postgres: PostgresServer, name: str
) -> None:
    operation, _, _ = COMMITS[name]
    await fill(postgres, ["user_1"])
    with TcpProxy(postgres.port) as proxy:
        async with opened(postgres, proxy, "url", busy_timeout_s=0.5) as store:
            await served(store.session("warm").clear_session)
            with commits_held(postgres):
                call = asyncio.create_task(operation(store, "user_1"))
                await wait_for_waiters(postgres, 1, "IPC")
                call.cancel()
                proxy.cut()
                with pytest.raises(asyncio.CancelledError) as raised:
                    await call
            assert isinstance(raised.value.__cause__, StorageError)
            assert raised.value.__cause__.in_doubt


async def test_a_run_whose_append_is_in_doubt_does_not_say_that_nothing_was_added(postgres: PostgresServer) -> None:
    agent = Agent("Assistant", "Answer.", model=OfflineModel())
    with TcpProxy(postgres.port) as proxy:
        async with opened(postgres, proxy, "url", busy_timeout_s=0.5) as store:
            await served(store.session("warm").clear_session)
            with commits_held(postgres):
                run = asyncio.create_task(Runner.run(agent, "Hello", session=store.session("user_1")))
                await wait_for_waiters(postgres, 1, "IPC")
                proxy.cut()
                with pytest.raises(StorageError, match="doubt whether the session 'user_1' holds the last 2") as raised:
                    await run
            assert raised.value.in_doubt
            assert "nothing was added" not in str(raised.value)
    assert len(all_stored(postgres)["user_1"]) == 2


def stumbling_connection() -> Any:
    """A class of connections that raise an error of their own once the server has answered to the first commit."""
    import asyncpg

    class Stumbling(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no type annotations
        stumbles = 0

        async def execute(self, query: str, *args: Any, **options: Any) -> Any:
            return self._stumble(query, await super().execute(query, *args, **options))

        async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
            return self._stumble(query, await super().fetchval(query, *args, **options))

        def _stumble(self, query: str, result: Any) -> Any:
            commits = query == "COMMIT" or 'INTO "agentmem".agentmem_items' in query
            if commits and not Stumbling.stumbles:
                Stumbling.stumbles += 1
                raise asyncpg.InternalClientError("the answer is not understood")
            return result

    return Stumbling


@pytest.mark.parametrize("name", ["append", "pop", "clear"])
async def test_a_call_whose_answer_the_driver_does_not_understand_is_carried_out_once(
    postgres: PostgresServer, name: str
) -> None:
    import asyncpg

    operation, result, after = OPERATIONS[name]
    await fill(postgres, ["user_1"])
    stumbling = stumbling_connection()
    async with (
        asyncpg.create_pool(postgres.url, min_size=0, connection_class=stumbling) as pool,
        AsyncSessionStore(pool) as store,
    ):
        assert await operation(store, "user_1") == result
    assert stumbling.stumbles == 1
    assert all_stored(postgres) == {f"user_1{rest}": items for rest, items in after.items()}


async def test_a_pop_that_is_tried_again_returns_nothing_of_what_was_cleared_meanwhile(
    postgres: PostgresServer,
) -> None:
    await fill(postgres, ["user_123"])
    with TcpProxy(postgres.port) as proxy:
        async with opened(postgres, proxy, "url") as store:
            await store.session("warm").clear_session()
            moment = proxy.cut_before(b"COMMIT")
            proxy.refuse()
            call = asyncio.create_task(store.session("user_123").pop_item())
            await moment.happened()
            async with AsyncSessionStore(postgres.url) as other:
                await other.session("user_123").clear_session()
            proxy.accept()
            assert await call is None
    assert all_stored(postgres) == {}
