"""Every public object shows itself in one short line, without what was said: a notebook and a log show it unasked."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import agentmem
from agentmem import errors, items, runner
from agentmem.checking import CheckReport, Problem
from agentmem.copying import CopyReport
from agentmem.runner.tools import ToolOutput

SECRET = "the word of a user " * 1_000
ITEM: dict[str, Any] = {"role": "user", "content": SECRET}

MOST_CHARACTERS = 200


def agent() -> agentmem.Agent:
    return agentmem.Agent("Assistant", SECRET, SecretModel(), [say_it], [agentmem.Agent("Other", SECRET)])


class SecretModel(runner.OfflineModel):
    """A model of somebody else's could show anything."""

    def __repr__(self) -> str:
        return SECRET


@agentmem.function_tool
def say_it(text: str = SECRET) -> str:
    """What the model is told."""
    return text


say_it.description = SECRET


def count_tokens(item: items.Item) -> int:
    return 1


count_tokens.__qualname__ = SECRET

SAMPLES: dict[str, Callable[[Path], object]] = {
    "Agent": lambda db: agent(),
    "AsyncPostgresSession": lambda db: agentmem.AsyncPostgresSession(
        f"postgresql://app:{SECRET.replace(' ', '')[:50]}@127.0.0.1/app", session_id="user_123"
    ),
    "AsyncSQLiteSession": lambda db: agentmem.AsyncSQLiteSession(db, session_id="user_123"),
    "AsyncSession": lambda db: agentmem.AsyncSessionStore(db).session("user_123"),
    "AsyncSessionStore": agentmem.AsyncSessionStore,
    "CheckReport": lambda db: CheckReport(1, 2, 100, (Problem(SECRET),) * 100),
    "CopyReport": lambda db: CopyReport(1, 2, 0, 100, (Problem(SECRET),) * 100),
    "FunctionTool": lambda db: say_it,
    "ModelRequest": lambda db: runner.ModelRequest([ITEM], SECRET, [{"name": SECRET}], settings={"key": SECRET}),
    "ModelResponse": lambda db: runner.ModelResponse([ITEM]),
    "OfflineModel": lambda db: runner.OfflineModel(),
    "OpenAIResponsesModel": lambda db: runner.OpenAIResponsesModel("name", settings={"key": SECRET}),
    "PostgresSession": lambda db: agentmem.PostgresSession(
        f"postgresql://app:{SECRET.replace(' ', '')[:50]}@127.0.0.1/app", session_id="user_123"
    ),
    "RunConfig": lambda db: agentmem.RunConfig(
        model=SecretModel(), model_settings={"key": SECRET}, session_input_callback=lambda history, new: new
    ),
    "RunContext": lambda db: agentmem.RunContext(SECRET, "Assistant", "user_123"),
    "RunResult": lambda db: agentmem.RunResult(
        SECRET, [items.RunItem(ITEM, "Assistant")], runner.Usage(1), agent(), [ITEM], [ITEM]
    ),
    "RunStream": lambda db: agentmem.Runner.run_streamed(agent(), SECRET),
    "Runner": lambda db: agentmem.Runner(),
    "SQLiteSession": lambda db: agentmem.SQLiteSession(db, session_id="user_123"),
    "Session": lambda db: agentmem.SessionStore(db).session("user_123"),
    "SessionSettings": lambda db: agentmem.SessionSettings(limit=1, max_tokens=2, count_tokens=count_tokens),
    "SessionStore": agentmem.SessionStore,
    "TextDelta": lambda db: agentmem.TextDelta(SECRET, "Assistant"),
    "ToolOutput": lambda db: ToolOutput(SECRET, SECRET),
    "Usage": lambda db: runner.Usage(1, 2, 3, 5),
}
"""An object of each class that holds SECRET wherever such an object can."""

EXPLAINED = {
    "Model": "a protocol",
    "StreamingModel": "a protocol",
    "RunEvent": "a name for a union",
}

RUN_ITEMS = [kind for kind in vars(items).values() if isinstance(kind, type) and issubclass(kind, items.RunItem)]
ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


def is_shown_in_short(thing: object) -> bool:
    shown = repr(thing)
    return len(shown) <= MOST_CHARACTERS and SECRET[:10] not in shown and "\n" not in shown


def test_no_public_class_is_forgotten() -> None:
    public = {*agentmem.__all__, *runner.__all__}
    kinds = {
        name
        for name in public
        if not isinstance(getattr(agentmem, name, getattr(runner, name, None)), types.FunctionType)
    }
    covered = {*SAMPLES, *EXPLAINED, *(kind.__name__ for kind in [*RUN_ITEMS, *ERRORS])}
    assert kinds - covered == set()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_public_object_is_shown_in_one_short_line_without_content(tmp_path: Path, name: str) -> None:
    made = SAMPLES[name](Path("s.db"))
    assert type(made).__name__ == name
    assert is_shown_in_short(made), repr(made)[:500]


@pytest.mark.parametrize("kind", RUN_ITEMS)
def test_an_item_of_a_run_is_shown_by_its_kind_and_agent(kind: type[items.RunItem]) -> None:
    output = {"output": SECRET} if kind is items.ToolCallOutputItem else {}
    assert repr(kind(ITEM, "Assistant", **output)) == f"<{kind.__name__} of 'Assistant'>"


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_is_shown_by_its_kind_and_message_alone(kind: type[Exception]) -> None:
    assert repr(kind("what happened")) == f"{kind.__name__}('what happened')"
