"""The WAL stays small however much is read and written; only the connection that writes copies it into the file."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agentmem import AsyncSessionStore

pytestmark = pytest.mark.anyio

MB = 1_000_000


@pytest.mark.xfail(
    reason="SQLite begins its WAL anew only while no read is under way, and the automatic checkpoint waits for none"
)
async def test_the_wal_stays_small_under_reads_that_never_pause(tmp_path: Path) -> None:
    path = tmp_path / "conversations.db"
    wal = path.with_name(path.name + "-wal")
    async with AsyncSessionStore(path) as store:
        for number in range(8):
            await store.session(f"read_{number}").add_items([{"text": "x" * 500}] * 200)
        ended = False
        most = 0

        async def read(number: int) -> None:
            while not ended:
                assert len(await store.session(f"read_{number % 8}").get_items()) == 200

        async def write(number: int) -> None:
            nonlocal most
            session = store.session(f"written_{number}")
            for place in range(1000):
                await session.add_items([{"text": "x" * 500}] * 4)
                most = max(most, wal.stat().st_size)
                if place % 50 == 49:
                    await session.clear_session()

        reading = [asyncio.ensure_future(read(number)) for number in range(200)]
        await asyncio.gather(*(write(number) for number in range(8)))
        ended = True
        await asyncio.gather(*reading)
    assert most < 16 * MB
