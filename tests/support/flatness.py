"""What a process holds while it works, and whether that stays flat. Linux alone tells.

Flat is what is not larger in the last third than in the first, of all but the first fifth, by more than ``ALLOWED``.
A third is judged by what nine of ten of its samples do not exceed: a moment counts for nothing.
"""

from __future__ import annotations

import os
import statistics
from typing import NamedTuple

from agentmem.engines.sqlite.checkpoint import LIMIT_BYTES


class Sample(NamedTuple):
    """What there is at one moment."""

    second: float
    calls: int
    memory_mb: float
    threads: float
    descriptors: float
    file_mb: float
    wal_mb: float

    @classmethod
    def take(cls, path: str, second: float, calls: int) -> Sample:
        memory = threads = 0.0
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                name, _, value = line.partition(":")
                if name == "VmRSS":
                    memory = int(value.split()[0]) / 1024
                elif name == "Threads":
                    threads = int(value)
        wal = f"{path}-wal"
        return cls(
            second,
            calls,
            memory,
            threads,
            len(os.listdir("/proc/self/fd")),
            os.path.getsize(path) / 1e6 if os.path.exists(path) else 0,
            os.path.getsize(wal) / 1e6 if os.path.exists(wal) else 0,
        )


ALLOWED = {
    # name: by which factor and how much more the last third may have than the first
    "memory_mb": (1.05, 4.0),
    "threads": (1.0, 3.0),
    "descriptors": (1.0, 8.0),  # a pool that is just being opened has up to nine
    "file_mb": (1.1, 1.0),
    "wal_mb": (1.25, 2.0),
}
MOST_WAL_MB = 3 * LIMIT_BYTES / 1e6
"""A checkpoint or two may meet a reader that the machine holds up; see ``agentmem.engines.sqlite.checkpoint``."""


def report(samples: list[Sample]) -> list[str]:
    """Print the table; returns what is not flat."""
    begun = samples[len(samples) // 5 :]
    first_third, last_third = begun[: len(begun) // 3], begun[-len(begun) // 3 :]
    problems = []
    print(f"{'':12} {'first third':>12} {'last third':>12} {'most ever':>12}   allowed in the last third")
    for name, (factor, more) in ALLOWED.items():
        early, late = (_typical([getattr(one, name) for one in part]) for part in (first_third, last_third))
        most = max(getattr(one, name) for one in samples)
        allowed = early * factor + more
        print(f"{name:12} {early:12.1f} {late:12.1f} {most:12.1f}   {allowed:.1f}")
        if late > allowed:
            problems.append(f"{name} grew from {early:.1f} to {late:.1f}")
        if name == "wal_mb" and most > MOST_WAL_MB:
            problems.append(f"the WAL had {most:.1f} MB, more than {MOST_WAL_MB:.1f}")
    rates = [
        (part[-1].calls - part[0].calls) / (part[-1].second - part[0].second) for part in (first_third, last_third)
    ]
    print(f"{'calls/s':12} {rates[0]:12.0f} {rates[1]:12.0f}")
    return problems


def _typical(values: list[float]) -> float:
    return statistics.quantiles(values, n=10)[-1]
