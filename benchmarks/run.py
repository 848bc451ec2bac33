"""One run: hosts are started, histories built, and every workload measured on every system, round by round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from .bench import SCALES
from .material import History
from .measure import Host, Outcome
from .report import Report, describe_run
from .workloads import WORKLOADS

OnProgress = Callable[[str, int, int], None]
"""Is told what begins, how many jobs are done, and how many there are."""


def run(
    scale: str, workloads: Sequence[str], systems: Sequence[str], rounds: int, folder: Path, on_progress: OnProgress
) -> Report:
    """Measure these workloads on these systems; the databases go into `folder`."""
    histories = {name: make(SCALES[scale]) for name in workloads if (make := WORKLOADS[name].history)}
    builds = [(history, system) for history in dict.fromkeys(histories.values()) for system in systems]
    files: dict[tuple[History | None, str], Path] = {
        place: folder / f"history-{number}.db" for number, place in enumerate(builds)
    }
    total = len(systems) + len(builds) + rounds * len(workloads) * len(systems)
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
        for history, system in builds:
            begin(f"{history.items:,} items for {system}")
            built[history, system] = hosts[system].build(history, files[history, system])
        report = Report(scale, describe_run(folder, versions, rounds))
        for turn in range(rounds):
            for workload in workloads:
                for system in _rotated(systems, turn):
                    begin(f"round {turn + 1}: {workload} on {system}")
                    place = histories.get(workload), system
                    outcome = built[place]
                    if outcome.status == "ok":
                        outcome = hosts[system].run(workload, scale, files.get(place), folder)
                    report.add(workload, system, outcome)
    return report


def _rotated(systems: Sequence[str], turn: int) -> list[str]:
    start = turn % len(systems)
    return [*systems[start:], *systems[:start]]
