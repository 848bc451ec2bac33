"""``python -m benchmarks.scaling`` in its smallest form, for real; and the simulation of shards, which is pure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from exhaustive import exhaustive
from repository import REPO
from waiting import WAIT_S

sys.path.append(str(REPO))  # the suite is not installed; at the end, so that agentmem stays the one under test

from agentmem import SQLiteSession
from benchmarks.load import Calls, Load, connections_each, run_load
from benchmarks.material import MAIN
from benchmarks.partitions import shard_of, simulate, simulated_table
from benchmarks.places import ITEMS, place
from benchmarks.scaling import Measured, arguments, main, table
from benchmarks.systems import Handle, System, nothing


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def rate(cell: str) -> float:
    assert cell.endswith("/s")
    return float(cell.removesuffix("/s").replace(",", ""))


@exhaustive
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_on_a_new_sqlite_file_gives_a_row_for_each_number_of_sessions_and_clients(
    tmp_path: Path, processes: int
) -> None:
    sizes = ["--sessions", "3", "12", "--clients", "1", "4", "--seconds", "0.05", f"--processes={processes}"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.scaling", "--url", str(tmp_path / "new.db"), *sizes],
        cwd=REPO,
        capture_output=True,
        encoding="utf-8",
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [cells(line) for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [(row[0], row[2]) for row in rows] == [("3", "1"), ("3", "4"), ("12", "1"), ("12", "4")]
    assert all(rate(row[place]) >= 0 for row in rows for place in (3, 6, 9))
    assert "failed" not in done.stdout
    assert "12 sessions stored" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_stored_beforehand_are_sessions_that_agentmem_reads(tmp_path: Path) -> None:
    with place(f"sqlite:///{tmp_path / 'new.db'}") as found:
        found.fill(range(2, 5))
        found.settle()
        with SQLiteSession(tmp_path / "new.db", session_id="other-0000004") as session:
            assert len(session.get_items()) == ITEMS
        assert found.size_bytes() > 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "conversations.db"
    with SQLiteSession(path, session_id=MAIN) as session:
        session.add_items([{"role": "user", "content": "hello"}])
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="exists; name a file that does not"):
        main(["--url", str(path), "--sessions", "1", "--clients", "1", "--seconds", "0.01"])
    assert path.read_bytes() == before


class Failing(System):
    """Opens, and fails every second call."""

    title = "failing"
    modules = ()
    packages = ()
    calls = 0

    async def open(self) -> None:
        if self.path == "cannot be opened":
            raise OSError(self.path)

    async def close(self) -> None:
        pass

    async def session(self, session_id: str) -> Handle:
        async def add(items: object) -> None:
            self.calls += 1
            if self.calls % 2:
                raise OSError("database is locked")

        async def tail(limit: int | None) -> list[object]:
            return []

        return Handle(add, tail, nothing)


def opens() -> System:
    return Failing("opens")


def does_not_open() -> System:
    return Failing("cannot be opened")


def test_calls_that_fail_are_counted_and_shown_not_timed_as_successes() -> None:
    appends, reads = run_load(Load(opens, sessions=1, clients=2, processes=1, seconds=0.02))
    assert appends.failed - 1 <= len(appends.took_s) <= appends.failed + 1
    assert (appends.error, reads.failed) == ("OSError: database is locked", 0)
    shown = table([Measured(1, 2_000_000, 2, appends, reads, Calls())])
    assert f"appends of 2 clients: {appends.failed:,} failed, such as OSError: database is locked" in shown


def test_a_system_that_cannot_be_opened_ends_the_run_with_its_error() -> None:
    with pytest.raises(RuntimeError, match="cannot be opened"):
        run_load(Load(does_not_open, sessions=1, clients=2, processes=2, seconds=0.01))


def test_processes_that_work_at_the_same_time_add_up() -> None:
    together = Calls()
    for took_s, seconds in ((0.1, 1.0), (0.3, 2.0)):
        one = Calls(seconds=seconds)
        one.took_s.extend([took_s] * 100)
        together.merge(one)
    assert together.per_second == 100.0
    assert together.percentile_ms(25) == pytest.approx(100)
    assert together.percentile_ms(99) == pytest.approx(300)


def test_the_driver_alone_has_no_more_connections_than_a_server_takes() -> None:
    for clients in (1, 3, 64, 512):
        for processes in (1, 2, 4, 100):
            assert 1 <= connections_each(clients, processes) * min(clients, processes) <= 100


def test_what_was_measured_is_shown_when_the_run_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_first, loads = run_load, []

    def break_off(load: Load) -> tuple[Calls, Calls]:
        loads.append(load)
        if len(loads) > 2:
            raise RuntimeError("the server went away")
        return run_first(load)

    monkeypatch.setattr("benchmarks.scaling.run_load", break_off)
    with pytest.raises(SystemExit, match="the server went away"):
        main(["--url", str(tmp_path / "new.db"), "--sessions", "3", "--clients", "1", "2", "--seconds", "0.02"])
    rows = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[2] for row in rows] == ["1"]


def test_the_command_takes_several_numbers_after_one_name() -> None:
    given = arguments(["--sessions", "1000", "1000000", "--clients", "1", "64"])
    assert (given.sessions, given.clients) == ([1_000, 1_000_000], [1, 64])
    with pytest.raises(SystemExit):
        arguments(["--clients", "0"])


def test_a_sessions_shard_is_the_same_in_every_process() -> None:
    code = "from benchmarks.partitions import shard_of; print([shard_of(f's{n}', 16) for n in range(50)])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, encoding="utf-8", check=True)
    assert json.loads(done.stdout) == [shard_of(f"s{number}", 16) for number in range(50)]


def test_the_simulation_gives_the_same_figures_every_time() -> None:
    assert simulate(200, [0.0, 1.0], [4, 16]) == simulate(200, [0.0, 1.0], [4, 16])
    assert simulated_table([200], [1.0], [4]) == simulated_table([200], [1.0], [4])


def test_the_page_shows_what_the_simulation_computes() -> None:
    # Not the rows of a million sessions, which take several seconds to compute.
    computed = [line for line in simulated_table([1_000]).splitlines() if line.startswith("|")]
    page = (REPO / "benchmarks" / "README.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- simulation -->\n")[2].partition("<!-- end of simulation -->")[0].splitlines()
    assert [line for line in shown if not line.startswith("| 1,000,000 ")] == computed


def test_more_sessions_are_more_even_and_more_shards_and_steeper_traffic_less() -> None:
    def uneven(sessions: int, exponent: float, shards: int) -> float:
        (found,) = simulate(sessions, [exponent], [shards])
        return found.most_to_mean

    assert 1.0 <= uneven(20_000, 0.0, 4) < uneven(500, 0.0, 4) < uneven(500, 0.0, 64) < uneven(500, 1.0, 64)
    assert uneven(100, 1.0, 1) == pytest.approx(1.0)


def test_no_shard_has_less_than_the_busiest_session_alone() -> None:
    (found,) = simulate(1_000, [1.0], [64])
    assert found.busiest_share == pytest.approx(0.1336, abs=1e-4)
    assert found.worst >= found.most_to_mean >= found.busiest_share * 64
