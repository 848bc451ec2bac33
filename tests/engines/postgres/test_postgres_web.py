"""A web server of four processes in front of one PostgreSQL: whichever of them answers, and also when one is killed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from killing import Batch, whole_batches
from postgres_database import PostgresDatabase
from processes import SUPPORT
from waiting import WAIT_S
from web_client import converse, history, say
from web_client import serving as example_serving
from web_server import Server, uvicorn

from agentmem.engines.postgres.pool import READERS, WRITERS

pytestmark = [pytest.mark.anyio, pytest.mark.exhaustive]

WORKERS = 4


@contextlib.contextmanager
def serving(database: PostgresDatabase, folder: Path) -> Iterator[Server]:
    """A web server that adds what it is sent to the database."""
    env = {**os.environ, "DATABASE": database.url}
    with uvicorn("web_app:app", app_dir=SUPPORT, folder=folder, env=env, workers=WORKERS) as server:
        yield server


@contextlib.asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=0)  # so that any worker answers any request
    async with httpx.AsyncClient(base_url=server.url, timeout=WAIT_S, limits=limits, trust_env=False) as client:
        yield client


async def test_the_fastapi_example_remembers_each_of_many_users_whichever_worker_answers(
    database: PostgresDatabase, tmp_path: Path
) -> None:
    ids = [f"user{number}" for number in range(32)]
    with example_serving(tmp_path, CHAT_DB=database.url, workers=WORKERS) as server:
        async with client_of(server) as client:
            expected = await asyncio.gather(*(converse(client, user_id) for user_id in ids))
            assert await asyncio.gather(*(history(client, user_id) for user_id in ids)) == expected
            # Several at once for one user: each question keeps its answer beside it.
            answers = await asyncio.gather(*(say(client, "eve", f"Hello {number}") for number in range(32)))
            items = await history(client, "eve")
    assert len(items) == 64
    pairs = set(zip(items[::2], items[1::2], strict=True))
    assert pairs == {(("user", f"Hello {n}"), ("assistant", answer)) for n, answer in enumerate(answers)}
    assert [line for line in server.log if not line.startswith("INFO: ")] == []


class Load:
    """Clients that each send one batch after the other: half of them to a session that all share, half to their own.

    Attributes:
        answers: how many batches each worker has acknowledged.
        acknowledged: these batches.
        in_doubt: those whose request failed with its connection.
    """

    def __init__(self, client: httpx.AsyncClient, clients: int) -> None:
        self._client = client
        self._clients = clients
        self.answers: Counter[int] = Counter()
        self.acknowledged: list[Batch] = []
        self.in_doubt: list[Batch] = []
        self._is_over = False
        self._progress = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(self._send(number)) for number in range(self._clients)]
        try:
            yield
        finally:
            self._is_over = True
            await asyncio.gather(*tasks)

    async def wait_for(self, more: int, workers: int) -> None:
        """Until so many more batches are acknowledged, by this many processes."""
        before = self.answers.copy()
        async with self._progress:
            await self._progress.wait_for(
                lambda: (self.answers - before).total() >= more and len(self.answers - before) >= workers
            )

    async def _send(self, client: int) -> None:
        session_id = "shared" if client % 2 else f"client_{client}"
        for number in itertools.count():
            if self._is_over:
                return
            batch = Batch(session_id, client, 0, number)
            size = 1 + number % 4
            items = [{"batch": list(batch[1:]), "size": size, "place": place} for place in range(size)]
            try:
                response = await self._client.post(f"/{session_id}", json=items)
            except httpx.TransportError:
                self.in_doubt.append(batch)
                continue
            assert response.status_code == 200, response.text
            self.acknowledged.append(batch)
            async with self._progress:
                self.answers[response.json()] += 1
                self._progress.notify_all()

    def check(self, database: PostgresDatabase) -> None:
        """What is in the database is whole, there once and in order, and nothing that was acknowledged is missing."""
        stored = [
            batch for session_id, items in database.sessions().items() for batch in whole_batches(session_id, items)
        ]
        assert max(Counter(stored).values()) == 1
        assert set(self.acknowledged) <= set(stored) <= {*self.acknowledged, *self.in_doubt}
        doubtful = set(self.in_doubt)
        for client in range(self._clients):
            # What failed may have come after what its client sent next.
            numbers = [batch.number for batch in stored if batch.writer == client and batch not in doubtful]
            assert numbers == sorted(numbers)


async def test_requests_to_the_same_sessions_are_kept_whole_and_in_order_by_all_workers_with_the_documented_connections(
    database: PostgresDatabase, tmp_path: Path
) -> None:
    most, said = WORKERS * (WRITERS + READERS), len(database.server.log())
    database.server.sql(f"ALTER ROLE agentmem CONNECTION LIMIT {most}")  # the server counts, at every moment
    try:
        with serving(database, tmp_path) as server:
            async with client_of(server) as client:
                load = Load(client, clients=32)
                async with load.running():
                    await load.wait_for(600, workers=WORKERS)
                shared = (await client.get("/shared")).json()
            assert WORKERS < len(database.connections()) <= most
    finally:
        database.server.sql("ALTER ROLE agentmem CONNECTION LIMIT -1")
    assert "too many connections" not in database.server.log()[said:]
    assert load.in_doubt == []
    load.check(database)
    assert shared == database.stored("shared")
    database.wait_until_left()


async def test_workers_that_are_killed_under_load_lose_nothing_that_was_acknowledged_and_tear_and_double_nothing(
    database: PostgresDatabase, tmp_path: Path
) -> None:
    with serving(database, tmp_path) as server:
        async with client_of(server) as client:
            load = Load(client, clients=32)
            async with load.running():
                kills = 0
                while kills < 3 or not load.in_doubt:  # until one came in the middle of a request
                    kills += 1
                    assert kills < 50
                    await asyncio.to_thread(server.wait_for, kills + 1)  # uvicorn replaces those that die
                    await load.wait_for(100, workers=2)
                    os.kill(server.workers[kills], signal.SIGKILL)
                await asyncio.to_thread(server.wait_for, WORKERS + kills)
                await load.wait_for(200, workers=WORKERS)
    assert len(load.answers) > WORKERS
    load.check(database)
    database.wait_until_left()
