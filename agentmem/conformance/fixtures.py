"""What the checks are written with: scratch sessions, sample items, readings, and comparisons that raise."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from ..engines.base import Engine, Reading
from ..items import Item
from ..reading import TailReading

OpenEngine = Callable[[], Engine]
"""Opens the database anew, as another handle or process would."""

Check = Callable[[OpenEngine], Awaitable[None]]
"""A check of one promise; it raises :class:`NotConforming` if the engine breaks it."""


class NotConforming(AssertionError):  # noqa: N818  an assertion, like pytest's, with a name of its own
    """An engine broke a promise; the message says what was expected and what happened."""


def expect_equal(actual: object, expected: object, what: str) -> None:
    """Raise NotConforming if `actual` is not equal to `expected`; `what` is the message's subject."""
    if actual != expected:
        raise NotConforming(f"{what}: expected {_shorten(expected)}, got {_shorten(actual)}")


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:200]} … {text[-200:]}"


@asynccontextmanager
async def scratch_session(open_engine: OpenEngine) -> AsyncIterator[tuple[Engine, str]]:
    """Open an engine, and yield it with the id of a session that does not exist yet."""
    engine = open_engine()
    try:
        yield engine, f"conformance-{uuid.uuid4()}"
    finally:
        await engine.close()


async def read_items(engine: Engine, session_id: str, limit: int | None = None) -> list[Item]:
    """Read the latest `limit` items of a session, oldest first; by default all."""
    return await engine.read(session_id, TailReading(limit))


def make_items(start: int, stop: int) -> list[Item]:
    """Items with the numbers from `start` up to, but not including, `stop`."""
    return [{"n": number} for number in range(start, stop)]


def make_rows(start: int, stop: int) -> list[str]:
    """The same items, encoded."""
    return [json.dumps(item) for item in make_items(start, stop)]


class PositionsReading(Reading[list[int]]):
    """A reading that takes every row and returns the positions, newest first."""

    def __init__(self) -> None:
        self.first = 100
        self.oldest: int | None = None
        self.restart()

    def restart(self) -> None:
        """Forget all rows."""
        self._positions: list[int] = []

    def feed(self, rows: Sequence[tuple[int, bytes]], *, at_start: bool) -> int:
        """Take the rows, newest first; return how many more to feed."""
        self._positions += [position for position, _ in rows]
        return 0 if at_start else 100

    def result(self) -> list[int]:
        """The positions, newest first."""
        return self._positions


class ReadingError(Exception):
    """The error of a :class:`FailingReading`."""


class FailingReading(PositionsReading):
    """A reading that raises ReadingError when it is fed."""

    def feed(self, rows: Sequence[tuple[int, bytes]], *, at_start: bool) -> int:
        """Raise ReadingError."""
        raise ReadingError
