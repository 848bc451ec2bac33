"""The Agents SDK's sessions that wrap another one, compaction and encryption, work around an agentmem session.

Every model here is strict (``sdk.StrictModel``): half an exchange in what reaches it fails the run.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, InternalServerError
from responses_server import ResponsesServer
from sdk import VERSION, agent, agents, call, message, outline, reasoning, run, sent, stored, stream

from agentmem import AsyncSQLiteSession, SessionSettings
from agentmem.items import Item

pytestmark = pytest.mark.anyio

TURN = [
    *("user: Compare", "reasoning rs_1", "call a", "call b", "output a: sunny", "output b: sunny"),
    *("reasoning rs_2", "assistant: Alike."),
]


async def one_turn(drive: Any, session: Any) -> None:
    """A run with parallel calls and reasoning."""
    asked = agent(
        [reasoning("rs_1"), call("a", after="rs_1"), call("b")], [reasoning("rs_2"), message("Alike.", after="rs_2")]
    )
    await drive(asked, "Compare", session=session)


@pytest.fixture
async def client(server: ResponsesServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


COMPACTED: list[Item] = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Compare"}]},
    {"type": "compaction", "id": "cmp_1", "encrypted_content": "opaque"},
]


def always(_: Any) -> bool:
    """Compact after each turn."""
    return True


@pytest.mark.parametrize("drive", [run, stream])
@pytest.mark.parametrize("mode", ["input", "previous_response_id"])
async def test_compaction_puts_what_it_was_given_in_the_place_of_the_history(
    session: AsyncSQLiteSession, server: ResponsesServer, client: AsyncOpenAI, drive: Any, mode: str
) -> None:
    compacting = agents.OpenAIResponsesCompactionSession(
        "user_123", session, client=client, compaction_mode=mode, should_trigger_compaction=always
    )
    server.answer(*COMPACTED, object="response.compaction")
    await one_turn(drive, compacting)
    (request,) = server.requests
    assert mode in request
    assert mode != "input" or outline(request["input"]) == TURN
    assert await session.get_items() == COMPACTED
    server.answer(*COMPACTED, object="response.compaction")
    next_agent = agent([message("Sunny.")])
    await drive(next_agent, "And now?", session=compacting)
    assert sent(next_agent) == [["user: Compare", "compaction", "user: And now?"]]
    assert await session.get_items() == COMPACTED


async def test_compaction_that_fails_leaves_the_history(
    session: AsyncSQLiteSession, server: ResponsesServer, client: AsyncOpenAI
) -> None:
    compacting = agents.OpenAIResponsesCompactionSession(
        "user_123", session, client=client, should_trigger_compaction=always
    )
    server.fail(500, "overloaded")
    with pytest.raises(InternalServerError):
        await one_turn(run, compacting)
    assert await stored(session) == TURN


@pytest.mark.skipif(
    VERSION < (0, 23), reason="the Agents SDK compacts before 0.23 what it was replayed, and drops the rest"
)
async def test_compaction_of_a_session_that_replays_less_than_all_loses_nothing(
    tmp_path: Path, server: ResponsesServer, client: AsyncOpenAI
) -> None:
    settings = SessionSettings(limit=3)
    async with AsyncSQLiteSession(tmp_path / "sdk.db", session_id="user_123", settings=settings) as session:
        compacting = agents.OpenAIResponsesCompactionSession(
            "user_123", session, client=client, compaction_mode="input", should_trigger_compaction=always
        )
        await one_turn(run, session)
        next_agent = agent([message("Sunny.")])
        server.answer(*COMPACTED, object="response.compaction")
        await run(next_agent, "And now?", session=compacting)
        assert sent(next_agent) == [[*TURN[-2:], "user: And now?"]]
        assert await stored(session) == [*TURN, "user: And now?", "assistant: Sunny."]


@pytest.mark.parametrize("drive", [run, stream])
async def test_encryption_stores_nothing_readable_and_replays_everything(
    session: AsyncSQLiteSession, tmp_path: Path, drive: Any
) -> None:
    pytest.importorskip("cryptography", reason="the Agents SDK's encryption is not installed")
    memory = importlib.import_module("agents.extensions.memory")
    encrypted = memory.EncryptedSession("user_123", session, "a key that only this test knows")
    await one_turn(drive, encrypted)
    assert await stored(encrypted) == TURN
    assert len(await session.get_items()) == len(TURN)
    assert b"Compare" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    next_agent = agent([message("Sunny.")])
    await drive(next_agent, "And now?", session=encrypted)
    assert sent(next_agent) == [[*TURN, "user: And now?"]]
    assert await stored(encrypted) == [*TURN, "user: And now?", "assistant: Sunny."]
    assert outline([await encrypted.pop_item()]) == ["assistant: Sunny."]
    await encrypted.clear_session()
    assert await session.get_items() == []
