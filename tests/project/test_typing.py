"""Type checkers know an agentmem session for what the Agents SDK asks for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tools import NO_AGENTS_SDK

pytest.importorskip("agents", reason=NO_AGENTS_SDK)

pytestmark = pytest.mark.exhaustive

PROGRAM = """\
import agents
from agents.extensions.memory import EncryptedSession

from agentmem import AsyncSessionStore, AsyncSQLiteSession, SQLiteSession
from agentmem.integrations import openai_agents
from agentmem.session import AsyncSession


async def drop_in(agent: agents.Agent[None]) -> None:
    one = openai_agents.SQLiteSession("user_123", "chat.db", session_settings=agents.SessionSettings(limit=3))
    two = openai_agents.AsyncSQLiteSession("user_123", "chat.db", session_settings={"limit": 3})
    protocols: list[agents.Session] = [one, two]
    bases: list[agents.SessionABC] = [one, two]
    for session in (one, two):
        await agents.Runner.run(agent, "Hi", session=session)
        EncryptedSession("user_123", session, "key")
        agents.OpenAIResponsesCompactionSession("user_123", session)
        session.session_settings = agents.SessionSettings(limit=1)
    items: list[agents.TResponseInputItem] = await one.get_items()
    await two.add_items(items)
    last: agents.TResponseInputItem | None = await two.pop_item()
    one.close()
    await two.close()
    print(protocols, bases, last)


async def main(agent: agents.Agent[None], plain: SQLiteSession) -> None:
    async with AsyncSQLiteSession("chat.db", session_id="user_123") as session:
        await agents.Runner.run(agent, "Hi", session=session)
        agents.Runner.run_streamed(agent, "Hi", session=session)
        agents.Runner.run_sync(agent, "Hi", session=session)
        agents.OpenAIResponsesCompactionSession("user_123", session)
        theirs: agents.Session = session
        await session.add_items(await theirs.get_items())
    of_a_store: AsyncSession = AsyncSessionStore("chat.db").session("user_123")
    await agents.Runner.run(agent, "Hi", session=of_a_store)
    await agents.Runner.run(agent, "Hi", session=plain)  # refused: the protocol's methods are async
"""
REFUSED = [len(PROGRAM.splitlines())]


def run(folder: Path, *command: str) -> str:
    """What a checker prints about the program, which it finds in its current folder."""
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr  # errors were found; more is a crash
    return done.stdout


def test_mypy_takes_an_async_session_for_the_sdk_s_and_a_sync_one_not(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    output = run(tmp_path, "mypy", "--strict", "--config-file", os.devnull, "program.py")
    assert [int(line) for line in re.findall(r"^program\.py:(\d+): error", output, re.MULTILINE)] == REFUSED, output


def test_pyright_takes_an_async_session_for_the_sdk_s_and_a_sync_one_not(tmp_path: Path) -> None:
    # basedpyright is pyright with all that it needs in its wheels: pyright's own package downloads the checker, and a
    # Node to run it, when it is first used.
    pytest.importorskip("basedpyright", reason="basedpyright is not installed")
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}', encoding="utf-8")
    output = run(tmp_path, "basedpyright", "--outputjson", "--pythonpath", sys.executable, "program.py")
    found = [found for found in json.loads(output)["generalDiagnostics"] if found["severity"] == "error"]
    assert [error["range"]["start"]["line"] + 1 for error in found] == REFUSED, found
