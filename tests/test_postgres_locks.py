"""Sessions in PostgreSQL that somebody else holds: only what is about them waits, for as long as it may."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from in_postgres import all_stored, locked, stored, until, wait_for_waiters
from postgres_server import PostgresServer
from processes import Child, needs_sigstop
from tcp_proxy import TcpProxy

from agentmem import AsyncSession, AsyncSessionStore
from agentmem.errors import StorageBusyError
from agentmem.items import Item

pytestmark = pytest.mark.anyio

HELD = "another connection holds the session; nothing was written, try again or raise busy_timeout_s"

CALLS: dict[str, Any] = {
    "append": lambda session: session.add_items([{"number": 1}]),
    "pop": AsyncSession.pop_item,
    "clear": AsyncSession.clear_session,
}
AFTER: dict[str, list[Item]] = {"append": [{"number": 0}, {"number": 1}], "pop": [], "clear": []}


def numbered(*numbers: int) -> list[Item]:
    return [{"number": number} for number in numbers]


@pytest.mark.parametrize("name", CALLS)
async def test_a_write_waits_for_who_holds_its_session_as_long_as_it_may_and_then_nothing_is_written(
    postgres: PostgresServer, name: str
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=0.5) as store:
        session = store.session("user_123")
        await session.add_items(numbered(0))
        async with locked(postgres):
            with pytest.raises(StorageBusyError, match=HELD):
                await CALLS[name](session)
            assert await session.get_items() == numbered(0)
        assert stored(postgres) == numbered(0)
        await CALLS[name](session)
    assert stored(postgres) == AFTER[name]


@pytest.mark.parametrize("name", CALLS)
async def test_a_write_that_waits_for_its_session_goes_on_when_it_is_let_go(
    postgres: PostgresServer, name: str
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        session = store.session("user_123")
        await session.add_items(numbered(0))
        async with locked(postgres):
            call = asyncio.create_task(CALLS[name](session))
            await wait_for_waiters(postgres, 1)
        await call
    assert stored(postgres) == AFTER[name]


@pytest.mark.parametrize("name", CALLS)
async def test_all_other_sessions_are_served_while_one_is_held_also_those_of_the_same_batch_and_of_later_ones(
    postgres: PostgresServer, name: str
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        sessions = [store.session(f"session_{number:02}") for number in range(64)]
        await asyncio.gather(*(session.add_items(numbered(0)) for session in sessions))
        held = sessions[17]
        async with locked(postgres, [held.session_id]):
            calls = {session.session_id: asyncio.create_task(CALLS[name](session)) for session in sessions}
            waiting = calls.pop(held.session_id)
            await asyncio.gather(*calls.values())
            others = [session for session in sessions if session is not held]
            for number in range(2, 4):
                await asyncio.gather(*(session.add_items(numbered(number)) for session in others))
            assert await held.get_items() == numbered(0)
            assert not waiting.done()
        await waiting
    expected = {session.session_id: AFTER[name] + numbered(2, 3) for session in others}
    if name != "clear":
        expected[held.session_id] = AFTER[name]
    assert all_stored(postgres) == expected


async def test_what_is_asked_of_a_held_session_is_done_in_that_order_and_what_is_asked_of_others_before_it(
    postgres: PostgresServer,
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        held, free = store.session("held"), store.session("free")
        await held.add_items(numbered(0))
        done: list[int] = []

        async def add(number: int) -> None:
            await held.add_items(numbered(number))
            done.append(number)

        async with locked(postgres, ["held"]):
            calls: list[asyncio.Task[Any]] = []
            for number in range(1, 20):
                calls.append(asyncio.create_task(add(number)))
                if number % 5 == 0:
                    calls.append(asyncio.create_task(held.pop_item()))
                if number == 11:
                    calls.append(asyncio.create_task(held.clear_session()))
                await free.add_items(numbered(number))
            assert not any(call.done() for call in calls)
        await asyncio.gather(*calls)
        assert done == list(range(1, 20))
    assert all_stored(postgres) == {"held": numbered(12, 13, 14, 16, 17, 18, 19), "free": numbered(*range(1, 20))}


async def test_writes_of_a_held_session_all_fail_once_the_first_of_them_may_wait_no_longer(
    postgres: PostgresServer,
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=0.5) as store:
        held = store.session("user_123")
        await held.add_items(numbered(0))
        async with locked(postgres):
            outcomes = await asyncio.gather(
                *(held.add_items(numbered(number)) for number in range(1, 30)),
                *(held.pop_item() for _ in range(20)),
                return_exceptions=True,
            )
        assert {type(outcome) for outcome in outcomes} == {StorageBusyError}
        assert await held.get_items() == numbered(0)


@pytest.mark.parametrize("name", ["pop", "clear"])
async def test_a_write_that_finds_its_session_cleared_by_who_held_it_finds_nothing(
    postgres: PostgresServer, name: str
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        await store.session("user_123").add_items(numbered(0))
        async with locked(postgres) as other:
            call = asyncio.create_task(CALLS[name](store.session("user_123")))
            await wait_for_waiters(postgres, 1)
            await other.execute("DELETE FROM agentmem.agentmem_items; DELETE FROM agentmem.agentmem_sessions")
        assert await call is None
        await store.session("user_123").add_items(numbered(5))
    assert stored(postgres) == numbered(5)


async def test_writes_that_came_together_to_a_held_session_keep_their_order_whenever_it_is_let_go(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmem.engines.postgres.LOCK_S", 0.001)
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        held = store.session("user_123")
        await held.add_items(numbered(0))
        async with locked(postgres):
            before = postgres.log().count("lock timeout")
            calls = [asyncio.create_task(held.add_items(numbered(number))) for number in range(1, 200)]
            # All of them together, then the first one alone.
            await until(lambda: postgres.log().count("lock timeout") >= before + 2)
        await asyncio.gather(*calls)
    assert stored(postgres) == numbered(*range(200))


async def test_engines_that_write_to_the_same_sessions_in_any_order_never_wait_for_each_other_in_a_circle(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmem.engines.postgres.LOCK_S", 60)  # a shorter one would end a circle before it is found
    names = [f"{'ABab'[number % 4]}é{number}" for number in range(40)]  # sorted otherwise by many a collation
    before = postgres.log().count("deadlock")
    # Another busy_timeout_s each: they share no pool.
    stores = [AsyncSessionStore(postgres.url, busy_timeout_s=60 + number) for number in range(3)]

    async def write(store: AsyncSessionStore, writer: int) -> None:
        for number in range(6):
            mixed = random.sample(names, len(names))
            batch = [store.session(name).add_items([{"writer": writer, "number": number}]) for name in mixed]
            clears = [store.session(f"gone {name}").clear_session() for name in mixed[:10]]
            fills = [store.session(f"gone {name}").add_items([{}]) for name in mixed[5:15]]
            await asyncio.gather(*batch, *clears, *fills)

    await asyncio.gather(*(write(store, number) for number, store in enumerate(stores)))
    for store in stores:
        await store.close()
    found = all_stored(postgres)
    for name in names:
        for writer in range(3):
            numbers = [item["number"] for item in found[name] if item["writer"] == writer]
            assert numbers == list(range(6))
    assert postgres.log().count("deadlock") == before


# Processes that are killed or stopped

_WRITES = """
import asyncio, itertools, os, sys
from agentmem import AsyncSessionStore

