"""Files of every schema version are kept, and the newest code goes on with each of them."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from agentmem import AsyncSessionStore
from agentmem.engines.sqlite.tables import SCHEMA_VERSION
from agentmem.items import Item

pytestmark = pytest.mark.anyio

DATA = Path(__file__).parent / "data"
KEPT = sorted(DATA.glob("schema-*.db"))


_IN_NEW_TABLES = """
    UPDATE agentmem_items SET item = '' WHERE position = 1 AND session_key = (
        SELECT session_key FROM agentmem_sessions WHERE session_id = 'erased'
    );
    UPDATE agentmem_sessions SET
        owner = 'ann', title = 'A title', metadata = '{"a": 1}', expires_at = 4102444800000000, edits = 3
    WHERE session_id = 'plain';
    UPDATE agentmem_sessions SET forked_from = 'plain', forked_length = 1 WHERE session_id = 'numbers';
    INSERT INTO agentmem_notes SELECT session_key, 'key', 'k1', 0, '{"digest": "0"}' FROM agentmem_sessions;
    INSERT INTO agentmem_locks VALUES ('plain', 'token', 'somebody', 1, 2, 3);
"""
"""What no verb fills yet."""

_REMOVED = """
    INSERT INTO agentmem_removed SELECT session_key FROM agentmem_sessions WHERE session_id = 'removed';
    DELETE FROM agentmem_sessions WHERE session_id = 'removed';
"""
"""What a crash leaves of the clear of a large session."""


async def make(folder: Path) -> None:
    """Make the file of this version, and beside it, as JSON, what its sessions hold.

    Called once for each schema version, before anything else changes; neither file is ever made again, because what
    counts is what that version wrote. From the repository::

        cd tests/engines/sqlite
        python -c "import asyncio, test_sqlite_schema as t; asyncio.run(t.make(t.DATA))"

    A version with new tables adds sessions that fill them.
    """
    path = folder / f"schema-{SCHEMA_VERSION}.db"
    kept: dict[str, list[Item]] = {
        "plain": [{"role": "user", "content": f"message {number}"} for number in range(20)],
        "caf\u00e9 \U0001f600 '\"\n": [
            {"role": "user", "content": "\u6f22\u5b57 \U0001f600 e\u0301 \u2028", "\U0001f600": "\U0001f600"}
        ],
        "lone surrogates": [{"text": "\ud83d", "\udc00": ["\udfff", {"deep": [1.5, None, True]}]}],
        "numbers": [{"big": 10**40, "negative": -(2**70), "small": 5e-324, "zero": -0.0}],
        "popped": [{"number": 0}, {"number": 1}],
        "emptied by pops": [],
        "cleared": [],
        "begun again": [{"number": 7}],
        "x" * 1024: [{"type": "reasoning", "id": "r1", "summary": []}, {"text": "y" * 9000}],
        "erased": [{"number": 0}, {"number": 2}],
        "removed": [],
    }
    async with AsyncSessionStore(path) as store:
        for name in ("popped", "emptied by pops", "cleared", "begun again", "erased", "removed"):
            await store.session(name).add_items([{"number": 0}, {"number": 1}, {"number": 2}])
        await store.session("popped").pop_item()
        for _ in range(3):
            await store.session("emptied by pops").pop_item()
        await store.session("cleared").clear_session()
        await store.session("begun again").clear_session()
        for name, items in kept.items():
            if name not in ("popped", "erased", "removed"):
                await store.session(name).add_items(items)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(_IN_NEW_TABLES)
    async with AsyncSessionStore(path) as store:
        assert {name: await store.session(name).get_items() for name in kept if name != "removed"} == {
            name: items for name, items in kept.items() if name != "removed"
        }
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(_REMOVED)
    text = json.dumps(kept, indent=1) + "\n"  # ASCII alone, because a lone surrogate has no other form
    path.with_suffix(".json").write_text(text, encoding="ascii")


def test_a_file_of_each_version_is_kept() -> None:
    assert [path.name for path in KEPT] == [f"schema-{version}.db" for version in range(1, SCHEMA_VERSION + 1)]


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.name)
async def test_the_newest_code_goes_on_with_a_file_of_any_version(kept: Path, tmp_path: Path) -> None:
    expected: dict[str, list[Item]] = json.loads(kept.with_suffix(".json").read_text(encoding="ascii"))
    path = shutil.copy(kept, tmp_path / "conversations.db")
    added = {"role": "user", "content": "and now"}
    async with AsyncSessionStore(path) as store:
        for name, items in expected.items():
            session = store.session(name)
            assert await session.get_items() == items
            await session.add_items([added])
            assert await session.get_items() == [*items, added]
        await store.session("new").add_items([added])
        report = await store.check()
    assert report.problems == ()
    assert report.items == sum(len(items) + 1 for items in expected.values()) + 1
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
