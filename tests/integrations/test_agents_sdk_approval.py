"""A run of the Agents SDK that waits for approvals goes on in another process, and each item is stored once.

Every model here is strict (``sdk.StrictModel``): half an exchange in what reaches it fails the run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from exhaustive import exhaustive
from processes import run_quietly
from sdk import agent, agents, call, get_weather, message, reasoning, run, sent, stored, stream, takes_sync_sessions

from agentmem import AsyncSQLiteSession, SessionSettings, SQLiteSession

pytestmark = pytest.mark.anyio

DRIVES = {"run": run, "stream": stream}

OUTPUTS = {"approve": "paid", "reject": "not approved"}
"""What the model is told of a payment that was decided on."""

WAITING = ["user: Pay", "reasoning rs_1", "call w", "call p1", "call p2", "output w: sunny"]
"""What is stored while the two payments wait."""

DONE = ["reasoning rs_2", "assistant: Done."]


def pay() -> str:
    """Pays."""
    return "paid"


def payer(*steps: Any, **options: Any) -> Any:
    """An agent whose payments need an approval."""
    tools = (agents.function_tool(pay, needs_approval=True), get_weather)
    return agent(*steps, name="payer", tools=tools, **options)


async def interrupted(session: Any, path: Path, drive: str = "run") -> None:
    """Run until two payments wait, and write the run's state to a file."""
    asked = payer([reasoning("rs_1"), call("w", after="rs_1"), call("p1", "pay"), call("p2", "pay")])
    result = await DRIVES[drive](asked, "Pay", session=session)
    path.write_text(json.dumps(result.to_state().to_json()), encoding="utf-8")
    assert await stored(session) == WAITING


async def resumed(session: Any, path: Path, drive: str, *decisions: str) -> Any:
    """Go on with the run in the file, whose first payments are decided on in their order; the agent that did."""
    asked = payer([reasoning("rs_2"), message("Done.", after="rs_2")])
    state = await agents.RunState.from_json(asked, json.loads(path.read_text(encoding="utf-8")))
    for payment, decision in zip(state.get_interruptions(), decisions, strict=False):
        if decision == "approve":
            state.approve(payment)
        else:
            state.reject(payment, rejection_message=OUTPUTS["reject"])
    result = await DRIVES[drive](asked, state, session=session)
    if result.interruptions:
        path.write_text(json.dumps(result.to_state().to_json()), encoding="utf-8")
    return asked


RESUME = """
import asyncio, json, sys

tests, kind, db, limit, path, drive, *decisions = sys.argv[1:]
sys.path.insert(0, tests)

from pathlib import Path

import agentmem
from sdk import sent, stored
from test_agents_sdk_approval import resumed

async def main():
    settings = agentmem.SessionSettings(limit=json.loads(limit))
    session = getattr(agentmem, kind)(db, session_id="user_123", settings=settings)
    asked = await resumed(session, Path(path), drive, *decisions)
    print(json.dumps([sent(asked), await stored(session)]))

asyncio.run(main())
"""