async def main():
    async with AsyncSessionStore(sys.argv[1], busy_timeout_s=60) as store:
        async def write(task):
            session = store.session(f"session_{task % 5}")
            for number in itertools.count():
                await session.add_items([{"task": task, "number": number, "place": place} for place in range(3)])
                os.write(1, f"{task} {number}\\n".encode())
        await asyncio.gather(*map(write, range(20)))

asyncio.run(main())
"""


def _check_whole(server: PostgresServer, acknowledged: list[str]) -> None:
    """Whole batches, each once, in order and without a gap, and all that were acknowledged."""
    last: dict[int, int] = {}
    for session_id, items in all_stored(server).items():
        if not session_id.startswith("session_"):
            continue
        for start in range(0, len(items), 3):
            task, number = items[start]["task"], items[start]["number"]
            batch = [{"task": task, "number": number, "place": place} for place in range(3)]
            assert items[start : start + 3] == batch, "torn"
            assert number == last.get(task, -1) + 1, "lost, or there twice"
            last[task] = number
    for line in acknowledged:
        task, number = map(int, line.split())
        assert number <= last[task], "acknowledged and lost"


async def test_a_process_that_is_killed_leaves_whole_batches_and_all_that_it_acknowledged(
    postgres: PostgresServer,
) -> None:
    for _ in range(3):
        with Child(_WRITES, postgres.url) as child:
            acknowledged = [child.read_line() for _ in range(random.randrange(1, 200))]
            child.kill()
            _, output, errors = child.finish()
        assert errors == ""
        lines = output.split("\n")
        await until(lambda: postgres.sql(_CONNECTED) == "0")  # it carries out what it was sent
        _check_whole(postgres, acknowledged + lines[:-1])
        postgres.sql("TRUNCATE agentmem.agentmem_sessions, agentmem.agentmem_items")


_CONNECTED = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'agentmem'"


@needs_sigstop
async def test_a_process_that_is_stopped_while_it_appends_holds_up_nobody_and_goes_on_afterwards(
    postgres: PostgresServer,
) -> None:
    with Child(_WRITES, postgres.url) as child:
        acknowledged = [child.read_line() for _ in range(100)]  # all sessions are there
        async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
            for round_ in range(5):
                acknowledged += [child.read_line() for _ in range(random.randrange(1, 60))]
                child.stop()
                await asyncio.gather(*(store.session(f"other_{task}").add_items(numbered(round_)) for task in range(5)))
                async with locked(postgres, [f"session_{task}" for task in range(5)]):
                    pass  # it holds none of them
                child.go_on()
            acknowledged += [child.read_line() for _ in range(100)]
        child.kill()
        acknowledged += child.finish()[1].split("\n")[:-1]
    await until(lambda: postgres.sql(_CONNECTED) == "0")
    _check_whole(postgres, acknowledged)


_POPS = """
import asyncio, sys
from agentmem import AsyncSessionStore
from agentmem.engines import postgres

