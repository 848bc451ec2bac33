"""The workloads: what is measured. Each is a function and a row in ``WORKLOADS``.

Calls are warmed up before they are timed, and fresh connections, schemas and histories are not timed, except
where the workload's title says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .bench import TURNS, Bench, Metrics, Scale, closed, cycle, opened, warmed
from .databases import POSTGRES, SQLITE, Database
from .material import MAIN, History, other
from .process_workloads import PROCESSES, imports, open_handles, processes, sync
from .systems import Handle, System
from .timing import at_once, longest_stall_ms, one_by_one

LIMIT = 20


async def add(bench: Bench) -> Metrics:
    async with bench.new() as system:
        handles = await opened(system, bench.scale.many)
        calls = [partial(handle.add, added) for handle in handles for added in TURNS[: bench.scale.turns]]
        (tally,) = await one_by_one([cycle(calls)], len(calls), bench.scale.budget_s)
        await closed(handles)
    return {"add": bench.each_us(tally)}


async def _add_at_once(bench: Bench, sessions: int, each: int) -> Metrics:
    async with bench.new() as system:
        handles = await opened(system, sessions)
        tally = await system.add_at_once(handles, TURNS[:each], bench.scale.budget_s)
        await closed(handles)
    return {"adds": bench.per_second(tally)}


async def add_many(bench: Bench) -> Metrics:
    return await _add_at_once(bench, bench.scale.many, bench.scale.each)


async def add_crowd(bench: Bench) -> Metrics:
    return await _add_at_once(bench, bench.scale.crowd, max(1, bench.scale.each // 4))


async def tail(bench: Bench) -> Metrics:
    async with bench.filled() as system:
        handle = await system.session(MAIN)
        assert len(await handle.tail(10)) == 10
        twenty, ten = await one_by_one(
            [partial(handle.tail, LIMIT), partial(handle.tail, 10)], bench.scale.calls, bench.scale.budget_s
        )
        await handle.close()
    return {f"last {LIMIT}": bench.each_us(twenty), "last 10": bench.each_us(ten)}


async def read_all(bench: Bench) -> Metrics:
    async with bench.filled() as system:
        handle = await system.session(MAIN)
        assert len(await handle.tail(None)) == bench.scale.whole
        (tally,) = await one_by_one([partial(handle.tail, None)], 20, bench.scale.budget_s)
        stall_ms = await longest_stall_ms(partial(handle.tail, None), 3)
        await handle.close()
    return {"read": bench.each_us(tally) / 1e3, "longest stall": stall_ms}


async def read_many(bench: Bench) -> Metrics:
    async with bench.filled() as system:
        handles = await warmed(system, bench.scale.many)
        calls = [lambda _, handle=handle: handle.tail(10) for handle in handles]
        tally = await at_once(calls, bench.scale.each, bench.scale.budget_s)
        await closed(handles)
    return {"reads": bench.per_second(tally)}


async def mixed(bench: Bench) -> Metrics:
    def reading_or_adding(handle: Handle) -> Callable[[int], Awaitable[object]]:
        return lambda number: handle.add(TURNS[0]) if number % 5 == 4 else handle.tail(10)

    async with bench.copy() as system:
        handles = await warmed(system, bench.scale.many)
        calls = [reading_or_adding(handle) for handle in handles]
        tally = await at_once(calls, bench.scale.each, bench.scale.budget_s)
        await closed(handles)
    return {"calls": bench.per_second(tally)}


async def add_huge(bench: Bench) -> Metrics:
    async with bench.filled() as full, bench.new() as empty:
        handles = [await full.session(MAIN), await empty.session(MAIN)]
        for handle in handles:
            await handle.tail(1)
        to_full, to_empty = await one_by_one(
            [cycle([partial(handle.add, added) for added in TURNS]) for handle in handles],
            bench.scale.calls,
            bench.scale.budget_s,
        )
        await closed(handles)
    return {"add": bench.each_us(to_full), "to an empty file": bench.each_us(to_empty)}


async def handler(bench: Bench) -> Metrics:
    async with bench.copy() as system:
        sessions = range(bench.scale.many)
        kept = await warmed(system, bench.scale.many)

        async def turn_alone(handle: Handle) -> None:
            await handle.tail(LIMIT)
            await handle.add(TURNS[0])

        async def request(number: int) -> None:
            handle = await system.session(other(number))
            await turn_alone(handle)
            await handle.close()

        whole, alone = await one_by_one(
            [
                cycle([partial(request, number) for number in sessions]),
                cycle([partial(turn_alone, handle) for handle in kept]),
            ],
            bench.scale.calls,
            bench.scale.budget_s,
        )
        await closed(kept)
    return {"request": bench.each_us(whole), "the turn alone": bench.each_us(alone)}


async def window(bench: Bench) -> Metrics:
    async with bench.filled() as system:
        windowed, raw = await system.window(MAIN, LIMIT), await system.session(MAIN)
        await windowed.tail(None), await raw.tail(LIMIT)
        settled, uncut = await one_by_one(
            [partial(windowed.tail, None), partial(raw.tail, LIMIT)], bench.scale.calls, bench.scale.budget_s
        )
        await closed([windowed, raw])
    return {"window": bench.each_us(settled), "raw tail": bench.each_us(uncut)}


@dataclass(frozen=True)
class Metric:
    """One figure of a workload.

    Attributes:
        name, unit: as in the report; the workload's function returns the figure under this name.
        more_is_better: whether it is a speed.
    """

    name: str
    unit: str
    more_is_better: bool = False

    def per_second(self, value: float) -> float:
        """A speed as it is, a duration as calls per second."""
        return value if self.more_is_better else {"µs": 1e6, "ms": 1e3}[self.unit] / value


@dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
        title: what it does; ``{scale.many}`` and the like are filled in.
        run: the function; awaited where it is async.
        metrics: its figures, the one that systems are compared by first.
        history: what the file holds beforehand; None for a new one.
        in_chart: whether the chart shows it.
        database: whose systems it is measured on.
    """

    title: str
    run: Callable[[Bench], Any]
    metrics: tuple[Metric, ...]
    history: Callable[[Scale], History] | None = None
    in_chart: bool = False
    database: Database = SQLITE

    def systems(self, named: Mapping[str, type[System]]) -> list[str]:
        """Those of these that it is measured on."""
        return [name for name, system in named.items() if system.database is self.database]


