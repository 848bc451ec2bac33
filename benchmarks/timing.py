"""Clocks: calls one by one, calls at once, the event loop's longest stall, and what the machine makes them pay."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import perf_counter

import aiosqlite

Call = Callable[[], Awaitable[object]]

TICK_S = 0.001


class Tally:
    """How many calls were made, how many of them failed, and how long they took: ``with tally: call()``.

    A call that fails is counted, not raised: a rival's "database is locked" is a result, not the end of the run.

    Attributes:
        error: what the first failed call raised; "" if none did.
        seconds: of all calls, one after the other; ``at_once`` sets it to the time that all of them took together.
    """

    def __init__(self) -> None:
        self.done = 0
        self.failed = 0
        self.seconds = 0.0
        self.error = ""
        self._begun = 0.0

    def __enter__(self) -> None:
        self._begun = perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        self.seconds += perf_counter() - self._begun
        if error is None:
            self.done += 1
            return False
        self.failed += 1
        self.error = self.error or f"{type(error).__name__}: {error}"
        return isinstance(error, Exception)

    @property
    def each_us(self) -> float:
        """Microseconds for each call that succeeded."""
        return self.seconds * 1e6 / self._done()

    @property
    def per_second(self) -> float:
        """Calls that succeeded, per second."""
        return self._done() / self.seconds

    def _done(self) -> int:
        if not self.done:
            raise RuntimeError(f"no call succeeded: {self.error}")
        return self.done


async def one_by_one(calls: Sequence[Call], count: int, budget_s: float) -> list[Tally]:
    """Make each of the calls `count` times, in turns so that they meet the same conditions.

    Ends early when the budget is spent, but not before each call was made once. Returns a tally for each call.
    """
    tallies = [Tally() for _ in calls]
    deadline = perf_counter() + budget_s
    for _ in range(count):
        for call, tally in zip(calls, tallies, strict=True):
            with tally:
                await call()
        if perf_counter() >= deadline:
            break
    return tallies


def one_by_one_plain(calls: Sequence[Callable[[], object]], count: int, budget_s: float) -> list[Tally]:
    """The same for calls that are not awaited."""
    tallies = [Tally() for _ in calls]
    deadline = perf_counter() + budget_s
    for _ in range(count):
        for call, tally in zip(calls, tallies, strict=True):
            with tally:
                call()
        if perf_counter() >= deadline:
            break
    return tallies


async def at_once(calls: Sequence[Callable[[int], Awaitable[object]]], each: int, budget_s: float) -> Tally:
    """One task for each of the calls, which makes it `each` times with the numbers from 0, all tasks at once.

    A task ends early when the budget is spent, but not before its first call.
    """
    tally = Tally()
    begun = perf_counter()
    deadline = begun + budget_s

    async def task(call: Callable[[int], Awaitable[object]]) -> None:
        for number in range(each):
            with tally:
                await call(number)
            if perf_counter() >= deadline:
                break

    await asyncio.gather(*map(task, calls))
    tally.seconds = perf_counter() - begun
    return tally


async def longest_stall_ms(call: Call, repeats: int) -> float:
    """How long the event loop could not run anything else during the call; the median over `repeats` calls.

    Measured by a task that wants to run every millisecond, so up to two milliseconds are its own.
    """
    stalls = []
    for _ in range(repeats):
        ticker = _Ticker()
        ticking = asyncio.create_task(ticker.run())
        await asyncio.sleep(2 * TICK_S)
        ticker.longest_s = 0.0
        await call()
        await asyncio.sleep(2 * TICK_S)  # so that the ticker sees a stall that lasted to the end
        ticking.cancel()
        stalls.append(ticker.longest_s * 1e3)
    return statistics.median(stalls)


def flush_us(folder: Path) -> float:
    """How long the disk takes to flush a page that was appended to a file, as every commit does; the median."""
    took = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(200):
            begun = perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            took.append(perf_counter() - begun)
    return statistics.median(took) * 1e6


def hop_us() -> float:
    """How long it takes to have the least statement run by aiosqlite, in its connection's thread; the median."""

    async def measure() -> float:
        async with aiosqlite.connect(":memory:") as db:
            took = []
            for _ in range(1_000):
                begun = perf_counter()
                await db.execute_fetchall("SELECT 1")
                took.append(perf_counter() - begun)
            return statistics.median(took) * 1e6

    return asyncio.run(measure())


class _Ticker:
    longest_s = 0.0

    async def run(self) -> None:
        last = perf_counter()
        while True:
            await asyncio.sleep(TICK_S)
            now = perf_counter()
            self.longest_s = max(self.longest_s, now - last - TICK_S)
            last = now