async def main():
    postgres.SILENT_S = float(sys.argv[2])
    async with AsyncSessionStore(sys.argv[1], busy_timeout_s=60) as store:
        await store.session("warm").clear_session()
        print("ready", flush=True)
        sys.stdin.readline()
        print(await store.session("user_123").pop_item(), flush=True)

asyncio.run(main())
"""


@needs_sigstop
@pytest.mark.parametrize("then", ["goes on", "is killed"])
async def test_a_process_that_is_stopped_in_a_pop_holds_the_session_no_longer_than_a_few_seconds(
    postgres: PostgresServer, then: str
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=60) as store:
        session = store.session("user_123")
        await session.add_items(numbered(0, 1, 2))
        with TcpProxy(postgres.port) as proxy, Child(_POPS, postgres.url_at(proxy.port), "0.3") as child:
            await _stop_in_its_pop(child, proxy)
            assert await session.pop_item() == {"number": 2}  # the server has ended the other's connection
            if then == "goes on":
                proxy.go_on()
                child.go_on()
                assert child.finish() == (0, "{'number': 1}\n", "")
            else:
                child.kill()
        assert await session.get_items() == numbered(0, 1)[: 1 if then == "goes on" else 2]


@needs_sigstop
async def test_a_process_that_is_stopped_in_a_pop_makes_writes_of_that_session_wait_and_no_other_call(
    postgres: PostgresServer,
) -> None:
    async with AsyncSessionStore(postgres.url, busy_timeout_s=0.3) as store:
        session, other = store.session("user_123"), store.session("other")
        await session.add_items(numbered(0, 1, 2))
        with TcpProxy(postgres.port) as proxy, Child(_POPS, postgres.url_at(proxy.port), "600") as child:
            await _stop_in_its_pop(child, proxy)
            for call in CALLS.values():
                with pytest.raises(StorageBusyError, match=HELD):
                    await call(session)
                assert await session.get_items() == numbered(0, 1, 2)
                await other.add_items(numbered(0))
            proxy.go_on()
            child.go_on()
            assert child.finish() == (0, "{'number': 2}\n", "")
        await session.add_items(numbered(5))
    assert all_stored(postgres) == {"user_123": numbered(0, 1, 5), "other": numbered(0, 0, 0)}


async def _stop_in_its_pop(child: Child, proxy: TcpProxy) -> None:
    """Stop it when it holds the session's row, and has not sent what removes the item."""
    assert child.read_line() == "ready"
    moment = proxy.stall_before(b"WITH removed AS")
    child.write_line()
    await moment.happened()
    child.stop()
