"""A file of an older version is upgraded whole or not at all, with everything in it, whoever has it open."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import version_1
from database import mounted, shell
from exhaustive import cases, exhaustive
from processes import KILLED_AT_STEP, Child, files, holdings, holds_again, run
from stepping import CycleLoop, cycle_loops

import agentmem
from agentmem import AsyncSessionStore, SessionStore, SQLiteSession
from agentmem.engines.sqlite import schema, upgrading
from agentmem.engines.sqlite.tables import SCHEMA_VERSION
from agentmem.errors import (
    SchemaVersionError,
    SessionClosedError,
    StorageBusyError,
    StorageCorruptError,
    StorageError,
    StorageFullError,
)
from agentmem.integrations import openai_agents

posix = pytest.mark.skipif(os.name != "posix", reason="modes and signals as POSIX has them")

ITEM = '{"n": 0}'

APPENDS: list[tuple[str, float, list[object]]] = [
    ("bob", 100.25, [ITEM, '{"n": 1}']),
    ("alice", 300.000001, [ITEM]),
    ("bob", 200.5, ['{"n": 2}']),
    ("alice", 50.0, ['{"n": 1}']),  # the clock has jumped back
    ("bob", 250.0, ['{"n": 3}']),
    ("caf\u00e9 \U0001f600 '\"\n", 400.0, ['{"\u00e9": "\\ud83d \U0001f600"}', "x" * 20_000]),
    ("odd", 1_700_000_000.123457, [b"\xff\x00", "", "not JSON", 17, "\0", '{"a":1,"a":2}']),
]
TORN = b"{\xff\x00torn"
"""A text that is not UTF-8."""

ARRIVED = [
    ("bob", 0, 100_250_000),
    ("bob", 1, 100_250_000),
    ("bob", 2, 200_500_000),
    ("bob", 3, 250_000_000),
    ("alice", 0, 300_000_001),
    ("alice", 1, 50_000_000),
    ("caf\u00e9 \U0001f600 '\"\n", 0, 400_000_000),
    ("caf\u00e9 \U0001f600 '\"\n", 1, 400_000_000),
    *(("odd", position, 1_700_000_000_123_457) for position in range(7)),
]
"""The items in the order of their arrival."""


def open_it(path: Path) -> None:
    """Upgrade by opening."""
    with SessionStore(path):
        pass


def command(path: Path) -> None:
    """Upgrade by the function of the command."""
    agentmem.upgrade(path)


either_way = pytest.mark.parametrize("upgrade", [open_it, command])


@pytest.fixture
def old(path: Path) -> Path:
    """A file of version 1, with all that such a file may hold."""
    version_1.make(path, APPENDS)
    with shell(path) as connection:
        version_1.append(connection, "odd", 1_700_000_000.123457, ["torn"])
        connection.execute("UPDATE agentmem_items SET item = CAST(? AS TEXT) WHERE item = 'torn'", (TORN,))
        version_1.append(connection, "emptied", 500.0, [])
        connection.execute("UPDATE agentmem_sessions SET session_id = x'00ff' WHERE session_id = 'emptied'")
    return path


def is_upgraded(path: Path) -> None:
    """Everything that was in the old file is in the new one, which is as if it had been made so."""
    with shell(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        found = connection.execute(
            "SELECT session_id, position, i.created_at FROM agentmem_items AS i JOIN agentmem_sessions "
            "USING (session_key) ORDER BY sequence"
        ).fetchall()
        assert found == ARRIVED
        texts = connection.execute(
            "SELECT typeof(item), CAST(item AS BLOB) FROM agentmem_items ORDER BY session_key, position"
        ).fetchall()
        assert texts == [
            *(("text", b'{"n": %d}' % number) for number in (0, 1, 2, 3, 0, 1)),
            ("text", '{"\u00e9": "\\ud83d \U0001f600"}'.encode()),
            ("text", b"x" * 20_000),
            ("blob", b"\xff\x00"),
            *(("text", text) for text in (b"", b"not JSON", b"17", b"\0", b'{"a":1,"a":2}', TORN)),
        ]
        sessions = connection.execute(
            "SELECT CAST(session_id AS BLOB), length, created_at, updated_at, stored_at, first_position, edits, owner, "
            "title, metadata, expires_at, forked_from, forked_length FROM agentmem_sessions ORDER BY session_key"
        ).fetchall()
        rest = (0, 0, *[None] * 6)
        assert sessions == [
            (b"bob", 4, 100_250_000, 250_000_000, 250_000_000, *rest),
            (b"alice", 2, 300_000_001, 50_000_000, 50_000_000, *rest),
            ("caf\u00e9 \U0001f600 '\"\n".encode(), 2, 400_000_000, 400_000_000, 400_000_000, *rest),
            (b"odd", 7, *[1_700_000_000_123_457] * 3, *rest),
            (b"\0\xff", 0, 500_000_000, 500_000_000, 500_000_000, *rest),
        ]


def objects(path: Path) -> list[tuple[str, ...]]:
    with shell(path) as connection:
        return connection.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name <> 'sqlite_sequence' ORDER BY name"
        ).fetchall()


# What is there then


@either_way
def test_everything_goes_over_byte_for_byte_in_the_order_of_its_arrival(
    old: Path, upgrade: Callable[[Path], None]
) -> None:
    upgrade(old)
    is_upgraded(old)
    assert files(old) == {old.name}
    upgrade(old)  # leaves it as it is
    is_upgraded(old)


@either_way
def test_an_upgraded_file_has_the_tables_of_a_new_one_and_goes_on_with_its_numbers(
    old: Path, upgrade: Callable[[Path], None]
) -> None:
    upgrade(old)
    new = old.with_name("new.db")
    open_it(new)
    assert objects(old) == objects(new)
    with SQLiteSession(old, session_id="alice") as session:
        assert session.get_items() == [{"n": 0}, {"n": 1}]
        assert session.pop_item() == {"n": 1}
        session.add_items([{"n": 2}])
    with shell(old) as connection:
        assert connection.execute("SELECT max(sequence) FROM agentmem_items").fetchone() == (len(ARRIVED) + 1,)


@either_way
def test_what_others_have_stored_in_the_file_goes_over_too(old: Path, upgrade: Callable[[Path], None]) -> None:
    with shell(old) as connection:
        connection.executescript(
            """
            CREATE TABLE [the "notes"] (id INTEGER PRIMARY KEY AUTOINCREMENT, text);
            INSERT INTO [the "notes"] VALUES (1, 'one'), (7, x'ff00');
            DELETE FROM [the "notes"] WHERE id = 7;
            CREATE INDEX theirs ON [the "notes"] (text);
            CREATE VIEW their_view AS SELECT session_id FROM agentmem_sessions;
            CREATE TRIGGER their_trigger AFTER INSERT ON [the "notes"] BEGIN SELECT 1; END;
            CREATE INDEX on_ours ON agentmem_items (created_at);
            """
        )
    upgrade(old)
    is_upgraded(old)
    with shell(old) as connection:
        assert connection.execute('INSERT INTO [the "notes"] (text) VALUES (2)').lastrowid == 8
        assert connection.execute('SELECT text FROM [the "notes"]').fetchall() == [("one",), (2,)]
        assert connection.execute("SELECT count(*) FROM their_view").fetchone() == (5,)
    theirs = {name for _, name, _, _ in objects(old) if not name.startswith(("agentmem_", "sqlite_"))}
    assert theirs == {'the "notes"', "theirs", "their_view", "their_trigger"}


@either_way
@pytest.mark.anyio
async def test_a_file_whose_history_was_the_agents_sdk_s_takes_over_what_is_new_and_no_more(
    path: Path, upgrade: Callable[[Path], None]
) -> None:
    agents = pytest.importorskip("agents", reason="the Agents SDK is not installed")
    theirs = agents.SQLiteSession("user_123", path)
    await theirs.add_items([{"role": "user", "content": "one"}])
    theirs.close()
    with shell(path) as connection:  # as version 1 took it over
        for statement in version_1.TABLES:
            connection.execute(statement)
        connection.execute("PRAGMA application_id = 0x61676D65")
        connection.execute("PRAGMA user_version = 1")
        row = connection.execute(
            "SELECT CAST(session_id AS BLOB), CAST(created_at AS BLOB), CAST(message_data AS BLOB) FROM agent_messages"
        ).fetchone()
        digest = hashlib.sha256(repr(row).encode()).hexdigest()
        connection.execute("INSERT INTO agentmem_takeovers VALUES ('', 'agent_messages', 1, ?)", (digest,))
        version_1.append(connection, "user_123", 100.0, [row[2].decode(), '{"ours": 1}'])
    await asyncio.to_thread(upgrade, path)
    theirs = agents.SQLiteSession("user_123", path)
    await theirs.add_items([{"role": "user", "content": "two"}])
    theirs.close()
    async with openai_agents.AsyncSQLiteSession("user_123", path) as session:
        contents = [item.get("content", "ours") for item in await session.get_items()]
    assert contents == ["one", "ours", "two"]


def test_a_file_of_version_1_is_checked_and_backed_up_as_it_is(old: Path) -> None:
    before, size = version_1.contents(old), old.read_bytes()
    store = SessionStore(old)
    report = store.check()
    assert (report.sessions, report.items) == (5, 14)
    assert [problem.position for problem in report.problems] == [1, 0, 2, 3, 4, 6]
    store.backup(copy := old.with_name("copy.db"))
    assert version_1.contents(copy) == before
    assert old.read_bytes() == size
    with shell(old) as connection:
        connection.execute("DELETE FROM agentmem_items WHERE item_key = (1 << 32) + 1")
        connection.execute("INSERT INTO agentmem_items VALUES ((9 << 32) + 5, 0, '{}')")
    told = [str(problem) for problem in store.check().problems]
    assert "session 'bob', position 1: missing" in told
    assert "session key 9, position 5: an item of a session that is missing" in told


# A large file


@pytest.fixture
def large(old: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same file, as if it were too large to be upgraded where it is opened."""
    monkeypatch.setattr(schema, "MAX_UPGRADE_BYTES", 1_000)
    return old


