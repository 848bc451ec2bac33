"""What came out of a run: statistics, ratios within the run, and the JSON form."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from .bench import SCALES
from .measure import Outcome
from .rivals import SYSTEMS
from .timing import flush_us, hop_us
from .workloads import WORKLOADS, Metric


class Summary(NamedTuple):
    """The middle and the ends of what the rounds gave."""

    median: float
    low: float
    high: float


def summarize(values: Sequence[float]) -> Summary:
    """The median, the lowest and the highest of at least one value."""
    return Summary(statistics.median(values), min(values), max(values))


def paired_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """The median, over the rounds, of one value to the other of the same round.

    Paired, because what slows the machine down for a while slows down both.
    """
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


class Row(NamedTuple):
    """A system's line in a workload's table.

    Attributes:
        summary: of the workload's first metric; None where there is none.
        ratios: its speed as a multiple of agentmem's and of the driver's alone, on the same database; None where it
            cannot be said.
        others: the other metrics' medians.
        remark: why there are no figures, or which calls failed.
    """

    system: str
    summary: Summary | None
    ratios: tuple[float | None, ...]
    others: dict[str, float]
    remark: str


@dataclass
class Report:
    """All outcomes of a run.

    Attributes:
        about: date, machine and versions.
        outcomes: by workload and system, a list with one for each round.
    """

    scale: str
    about: dict[str, Any]
    outcomes: dict[str, dict[str, list[Outcome]]] = field(default_factory=dict)

    def add(self, workload: str, system: str, outcome: Outcome) -> None:
        """Take in the outcome of one more round."""
        self.outcomes.setdefault(workload, {}).setdefault(system, []).append(outcome)

    def values(self, workload: str, system: str, metric: str) -> list[float]:
        """A metric in each round; empty unless every round gave it."""
        outcomes = self.outcomes.get(workload, {}).get(system, [])
        values = [outcome.metrics[metric] for outcome in outcomes if metric in outcome.metrics]
        return values if len(values) == len(outcomes) else []

    def speed_ratio(self, workload: str, system: str, reference: str) -> float | None:
        """How many times as fast as the reference this system is, by the workload's first metric."""
        metric = WORKLOADS[workload].metrics[0]
        own, others = (self.values(workload, name, metric.name) for name in (system, reference))
        if not own or len(own) != len(others) or not all(own) or not all(others):
            return None
        return paired_ratio(own, others) if metric.more_is_better else paired_ratio(others, own)

    def rows(self, workload: str) -> list[Row]:
        """The workload's table, systems in the registry's order."""
        first, *rest = WORKLOADS[workload].metrics
        references = WORKLOADS[workload].database.own, WORKLOADS[workload].database.limit
        rows = []
        for system in SYSTEMS:
            if system not in self.outcomes[workload]:
                continue
            values = self.values(workload, system, first.name)
            others = {metric.name: self.values(workload, system, metric.name) for metric in rest}
            rows.append(
                Row(
                    system,
                    summarize(values) if values else None,
                    tuple(self.speed_ratio(workload, system, reference) for reference in references),
                    {name: statistics.median(figures) for name, figures in others.items() if figures},
                    _remark(self.outcomes[workload][system]),
                )
            )
        return rows

    def title(self, workload: str) -> str:
        """What the workload does, with this run's sizes."""
        return WORKLOADS[workload].title.format(scale=SCALES[self.scale])

    def to_json(self) -> dict[str, Any]:
        """Everything, for a file; ``from_json`` reads it."""
        return {
            "scale": self.scale,
            **self.about,
            "workloads": {
                workload: {
                    "title": self.title(workload),
                    "metrics": [asdict(metric) for metric in WORKLOADS[workload].metrics],
                    "systems": {
                        system: {
                            "summary": {
                                metric.name: summarize(values)._asdict()
                                for metric in WORKLOADS[workload].metrics
                                if (values := self.values(workload, system, metric.name))
                            },
                            "rounds": [asdict(outcome) for outcome in outcomes],
                        }
                        for system, outcomes in systems.items()
                    },
                }
                for workload, systems in self.outcomes.items()
            },
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Report:
        """The report that was written by ``to_json``."""
        about = {key: value for key, value in data.items() if key not in ("scale", "workloads")}
        report = cls(data["scale"], about)
        for workload, found in data["workloads"].items():
            for system, results in found["systems"].items():
                for outcome in results["rounds"]:
                    report.add(workload, system, Outcome(**outcome))
        return report


def _remark(outcomes: Sequence[Outcome]) -> str:
    failed = next((outcome for outcome in outcomes if outcome.status != "ok"), None)
    if failed is not None:
        return f"{failed.status}: {failed.detail}"
    calls = sum(sum(outcome.failures.values()) for outcome in outcomes)
    if not calls:
        return ""
    error = next(error for outcome in outcomes for error in outcome.failures)
    return f"calls that failed: {calls:,}, such as {error[:100]}"


def figure(value: float, metric: Metric) -> str:
    """Three significant digits and the unit."""
    digits = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
    return f"{digits}{metric.unit}" if metric.unit.startswith("/") else f"{digits} {metric.unit}".rstrip()


def describe_run(folder: Path, versions: dict[str, str], rounds: int) -> dict[str, Any]:
    """Date, machine and versions; `folder` is where the files are that were measured.

    With what a flushed commit and a change of thread cost here, because most ratios hang on these two.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": rounds,
        "versions": {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, **versions},
        "machine": {
            "system": platform.platform(),
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "filesystem": filesystem(folder),
            "flush_us": round(flush_us(folder), 1),
            "hop_us": round(hop_us(), 1),
            "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        },
    }


def costs(report: Report) -> str:
    """What the machine makes all systems pay, as a clause."""
    machine, server = report.about["machine"], report.about.get("postgres")
    said = (
        f"flushing a page takes {machine['flush_us']:,.0f} µs here, a call in aiosqlite's thread and back "
        f"{machine['hop_us']:,.0f} µs"
    )
    if server:
        said += (
            f", the way to the PostgreSQL server and back {server['round_trip_us']:,.0f} µs, with a commit "
            f"{server['commit_us']:,.0f} µs"
        )
    return said


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def filesystem(folder: Path) -> str:
    """The kind of file system that holds the folder, as Linux calls it; "unknown" elsewhere."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    over = [(mount[1], mount[2]) for mount in mounts if folder.resolve().is_relative_to(mount[1])]
    return max(over, key=lambda mount: len(mount[0]), default=("", "unknown"))[1]