def _many(scale: Scale) -> History:
    return History(scale.short, others=scale.many, others_items=scale.short)


def _huge(scale: Scale) -> History:
    return History(scale.huge, others=scale.huge)


_ADD = (Metric("add", "µs"),)
_ADDS = (Metric("adds", "/s", more_is_better=True),)
_READS = (Metric("reads", "/s", more_is_better=True),)
_TAIL = (Metric("last 20", "µs"), Metric("last 10", "µs"))

WORKLOADS: dict[str, Workload] = {
    "add": Workload("one add, then the next", add, _ADD, in_chart=True),
    "add-many": Workload("{scale.many} sessions adding at once", add_many, _ADDS, in_chart=True),
    "add-crowd": Workload("{scale.crowd} sessions adding at once", add_crowd, _ADDS),
    "tail-short": Workload("the last 20 of {scale.short:,} items", tail, _TAIL, lambda scale: History(scale.short)),
    "tail-long": Workload(
        "the last 20 of {scale.long:,} items", tail, _TAIL, lambda scale: History(scale.long), in_chart=True
    ),
    "tail-huge": Workload(
        "the last 20 of {scale.huge:,} items, in a file of {scale.huge:,} sessions", tail, _TAIL, _huge
    ),
    "read-all": Workload(
        "all of {scale.whole:,} items",
        read_all,
        (Metric("read", "ms"), Metric("longest stall", "ms")),
        lambda scale: History(scale.whole),
    ),
    "read-many": Workload(
        "{scale.many} sessions reading their last 10 at once",
        read_many,
        _READS,
        _many,
        in_chart=True,
    ),
    "mixed": Workload(
        "{scale.many} sessions at once, 80 % reads, 20 % adds",
        mixed,
        (Metric("calls", "/s", more_is_better=True),),
        _many,
        in_chart=True,
    ),
    "add-huge": Workload(
        "adding to a session of {scale.huge:,} items, in a file of {scale.huge:,} sessions",
        add_huge,
        (Metric("add", "µs"), Metric("to an empty file", "µs")),
        _huge,
    ),
    "handler": Workload(
        "open, read the last 20, add a turn, close",
        handler,
        (Metric("request", "µs"), Metric("the turn alone", "µs")),
        _many,
        in_chart=True,
    ),
    "window": Workload(
        "the replay window of {scale.long:,} items, limit=20",
        window,
        (Metric("window", "µs"), Metric("raw tail", "µs")),
        lambda scale: History(scale.long, tools=True),
    ),
    "handles": Workload(
        "{scale.handles:,} open handles",
        open_handles,
        (
            Metric("memory each", "kB"),
            Metric("threads", ""),
            Metric("descriptors", ""),
            Metric("handles", "", more_is_better=True),
        ),
    ),
    "processes": Workload(
        f"{PROCESSES} processes on one file, 16 sessions adding at once in each",
        processes,
        _ADDS,
    ),
    "sync": Workload(
        "calls from a script, without await",
        sync,
        (
            Metric("add", "µs"),
            Metric("last 20", "µs"),
            Metric("awaited add", "µs"),
            Metric("awaited last 20", "µs"),
        ),
    ),
    "import": Workload(
        "the import",
        imports,
        (
            Metric("import", "ms"),
            Metric("with its sessions", "ms"),
            Metric("dependencies alone", "ms"),
            Metric("openai loaded", ""),
        ),
    ),
    "pg-add": Workload("PostgreSQL: one add, then the next", add, _ADD, in_chart=True, database=POSTGRES),
    "pg-add-many": Workload(
        "PostgreSQL: {scale.many} sessions adding at once", add_many, _ADDS, in_chart=True, database=POSTGRES
    ),
    "pg-tail": Workload(
        "PostgreSQL: the last 20 of {scale.deep:,} items",
        tail,
        _TAIL,
        lambda scale: History(scale.deep),
        in_chart=True,
        database=POSTGRES,
    ),
    "pg-read-many": Workload(
        "PostgreSQL: {scale.many} sessions reading their last 10 at once",
        read_many,
        _READS,
        _many,
        in_chart=True,
        database=POSTGRES,
    ),
}