def test_a_large_file_is_left_to_the_command_that_the_error_names(large: Path) -> None:
    before = version_1.contents(large)
    session = SQLiteSession(large, session_id="bob")
    for call in (lambda: open_it(large), session.get_items):
        with pytest.raises(SchemaVersionError, match=rf"schema version 1, .* run agentmem upgrade {large} while"):
            call()
    session.close()
    assert version_1.contents(large) == before
    agentmem.upgrade(str(large))
    is_upgraded(large)
    open_it(large)


def test_a_large_new_file_is_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MAX_UPGRADE_BYTES", 0)
    open_it(path)
    open_it(path)


def test_progress_rises_to_the_number_of_items_and_what_it_raises_leaves_the_file(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrading, "SLICE_ITEMS", 4)
    before = version_1.contents(old)

    def fail(done: int, of: int) -> None:
        raise KeyError(done)

    with pytest.raises(KeyError):
        agentmem.upgrade(old, progress=fail)
    assert version_1.contents(old) == before
    assert files(old) == {old.name}
    assert {found.name for found in old.parent.iterdir()} == {old.name}
    told: list[tuple[int, int]] = []
    agentmem.upgrade(old, progress=lambda done, of: told.append((done, of)))
    assert told == [(0, 15), (4, 15), (8, 15), (12, 15), (15, 15)]
    is_upgraded(old)


