"""``python -m benchmarks``: parsing and printing only."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .bench import SCALES
from .chart import draw
from .databases import DATABASES, Database
from .markdown import tables
from .report import Report, costs, figure
from .rivals import SYSTEMS
from .run import run
from .targets import TARGETS
from .workloads import WORKLOADS

console = Console(highlight=False, emoji=False, width=None if os.isatty(1) else 140)
errors = Console(stderr=True, highlight=False, emoji=False)


@click.command(context_settings={"max_content_width": 120})
@click.option("--quick", "scale", flag_value="quick", help="About a minute: smaller sizes, fewer rounds.")
@click.option("--tiny", "scale", flag_value="tiny", help="Seconds: shows that the suite works, measures nothing.")
@click.option("--only", multiple=True, type=click.Choice(list(WORKLOADS)), help="This workload; may be repeated.")
@click.option("--system", multiple=True, type=click.Choice(list(SYSTEMS)), help="This system; may be repeated.")
@click.option("--rounds", type=click.IntRange(min=1), help="How often each is measured.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here.")
@click.option("--chart", type=click.Path(dir_okay=False, path_type=Path), help="Draw the chart here, as SVG.")
@click.option(
    "--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables of benchmarks/README.md here."
)
@click.option(
    "--from", "source", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Show an earlier run's JSON."
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Put the databases here, to measure another disk.",
)
def main(
    scale: str | None,
    only: tuple[str, ...],
    system: tuple[str, ...],
    rounds: int | None,
    json_file: Path | None,
    chart: Path | None,
    markdown: Path | None,
    source: Path | None,
    folder: Path | None,
) -> None:
    """How fast agentmem is, beside the bare drivers and its rivals."""
    if source:
        report = Report.from_json(json.loads(source.read_text(encoding="utf-8")))
    else:
        scale = scale or "full"
        report = measure(
            scale, only or tuple(WORKLOADS), system or tuple(SYSTEMS), rounds or SCALES[scale].rounds, folder
        )
    show(report)
    if json_file:
        json_file.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    if chart:
        chart.write_text(draw(report), encoding="utf-8")
    if markdown:
        markdown.write_text(tables(report), encoding="utf-8")


def measure(
    scale: str, workloads: tuple[str, ...], systems: tuple[str, ...], rounds: int, folder: Path | None
) -> Report:
    """Measure, with a progress bar on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ExitStack() as stack:
        own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentmem-bench-", dir=folder)))
        progress = Progress(*columns, console=errors, transient=True)
        bar = progress.add_task("starting", total=None)
        if errors.is_terminal:  # rich before 14.3 ends also a disabled bar with an empty line
            stack.enter_context(progress)

        def on_progress(what: str, done: int, total: int) -> None:
            progress.update(bar, description=escape(f"{what:45}"), completed=done, total=total)
            if not errors.is_terminal:
                errors.print(f"{done}/{total} {what}", markup=False)

        return run(scale, workloads, systems, rounds, own, on_progress)


def show(report: Report) -> None:
    """Print the machine, a table for each database with its workloads, the notes and the targets."""
    machine, versions = report.about["machine"], report.about["versions"]
    console.print(
        f"\n{report.about['date']}  {machine['cpu']}, {machine['cores']} cores, {machine['filesystem']}, load "
        f"{machine['load']}, {machine['system']}",
        markup=False,
    )
    console.print(", ".join(f"{name} {version}" for name, version in versions.items()), markup=False)
    console.print(f"{costs(report)}.", markup=False)
    if machine["filesystem"] == "tmpfs":
        console.print("[red]This file system is memory: commits are not flushed anywhere. Use --dir.[/]")
    if machine["load"] and machine["load"][0] > machine["cores"]:
        console.print("[red]Other programs kept this machine busy: these figures are rough.[/]")
    for database in DATABASES:
        _show_workloads(report, database)
    for system in dict.fromkeys(name for systems in report.outcomes.values() for name in systems):
        if SYSTEMS[system].note:
            console.print(f"{SYSTEMS[system].title}: {SYSTEMS[system].note}.", style="dim", markup=False)
    _show_targets(report)


def _show_workloads(report: Report, database: Database) -> None:
    rounds = _counted(report.about["rounds"], "round")
    table = Table(title=f"{database.title}, {report.scale} run, {rounds}", title_justify="left")
    table.add_column("workload, system")
    table.add_column("median", justify="right")
    table.add_column("lowest – highest", justify="right")
    for reference in (database.own, database.limit):
        table.add_column(f"speed to\n{SYSTEMS[reference].title}", justify="right")
    table.add_column("and", ratio=1)
    for workload in report.outcomes:
        if WORKLOADS[workload].database is database:
            _add_workload(table, report, workload)
    if table.row_count:
        console.print(table)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _add_workload(table: Table, report: Report, workload: str) -> None:
    metrics = WORKLOADS[workload].metrics
    table.add_section()
    table.add_row(
        f"[bold]{escape(report.title(workload))}[/]", metrics[0].name, "", "", "", f"[dim]--only {workload}[/]"
    )
    for row in report.rows(workload):
        also = [
            f"{metric.name} {figure(row.others[metric.name], metric)}"
            for metric in metrics
            if metric.name in row.others
        ]
        table.add_row(
            f"  {SYSTEMS[row.system].title}",
            figure(row.summary.median, metrics[0]) if row.summary else "–",
            f"{figure(row.summary.low, metrics[0])} – {figure(row.summary.high, metrics[0])}" if row.summary else "",
            *(f"{ratio:.3g} ×" if ratio is not None else "" for ratio in row.ratios),
            escape("; ".join(filter(None, [*also, row.remark]))),
        )


def _show_targets(report: Report) -> None:
    table = Table(title="targets" if report.scale == "full" else f"targets, at the sizes of a {report.scale} run")
    for column in ("agentmem", "target", "measured", ""):
        table.add_column(column)
    for target in TARGETS:
        measured = target.measured(report)
        if measured is not None:
            verdict = "[green]met[/]" if target.met(measured) else "[red]missed[/]"
            table.add_row(escape(target.text), target.bound(), f"{measured:,.3g}{' ×' if target.of else ''}", verdict)
    if table.row_count:
        console.print(table)


if __name__ == "__main__":
    main()
