"""The tables of the benchmarks' README.md, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .databases import DATABASES, Database
from .report import Report, costs, figure
from .rivals import SYSTEMS
from .targets import TARGETS, Target
from .workloads import WORKLOADS


def tables(report: Report) -> str:
    """A table for each database, a row for each workload with the systems' medians; and a row for each target."""
    workloads = [line for database in DATABASES for line in _workloads(report, database)]
    return "\n".join([*workloads, *_targets(report), "", _about(report), ""])


def _workloads(report: Report, database: Database) -> Iterator[str]:
    measured = {name: found for name, found in report.outcomes.items() if WORKLOADS[name].database is database}
    if not measured:
        return
    systems = [name for name in SYSTEMS if any(name in outcomes for outcomes in measured.values())]
    yield f"| | {' | '.join(SYSTEMS[name].title for name in systems)} |"
    yield f"|---{'|---:' * len(systems)}|"
    for workload in measured:
        rows = {row.system: row for row in report.rows(workload)}
        cells = []
        for system in systems:
            summary = rows[system].summary if system in rows else None
            cells.append("–" if summary is None else figure(summary.median, WORKLOADS[workload].metrics[0]))
        yield f"| {report.title(workload)} | {' | '.join(cells)} |"
    yield ""


def _targets(report: Report) -> Iterator[str]:
    yield "| target | | measured |"
    yield "|---|---:|---|"
    for target in TARGETS:
        measured = target.measured(report)
        if measured is not None:
            said = f"{measured:,.3g}{' ×' if target.of else ''}"
            costs_us = {**report.about["machine"], **report.about.get("postgres", {})}
            yield f"| {target.text} | {target.bound()} | {said}{verdict(target, measured, costs_us)} |"


def verdict(target: Target, measured: float, machine: Mapping[str, Any]) -> str:
    """Nothing where the target is met; else by how much it is missed, and why as far as that is known."""
    if target.met(measured):
        return ""
    bound = target.at_least if target.at_least is not None else target.at_most
    assert bound is not None
    missed = f", **missed by {abs(measured / bound - 1) * 100:.0f} %**"
    return f"{missed}: {target.when_missed.format(**machine)}" if target.when_missed else missed


def _about(report: Report) -> str:
    machine, versions = report.about["machine"], report.about["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"Medians of {report.about['rounds']} rounds on {report.about['date'][:10]}: {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['filesystem']}; {costs(report)}; {named}."
    )
