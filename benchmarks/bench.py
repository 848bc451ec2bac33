"""What a workload is given: a :class:`Bench` with the system under test, and how large everything is."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .material import Item, other, turn
from .systems import Handle, System
from .timing import Call, Tally


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        rounds: how often each workload runs on each system, in a new process each time.
        budget_s: no timed part goes on longer, so slow systems make fewer calls.
        calls: of each kind, one by one.
        turns: of each of the `many` conversations that are added to one after the other.
        each: calls of each session, where many sessions make theirs at once.
        many, crowd: sessions at once.
        short, deep, long, whole, huge: items in the histories; `huge` is also the number of sessions in the largest
            file.
        handles: open at once.
    """

    rounds: int
    budget_s: float
    calls: int
    turns: int
    each: int
    many: int = 64
    crowd: int = 512
    short: int = 100
    deep: int = 5_000
    long: int = 10_000
    whole: int = 20_000
    huge: int = 1_000_000
    handles: int = 10_000


SCALES = {
    "full": Scale(rounds=5, budget_s=4.0, calls=1_000, turns=16, each=200),
    "quick": Scale(
        rounds=1, budget_s=0.15, calls=200, turns=4, each=20, crowd=128, whole=5_000, huge=30_000, handles=200
    ),
    "tiny": Scale(
        rounds=1,
        budget_s=0.05,
        calls=3,
        turns=1,
        each=2,
        many=4,
        crowd=6,
        short=12,
        deep=24,
        long=24,
        whole=40,
        huge=60,
        handles=8,
    ),
}

Metrics = dict[str, float]

TURNS: list[list[Item]] = [turn(number) for number in range(200)]
"""What is added; made beforehand, so that no timed call makes it."""


@dataclass
class Bench:
    """What a workload gets to work with.

    Attributes:
        kind: the system under test.
        scale: how much of everything.
        folder: empty, for the workload's own files.
        history: the file with the workload's history; shared by all rounds.
        failures: the tallies' errors, with how many calls failed.
    """

    kind: type[System]
    scale: Scale
    folder: Path
    history: Path | None = None
    failures: dict[str, int] = field(default_factory=dict)

    def new(self, name: str = "new.db") -> System:
        """The system on an empty file, or what stands for one."""
        return self.kind(str(self.folder / name))

    def filled(self) -> System:
        """The system on the history."""
        return self.kind(str(self.history))

    def copy(self) -> System:
        """The system on a copy of the history, for workloads that add to every session."""
        assert self.history is not None
        shutil.copyfile(self.history, self.folder / "copy.db")
        return self.new("copy.db")

    def each_us(self, tally: Tally) -> float:
        """Microseconds per call."""
        self._note(tally)
        return tally.each_us

    def per_second(self, tally: Tally) -> float:
        """Calls per second."""
        self._note(tally)
        return tally.per_second

    def _note(self, tally: Tally) -> None:
        if tally.failed:
            self.failures[tally.error] = self.failures.get(tally.error, 0) + tally.failed


async def opened(system: System, count: int) -> list[Handle]:
    """New sessions, each read once, so that what opens with the first call is open."""
    return await _warmed(system, [f"session-{number}" for number in range(count)])


async def warmed(system: System, count: int) -> list[Handle]:
    """Sessions that the history has, each read once."""
    return await _warmed(system, [other(number) for number in range(count)])


async def _warmed(system: System, session_ids: Sequence[str]) -> list[Handle]:
    handles = [await system.session(session_id) for session_id in session_ids]
    for handle in handles:
        await handle.tail(1)
    return handles


async def closed(handles: Sequence[Handle]) -> None:
    """Closes the handles, not the system."""
    for handle in handles:
        await handle.close()


def cycle(calls: Sequence[Call]) -> Call:
    """One call after the other, with each call the next."""
    place = -1

    def call() -> Awaitable[object]:
        nonlocal place
        place = (place + 1) % len(calls)
        return calls[place]()

    return call
