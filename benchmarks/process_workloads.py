"""The workloads that are about the process: its handles, its imports, scripts, and several processes on one file."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

from .bench import TURNS, Bench, Metrics, closed, opened
from .material import MAIN
from .systems import Handle, Unsupported
from .timing import Tally, at_once, one_by_one, one_by_one_plain

START_METHOD = "fork" if sys.platform == "linux" else "spawn"
"""How processes begin: as copies of one that has imported what they need, where that is safe."""

PROCESSES = 4
SESSIONS_EACH = 16

MOST_THREADS, MOST_DESCRIPTORS = 500, 2_000
"""Where opening handles stops, as it does when it takes too long: what each costs is clear by then."""


async def open_handles(bench: Bench) -> Metrics:
    """What the handles add to the process: each is opened, used once and kept."""
    if not os.path.exists("/proc/self/statm"):
        raise Unsupported("measured on Linux only")
    threads_before, descriptors_before = threading.active_count(), descriptors()
    async with bench.new() as system:
        await closed(await opened(system, 1))
        gc.collect()
        resident_before_kb = resident_kb()
        handles: list[Handle] = []
        deadline = perf_counter() + 5 * bench.scale.budget_s
        for number in range(bench.scale.handles):
            handles.append(await system.session(f"session-{number}"))
            await handles[-1].tail(1)
            if number % 50 == 49 and (
                perf_counter() > deadline or threading.active_count() > MOST_THREADS or descriptors() > MOST_DESCRIPTORS
            ):
                break
        gc.collect()
        metrics: Metrics = {
            "memory each": max(0.0, resident_kb() - resident_before_kb) / len(handles),
            "threads": threading.active_count() - threads_before,
            "descriptors": descriptors() - descriptors_before,
            "handles": len(handles),
        }
        await closed(handles)
    return metrics


def resident_kb() -> float:
    """This process's memory, in kB of 1,000 bytes."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e3


def descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1  # less the one that lists them


def sync(bench: Bench) -> Metrics:
    scripted = bench.new("sync.db").sync_session(MAIN)
    scripted.add(TURNS[0])
    scripted.tail(20)
    plain = one_by_one_plain(
        [partial(scripted.add, TURNS[0]), partial(scripted.tail, 20)], bench.scale.calls, bench.scale.budget_s
    )
    scripted.close()
    awaited = asyncio.run(_awaited(bench))
    names = ("add", "last 20", "awaited add", "awaited last 20")
    return {name: bench.each_us(tally) for name, tally in zip(names, [*plain, *awaited], strict=True)}


async def _awaited(bench: Bench) -> list[Tally]:
    async with bench.new("async.db") as system:
        handle = await system.session(MAIN)
        await handle.add(TURNS[0])
        await handle.tail(20)
        tallies = await one_by_one(
            [partial(handle.add, TURNS[0]), partial(handle.tail, 20)], bench.scale.calls, bench.scale.budget_s
        )
        await handle.close()
    return tallies


def processes(bench: Bench) -> Metrics:
    context: Any = multiprocessing.get_context(START_METHOD)
    opening, start, answers = context.Lock(), context.Barrier(PROCESSES), context.SimpleQueue()
    workers = [
        context.Process(target=_worker, args=(bench, number, opening, start, answers)) for number in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    tallies: list[Tally] = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    together = Tally()
    for tally in tallies:
        together.done += tally.done
        together.failed += tally.failed
        together.seconds = max(together.seconds, tally.seconds)
        together.error = together.error or tally.error
    return {"adds": bench.per_second(together)}


def _worker(bench: Bench, number: int, opening: Any, start: Any, answers: Any) -> None:
    tally = Tally()
    try:
        tally = asyncio.run(_add_in_worker(bench, number, opening, start))
    except Exception as error:
        tally.failed, tally.error = 1, f"{type(error).__name__}: {error}"
        start.abort()
    answers.put(tally)


async def _add_in_worker(bench: Bench, number: int, opening: Any, start: Any) -> Tally:
    with opening:  # one after the other: how a first open races with another is not what is measured here
        system = bench.new()
        await system.open()
        handles = [await system.session(f"session-{number}-{place}") for place in range(SESSIONS_EACH)]
        for handle in handles:
            await handle.tail(1)
    start.wait()
    calls = [lambda turn, handle=handle: handle.add(TURNS[turn % len(TURNS)]) for handle in handles]
    tally = await at_once(calls, bench.scale.each, bench.scale.budget_s)
    await closed(handles)
    await system.close()
    return tally


def imports(bench: Bench) -> Metrics:
    """In new interpreters, in turns: the system's import by name and with all that a session needs, and that of
    agentmem's dependencies."""
    named, whole, alone, openai = [], [], [], False
    for _ in range(3 if bench.scale.budget_s > 1 else 1):
        named.append(_import(bench.kind.modules[0], bench)[0] * 1e3)
        seconds, openai = _import(", ".join(bench.kind.modules), bench)
        whole.append(seconds * 1e3)
        alone.append(_import("pydantic, aiosqlite, anyio", bench)[0] * 1e3)
    return {
        "import": median(named),
        "with its sessions": median(whole),
        "dependencies alone": median(alone),
        "openai loaded": float(openai),
    }


def _import(modules: str, bench: Bench) -> tuple[float, bool]:
    code = (
        "import sys, time; begun = time.perf_counter(); "
        f"import {modules}; print(time.perf_counter() - begun, 'openai' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=bench.folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, openai = done.stdout.split()
    return float(seconds), openai == "True"