@exhaustive
@pytest.mark.parametrize(
    ("kind", "limit", "drive", "decisions"),
    [
        pytest.param(AsyncSQLiteSession, None, "run", ["approve", "approve"], marks=exhaustive),
        pytest.param(AsyncSQLiteSession, None, "stream", ["reject", "reject"], marks=exhaustive),
        pytest.param(AsyncSQLiteSession, None, "run", ["reject", "approve"], marks=exhaustive),
        (AsyncSQLiteSession, 2, "stream", ["approve", "reject"]),
        pytest.param(SQLiteSession, None, "run", ["approve", "reject"], marks=[takes_sync_sessions, exhaustive]),
        pytest.param(SQLiteSession, 2, "stream", ["reject", "approve"], marks=[takes_sync_sessions, exhaustive]),
    ],
)
async def test_a_run_is_approved_or_rejected_and_ended_in_a_new_process(
    tmp_path: Path, kind: type[Any], limit: int | None, drive: str, decisions: list[str]
) -> None:
    db, path = tmp_path / "sdk.db", tmp_path / "state.json"
    async with AsyncSQLiteSession(db, session_id="user_123", settings=SessionSettings(limit=limit)) as session:
        await interrupted(session, path, drive)
        arguments = [Path(__file__).parent, kind.__name__, db, json.dumps(limit), path, drive, *decisions]
        (reached_the_model,), left = json.loads(run_quietly(RESUME, *map(str, arguments)))
        decided = [f"output p{number}: {OUTPUTS[made]}" for number, made in enumerate(decisions, start=1)]
        assert reached_the_model[: len(WAITING)] == WAITING
        assert sorted(reached_the_model[len(WAITING) :]) == sorted(decided)  # their order, the SDK decides
        assert left == await stored(session) == [*reached_the_model, *DONE]
        next_agent = agent([message("Good.")])
        await run(next_agent, "Paid?", session=session)
        replayed = left if limit is None else DONE
        assert sent(next_agent) == [[*replayed, "user: Paid?"]]


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("drive", DRIVES)
async def test_approvals_given_one_by_one_store_each_output_once(tmp_path: Path, drive: str, limit: int | None) -> None:
    path = tmp_path / "state.json"
    settings = SessionSettings(limit=limit)
    async with AsyncSQLiteSession(tmp_path / "sdk.db", session_id="user_123", settings=settings) as session:
        await interrupted(session, path, drive)
        await resumed(session, path, drive, "approve")
        assert await stored(session) == [*WAITING, "output p1: paid"]
        await resumed(session, path, drive)  # nothing was decided
        assert await stored(session) == [*WAITING, "output p1: paid"]
        asked = await resumed(session, path, drive, "reject")
        decided = ["output p1: paid", "output p2: not approved"]
        assert sent(asked) == [[*WAITING, *decided]]
        assert await stored(session) == [*WAITING, *decided, *DONE]


@pytest.mark.parametrize("limit", [None, 50])
async def test_a_run_that_is_never_approved_sends_the_next_one_no_half_exchange(
    tmp_path: Path, limit: int | None
) -> None:
    settings = SessionSettings(limit=limit)
    async with AsyncSQLiteSession(tmp_path / "sdk.db", session_id="user_123", settings=settings) as session:
        await interrupted(session, tmp_path / "state.json")
        next_agent = agent([message("Fine.")])
        await run(next_agent, "Never mind", session=session)
        assert sent(next_agent) == [[*WAITING[:3], "output w: sunny", "user: Never mind"]]
        assert await stored(session) == [*WAITING, "user: Never mind", "assistant: Fine."]


@pytest.mark.parametrize("drive", DRIVES)
async def test_an_agent_that_took_over_waits_for_its_approval_too(tmp_path: Path, drive: str) -> None:
    def desk(*steps: Any) -> tuple[Any, Any]:
        """The agent that hands over, and the one that pays."""
        taking_over = payer(*steps)
        return agent([call("h", "transfer_to_payer")], name="desk", handoffs=[taking_over]), taking_over

    async with AsyncSQLiteSession(tmp_path / "sdk.db", session_id="user_123") as session:
        start, _ = desk([reasoning("rs_1"), call("p1", "pay", after="rs_1")])
        result = await DRIVES[drive](start, "Pay", session=session)
        text = result.to_state().to_string()
        waiting = ["user: Pay", "call h", 'output h: {"assistant": "payer"}', "reasoning rs_1", "call p1"]
        assert await stored(session) == waiting
        start, taking_over = desk([message("Done.")])
        state = await agents.RunState.from_string(start, text)
        state.approve(state.get_interruptions()[0])
        await DRIVES[drive](start, state, session=session)
        assert sent(taking_over) == [[*waiting, "output p1: paid"]]
        assert await stored(session) == [*waiting, "output p1: paid", "assistant: Done."]
