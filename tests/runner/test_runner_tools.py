"""Tools: the signature is the schema, calls run together, and errors reach whom they concern."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import json
import pickle
import threading
from datetime import date
from typing import Annotated, Any, Literal

import anyio
import anyio.to_thread
import pytest
from pydantic import BaseModel, Field
from waiting import WAIT_S

from agentmem import Agent, Runner
from agentmem.errors import ToolError
from agentmem.runner import FunctionTool, OfflineModel, RunContext, function_tool
from agentmem.runner.tool_calls import run_calls

pytestmark = pytest.mark.anyio


class Place(BaseModel):
    city: str
    country: str = "France"


@function_tool
def get_weather(city: Annotated[str, Field(description="Name of the city")], place: Place) -> str:
    """The weather
    in a city.

    Not part of the description.
    """
    return f"Sunny in {city}, {place.country}"


def call(name: str, /, call_id: str = "c", **arguments: Any) -> dict[str, Any]:
    return {"type": "function_call", "name": name, "call_id": call_id, "arguments": json.dumps(arguments)}


def test_the_model_sees_name_docstring_and_parameters_of_the_function() -> None:
    spec = get_weather.spec
    assert (spec["type"], spec["name"], spec["description"]) == ("function", "get_weather", "The weather in a city.")
    assert spec["strict"] is True
    assert spec["parameters"]["required"] == ["city", "place"]
    assert spec["parameters"]["additionalProperties"] is False
    assert spec["parameters"]["properties"]["city"]["description"] == "Name of the city"
    assert spec["parameters"]["$defs"]["Place"]["required"] == ["city", "country"]


def test_a_parameter_with_a_default_may_be_left_out_so_the_tool_is_not_strict() -> None:
    @function_tool
    def search(query: str, top: int = 3, order: Literal["new", "old"] = "new") -> str:
        return query

    assert search.spec["strict"] is False
    assert search.parameters["required"] == ["query"]
    assert search.parameters["properties"]["top"]["default"] == 3


def test_a_function_without_parameters_has_a_closed_empty_schema() -> None:
    @function_tool
    def now() -> str:
        return "now"

    assert now.spec["strict"] is True
    assert now.parameters == {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


def test_options_of_the_decorator_replace_what_the_function_says() -> None:
    @function_tool(name="weather-2", description="Other.", raise_errors=True)
    def weather() -> None:
        """Doc."""

    assert (weather.name, weather.description, weather.raise_errors) == ("weather-2", "Other.", True)


def test_a_decorated_function_is_called_like_the_plain_one() -> None:
    assert get_weather("Nice", Place(city="x")) == "Sunny in Nice, France"
    assert isinstance(get_weather, FunctionTool)
    assert inspect.signature(get_weather) == inspect.signature(get_weather.function)
    assert "Not part" in str(get_weather.__doc__)
    assert repr(get_weather) == "FunctionTool('get_weather')"


def test_a_bound_method_is_a_tool_without_self() -> None:
    class Shop:
        def price(self, article: str) -> int:
            return len(article)

    tool = function_tool(Shop().price)
    assert list(tool.parameters["properties"]) == ["article"]
    assert tool("abc") == 3


@pytest.mark.parametrize(
    "function",
    [lambda a, /: a, lambda *a: a, lambda **a: a],
    ids=["positional-only", "args", "kwargs"],
)
def test_a_signature_that_a_model_cannot_call_by_name_is_refused(function: Any) -> None:
    with pytest.raises(TypeError, match=r"'odd'.*by name only"):
        function_tool(name="odd")(function)


def test_an_annotation_unknown_to_pydantic_is_refused_with_the_tools_name() -> None:
    class Strange:
        pass

    def odd(value: Any) -> None: ...

    for annotation in (Strange, "NoSuchType"):
        odd.__annotations__["value"] = annotation
        with pytest.raises(TypeError, match="'odd'"):
            function_tool(odd)


@pytest.mark.parametrize("name", ["", "with space", "ünï", "x" * 65, "<lambda>"])
def test_a_name_that_the_api_refuses_is_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        function_tool(name=name)(lambda: None)


async def test_arguments_are_coerced_as_pydantic_does() -> None:
    seen: list[Any] = []

    @function_tool
    def book(day: date, people: int, place: Place) -> None:
        seen.extend([day, people, place])

    await book.invoke('{"day": "2026-01-02", "people": "3", "place": {"city": "Lyon"}}')
    assert seen == [date(2026, 1, 2), 3, Place(city="Lyon")]


async def test_parameters_may_have_any_name() -> None:
    @function_tool
    def odd(schema: int, json: int, model_config: int, copy: int = 0) -> int:
        return schema + json + model_config + copy

    assert (await odd.invoke('{"schema": 1, "json": 2, "model_config": 3}')).value == 6


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ('{"city": "Nice"}', "place: Missing required argument"),
        ('{"city": 3, "place": {"city": "x"}}', "city: Input should be a valid string"),
        ('{"city": "x", "place": {}}', "place.city: Field required"),
        ('{"city": "x", "place": {"city": "x"}, "more": 1}', "more: Unexpected keyword argument"),
        ('{"city": ', "Invalid JSON"),
        ("null", "Arguments must be"),
    ],
)
async def test_invalid_arguments_are_reported_to_the_model(arguments: str, complaint: str) -> None:
    output = await get_weather.invoke(arguments)
    assert output.text.startswith("Error: invalid arguments for get_weather: ")
    assert complaint in output.text
    assert "pydantic.dev" not in output.text


async def test_empty_arguments_count_as_no_arguments() -> None:
    @function_tool
    def now() -> str:
        return "now"

    assert (await now.invoke("")).text == "now"


class Opaque:
    def __str__(self) -> str:
        return "opaque"


@dataclasses.dataclass
class Row:
    name: str
    when: date


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain \u00fc", "plain \u00fc"),
        (None, "null"),
        ({"a": [1, True]}, '{"a":[1,true]}'),
        ([Place(city="x")], '[{"city":"x","country":"France"}]'),
        (Row("r", date(2026, 1, 2)), '{"name":"r","when":"2026-01-02"}'),
        (Opaque(), "opaque"),
        ("lone \ud800", "lone ?"),
        ({"a": "lone \ud800"}, "{'a': 'lone \\ud800'}"),
    ],
)
async def test_what_a_tool_returns_becomes_text_that_can_be_sent(value: object, text: str) -> None:
    @function_tool
    def give() -> object:
        return value

    output = await give.invoke("{}")
    assert output.text == text
    assert output.value is value


async def test_an_error_of_the_function_is_reported_to_the_model_by_name() -> None:
    @function_tool
    async def fail() -> None:
        raise LookupError("no such row")

    assert (await fail.invoke("{}")).text == "Error: fail failed: LookupError: no such row"


async def test_an_error_of_a_tool_with_raise_errors_is_raised_from_the_original() -> None:
    @function_tool(raise_errors=True)
    def fail() -> None:
        raise LookupError("no such row")

    with pytest.raises(ToolError, match="'fail' failed: LookupError: no such row") as caught:
        await fail.invoke("{}")
    assert isinstance(caught.value.__cause__, LookupError)


async def test_invalid_arguments_are_the_models_mistake_also_with_raise_errors() -> None:
    @function_tool(raise_errors=True)
    def add(a: int) -> int:
        return a

    assert (await add.invoke('{"a": "x"}')).text.startswith("Error: invalid arguments")


async def test_sync_tools_run_off_the_loop_and_async_ones_on_it() -> None:
    @function_tool
    def blocking() -> int:
        return threading.get_ident()

    @function_tool
    async def native() -> int:
        return threading.get_ident()

    assert (await native.invoke("{}")).value == threading.get_ident()
    assert (await blocking.invoke("{}")).value != threading.get_ident()


async def test_a_plain_function_that_returns_an_awaitable_is_awaited() -> None:
    async def later(text: str) -> str:
        return text

    assert (await function_tool(name="f")(lambda: later("later")).invoke("{}")).value == "later"


async def test_calls_of_one_response_run_at_the_same_time_and_answer_in_order() -> None:
    meeting = threading.Barrier(2)  # only two that run at once get past it
    other = anyio.Event()

    @function_tool
    def meet(name: str) -> str:
        meeting.wait(WAIT_S)
        return name

    @function_tool
    async def wait() -> str:
        await other.wait()
        return "waited"

    @function_tool
    async def free() -> str:
        other.set()
        return "freed"

    tools: dict[str, FunctionTool[..., Any]] = {tool.name: tool for tool in (meet, wait, free)}
    calls = [call("wait"), call("meet", name="a"), call("meet", name="b"), call("free")]
    with anyio.fail_after(WAIT_S):
        outputs = await run_calls(calls, tools)
    assert [output.value for output in outputs] == ["waited", "a", "b", "freed"]


async def test_an_unknown_tool_is_reported_to_the_model_with_those_that_there_are() -> None:
    [output] = await run_calls([call("nope")], {"get_weather": get_weather})
    assert output.text == "Error: there is no tool called 'nope'; there are: get_weather"


async def test_a_tool_that_raises_cancels_the_others_and_comes_out_by_itself() -> None:
    started, cancelled = anyio.Event(), anyio.Event()

    @function_tool
    async def endless() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    @function_tool(raise_errors=True)
    async def fail() -> None:
        await started.wait()
        raise LookupError("x")

    with anyio.fail_after(WAIT_S), pytest.raises(ToolError, match="LookupError"):
        await run_calls([call("endless"), call("fail")], {"endless": endless, "fail": fail})
    assert cancelled.is_set()


@pytest.mark.parametrize("raise_errors", [False, True])
async def test_a_tool_that_waited_for_something_cancelled_has_failed_and_the_run_goes_on(raise_errors: bool) -> None:
    @function_tool(raise_errors=raise_errors)
    async def wait() -> None:
        other = asyncio.create_task(asyncio.sleep(WAIT_S))
        other.cancel()
        await other

    tools: dict[str, FunctionTool[..., Any]] = {"wait": wait, "get_weather": get_weather}
    calls = [call("wait"), call("get_weather", city="Nice", place={"city": "", "country": "France"})]
    if raise_errors:
        with pytest.raises(ToolError, match="'wait' failed: CancelledError"):
            await run_calls(calls, tools)
    else:
        texts = [output.text for output in await run_calls(calls, tools)]
        assert texts == ["Error: wait failed: CancelledError: ", "Sunny in Nice, France"]


async def test_a_cancelled_call_returns_when_its_thread_is_done() -> None:
    started, release, ended = threading.Event(), threading.Event(), threading.Event()

    @function_tool
    def slow() -> None:
        started.set()
        release.wait(WAIT_S)
        ended.set()

    task = asyncio.create_task(run_calls([call("slow")], {"slow": slow}))
    await anyio.to_thread.run_sync(started.wait, WAIT_S)
    task.cancel()
    for _ in range(100):  # far more than the loop needs to deliver the cancellation
        await anyio.lowlevel.checkpoint()
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


# Time limits


async def test_an_async_tool_whose_time_is_up_is_cancelled_and_the_model_is_told() -> None:
    cancelled = anyio.Event()

    @function_tool(timeout_s=0.01)
    async def endless() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    with anyio.fail_after(WAIT_S):
        output = await endless.invoke("{}")
    assert output.text == "Error: endless failed: TimeoutError: took longer than 0.01 s"
    assert cancelled.is_set()


async def test_a_plain_tool_whose_time_is_up_is_left_to_its_thread() -> None:
    release, ended = threading.Event(), threading.Event()

    @function_tool(timeout_s=0.2)  # the thread must have begun by then
    def slow() -> str:
        release.wait(WAIT_S)
        ended.set()
        return "too late"

    with anyio.fail_after(WAIT_S):
        output = await slow.invoke("{}")
    assert output.text == "Error: slow failed: TimeoutError: took longer than 0.2 s"
    assert not ended.is_set()
    release.set()
    assert await anyio.to_thread.run_sync(ended.wait, WAIT_S)


async def test_a_tool_with_raise_errors_raises_when_its_time_is_up() -> None:
    @function_tool(timeout_s=0.01, raise_errors=True)
    async def endless() -> None:
        await anyio.sleep_forever()

    with pytest.raises(ToolError, match=r"'endless' failed: TimeoutError: took longer than 0\.01 s"):
        await endless.invoke("{}")


async def test_a_tool_within_its_time_limit_is_not_touched() -> None:
    @function_tool(timeout_s=WAIT_S)
    async def quick() -> str:
        raise TimeoutError("of its own")

    assert (await quick.invoke("{}")).text == "Error: quick failed: TimeoutError: of its own"


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan")])
def test_a_time_limit_that_leaves_no_time_is_refused(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="'f': timeout_s is a number of seconds above 0"):
        function_tool(name="f", timeout_s=timeout_s)(lambda: None)


# The run's context


class Deps:
    user = "alice"


async def test_a_tool_is_given_the_runs_context_and_the_model_does_not_see_the_parameter() -> None:
    @function_tool
    async def whoami(run: RunContext[Deps], greeting: str = "Hi") -> str:
        return f"{greeting} {run.context.user}, {run.agent_name} in {run.session_id}"

    @function_tool
    def bare(city: str, *, run: RunContext) -> str:  # type: ignore[type-arg]  # without its parameter, too
        return f"{city} {run.context.user}"

    assert list(whoami.parameters["properties"]) == ["greeting"]
    assert bare.parameters["required"] == ["city"]
    assert bare.strict
    context = RunContext(Deps(), "A", "user_123")
    assert (await whoami.invoke("{}", context)).text == "Hi alice, A in user_123"
    assert (await bare.invoke('{"city": "Nice"}', context)).text == "Nice alice"


async def test_the_model_cannot_give_the_context() -> None:
    @function_tool
    def whoami(run: RunContext[Deps]) -> str:
        return run.context.user

    output = await whoami.invoke('{"run": {"context": "mallory"}}', RunContext(Deps(), "A"))
    assert output.text.startswith("Error: invalid arguments for whoami: run: Unexpected keyword argument")


# Pickles and copies


def plain(city: str) -> str:
    return f"plain {city}"


not_by_its_name = function_tool(raise_errors=True, timeout_s=5, name="other", description="Another one.")(plain)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda tool: pickle.loads(pickle.dumps(tool))])
def test_a_tool_that_a_module_defines_is_pickled_like_a_function_and_any_other_by_its_options(again: Any) -> None:
    assert again(get_weather) is get_weather
    other = again(not_by_its_name)
    assert (other.spec, other.raise_errors, other.timeout_s) == (not_by_its_name.spec, True, 5)
    assert other("x") == "plain x"


async def test_a_result_is_pickled_copied_and_made_a_dict_with_its_agent() -> None:
    agent = Agent("A", None, model=OfflineModel(), tools=[get_weather, not_by_its_name])
    result = await Runner.run(agent, "My name is Alice.")
    for twin in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert (twin.final_output, twin.new_items) == (result.final_output, result.new_items)
        assert [tool.name for tool in twin.last_agent.tools] == ["get_weather", "other"]
    assert dataclasses.asdict(result)["last_agent"]["tools"][0] is get_weather
