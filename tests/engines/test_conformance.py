"""Every engine of the registry passes every conformance check; and the checks themselves can fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from exhaustive import cases

from agentmem.checking import CheckReport, Progress
from agentmem.conformance import CHECKS, NotConforming
from agentmem.engines.base import Engine, Reading, T
from agentmem.engines.sqlite.engine import SQLiteEngine
from agentmem.engines.sqlite.pool import leases
from agentmem.reading import TailReading

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_engine_keeps(check: Callable[..., object], open_engine: Callable[[], Engine]) -> None:
    await check(open_engine)  # type: ignore[misc]  # parametrize() loses that it is awaitable


def test_a_public_check_that_is_not_listed_would_be_forgotten() -> None:
    import inspect
    import pkgutil
    from importlib import import_module

    from agentmem import conformance

    public = {
        name
        for subject in pkgutil.iter_modules(conformance.__path__, f"{conformance.__name__}.")
        for name, value in inspect.getmembers(import_module(subject.name), inspect.iscoroutinefunction)
        if "open_engine" in inspect.signature(value).parameters and not name.startswith("_")
    }
    assert public == {check.__name__ for check in CHECKS}


class Forgetful(SQLiteEngine):
    """Loses the newest row of every batch."""

    async def append(self, session_id: str, rows: Sequence[str]) -> None:
        await super().append(session_id, rows[:-1])


class Backwards(SQLiteEngine):
    """Stores each batch newest first."""

    async def append(self, session_id: str, rows: Sequence[str]) -> None:
        await super().append(session_id, rows[::-1])


class Splitting(SQLiteEngine):
    """Stores each row in a transaction of its own."""

    async def append(self, session_id: str, rows: Sequence[str]) -> None:
        for row in rows:
            await super().append(session_id, [row])


class Mixing(SQLiteEngine):
    """Knows session ids only without their case."""

    async def append(self, session_id: str, rows: Sequence[str]) -> None:
        await super().append(session_id.lower(), rows)

    async def read(self, session_id: str, reading: Reading[T]) -> T:
        return await super().read(session_id.lower(), reading)


class Keeping(SQLiteEngine):
    """Does not clear."""

    async def clear(self, session_id: str) -> None:
        pass


class Peeking(SQLiteEngine):
    """Pops without removing."""

    async def pop(self, session_id: str, reading: Reading[T]) -> T:
        return await self.read(session_id, reading)


class Unending(SQLiteEngine):
    """Works on after close."""

    async def close(self) -> None:
        await super().close()
        self._is_closed = False
        self._leases = leases(self._database)


class Clipping(SQLiteEngine):
    """Reads at most a thousand rows."""

    async def read(self, session_id: str, reading: Reading[T]) -> T:
        if isinstance(reading, TailReading) and reading.limit is None:
            reading.limit = 1000
        return await super().read(session_id, reading)


class Content(SQLiteEngine):
    """Finds nothing wrong."""

    async def check(self, progress: Progress | None = None) -> CheckReport:
        return replace(await super().check(progress), problem_count=0, problems=())


class Alphabetical(SQLiteEngine):
    """Lists sessions as a dictionary would."""

    async def sessions(self, after: str | None, most: int) -> list[tuple[str, int]]:
        return sorted(await super().sessions(after, most), key=lambda session: session[0].casefold())


class Skipping(SQLiteEngine):
    """Lists no session that pops have emptied."""

    async def sessions(self, after: str | None, most: int) -> list[tuple[str, int]]:
        return [session for session in await super().sessions(after, most) if session[1]]


class Tidying(SQLiteEngine):
    """Gives rows as a JSON column would have them."""

    async def rows(self, session_id: str, start: int, most: int) -> list[tuple[int, bytes]]:
        rows = await super().rows(session_id, start, most)
        return [(position, text.replace(b"  ", b" ")) for position, text in rows]


class Abridging(SQLiteEngine):
    """Gives no row that is long."""

    async def rows(self, session_id: str, start: int, most: int) -> list[tuple[int, bytes]]:
        return [row for row in await super().rows(session_id, start, most) if len(row[1]) < 100_000]


BROKEN = [
    *(Forgetful, Backwards, Splitting, Mixing, Keeping, Peeking, Unending, Clipping, Content),
    *(Alphabetical, Skipping, Tidying, Abridging),
]
FOUND_OUT_LATE = (Splitting, Content, Tidying, Abridging)
"""By one of the last checks, or by one that is slow then."""


@pytest.mark.parametrize(
    "broken", cases(BROKEN, quick=lambda broken: broken not in FOUND_OUT_LATE), ids=lambda broken: broken.__name__
)
async def test_a_broken_engine_is_found_out(broken: type[SQLiteEngine], tmp_path: Path) -> None:
    engines: list[SQLiteEngine] = []

    def open_broken() -> Engine:
        engines.append(broken(tmp_path / "broken.db"))
        return engines[-1]

    async def find_out() -> None:
        for check in CHECKS:
            await check(open_broken)

    with pytest.raises(NotConforming):
        await find_out()
    for engine in engines:
        await SQLiteEngine.close(engine)
