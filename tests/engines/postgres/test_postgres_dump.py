"""PostgreSQL's own tools on agentmem's tables: dumped, restored and read as the README says."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from pages import Page
from postgres_database import PostgresDatabase
from postgres_programs import ENVIRONMENT, find_folder
from waiting import WAIT_S

pytest.importorskip("asyncpg", reason="asyncpg is not installed")

from agentmem import SessionStore

CATS = {"role": "user", "content": "I like cats."}
DOGS = {"role": "user", "content": "And \u0000 dogs."}


def run(program: str, *args: str) -> None:
    command = [str(find_folder() / program), *args]
    subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=WAIT_S, check=True)


def of_postgres(row: str) -> str:
    """The code in PostgreSQL's column of a row of the table in the README's section on operating."""
    operating = Page("README.md").sections["Operating it"]
    found = re.search(rf"^\| {re.escape(row)} \|.*\| [^|`]*`([^`]+)`[^|]*\|$", operating, re.MULTILINE)
    assert found is not None
    return found[1]


def test_a_dump_of_the_schema_is_restored_with_every_session_and_gone_on_with(
    database: PostgresDatabase, tmp_path: Path
) -> None:
    dump = tmp_path / "monday.sql"
    with SessionStore(database.url) as store:
        store.session("alice").add_items([CATS, DOGS])
        words = of_postgres("back up, while others work").split()
        assert words[0] == "pg_dump"
        run(*words, f"--file={dump}", database.url)
        store.session("alice").add_items([{"role": "user", "content": "Not in the dump."}])
    database.sql("SET client_min_messages = warning; DROP SCHEMA agentmem CASCADE")
    run("psql", "-X", "-v", "ON_ERROR_STOP=1", "-f", str(dump), database.url)
    with SessionStore(database.url) as store:
        assert store.session("alice").get_items() == [CATS, DOGS]
        store.session("alice").add_items([CATS])
        assert store.session("alice").get_items() == [CATS, DOGS, CATS]
        assert store.check().problem_count == 0


def test_the_data_is_read_by_hand_from_the_table_that_the_readme_names(database: PostgresDatabase) -> None:
    with SessionStore(database.url) as store:
        store.session("alice").add_items([CATS])
    found = database.sql(f"SELECT session_id, position, item FROM {of_postgres('read the data')}")
    session_id, position, item = found.split("|")
    assert (session_id, position, json.loads(item)) == ("alice", "0", CATS)
