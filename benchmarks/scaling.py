"""What one database holds: ``python -m benchmarks.scaling``. The same command on an SQLite file says when to leave it.

For each number of stored sessions and of clients: appends and reads per second with their latencies, and beside them
what the database's driver alone appends, a transaction for each, to tables that began empty. On a server everything is
in schemas of its own, which are dropped; an SQLite file must be a new one, and is deleted. Progress goes to stderr, a
Markdown table to stdout. ``--simulate`` measures nothing: see ``partitions``.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from .load import READ, Calls, Load, connections_each, run_load
from .partitions import simulated_table
from .places import ITEMS, Place, place
from .server import NoServer, server_url

STEP = 20_000
"""Sessions stored between two signs of progress."""


@dataclass(frozen=True)
class Measured:
    """A row of the table."""

    sessions: int
    size_bytes: int
    clients: int
    appends: Calls
    reads: Calls
    bare: Calls


def measure(
    found: Place, sessions: Sequence[int], clients: Sequence[int], processes: int, seconds: float
) -> Iterator[Measured]:
    """Store more and more sessions, and measure every number of clients on each number of them."""
    stored = 0
    for count in sorted(set(sessions)):
        begun = perf_counter()
        for start in range(stored, count, STEP):
            stop = min(count, start + STEP)
            found.fill(range(start, stop))
            _progress(f"{stop:,} sessions stored, {stop - stored:,} of them in {perf_counter() - begun:.0f} s")
        found.settle()
        stored, size_bytes = count, found.size_bytes()
        _progress(f"{count:,} sessions of {ITEMS} items: {_size(size_bytes)}")
        for number in clients:
            load = partial(Load, sessions=count, clients=number, processes=processes, seconds=seconds)
            bare, _ = run_load(load(make=partial(found.bare, connections_each(number, processes)), reads=False))
            appends, reads = run_load(load(make=found.make))
            row = Measured(count, size_bytes, number, appends, reads, bare)
            _progress("  " + " · ".join(_cells(row)[2:]))
            yield row


def table(rows: Sequence[Measured]) -> str:
    """All rows as Markdown."""
    lines = [
        "| sessions stored | size | clients | appends | median | p99 | reads | median | p99 | the driver's appends |",
        f"|---:|---:{'|---:' * 8}|",
    ]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    failures = [
        f"{kind} of {row.clients} clients: {calls.failed:,} failed, such as {calls.error[:200]}"
        for row in rows
        for kind, calls in (("appends", row.appends), ("reads", row.reads), ("the driver's appends", row.bare))
        if calls.failed
    ]
    return "\n".join([*lines, *(["", *failures] if failures else [])])


def _cells(row: Measured) -> list[str]:
    cells = [f"{row.sessions:,}", _size(row.size_bytes), f"{row.clients:,}"]
    for calls in (row.appends, row.reads):
        cells.append(f"{calls.per_second:,.0f}/s")
        cells += [f"{calls.percentile_ms(percent):.3g} ms" if len(calls.took_s) > 1 else "–" for percent in (50, 99)]
    return [*cells, f"{row.bare.per_second:,.0f}/s"]


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def arguments(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Not click's, whose options do not take several numbers after one name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--url", help="a server's URL, or a new SQLite file; default: AGENTMEM_TEST_POSTGRES")
    parser.add_argument("--sessions", type=_positive, nargs="+", default=[1_000, 1_000_000], help="stored beforehand")
    parser.add_argument("--clients", type=_positive, nargs="+", default=[1, 16, 64, 512], help="calling at once")
    parser.add_argument("--processes", type=_positive, default=1, help="that share the clients")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each kind of call")
    parser.add_argument("--simulate", action="store_true", help="how even shards by session would be; measures nothing")
    return parser.parse_args(args)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def main(args: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    given = arguments(args)
    if given.simulate:
        print(simulated_table())
        return
    try:
        with place(given.url or server_url()) as found:
            print(
                f"{found.about}; {os.cpu_count()} cores, Python {platform.python_version()}, clients in "
                f"{given.processes} process{'es' if given.processes > 1 else ''}, {given.seconds:g} s of each kind of "
                f"call; an append is a turn of two items, a read the newest {READ}.\n",
                flush=True,
            )
            rows: list[Measured] = []
            try:
                rows.extend(measure(found, given.sessions, given.clients, given.processes, given.seconds))
            finally:  # what a long run has measured is worth showing, whatever ended it
                print(table(rows))
    except (RuntimeError, ValueError, NoServer, ImportError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