@posix
def test_the_new_file_keeps_the_mode_of_the_old_one_and_a_link_still_leads_to_it(old: Path) -> None:
    old.chmod(0o640)
    link = old.with_name("link.db")
    link.symlink_to(old)
    agentmem.upgrade(link)
    assert link.is_symlink()
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    is_upgraded(old)


def test_what_a_crash_left_in_the_wal_is_upgraded_too(path: Path) -> None:
    version_1.make(path)
    script = """
import os, sqlite3, sys
import version_1
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
version_1.append(connection, "bob", 1.0, ['{"n": 0}'])
os._exit(9)
"""
    assert run(script, path) == (9, "", "")
    assert path.with_name(path.name + "-wal").stat().st_size
    agentmem.upgrade(path)
    assert files(path) == {path.name}
    with SQLiteSession(path, session_id="bob") as session:
        assert session.get_items() == [{"n": 0}]


def _with_bytes(path: Path, start: int) -> None:
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(b"\xff" * 4096)


def test_what_cannot_be_upgraded_is_refused_by_name_and_stays(old: Path, tmp_path: Path) -> None:
    damaged, newer, other, empty, virtual = (
        tmp_path / name for name in ("damaged", "newer", "other", "empty", "virtual")
    )
    for copy in (damaged, newer, virtual):
        copy.write_bytes(old.read_bytes())
    _with_bytes(damaged, 4096 * 3)
    with shell(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    with shell(other) as connection:
        connection.execute("CREATE TABLE photos (id)")
    with shell(virtual) as connection:
        connection.execute("CREATE VIRTUAL TABLE words USING fts5 (text)")
    empty.touch()
    for path, error, match in (
        (tmp_path / "no.db", StorageError, "there is no file"),
        (empty, StorageError, "is empty"),
        (other, StorageError, "another program's database"),
        (newer, SchemaVersionError, "upgrade agentmem"),
        (damaged, StorageCorruptError, "is damaged .* was not upgraded; agentmem check names"),
        (virtual, StorageError, "virtual table 'words' is not agentmem's"),
    ):
        before = path.read_bytes() if path.exists() else b""
        with pytest.raises(error, match=match):
            agentmem.upgrade(path)
        assert (path.read_bytes() if path.exists() else b"") == before
    with pytest.raises(ValueError, match="in memory"):
        agentmem.upgrade(":memory:")
    assert not list(tmp_path.glob(".agentmem-*"))


@pytest.mark.anyio
async def test_an_engine_that_was_closed_upgrades_nothing(old: Path) -> None:
    from agentmem.engines import open_engine

    engine = open_engine(old)
    await engine.close()
    with pytest.raises(SessionClosedError):
        await engine.upgrade()
    version_1.contents(old)


@pytest.mark.anyio
async def test_a_database_on_a_server_is_upgraded_by_being_opened(empty_postgresql: str) -> None:
    await agentmem.async_upgrade(empty_postgresql)
    async with AsyncSessionStore(empty_postgresql) as store:
        assert (await store.check()).items == 0


def test_a_full_disk_is_an_error_by_name_and_the_file_stays(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1300k") as folder:
        path = folder / "app.db"
        version_1.make(path, [("bob", 1.0, [json.dumps({"text": "x" * 400_000})])])
        (folder / "ballast").write_bytes(bytes(600_000))
        before = version_1.contents(path)
        with pytest.raises(StorageFullError, match=r"app\.db"):
            agentmem.upgrade(path)
        assert version_1.contents(path) == before
        assert {found.name for found in folder.iterdir()} == {"app.db", "ballast"}


# Who has it open


def test_the_command_refuses_a_file_that_somebody_has_open(old: Path) -> None:
    script = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM agentmem_items").fetchall()
print("open", flush=True)
input()
"""
    with Child(script, old) as child:
        child.read_line()
        with pytest.raises(StorageBusyError, match=r"or in another, .* close every session and store on it"):
            agentmem.upgrade(old)
    version_1.contents(old)
    agentmem.upgrade(old)
    is_upgraded(old)


def test_an_older_agentmem_that_has_the_file_open_loses_nothing_and_is_told(old: Path) -> None:
    with (
        closing(sqlite3.connect(old, isolation_level=None)) as reader,
        closing(sqlite3.connect(old, isolation_level=None)) as writer,
    ):
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM agentmem_items").fetchone() == (15,)
        writer.execute("BEGIN IMMEDIATE")  # an append that is under way
        writer.execute("INSERT INTO agentmem_items VALUES ((2 << 32) + 2, 999.0, '{\"n\": 2}')")
        writer.execute("UPDATE agentmem_sessions SET next_position = 3 WHERE session_key = 2")
        with Child(_OPEN, old) as child:
            assert child.read_line() == "waits"
            writer.execute("COMMIT")
            assert child.read_line() == "[0, 1, 2]"
            assert child.finish() == (0, "", "")
        # A read that had begun sees the state of its beginning, and the version after it.
        assert reader.execute("SELECT count(*) FROM agentmem_items").fetchone() == (15,)
        reader.execute("COMMIT")
        assert reader.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        with pytest.raises(version_1.NewerVersionError):
            version_1.append(writer, "alice", 1000.0, [ITEM])
    with shell(old) as connection:
        assert connection.execute("SELECT count(*) FROM agentmem_items").fetchone() == (16,)


_OPEN = """
import asyncio, sys
from agentmem import AsyncSQLiteSession
from agentmem.engines.sqlite.waiting import LockWait

note = LockWait.note
def say(self, met):
    if not self._is_told:
        print("waits", flush=True)
    note(self, met)
LockWait.note = say

async def main():
    async with AsyncSQLiteSession(sys.argv[1], session_id="alice", busy_timeout_s=100) as session:
        print([item["n"] for item in await session.get_items()], flush=True)

asyncio.run(main())
"""


def test_of_two_processes_one_upgrades_and_the_other_waits_and_goes_on_with_it(old: Path) -> None:
    with closing(sqlite3.connect(old, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with Child(_OPEN, old) as first, Child(_OPEN, old) as second:
            assert (first.read_line(), second.read_line()) == ("waits", "waits")
            holder.execute("COMMIT")
            assert (first.read_line(), second.read_line()) == ("[0, 1]", "[0, 1]")
            assert first.finish() == second.finish() == (0, "", "")
    is_upgraded(old)


# Crashes and cancellation

_KILLED = """
import os, signal, sys
from agentmem import SessionStore
from agentmem.engines.sqlite import schema, tables
left = int(sys.argv[2])

class Killing:
    def __init__(self, raw):
        self.raw = raw
        raw.execute("PRAGMA cache_size = 1")  # so that much of the transaction is in the WAL already

    def execute(self, sql, *args):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.raw.execute(sql, *args)

upgrade = tables.upgrade_from_1
schema.upgrade_from_1 = lambda raw: upgrade(Killing(raw))
with SessionStore(sys.argv[1]):
    pass
print(left)
"""


@posix
@pytest.mark.parametrize("step", cases(range(1, 40), quick=lambda step: step in (3, 12, 14, 18)))
def test_a_process_that_is_killed_in_the_middle_leaves_the_old_file_or_the_new_one(old: Path, step: int) -> None:
    before = version_1.contents(old)
    code, output, errors = run(_KILLED, old, str(step))
    assert (code, errors) in ((0, ""), (-signal.SIGKILL, ""))
    if code == 0:
        assert int(output) >= 0
        is_upgraded(old)
        return
    assert version_1.contents(old) == before
    open_it(old)
    is_upgraded(old)


_KILLED_COMMAND = KILLED_AT_STEP + "agentmem.upgrade(path)"


@posix
@pytest.mark.parametrize("steps", cases([range(3, 9, 2), range(1, 40)], quick=lambda steps: len(steps) < 5))
def test_a_command_that_is_killed_at_any_step_leaves_the_old_file_or_the_new_one(old: Path, steps: range) -> None:
    whole = old.read_bytes()
    before = version_1.contents(old)
    codes = set()
    for step in steps:
        for found in old.parent.iterdir():
            found.unlink()
        old.write_bytes(whole)
        code, _, errors = run(_KILLED_COMMAND, old, str(step))
        assert code in (0, -signal.SIGKILL), errors
        codes.add(code)
        with shell(old) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 1:
            assert version_1.contents(old) == before
        else:
            is_upgraded(old)
    assert -signal.SIGKILL in codes


def test_a_command_that_is_cancelled_at_any_moment_leaves_the_old_file_or_the_new_one(old: Path) -> None:
    whole = old.read_bytes()
    held = holdings()
    cancelled = 0
    for loop in cycle_loops():
        old.write_bytes(whole)

        async def main(loop: CycleLoop = loop) -> bool:
            upgrade = asyncio.ensure_future(agentmem.async_upgrade(old))
            loop.arm(upgrade.cancel)
            await asyncio.wait([upgrade])
            loop.disarm()
            await loop.shutdown_default_executor()
            return upgrade.cancelled()

        was_cancelled = loop.run(main())
        cancelled += was_cancelled
        with shell(old) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        assert was_cancelled or version == SCHEMA_VERSION
        version_1.contents(old) if version == 1 else is_upgraded(old)
        assert not list(old.parent.glob(".agentmem-*"))
        holds_again(held)
    assert cancelled > 1


# Large ones


@exhaustive
def test_a_million_sessions_are_upgraded_with_progress(path: Path) -> None:
    count = 1_000_000
    version_1.make(path)
    with shell(path) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        connection.execute(
            f"{numbers} INSERT INTO agentmem_sessions SELECT i, 'user_' || i, 2, 1e9 + i, 1e9 + i + 0.5 FROM n",
            (count,),
        )
        connection.execute(
            "INSERT INTO agentmem_items SELECT session_key << 32 | n, created_at + n * 1000, "
            'printf(\'{"n":%d,"text":"%s"}\', n, hex(zeroblob(50))) '
            "FROM agentmem_sessions, (SELECT 0 AS n UNION ALL SELECT 1)"
        )
    assert path.stat().st_size > schema.MAX_UPGRADE_BYTES
    with pytest.raises(SchemaVersionError, match="agentmem upgrade"):
        open_it(path)
    told: list[tuple[int, int]] = []
    agentmem.upgrade(path, progress=lambda done, of: told.append((done, of)))
    assert told == sorted(told)
    assert (told[0], told[-1]) == ((0, 2 * count), (2 * count, 2 * count))
    with SessionStore(path) as store:
        report = store.check()
        assert (report.sessions, report.items, report.problem_count) == (count, 2 * count, 0)
        assert len(store.session("user_777777").get_items()) == 2
    with shell(path) as connection:
        steps = "SELECT created_at - lag(created_at) OVER (ORDER BY sequence) AS step FROM agentmem_items"
        assert connection.execute(f"SELECT min(step) >= 0 FROM ({steps})").fetchone() == (1,)
