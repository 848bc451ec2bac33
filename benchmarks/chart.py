"""The chart: an SVG that a README can show, in light and in dark."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from .databases import DATABASES, POSTGRES
from .report import Report, Summary, summarize
from .rivals import SYSTEMS
from .workloads import WORKLOADS, Metric

WIDTH, COLUMNS, GAP = 880, 2, 40
LABEL, VALUE = 212, 58
"""Room in a panel, left of the bars for the systems' names and right of them for the figures."""
ROW, BAR, HEAD = 21, 12, 46

KINDS = {name: kind for database in DATABASES for name, kind in ((database.own, " own"), (database.limit, " limit"))}

STYLE = """
  text { font: 11px -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #59636e; }
  text.title { font-size: 13px; font-weight: 600; fill: #1f2328; }
  text.own { font-weight: 600; fill: #1f2328; }
  .bar { fill: #afb8c1; } .bar.own { fill: #0969da; } .bar.limit { fill: #d1d9e0; }
  .spread { stroke: #59636e; stroke-width: 1; }
  @media (prefers-color-scheme: dark) {
    text { fill: #9198a1; } text.title, text.own { fill: #f0f6fc; }
    .bar { fill: #535c66; } .bar.own { fill: #4493f8; } .bar.limit { fill: #3d444d; }
    .spread { stroke: #9198a1; }
  }
"""


def draw(report: Report) -> str:
    """The SVG: a panel for each workload that is meant for the chart and in the report; longer is faster."""
    workloads = [name for name in report.outcomes if WORKLOADS[name].in_chart]
    panel_width = (WIDTH - GAP * (COLUMNS - 1)) / COLUMNS
    panels, top, row_height = [], 0.0, 0.0
    for place, workload in enumerate(workloads):
        column = place % COLUMNS
        if column == 0:
            top, row_height = top + row_height, 0.0
        lines = list(_panel(report, workload, panel_width))
        row_height = max(row_height, HEAD + ROW * len(report.outcomes[workload]) + 12)
        panels.append(f'<g transform="translate({column * (panel_width + GAP):g} {top:g})">{"".join(lines)}</g>')
    height = top + row_height + 36
    machine, versions, rounds = report.about["machine"], report.about["versions"], report.about["rounds"]
    footer = (
        f"Calls per second, longer is faster; {f'median and range of {rounds} rounds' if rounds > 1 else 'one round'}. "
        "sqlite3 alone is the limit: one thread, no event loop, and adds at once in one transaction.",
        f"All with WAL and synchronous FULL, on {machine['filesystem']} with {machine['cores']} cores; "
        f"SQLite {versions['sqlite']}{_server(report)}, Python {versions['python']}, {report.about['date'][:10]}.",
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
            'aria-label="Calls per second of agentmem and others">',
            f"<style>{STYLE}</style>",
            *panels,
            *(f'<text x="0" y="{height - 22 + 16 * line:g}">{escape(text)}</text>' for line, text in enumerate(footer)),
            "</svg>\n",
        ]
    )


def _server(report: Report) -> str:
    measured = any(WORKLOADS[name].database is POSTGRES for name in report.outcomes)
    version = report.about["versions"].get("postgresql")
    return f", PostgreSQL {version} with synchronous_commit" if measured and version else ""


def _panel(report: Report, workload: str, width: float) -> Iterator[str]:
    metric = WORKLOADS[workload].metrics[0]
    speeds = {
        system: _speed(report.values(workload, system, metric.name), metric)
        for system in SYSTEMS
        if system in report.outcomes[workload]
    }
    most = max((speed.high for speed in speeds.values() if speed), default=1.0)
    scale = (width - LABEL - VALUE) / most
    title = report.title(workload)
    yield f'<text class="title" x="0" y="24">{escape(title[0].upper() + title[1:])}</text>'
    for place, (system, speed) in enumerate(speeds.items()):
        y = HEAD + ROW * place
        kind = KINDS.get(system, "")
        name = SYSTEMS[system].title
        yield f'<text class="{kind.strip()}" x="{LABEL - 8}" y="{y}" text-anchor="end">{escape(name)}</text>'
        if speed is None:
            yield f'<text x="{LABEL}" y="{y}">not measured</text>'
            continue
        length = max(1.0, speed.median * scale)
        low, high = LABEL + speed.low * scale, LABEL + speed.high * scale
        yield f'<rect class="bar{kind}" x="{LABEL}" y="{y - BAR + 2}" width="{length:.1f}" height="{BAR}" rx="2"/>'
        if high - low > 2:
            middle = y - BAR / 2 + 2
            yield f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:g}" y2="{middle:g}"/>'
        end = max(LABEL + length, high) + 6
        yield f'<text class="{kind.strip()}" x="{end:.1f}" y="{y}">{_short(speed.median)}</text>'


def _speed(values: list[float], metric: Metric) -> Summary | None:
    return summarize([metric.per_second(value) for value in values]) if values else None


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
