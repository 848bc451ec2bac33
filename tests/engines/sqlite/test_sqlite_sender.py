"""Batches are run in the order of their numbers, each once, however connections are lost and opened."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from stepping import AsyncioCycleLoop

from agentmem.engines.batching import Batch, Batcher, Queue
from agentmem.engines.sqlite.connection import Connection, ConnectionLost, Origin, Outcome
from agentmem.engines.sqlite.sender import Sender


class Stepped(Connection):
    """A connection whose thread is the test: it runs a batch, and tells of one, when the test says so."""

    def __init__(self, ran: list[int]) -> None:
        super().__init__("unused")
        self.is_open = True
        self.inbox: deque[Batch[Any]] = deque()
        self.news: deque[Outcome | Batch[Any]] = deque()
        self._ran = ran
        self._ends = False
        self._origin: Origin | None = None

    def is_lost(self) -> bool:
        return self._ends or not self.is_open

    def send(self, origin: Origin, batch: Batch[Any]) -> None:
        if self._ends:
            raise ConnectionLost
        self._origin = origin
        self.inbox.append(batch)

    def run_next(self) -> None:
        if not self.inbox:
            return
        batch = self.inbox.popleft()
        if not self.is_open:
            self.news.append(batch)
            return
        self._ran.extend(job.work for job in batch.jobs)
        assert self._origin is not None
        outcome = Outcome(self._origin, batch)
        outcome.jobs, outcome.is_last = list(batch.jobs), True
        self.news.append(outcome)

    def tell_next(self) -> None:
        if self.news and self._origin is not None:
            news = self.news.popleft()
            if isinstance(news, Outcome):
                self._origin.take_in(news)
            else:
                self._origin.returned(news)

    async def close(self) -> None:
        self._ends = True
        while self.inbox:
            self.run_next()
        while self.news:  # noqa: ASYNC110  the test tells of them step by step
            await asyncio.sleep(0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 6)),
        st.tuples(st.sampled_from(["run", "tell", "lose", "connect", "open"]), st.integers(1, 3)),
    ),
    max_size=40,
)


@given(STEPS, st.integers(1, 3))
def test_whatever_happens_when_each_call_is_carried_out_once_and_in_order(
    steps: list[tuple[str, int]], slots: int
) -> None:
    async def main() -> None:
        ran: list[int] = []
        connections: list[Stepped] = []
        may_connect = asyncio.Semaphore(0)

        async def connect(deadline: float) -> Connection:
            await may_connect.acquire()
            connections.append(Stepped(ran))
            return connections[-1]

        def send(batch: Batch[int]) -> None:
            sender.send(batch)

        batcher: Batcher[int] = Batcher(send, Queue(slots=slots, max_batch_size=3, second_batch_at=2))
        sender = Sender(batcher, lambda connection, origin, batch: None, connect, loop)
        calls: list[asyncio.Task[Any]] = []
        opens: list[asyncio.Task[Connection]] = []
        for step, count in steps:
            for _ in range(count):
                if step == "submit":
                    calls.append(asyncio.ensure_future(batcher.submit(len(calls))))
                elif step == "connect":
                    may_connect.release()
                elif step == "open":  # as a read does before it opens its own connection
                    opens.append(asyncio.ensure_future(sender.connected(math.inf)))
                for connection in connections:
                    if step == "run":
                        connection.run_next()
                    elif step == "tell":
                        connection.tell_next()
                    elif step == "lose":
                        connection.is_open = False
            for _ in range(4):
                await asyncio.sleep(0)  # let all happen that needs nobody from outside
        while not all(call.done() for call in (*calls, *opens)):
            may_connect.release()
            for connection in connections:
                connection.run_next()
                connection.tell_next()
            await asyncio.sleep(0)
        assert ran == list(range(len(calls)))

    loop = AsyncioCycleLoop()
    loop.run(main())
    assert loop.complaints == []
