"""A sequence is an item's place in the order of arrival: issued once, and enough to find all that is new since."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from in_postgres import connected
from postgres_database import PostgresDatabase

from agentmem import AsyncSessionStore
from agentmem.items import Item

pytest.importorskip("asyncpg", reason="asyncpg is not installed")

pytestmark = pytest.mark.anyio

ONE: Item = {"role": "user", "content": "one"}


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
async def test_items_of_a_session_have_sequences_in_the_order_of_their_positions(
    database: PostgresDatabase, plan: str
) -> None:
    database.sql(f"ALTER ROLE agentmem IN DATABASE {database.name} SET plan_cache_mode = {plan}")
    async with AsyncSessionStore(database.url, busy_timeout_s=60) as store:
        await store.open()
        for _ in range(3):
            await asyncio.gather(*(store.session(f"user_{n % 40}").add_items([ONE] * (n % 7 + 1)) for n in range(160)))
    told = database.sql("""
        SELECT count(*), count(DISTINCT sequence), count(*) FILTER (WHERE sequence < previous)
        FROM (
            SELECT sequence, lag(sequence) OVER (PARTITION BY session_id ORDER BY position) AS previous
            FROM agentmem.agentmem_items
        ) AS items
    """)
    count = 3 * sum(n % 7 + 1 for n in range(160))
    assert told == f"{count}|{count}|0"


async def test_a_sequence_is_not_issued_again_after_its_item_was_removed(database: PostgresDatabase) -> None:
    newest = "SELECT max(sequence) FROM agentmem.agentmem_items"
    async with AsyncSessionStore(database.url, busy_timeout_s=60) as store:
        session = store.session("user_123")
        await session.add_items([ONE, ONE])
        await session.pop_item()
        await session.add_items([ONE])
        assert database.sql(newest) == "3"
        await session.clear_session()
        await session.add_items([ONE])
        assert database.sql(newest) == "4"


class Watch:
    """Finds what is new since, as ``agentmem.engines.postgres.schema`` says: each item once, by its sequence."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._found_upto = self._next = 0
        self._writers: set[str] = set()  # that were under way when `_next` was seen, and may have smaller ones

    async def poll(self) -> list[int]:
        """The sequences that are new, up to one below which nothing will appear any more."""
        if self._next == self._found_upto:
            self._next = await self._connection.fetchval(
                "SELECT coalesce(max(sequence), 0) FROM agentmem.agentmem_items"
            )
            self._writers = await self._under_way()
        elif self._writers:
            self._writers &= await self._under_way()
        if self._writers:
            return []
        found = await self._connection.fetch(
            "SELECT sequence FROM agentmem.agentmem_items WHERE sequence > $1 AND sequence <= $2 ORDER BY sequence",
            self._found_upto,
            self._next,
        )
        self._found_upto = self._next
        return [sequence for (sequence,) in found]

    async def _under_way(self) -> set[str]:
        locks = await self._connection.fetch("""
            SELECT virtualtransaction FROM pg_locks
            WHERE locktype = 'relation' AND relation = 'agentmem.agentmem_items'::regclass AND granted
                AND mode = 'RowExclusiveLock'
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        """)
        return {transaction for (transaction,) in locks}


async def test_of_writes_under_way_none_is_lost_to_who_asks_what_is_new(database: PostgresDatabase) -> None:
    insert = "INSERT INTO agentmem.agentmem_items (session_id, position, item) VALUES ('user_123', {}, '{{}}')"
    async with (
        AsyncSessionStore(database.url, busy_timeout_s=60) as store,
        connected(database) as first,
        connected(database) as second,
        connected(database) as other,
    ):
        await store.open()
        watch = Watch(other)
        await first.execute(f"BEGIN; {insert.format(0)}")
        await second.execute(insert.format(1))
        # The smaller sequence is still to come: it would be skipped if the larger one were taken now.
        assert await watch.poll() == []
        await first.execute("COMMIT")
        assert [await watch.poll(), await watch.poll()] == [[1, 2], []]
        await store.session("other").add_items([ONE])
        assert await watch.poll() == [3]


async def test_who_asks_while_many_write_finds_each_item_once_and_in_order(database: PostgresDatabase) -> None:
    found: list[int] = []
    async with AsyncSessionStore(database.url, busy_timeout_s=60) as store, connected(database) as other:
        await store.open()
        watch = Watch(other)

        async def write(number: int) -> None:
            for count in range(1, 11):
                await store.session(f"user_{number}").add_items([ONE] * (count % 3 + 1))

        writing = asyncio.gather(*map(write, range(64)))
        while not writing.done():
            found += await watch.poll()
        await writing
        found += await watch.poll() + await watch.poll()
    stored = database.sql("SELECT sequence FROM agentmem.agentmem_items ORDER BY sequence")
    assert found == [int(sequence) for sequence in stored.split()]
