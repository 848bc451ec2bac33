"""The benchmark suite in its smallest form: what it reports, not how fast anything is."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import pytest
from exhaustive import exhaustive
from postgres_server import PostgresServer
from repository import REPO

sys.path.append(str(REPO))  # the suite is not installed; at the end, so that agentmem stays the one under test

from benchmarks.bench import SCALES, Bench
from benchmarks.chart import draw
from benchmarks.databases import DATABASES, POSTGRES, SQLITE
from benchmarks.durability import Refused, verify_durability
from benchmarks.markdown import tables, verdict
from benchmarks.measure import Outcome
from benchmarks.postgres import BareAsyncpg
from benchmarks.report import Report, Summary, paired_ratio, summarize
from benchmarks.rivals import SYSTEMS
from benchmarks.run import run
from benchmarks.server import URL_VARIABLE, connected
from benchmarks.systems import BareSQLite
from benchmarks.targets import TARGETS, Figure, Target
from benchmarks.timing import Tally, at_once, one_by_one
from benchmarks.workloads import WORKLOADS

ON_SQLITE = {name: workload for name, workload in WORKLOADS.items() if workload.database is SQLITE}
ON_POSTGRES = {name: workload for name, workload in WORKLOADS.items() if workload.database is POSTGRES}
POSTGRES_SYSTEMS = [name for name, system in SYSTEMS.items() if system.database is POSTGRES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the suite has run on agentmem, on sqlite3 alone, and on a rival that is not installed."""
    folder = tmp_path_factory.mktemp("suite")
    shutil.copytree(REPO / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "langgraph.py").write_text("raise ImportError('no langgraph here')")
    systems = [f"--system={name}" for name in ("agentmem", "sqlite3", "langgraph")]
    files = ["--json=b.json", "--chart=b.svg", "--markdown=b.md"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks", "--tiny", *systems, *files],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout, encoding="utf-8")
    (folder / "stderr").write_text(done.stderr, encoding="utf-8")
    return folder


@exhaustive
def test_every_workload_gives_every_metric_on_agentmem_and_on_sqlite3(folder: Path) -> None:
    report = Report.from_json(json.loads((folder / "b.json").read_text(encoding="utf-8")))
    assert set(report.outcomes) == set(ON_SQLITE)
    for name, workload in ON_SQLITE.items():
        for system in ("agentmem", "sqlite3"):
            (outcome,) = report.outcomes[name][system]
            if (name, system) == ("window", "sqlite3") or (name == "handles" and sys.platform != "linux"):
                assert outcome.status == "unsupported"
            else:
                assert (outcome.status, outcome.detail, outcome.failures) == ("ok", "", {}), name
                assert set(outcome.metrics) == {metric.name for metric in workload.metrics}


@exhaustive
def test_the_json_names_versions_machine_and_date(folder: Path) -> None:
    data = json.loads((folder / "b.json").read_text(encoding="utf-8"))
    assert {"python", "sqlite", "agentmem", "aiosqlite"} <= set(data["versions"])
    assert {"cpu", "cores", "filesystem"} <= set(data["machine"])
    assert 0 < data["machine"]["flush_us"] < 1e6
    assert 0 < data["machine"]["hop_us"] < 1e6
    assert data["date"].endswith("+00:00")


@exhaustive
def test_a_rival_that_is_not_installed_is_a_row_that_says_so(folder: Path) -> None:
    data = json.loads((folder / "b.json").read_text(encoding="utf-8"))
    for workload in data["workloads"].values():
        assert [run["status"] for run in workload["systems"]["langgraph"]["rounds"]] == ["not installed"]
    assert "not installed: no langgraph here" in " ".join((folder / "stdout").read_text(encoding="utf-8").split())


@exhaustive
def test_the_chart_is_an_svg_with_a_bar_for_each_figure(folder: Path) -> None:
    root = ElementTree.parse(folder / "b.svg").getroot()
    bars = [element for element in root.iter() if element.tag.endswith("}rect")]
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(bars) == 2 * sum(workload.in_chart for workload in ON_SQLITE.values())


@exhaustive
def test_the_tables_for_the_page_have_a_row_for_each_workload_and_target(folder: Path) -> None:
    rows = [line for line in (folder / "b.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    own = [target for target in TARGETS if (target.of or target.figure).system in ("agentmem", "sqlite3")]
    assert len(rows) == 1 + len(ON_SQLITE) + 1 + len(own)
    assert rows[0] == "| | agentmem | sqlite3 alone | LangGraph AsyncSqliteSaver |"


def test_a_target_that_is_missed_says_by_how_much_and_why() -> None:
    target = Target("adding", Figure("add", "add"), at_most=100.0, when_missed="a flush takes {flush_us:.0f} µs")
    assert verdict(target, 100.0, {"flush_us": 25.2}) == ""
    assert verdict(target, 150.0, {"flush_us": 25.2}) == ", **missed by 50 %**: a flush takes 25 µs"


def test_a_target_that_is_missed_on_postgres_says_what_a_commit_costs_there() -> None:
    machine = {"cpu": "x", "cores": 2, "filesystem": "ext4", "flush_us": 30.0, "hop_us": 10.0}
    about = {"machine": machine, "postgres": {"commit_us": 1_700.0, "round_trip_us": 50.0}}
    report = Report("full", {**about, "rounds": 1, "date": "2026-01-01", "versions": {}})
    for system in POSTGRES_SYSTEMS:
        report.add("pg-add", system, Outcome("ok", metrics={"add": 2_000.0}))
    assert "missed by 150 %**: both commit once, which takes 1700 µs here, beside 50 µs for each way" in tables(report)


KEPT = {
    "results.json": ("tables", set(ON_SQLITE)),
    "results-postgres.json": ("tables of PostgreSQL", set(ON_POSTGRES)),
}
"""The runs whose figures benchmarks/README.md shows: one for each database, where in it, and what was measured."""

PAGE = REPO / "benchmarks" / "README.md"


def kept(name: str) -> Report:
    return Report.from_json(json.loads((REPO / "benchmarks" / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", KEPT)
def test_the_page_shows_the_tables_of_the_runs_that_are_kept(name: str) -> None:
    report, (title, workloads) = kept(name), KEPT[name]
    shown = (
        PAGE.read_text(encoding="utf-8").partition(f"<!-- {title} -->\n")[2].partition(f"<!-- end of {title} -->")[0]
    )
    assert shown == tables(report)
    assert (report.scale, set(report.outcomes)) == ("full", workloads)


def test_the_page_shows_the_chart_of_the_run_that_is_kept() -> None:
    assert (PAGE.parent / "chart.svg").read_text(encoding="utf-8") == draw(kept("results.json"))
    assert "](chart.svg)" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", KEPT)
def test_the_page_names_the_command_that_makes_each_kept_run(name: str) -> None:
    commands = re.findall(
        r"^\.venv/bin/nox -s bench -- ((?:.*\\\n)*.*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    (command,) = [command for command in commands if f"--json=benchmarks/{name} " in command]
    systems = set(re.findall(r"--system=(\S+)", command))
    assert systems == {system for outcomes in kept(name).outcomes.values() for system in outcomes}


@pytest.mark.parametrize("name", KEPT)
def test_each_target_that_a_kept_run_missed_has_its_reason(name: str) -> None:
    report = kept(name)
    run = [target for target in TARGETS if target.figure.workload in report.outcomes]
    missed = [target for target in run if (measured := target.measured(report)) is None or not target.met(measured)]
    assert [target.text for target in missed if not target.when_missed] == []


@exhaustive
def test_progress_is_shown_on_stderr_and_nothing_else(folder: Path) -> None:
    lines = (folder / "stderr").read_text(encoding="utf-8").splitlines()
    assert [line.partition("/")[0] for line in lines] == [str(number) for number in range(len(lines))]
    assert lines


def test_a_median_comes_with_its_range() -> None:
    assert summarize([3.0, 1.0, 10.0]) == Summary(3.0, 1.0, 10.0)


def test_ratios_are_taken_within_a_round_so_that_a_slow_minute_cancels_out() -> None:
    assert paired_ratio([10.0, 1_000.0, 10.0], [5.0, 500.0, 5.0]) == 2.0
    with pytest.raises(ValueError, match="argument 2 is longer"):
        paired_ratio([1.0], [1.0, 2.0])


def test_a_speed_ratio_above_one_is_faster_whatever_the_unit() -> None:
    report = Report("tiny", {})
    for system, us, per_second in (("agentmem", 100.0, 1_000.0), ("sqlite3", 50.0, 4_000.0)):
        report.add("add", system, Outcome("ok", metrics={"add": us}))
        report.add("add-many", system, Outcome("ok", metrics={"adds": per_second}))
    assert report.speed_ratio("add", "sqlite3", "agentmem") == 2.0
    assert report.speed_ratio("add-many", "sqlite3", "agentmem") == 4.0
    assert report.speed_ratio("add", "sqlite3", "adk") is None


def test_a_round_without_a_figure_leaves_no_median_of_the_others() -> None:
    report = Report("tiny", {})
    report.add("add", "adk", Outcome("ok", metrics={"add": 1.0}))
    report.add("add", "adk", Outcome("failed", "its process ended"))
    (row,) = report.rows("add")
    assert (row.summary, row.remark) == (None, "failed: its process ended")


def test_calls_that_fail_are_counted_and_not_timed_as_successes() -> None:
    async def fail_second(number: int) -> None:
        if number == 1:
            raise OSError("database is locked")

    tally = asyncio.run(at_once([fail_second, fail_second], 3, 60.0))
    assert (tally.done, tally.failed, tally.error) == (4, 2, "OSError: database is locked")
    assert tally.per_second == pytest.approx(4 / tally.seconds)


def test_a_slow_system_makes_fewer_calls_but_at_least_one() -> None:
    async def call() -> None:
        pass

    tallies: list[Tally] = asyncio.run(one_by_one([call, call], 1_000, 0.0))
    assert [tally.done for tally in tallies] == [1, 1]


def test_a_system_with_another_durability_is_refused(tmp_path: Path) -> None:
    class Careless(BareSQLite):
        async def open(self) -> None:
            await super().open()
            self._db.execute("PRAGMA synchronous = NORMAL")

    verify_durability(Bench(BareSQLite, SCALES["tiny"], tmp_path))
    with pytest.raises(Refused, match=r"\('wal', 1\)"):
        verify_durability(Bench(Careless, SCALES["tiny"], tmp_path))


def measured_on_postgres(folder: Path, *systems: str) -> Report:
    return run("tiny", list(WORKLOADS), systems, 1, folder, lambda what, done, total: None)


@pytest.fixture
def postgres(postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A PostgreSQL server that the suite measures."""
    url = f"postgresql://postgres@{postgres_server.host}:{postgres_server.port}/test"
    monkeypatch.setenv(URL_VARIABLE, url)
    return url


def schemas_of(folder: Path) -> list[str]:
    async def found() -> list[str]:
        async with connected() as db:
            comments = await db.fetch("SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace")
        return [comment for (comment,) in comments if comment and comment.startswith(str(folder))]

    return asyncio.run(found())


def test_where_no_server_answers_the_rows_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("asyncpg", reason="asyncpg is not installed")
    monkeypatch.setenv(URL_VARIABLE, "postgresql://somebody:secret@127.0.0.1:1/none")
    report = measured_on_postgres(tmp_path, "asyncpg")
    assert set(report.outcomes) == set(ON_POSTGRES)
    for systems in report.outcomes.values():
        (outcome,) = systems["asyncpg"]
        assert outcome.status == "no server"
        assert "no PostgreSQL at 127.0.0.1:1/none: " in outcome.detail
        assert "secret" not in outcome.detail
    assert "asyncpg alone" in tables(report)


@exhaustive
def test_every_workload_gives_every_metric_on_postgres(postgres: str, tmp_path: Path) -> None:
    installed = [name for name in POSTGRES_SYSTEMS if all(map(present, SYSTEMS[name].modules))]
    report = measured_on_postgres(tmp_path, *installed)
    assert {"agentmem-postgres", "asyncpg"} <= set(installed)
    for name, workload in ON_POSTGRES.items():
        for system in installed:
            (outcome,) = report.outcomes[name][system]
            assert (outcome.status, outcome.detail, outcome.failures) == ("ok", "", {}), (name, system)
            assert set(outcome.metrics) == {metric.name for metric in workload.metrics}
    again = Report.from_json(json.loads(json.dumps(report.to_json())))
    assert tables(again) == tables(report)
    assert "postgresql" in report.about["versions"]
    assert "the way to the PostgreSQL server and back" in tables(report)
    assert f"PostgreSQL {report.about['versions']['postgresql']}" in draw(report)
    assert schemas_of(tmp_path) == []


def present(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def test_a_postgres_system_that_does_not_wait_for_the_flush_is_refused(postgres: str, tmp_path: Path) -> None:
    class Careless(BareAsyncpg):
        _ADD = BareAsyncpg._ADD.replace(
            "FROM unnest", "FROM (SELECT set_config('synchronous_commit', 'off', true)) AS local, unnest"
        )

    try:
        verify_durability(Bench(BareAsyncpg, SCALES["tiny"], tmp_path / "right"))
        with pytest.raises(Refused, match=r"\('on', 'off'\)"):
            verify_durability(Bench(Careless, SCALES["tiny"], tmp_path / "careless"))
    finally:
        BareAsyncpg.clean(tmp_path)
    assert schemas_of(tmp_path) == []


def test_systems_are_compared_with_those_on_the_same_database() -> None:
    for database in DATABASES:
        assert {SYSTEMS[name].database for name in (database.own, database.limit)} == {database}
    for target in TARGETS:
        for figure in filter(None, (target.figure, target.of)):
            assert SYSTEMS[figure.system].database is WORKLOADS[figure.workload].database


def test_every_target_is_about_figures_that_the_suite_measures() -> None:
    for target in TARGETS:
        for figure in filter(None, (target.figure, target.of)):
            assert figure.system in SYSTEMS
            assert figure.metric in {metric.name for metric in WORKLOADS[figure.workload].metrics}


def test_a_target_is_met_up_to_and_with_its_bound() -> None:
    most, least = Target("", Figure("add", "add"), at_most=2.0), Target("", Figure("add", "add"), at_least=2.0)
    assert [most.met(measured) for measured in (1.9, 2.0, 2.1)] == [True, True, False]
    assert [least.met(measured) for measured in (1.9, 2.0, 2.1)] == [False, True, True]
