"""One run: hosts are started, histories built, and every workload measured on every system, round by round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from .bench import SCALES
from .databases import DATABASES, POSTGRES
from .material import History
from .measure import Host, Outcome
from .report import Report, describe_run
from .rivals import SYSTEMS
from .server import costs_us
from .workloads import WORKLOADS

OnProgress = Callable[[str, int, int], None]
"""Is told what begins, how many jobs are done, and how many there are."""


def run(
    scale: str, workloads: Sequence[str], systems: Sequence[str], rounds: int, folder: Path, on_progress: OnProgress
) -> Report:
    """Measure these workloads on those of these systems that they are for; the databases go into `folder`."""
    kinds = {name: SYSTEMS[name] for name in systems}
    measured = {name: on for name in workloads if (on := WORKLOADS[name].systems(kinds))}
    systems = [name for name in systems if any(name in on for on in measured.values())]
    histories = {name: make(SCALES[scale]) for name in measured if (make := WORKLOADS[name].history)}
    builds = list(dict.fromkeys((history, on) for name, history in histories.items() for on in measured[name]))
    files: dict[tuple[History | None, str], Path] = {
        place: folder / f"history-{number}.db" for number, place in enumerate(builds)
    }
    total = len(systems) + len(builds) + rounds * sum(map(len, measured.values()))
    done = 0

    def begin(what: str) -> None:
        nonlocal done
        on_progress(what, done, total)
        done += 1

    with ExitStack() as stack:
        hosts = {system: stack.enter_context(closing(Host(system))) for system in systems}
        built: dict[tuple[History | None, str], Outcome] = {}
        versions: dict[str, str] = {}
        for system, host in hosts.items():
            begin(f"import {system}")
            built[None, system], packages = host.wait()
            versions.update(packages)
        present = [system for system in systems if built[None, system].status == "ok"]
        for system in _one_of_each_database(present):
            stack.callback(SYSTEMS[system].clean, folder)
        for history, system in builds:
            begin(f"{history.items:,} items for {system}")
            built[history, system] = hosts[system].build(history, files[history, system])
        report = Report(scale, describe_run(folder, versions, rounds))
        if any(SYSTEMS[system].database is POSTGRES for system in present):
            report.about["postgres"] = asyncio.run(costs_us())
        for turn in range(rounds):
            for workload, on in measured.items():
                for system in _rotated(on, turn):
                    begin(f"round {turn + 1}: {workload} on {system}")
                    place = histories.get(workload), system
                    outcome = built[place]
                    if outcome.status == "ok":
                        outcome = hosts[system].run(workload, scale, files.get(place), folder)
                    report.add(workload, system, outcome)
    return report


def _one_of_each_database(systems: Sequence[str]) -> Iterator[str]:
    for database in DATABASES:
        yield from [system for system in systems if SYSTEMS[system].database is database][:1]


def _rotated(systems: Sequence[str], turn: int) -> list[str]:
    start = turn % len(systems)
    return [*systems[start:], *systems[:start]]
