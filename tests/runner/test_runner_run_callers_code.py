"""The caller's plain functions never run on the event loop of all sync calls, so they may use it, and may be slow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, create_model, model_serializer
from waiting import WAIT_S

from agentmem import Agent, RunConfig, RunContext, Runner, SessionSettings, SQLiteSession, function_tool
from agentmem.items import Item
from agentmem.runner import ModelRequest, ModelResponse, OfflineModel

USER: Item = {"role": "user", "content": "Hi"}

Code = Callable[[], None]
"""What the caller's function does first."""


class Scripted:
    """A model that gives these outputs, one after the other."""

    def __init__(self, *outputs: Item) -> None:
        self._outputs = list(outputs)

    async def respond(self, request: ModelRequest) -> ModelResponse:
        """The next one."""
        return ModelResponse([self._outputs.pop(0)])


CALL: Item = {"type": "function_call", "call_id": "c", "name": "tool", "arguments": '{"value": "x"}'}
ANSWER: Item = {"role": "assistant", "content": '{"value": "x"}'}


class ForeignSession:
    """An async session of somebody else's, whose window the run itself cuts."""

    session_id = "foreign"

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """One message."""
        return [USER]

    async def add_items(self, items: list[Any]) -> None:
        """Nothing is kept."""


def text_validated_by(code: Code) -> Any:
    """The type of a text whose validation runs the code."""

    def validate(text: str) -> str:
        code()
        return text

    return Annotated[str, AfterValidator(validate)]


def in_instructions(code: Code) -> None:
    def instructions(run: RunContext[Any]) -> str:
        code()
        return "Be kind."

    Runner.run_sync(Agent("A", instructions, OfflineModel()), "Hi")


def in_instructions_that_are_an_object(code: Code) -> None:
    class Instructions:
        def __call__(self, run: RunContext[Any]) -> str:
            code()
            return "Be kind."

    Runner.run_sync(Agent("A", Instructions(), OfflineModel()), "Hi")


def in_the_input_callback(code: Code) -> None:
    def merge(history: list[Item], new: list[Item]) -> list[Item]:
        code()
        return history + new

    config = RunConfig(session_input_callback=merge)
    Runner.run_sync(Agent("A", None, OfflineModel()), "Hi", run_config=config)


def in_what_the_input_callback_gives(code: Code) -> None:
    def merge(history: list[Item], new: list[Item]) -> Any:
        code()
        yield from new

    config = RunConfig(session_input_callback=merge)
    Runner.run_sync(Agent("A", None, OfflineModel()), "Hi", run_config=config)


def in_the_input(code: Code) -> None:
    def items() -> Iterator[Item]:
        code()
        yield USER

    Runner.run_sync(Agent("A", None, OfflineModel()), items())


def in_a_model_among_the_input(code: Code) -> None:
    class Message(BaseModel):
        @model_serializer
        def to_item(self) -> Item:
            code()
            return USER

    Runner.run_sync(Agent("A", None, OfflineModel()), [Message()])


def in_count_tokens(code: Code) -> None:
    def count(item: Item) -> int:
        code()
        return 1

    config = RunConfig(session_settings=SessionSettings(max_tokens=5, count_tokens=count))
    Runner.run_sync(Agent("A", None, OfflineModel()), "Hi", session=ForeignSession(), run_config=config)


def in_the_validator_of_the_output(code: Code) -> None:
    output_type = create_model("Output", value=(text_validated_by(code), ...))
    Runner.run_sync(Agent("A", None, Scripted(ANSWER), output_type=output_type), "Hi")


def in_a_tool(code: Code) -> None:
    @function_tool(raise_errors=True)
    def tool(value: str) -> None:
        code()

    Runner.run_sync(Agent("A", None, Scripted(CALL, ANSWER), [tool]), "Hi")


def in_the_validator_of_an_argument(code: Code) -> None:
    def tool(value: str) -> None:
        pass

    tool.__annotations__["value"] = text_validated_by(code)
    Runner.run_sync(Agent("A", None, Scripted(CALL, ANSWER), [function_tool(raise_errors=True)(tool)]), "Hi")


def in_what_a_tool_gives(code: Code) -> None:
    class Value:
        def __str__(self) -> str:
            code()
            return "text"

    @function_tool(raise_errors=True)
    def tool(value: str) -> object:
        return Value()

    Runner.run_sync(Agent("A", None, Scripted(CALL, ANSWER), [tool]), "Hi")


PLACES = [
    in_instructions,
    in_instructions_that_are_an_object,
    in_the_input_callback,
    in_what_the_input_callback_gives,
    in_the_input,
    in_a_model_among_the_input,
    in_count_tokens,
    in_the_validator_of_the_output,
    in_a_tool,
    in_the_validator_of_an_argument,
    in_what_a_tool_gives,
]

every_place = pytest.mark.parametrize("place", PLACES)


@pytest.fixture
def session(path: Path) -> Iterator[SQLiteSession]:
    with SQLiteSession(path, session_id="user_123") as opened:
        opened.add_items([USER])
        yield opened


@every_place
def test_plain_code_of_the_callers_uses_sessions_and_starts_runs(
    place: Callable[[Code], None], session: SQLiteSession
) -> None:
    seen: list[object] = []

    def use() -> None:
        seen.append(session.get_items())
        seen.append(Runner.run_sync(Agent("Inner", None, OfflineModel()), "Hi").usage.requests)

    place(use)
    assert seen[:2] == [[USER], 1]


@every_place
def test_plain_code_of_the_callers_uses_sessions_through_a_thread_pool(
    place: Callable[[Code], None], session: SQLiteSession
) -> None:
    seen: list[object] = []
    with ThreadPoolExecutor() as pool:
        place(lambda: seen.append(pool.submit(session.get_items).result(WAIT_S)))
    assert seen[0] == [USER]


@every_place
def test_plain_code_of_the_callers_that_is_slow_holds_up_no_other_threads_call(
    place: Callable[[Code], None], session: SQLiteSession
) -> None:
    is_slow, is_over = threading.Event(), threading.Event()

    def wait() -> None:
        is_slow.set()
        assert is_over.wait(WAIT_S)

    thread = threading.Thread(target=place, args=[wait])
    thread.start()
    assert is_slow.wait(WAIT_S)
    assert session.get_items() == [USER]
    is_over.set()
    thread.join()
