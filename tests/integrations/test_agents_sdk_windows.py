"""However little a session replays, no half exchange reaches the model of the Agents SDK's Runner."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from exhaustive import cases, exhaustive
from sdk import agent, agents, call, message, reasoning, run, sent, stored, takes_sync_sessions

from agentmem import AsyncSQLiteSession, SessionSettings, SQLiteSession

pytestmark = pytest.mark.anyio

LIMITS = range(1, 13)
SOME_LIMITS = cases(LIMITS, quick=lambda limit: limit in (1, 5, 9))

STORED = [
    *("user: Compare", "reasoning rs_1", "call a", "call b", "output a: sunny", "output b: sunny"),
    *("reasoning rs_2", "assistant: Alike."),
    *("user: Once more", "call c", "output c: sunny", "assistant: Still."),
    *("user: Pay me back", "reasoning rs_3", "call d", 'output d: {"assistant": "billing"}'),
    *("reasoning rs_4", "call e", "call f", "output e: sunny", "output f: sunny", "reasoning rs_5", "assistant: Paid."),
    *("user: Thanks", "reasoning rs_6", "assistant: Welcome."),
]
"""What the conversation leaves: parallel calls, reasoning before calls and messages, a call without any, a handoff."""


async def converse(session: Any) -> list[int]:
    """Have that conversation; how many stored items each of its runs was sent. Half an exchange fails it."""
    billing = agent(
        [reasoning("rs_4"), call("e", after="rs_4"), call("f")],
        [reasoning("rs_5"), message("Paid.", after="rs_5")],
        name="billing",
    )
    runs = [
        (
            "Compare",
            [reasoning("rs_1"), call("a", after="rs_1"), call("b")],
            [reasoning("rs_2"), message("Alike.", after="rs_2")],
        ),
        ("Once more", [call("c")], [message("Still.")]),
        ("Pay me back", [reasoning("rs_3"), call("d", "transfer_to_billing", after="rs_3")]),
        ("Thanks", [reasoning("rs_6"), message("Welcome.", after="rs_6")]),
    ]
    replayed = []
    for text, *steps in runs:
        asked = agent(*steps, handoffs=[billing])
        await run(asked, text, session=session)
        replayed.append(len(sent(asked)[0]) - 1)
    return replayed


CAPS = {
    "limit": lambda cap: SessionSettings(limit=cap),
    "max_turns": lambda cap: SessionSettings(max_turns=cap),
    "max_tokens": lambda cap: SessionSettings(max_tokens=40 * cap),  # 26 to 63 tokens an item
}


@pytest.mark.parametrize("cap", SOME_LIMITS)
@pytest.mark.parametrize("make", CAPS.values(), ids=CAPS)
async def test_no_cap_lets_half_an_exchange_reach_the_model(
    tmp_path: Path, make: Callable[[int], SessionSettings], cap: int
) -> None:
    async with AsyncSQLiteSession(tmp_path / "sdk.db", session_id="user_123", settings=make(cap)) as session:
        replayed = await converse(session)
        assert await stored(session) == STORED
    assert max(replayed) > 0 or cap == 1
    if make(cap).limit is not None:
        assert max(replayed) <= cap


@takes_sync_sessions
@pytest.mark.parametrize("limit", SOME_LIMITS)
async def test_nor_does_a_limit_of_a_sync_session(tmp_path: Path, limit: int) -> None:
    with SQLiteSession(tmp_path / "sdk.db", session_id="user_123", settings=SessionSettings(limit=limit)) as session:
        assert max(await converse(session)) <= limit
        assert await stored(session) == STORED


HALVES = {"0.24.0": [1, 5, 6, 9, 10]}
"""The limits with which the SDK's own sessions send half an exchange; examples/README.md has them in a table."""


@exhaustive
@pytest.mark.parametrize("kind", ["SQLiteSession", "AsyncSQLiteSession"])
async def test_some_limits_of_the_sdk_s_own_sessions_let_it_happen(tmp_path: Path, kind: str) -> None:
    """The page says so; where this fails, the SDK has learned it, and the page is to be changed."""
    memory = importlib.import_module("agents.extensions.memory")
    halves = []
    for limit in LIMITS:
        path, settings = tmp_path / f"{limit}.db", agents.SessionSettings(limit=limit)
        session: Any
        async with AsyncExitStack() as closing:
            if kind == "SQLiteSession":
                session = agents.SQLiteSession("user_123", path, session_settings=settings)
                closing.callback(session.close)
            else:
                session = memory.AsyncSQLiteSession("user_123", path, session_settings=settings)
                closing.push_async_callback(session.close)
            try:
                await converse(session)
            except AssertionError:
                halves.append(limit)
    assert halves == HALVES.get(version("openai-agents"), halves)
    assert halves
