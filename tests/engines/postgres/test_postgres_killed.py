"""Many processes on one PostgreSQL: one that is killed or stopped loses and tears nothing, and holds up no other."""

from __future__ import annotations

import asyncio
import random

import pytest
from exhaustive import exhaustive
from in_postgres import HELD, WRITES, all_stored, locked, numbered, served, until
from postgres_server import PostgresServer
from processes import Child, needs_sigstop
from tcp_proxy import TcpProxy

from agentmem import AsyncSessionStore
from agentmem.errors import StorageBusyError

pytestmark = pytest.mark.anyio

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
from agentmem.engines.postgres import writes

async def main():
    writes.IDLE_IN_TRANSACTION_TIMEOUT_S = float(sys.argv[2])
    async with AsyncSessionStore(sys.argv[1], busy_timeout_s=60) as store:
        await store.session("warm").clear_session()
        print("ready", flush=True)
        sys.stdin.readline()
        print(await store.session("user_123").pop_item(), flush=True)

asyncio.run(main())
"""


@exhaustive
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
        await served(lambda: session.add_items(numbered(0, 1, 2)))
        with TcpProxy(postgres.port) as proxy, Child(_POPS, postgres.url_at(proxy.port), "600") as child:
            await _stop_in_its_pop(child, proxy)
            for call in WRITES.values():
                with pytest.raises(StorageBusyError, match=HELD):
                    await call(session)
                assert await served(session.get_items) == numbered(0, 1, 2)
                await served(lambda: other.add_items(numbered(0)))
            proxy.go_on()
            child.go_on()
            assert child.finish() == (0, "{'number': 2}\n", "")
        await served(lambda: session.add_items(numbered(5)))
    assert all_stored(postgres) == {"user_123": numbered(0, 1, 5), "other": numbered(0, 0, 0)}


async def _stop_in_its_pop(child: Child, proxy: TcpProxy) -> None:
    """Stop it when it holds the session's row, and has not sent what removes the item."""
    assert child.read_line() == "ready"
    moment = proxy.stall_before(b"WITH removed AS")
    child.write_line()
    await moment.happened()
    child.stop()
