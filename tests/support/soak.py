"""A long load on one file: what a process holds must stay flat, and every read must be right.

    python tests/support/soak.py --seconds 3600 --kills 500

First that many writers are killed (see ``killing``). Then readers, writers, pops, clears and reopenings run for that
long: tasks of one event loop, a thread with the sync classes, a thread with a new event loop each time, and two other
processes that open and close the file again and again. Once a second this process's memory, threads and descriptors
are looked at, and the sizes of the file and its WAL. How fast it goes decides nothing.

Ends with code 1 where something does not stay flat (see ``flatness``), where there was an error, or any content was
wrong. The rule by which any reader can tell a wrong history: the items of a session are numbered without a gap,
whatever was popped and cleared. Who writes a session alone knows it exactly, and compares.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import killing
from flatness import Sample, report

from agentmem import AsyncSession, AsyncSessionStore, AsyncSQLiteSession, SessionSettings, SQLiteSession
from agentmem.items import Item

WRITERS, SESSIONS_EACH, PROCESSES = 8, 25, 2

READERS = 200
"""So many that there is always a read under way, before which SQLite does not begin its WAL anew."""

LONGEST = 80
"""Items in a session before it is cleared."""

HISTORIES = [None, None, None, SessionSettings(limit=20), SessionSettings(max_tokens=2000)]
"""What is read: mostly everything."""

LEAST_SAMPLES = 60


class Wrong(Exception):  # noqa: N818  what the soak is there to find
    """A history was read that was never there."""


class Owned:
    """A session that only its owner writes, and what must be in it."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._expected: list[Item] = []
        self._next = 0

    def next_call(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        """A random call, by its name."""
        if len(self._expected) > LONGEST:
            return "clear", self._clear
        calls = {"add": self._add, "get": self._get, "pop": self._pop, "clear": self._clear}
        (name,) = random.choices(list(calls), [50, 40, 9, 1])
        return name, calls[name]

    async def fill(self) -> None:
        """Begin with as much as there will be, so that the file does not grow from then on."""
        while len(self._expected) < LONGEST * 3 // 4:
            await self._add()

    async def _add(self) -> None:
        numbers = range(self._next, self._next + random.randint(1, 5))
        batch = [{"number": number, "text": "x" * random.randrange(20, 3000)} for number in numbers]
        await self._session.add_items(batch)
        self._expected += batch
        self._next += len(batch)

    async def _get(self) -> None:
        limit = random.randrange(30)
        self._is(await self._session.get_items(limit), self._expected[max(0, len(self._expected) - limit) :])

    async def _pop(self) -> None:
        popped = await self._session.pop_item()
        self._is(popped, self._expected.pop() if self._expected else None)
        self._next -= popped is not None

    async def _clear(self) -> None:
        await self._session.clear_session()
        self._expected = []

    async def start_anew(self) -> None:
        """For a session of which the owner does not know what is in it."""
        await self._clear()

    async def check(self) -> None:
        self._is(await self._session.get_items(), self._expected)

    def _is(self, found: object, expected: object) -> None:
        if found != expected:
            raise Wrong(f"{self._session}: {str(found)[:500]} instead of {str(expected)[:500]}")


def check_numbers(items: list[Any]) -> None:
    numbers = [item["number"] for item in items]
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise Wrong(f"a gap: {numbers}")


class Load:
    """Everything that runs, and what it counts. The first error ends it all."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = str(path)
        self.calls: Counter[str] = Counter()
        self.slowest_ms: defaultdict[str, float] = defaultdict(float)
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self.samples: list[Sample] = []
        self._seconds = seconds

    async def run(self) -> None:
        threads = [threading.Thread(target=self._until_the_end, args=(work,)) for work in (self._sync, self._loops)]

        def join() -> None:
            for thread in threads:
                thread.join()

        with _others(self.path, self.fail):
            async with AsyncSessionStore(self.path, busy_timeout_s=60) as store:
                owned = [
                    [Owned(store.session(f"owned_{writer}_{number}")) for number in range(SESSIONS_EACH)]
                    for writer in range(WRITERS)
                ]
                await asyncio.gather(*(session.fill() for session in itertools.chain(*owned)))
                for thread in threads:
                    thread.start()
                tasks = [self._write(sessions) for sessions in owned]
                tasks += [self._read(store) for _ in range(READERS)]
                tasks += [self._reopen(), self._sample()]
                try:
                    await asyncio.gather(*tasks)
                    await asyncio.gather(*(session.check() for session in itertools.chain(*owned)))
                except BaseException as error:
                    self.fail(error)
                await asyncio.to_thread(join)

    def fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self.ended.set()

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.calls[name] += 1
        self.slowest_ms[name] = max(self.slowest_ms[name], (time.perf_counter() - begun) * 1000)

    async def _write(self, sessions: list[Owned]) -> None:
        while not self.ended.is_set():
            session = random.choice(sessions)
            name, call = session.next_call()
            with self._call(name):
                await call()

    async def _read(self, store: AsyncSessionStore) -> None:
        while not self.ended.is_set():
            name = f"owned_{random.randrange(WRITERS)}_{random.randrange(SESSIONS_EACH)}"
            settings = random.choice(HISTORIES)
            with self._call("read"):
                check_numbers(await store.session(name, settings=settings).get_items())

    async def _reopen(self) -> None:
        """Handles with a durability of their own, and so with a pool of their own."""
        for number in itertools.count():
            if self.ended.is_set():
                return
            with self._call("reopen"):
                async with AsyncSQLiteSession(
                    self.path, session_id=f"reopened_{number % 50}", busy_timeout_s=60, durability="normal"
                ) as session:
                    await session.clear_session()
                    await session.add_items([{"number": place} for place in range(3)])
                    check_numbers(await session.get_items())

    def _until_the_end(self, work: Callable[[int], None]) -> None:
        try:
            for number in itertools.count():
                if self.ended.is_set():
                    return
                work(number)
        except BaseException as error:
            self.fail(error)

    def _sync(self, number: int) -> None:
        with self._call("sync"), SQLiteSession(self.path, session_id="sync", busy_timeout_s=60) as session:
            session.add_items([{"number": number}])
            check_numbers(session.get_items(limit=50))
            if number % 100 == 99:
                session.clear_session()

    def _loops(self, number: int) -> None:
        async def main() -> None:
            session = AsyncSQLiteSession(self.path, session_id="loops", busy_timeout_s=60)  # never closed
            await session.add_items([{"number": number}])
            check_numbers(await session.get_items(limit=50))
            if number % 100 == 99:
                await session.clear_session()

        with self._call("new loop"):
            asyncio.run(main())

    async def _sample(self) -> None:
        begun = time.monotonic()
        while not self.ended.is_set():
            passed = time.monotonic() - begun
            self.samples.append(Sample.take(self.path, passed, self.calls.total()))
            if passed >= self._seconds and len(self.samples) >= LEAST_SAMPLES:
                self.ended.set()
            await asyncio.sleep(min(1.0, self._seconds / LEAST_SAMPLES))


@contextmanager
def _others(path: str, fail: Callable[[BaseException], None]) -> Iterator[None]:
    """Other processes that write, read and reopen until the end."""
    command = [sys.executable, __file__, "--other", path]
    others = [subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE) for number in range(PROCESSES)]
    try:
        yield
    finally:
        for other in others:
            try:
                other.communicate(timeout=300)  # the end of its stdin is the end for it
            except subprocess.TimeoutExpired:
                other.kill()
                other.communicate()
            if other.returncode:
                fail(Wrong(f"another process ended with {other.returncode}"))


def run_as_other(path: str, name: str) -> None:
    ended = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()

    async def main() -> None:
        while not ended.is_set():
            async with AsyncSessionStore(path, busy_timeout_s=60) as store:
                sessions = [Owned(store.session(f"other_{name}_{number}")) for number in range(5)]
                await asyncio.gather(*(session.start_anew() for session in sessions))
                for _ in range(40):
                    await asyncio.gather(*(session.next_call()[1]() for session in sessions))
                await asyncio.gather(*(session.check() for session in sessions))

    asyncio.run(main())


def kill(folder: Path, kills: int) -> None:
    path = folder / "killed.db"
    arguments = killing.program_arguments(path, writers=8, kills=kills, used=True)
    done = subprocess.run(
        [sys.executable, "-c", killing.PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    batches = killing.check(path, done.stdout)
    print(f"{kills} writers were killed; {batches} batches were acknowledged, and are there whole and in order")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--other", nargs=2, metavar=("FILE", "NAME"), help="used by the soak itself")
    options = parser.parse_args()
    if options.other:
        return run_as_other(*options.other)
    with tempfile.TemporaryDirectory() as folder:
        if options.kills:
            kill(Path(folder), options.kills)
        load = Load(Path(folder, "soak.db"), options.seconds)
        asyncio.run(load.run())
        if load.error is not None:
            raise load.error
        problems = report(load.samples)
        for name, count in sorted(load.calls.items()):
            print(f"{name:12} {count:12} calls, the slowest took {load.slowest_ms[name]:.0f} ms")
    if problems:
        sys.exit("not flat: " + "; ".join(problems))


if __name__ == "__main__":
    main()
