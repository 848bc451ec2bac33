"""Load on one database: many clients, in one process or several, each with one call after the other.

Every call is about a session picked at random among all that are stored, evenly: no cache knows it, which is the
worst that traffic can do. An append is one turn of two items; a read, the newest ten.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import statistics
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from .bench import TURNS
from .material import Item, other
from .process_workloads import START_METHOD
from .systems import Handle, System

READ = 10

MOST_CONNECTIONS = 64
"""Of the driver alone, in all processes; it has one for each client up to that many. A server takes 100 by default."""

Call = Callable[[Handle], Awaitable[object]]


def connections_each(clients: int, processes: int) -> int:
    """How many connections the driver alone has in each process."""
    return max(1, min(clients, MOST_CONNECTIONS) // min(clients, processes))


@dataclass(frozen=True)
class Load:
    """What to do.

    Attributes:
        make: the system, closed; called in each process.
        sessions: how many are stored, as ``material.other`` names them.
        clients: in all processes together.
        seconds: of each kind of call.
        reads: whether to read after appending.
    """

    make: Callable[[], System]
    sessions: int
    clients: int
    processes: int
    seconds: float
    reads: bool = True


@dataclass
class Calls:
    """What came of one kind of call.

    Attributes:
        took_s: by each call that succeeded.
        seconds: from the first call's beginning to the last one's end.
        error: what the first failed call raised; "" if none did.
    """

    took_s: array[float] = field(default_factory=lambda: array("d"))
    seconds: float = 0.0
    failed: int = 0
    error: str = ""

    @property
    def per_second(self) -> float:
        """Calls that succeeded, per second."""
        return len(self.took_s) / self.seconds if self.seconds else 0.0

    def percentile_ms(self, percent: int) -> float:
        """Milliseconds within which so many of the calls were done; at least two must have succeeded."""
        return statistics.quantiles(self.took_s, n=100, method="inclusive")[percent - 1] * 1e3

    def merge(self, other: Calls) -> None:
        """Take in what another process did at the same time."""
        self.took_s.extend(other.took_s)
        self.seconds = max(self.seconds, other.seconds)
        self.failed += other.failed
        self.error = self.error or other.error


def run_load(load: Load) -> tuple[Calls, Calls]:
    """Appends, then reads, by all clients at once.

    Raises:
        RuntimeError: a process could not open the system, or did not end well.
    """
    context: Any = multiprocessing.get_context(START_METHOD)
    processes = min(load.processes, load.clients)
    opening, start, answers = context.Lock(), context.Barrier(processes), context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(load, number, opening, start, answers)) for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    found = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    appends, reads = Calls(), Calls()
    for answer in found:
        if isinstance(answer, str):
            raise RuntimeError(answer)
        appends.merge(answer[0])
        reads.merge(answer[1])
    return appends, reads


def _work(load: Load, number: int, opening: Any, start: Any, answers: Any) -> None:
    try:
        answers.put(asyncio.run(_clients(load, number, opening, start)))
    except BaseException as error:
        start.abort()
        answers.put(f"{type(error).__name__}: {error}")


async def _clients(load: Load, number: int, opening: Any, start: Any) -> tuple[Calls, Calls]:
    processes = min(load.processes, load.clients)
    clients = len(range(number, load.clients, processes))
    system = load.make()
    with opening:  # one after the other: how first opens race is not what is measured here
        await system.open()
    draw = random.Random(number)

    async def append(handle: Handle) -> None:
        await handle.add(_turn(draw))

    async def read(handle: Handle) -> None:
        await handle.tail(READ)

    async def calls(call: Call, seconds: float) -> Calls:
        return await _at_once(system, call, clients, load.sessions, draw, seconds)

    warm_s = min(1.0, load.seconds / 4)
    await calls(append, warm_s)
    start.wait()
    appends, reads = await calls(append, load.seconds), Calls()
    if load.reads:
        await calls(read, warm_s)
        start.wait()
        reads = await calls(read, load.seconds)
    await system.close()
    return appends, reads


def _turn(draw: random.Random) -> list[Item]:
    return TURNS[draw.randrange(len(TURNS))]


async def _at_once(
    system: System, call: Call, clients: int, sessions: int, draw: random.Random, seconds: float
) -> Calls:
    found = Calls()
    begun = perf_counter()

    async def client() -> None:
        while True:
            handle = await system.session(other(draw.randrange(sessions)))
            called = perf_counter()
            try:
                await call(handle)
            except Exception as error:  # a "database is locked" is a result, not the end of the run
                found.failed += 1
                found.error = found.error or f"{type(error).__name__}: {error}"
            else:
                found.took_s.append(perf_counter() - called)
            if perf_counter() - begun >= seconds:
                return

    await asyncio.gather(*(client() for _ in range(clients)))
    found.seconds = perf_counter() - begun
    return found
