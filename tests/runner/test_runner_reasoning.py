"""Reasoning is asked for in a form that stands by itself, and can be left out where the provider has forgotten it.

The model is the real openai client against a real HTTP server, which finds no reasoning by its id when it is told to.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
from responses_server import NOT_FOUND, ResponsesServer, call, custom_call, message, reasoning

from agentmem import AsyncSessionStore
from agentmem.errors import ModelError
from agentmem.items import Item
from agentmem.runner import Agent, ModelRequest, OpenAIResponsesModel, RunConfig, Runner, function_tool
from agentmem.runner.reasoning import (
    ENCRYPTED_CONTENT,
    ReplayReasoning,
    advice_for_refusal,
    leave_out_reasoning,
    may_encrypt,
    refuses_encrypted_content,
)
from agentmem.session import AsyncSession

pytestmark = pytest.mark.anyio

NOT_SUPPORTED = "Encrypted content is not supported with this model."
UNREADABLE = "The encrypted content for item rs_1 could not be verified. Reason: organization_id did not match."


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def by_id(**fields: Any) -> Item:
    """Reasoning that only its provider can read."""
    return {"id": "rs_1", "type": "reasoning", "summary": [], **fields}


def without_id(item: Item) -> Item:
    return {name: value for name, value in item.items() if name != "id"}


@pytest.fixture
async def model_with(server: ResponsesServer) -> AsyncIterator[Callable[..., OpenAIResponsesModel]]:
    """Makes models of any name and settings behind the server, through a client that does not retry."""
    async with openai.AsyncOpenAI(api_key="k", base_url=server.url, max_retries=0) as client:
        yield lambda name="gpt-5.6-luna", **settings: OpenAIResponsesModel(name, client, settings=settings)


ModelWith = Callable[..., OpenAIResponsesModel]


@pytest.fixture
async def session(database_url: str) -> AsyncIterator[AsyncSession]:
    """A session on each engine."""
    async with AsyncSessionStore(database_url) as store:
        yield store.session("user_123")


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}"


# What is asked for


@pytest.mark.parametrize(
    "name", ["gpt-5.6-luna", "o4-mini", "gpt-6-astra", "my-deployment", "openai/gpt-5", "ft:o4-mini:me"]
)
async def test_a_request_asks_for_encrypted_reasoning(
    server: ResponsesServer, model_with: ModelWith, name: str
) -> None:
    server.answer(message("Hello"))
    await Runner.run(Agent("A", None, model_with(name)), "Hi")
    assert server.requests[0]["include"] == [ENCRYPTED_CONTENT]


@pytest.mark.parametrize(
    "name", ["gpt-4o", "gpt-4.1-mini", "gpt-3.5-turbo", "chatgpt-4o-latest", "openai/gpt-4o", "ft:gpt-4o:me"]
)
async def test_a_model_that_does_not_reason_by_its_name_is_not_asked(
    server: ResponsesServer, model_with: ModelWith, name: str
) -> None:
    assert not may_encrypt(name)
    server.answer(message("Hello"))
    await Runner.run(Agent("A", None, model_with(name)), "Hi")
    assert "include" not in server.requests[0]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_model_that_refuses_to_encrypt_is_asked_once_and_the_run_goes_on(
    server: ResponsesServer, model_with: ModelWith, is_streamed: bool
) -> None:
    agent = Agent("A", None, model_with("no-reasoning"))
    server.fail(400, NOT_SUPPORTED)
    for text in ("Hello", "Good"):
        server.answer(message(text))
        if is_streamed:
            result = await Runner.run_streamed(agent, "Hi").result()
        else:
            result = await Runner.run(agent, "Hi")
        assert result.final_output == text
    assert [request.get("include") for request in server.requests] == [[ENCRYPTED_CONTENT], None, None]
    # Another model of the same server is asked.
    server.answer(message("Hello"))
    await Runner.run(Agent("A", None, model_with("another")), "Hi")
    assert server.requests[-1]["include"] == [ENCRYPTED_CONTENT]


async def test_a_server_that_knows_no_include_is_asked_without_it(
    server: ResponsesServer, model_with: ModelWith
) -> None:
    server.answer_raw(b'{"detail": [{"loc": ["body", "include"], "msg": "extra fields not permitted"}]}', status=422)
    server.answer(message("Hello"))
    assert (await Runner.run(Agent("A", None, model_with("vllm")), "Hi")).final_output == "Hello"


async def test_a_request_that_fails_without_the_question_too_says_why_and_the_next_one_asks_again(
    server: ResponsesServer, model_with: ModelWith
) -> None:
    agent = Agent("A", None, model_with("unlucky", include=["web_search_call.results"]))
    server.fail(400, "Invalid value in include.")
    server.fail(400, "Still invalid.")
    with pytest.raises(ModelError, match=r"answered 400: Still invalid\.$"):
        await Runner.run(agent, "Hi")
    server.answer(message("Hello"))
    await Runner.run(agent, "Hi")
    both = ["web_search_call.results", ENCRYPTED_CONTENT]
    assert [request["include"] for request in server.requests] == [both, both[:1], both]


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"include": ["web_search_call.results"]}, ["web_search_call.results", ENCRYPTED_CONTENT]),
        ({"include": [ENCRYPTED_CONTENT]}, [ENCRYPTED_CONTENT]),
        ({"include": []}, [ENCRYPTED_CONTENT]),
        ({"include": None}, None),
        ({"extra_body": {"include": ["x"]}}, ["x"]),
    ],
)
async def test_what_the_caller_includes_is_kept(
    server: ResponsesServer, model_with: ModelWith, settings: dict[str, Any], asked: list[str] | None
) -> None:
    server.answer(message("Hello"))
    await Runner.run(Agent("A", None, model_with(**settings)), "Hi")
    server.answer(message("Hello"))
    await Runner.run(Agent("A", None, model_with()), "Hi", run_config=RunConfig(model_settings=settings))
    assert [request.get("include") for request in server.requests] == [asked, asked]


async def test_a_caller_who_insists_on_encrypted_reasoning_is_told_that_there_is_none(
    server: ResponsesServer, model_with: ModelWith
) -> None:
    server.fail(400, NOT_SUPPORTED)
    with pytest.raises(ModelError, match=NOT_SUPPORTED):
        await Runner.run(Agent("A", None, model_with(include=[ENCRYPTED_CONTENT])), "Hi")
    assert len(server.requests) == 1


# What is replayed


@pytest.mark.parametrize("settings", [{}, {"store": False}])
async def test_a_session_with_encrypted_reasoning_does_not_depend_on_what_the_provider_keeps(
    server: ResponsesServer, model_with: ModelWith, session: AsyncSession, settings: dict[str, Any]
) -> None:
    agent = Agent("A", None, model_with(**settings), [get_weather])
    server.answer(reasoning(), call("get_weather", city="Nice"))
    server.answer(reasoning(id="rs_2"), message("Sunny"))
    await Runner.run(agent, "Weather?", session=session)
    server.has_forgotten = True
    server.answer(message("Bye"))
    result = await Runner.run(agent, "Thanks.", session=session)
    assert server.requests[2]["input"] == [*result.replayed, user("Thanks.")] == (await session.get_items())[:-1]
    assert result.replayed[1] == reasoning()


async def test_without_storage_reasoning_that_only_its_provider_can_read_is_not_sent(
    server: ResponsesServer, model_with: ModelWith, session: AsyncSession
) -> None:
    agent = Agent("A", None, model_with(store=False), [get_weather])
    asked = call("get_weather", city="Nice")
    await session.add_items([user("Hi"), by_id(id="rs_0"), message("Hello"), user("Hi"), reasoning(), message("Hello")])
    server.answer(by_id(), asked)
    server.answer(message("Sunny"))
    result = await Runner.run(agent, "Weather?", session=session)
    assert result.final_output == "Sunny"
    sent = server.requests[1]["input"]
    assert [item for item in sent if item.get("type") == "reasoning"] == [reasoning()]
    assert sent[1] == without_id(message("Hello"))
    assert sent[4] == message("Hello")
    assert sent[-2] == without_id(asked)
    assert by_id() in await session.get_items()  # what is stored is all of it


async def test_forgotten_reasoning_is_a_model_error_that_says_how_to_go_on_and_that_is_true(
    server: ResponsesServer, model_with: ModelWith, session: AsyncSession
) -> None:
    agent = Agent("A", None, model_with())
    held = [user("Hi"), by_id(), message("Hello"), user("Well?"), reasoning(id="rs_2"), message("Fine")]
    await session.add_items(held)
    server.has_forgotten = True
    advice = (
        r"rs_1' not found.*no longer has this reasoning.*RunConfig\(replay_reasoning='encrypted'\).*; nothing was added"
    )
    with pytest.raises(ModelError, match=advice):
        await Runner.run(agent, "Bye", session=session)
    server.answer(message("Bye"))
    config = RunConfig(replay_reasoning="encrypted")
    result = await Runner.run(agent, "Bye", session=session, run_config=config)
    expected = [held[0], without_id(held[2]), *held[3:]]
    assert server.requests[1]["input"] == [*expected, user("Bye")]
    assert result.replayed == expected
    assert await session.get_items() == [*held, user("Bye"), message("Bye")]


async def test_reasoning_of_another_key_is_a_model_error_that_says_how_to_go_on_and_that_is_true(
    server: ResponsesServer, model_with: ModelWith, session: AsyncSession
) -> None:
    agent = Agent("A", None, model_with(), [get_weather])
    await session.add_items([user("Hi"), reasoning(), message("Hello")])
    server.fail(400, UNREADABLE, "invalid_encrypted_content")
    with pytest.raises(ModelError, match=r"another model, key or organization; RunConfig\(replay_reasoning='none'\)"):
        await Runner.run(agent, "Weather?", session=session)
    assert len(server.requests) == 1  # that is no refusal to encrypt
    server.answer(reasoning(id="rs_2"), call("get_weather", city="Nice"))
    server.answer(message("Sunny"))
    await Runner.run(agent, "Weather?", session=session, run_config=RunConfig(replay_reasoning="none"))
    sent = server.requests[2]["input"]
    assert sent[:2] == [user("Hi"), without_id(message("Hello"))]
    assert reasoning(id="rs_2") in sent  # of this run


async def test_a_retry_leaves_out_the_reasoning_of_its_turn_too(
    server: ResponsesServer, model_with: ModelWith, session: AsyncSession
) -> None:
    agent = Agent("A", None, model_with(), [get_weather])
    server.answer(by_id(), call("get_weather", city="Nice"))
    server.fail(500, "Oops.")
    with pytest.raises(ModelError, match="Oops"):
        await Runner.run(agent, "Weather?", session=session)
    server.has_forgotten = True
    with pytest.raises(ModelError, match=r"replay_reasoning='encrypted'.*holds the input and 1 tool exchange"):
        await Runner.run(agent, "Weather?", session=session)
    server.answer(message("Sunny"))
    await Runner.run(agent, "Weather?", session=session, run_config=RunConfig(replay_reasoning="encrypted"))
    assert [item.get("type") for item in server.requests[-1]["input"]] == [
        None,
        "function_call",
        "function_call_output",
    ]
    assert len(await session.get_items()) == 5


async def test_the_callback_gets_what_is_left_of_the_history(model_with: ModelWith, session: AsyncSession) -> None:
    seen: list[list[Item]] = []

    def merge(history: list[Item], new: list[Item]) -> list[Item]:
        seen.append(history)
        raise LookupError

    await session.add_items([user("Hi"), by_id(), message("Hello")])
    config = RunConfig(replay_reasoning="encrypted", session_input_callback=merge)
    with pytest.raises(Exception, match="session_input_callback failed"):
        await Runner.run(Agent("A", None, model_with()), "Bye", session=session, run_config=config)
    assert seen == [[user("Hi"), without_id(message("Hello"))]]


# The rules by themselves


PARALLEL = [by_id(), call("f", "1"), call("f", "2"), {"type": "function_call_output", "call_id": "1", "output": ""}]


@pytest.mark.parametrize(
    ("replay", "items", "left"),
    [
        ("all", [by_id(), message("x")], [by_id(), message("x")]),
        ("encrypted", [reasoning(), message("x")], [reasoning(), message("x")]),
        ("encrypted", [by_id(encrypted_content=None), message("x")], [without_id(message("x"))]),
        ("encrypted", [by_id(encrypted_content=""), message("x")], [without_id(message("x"))]),
        (
            "encrypted",
            [by_id(content=[{"type": "reasoning_text", "text": "hm"}])],
            [by_id(content=[{"type": "reasoning_text", "text": "hm"}])],
        ),
        ("encrypted", [by_id(summary=[{"type": "summary_text", "text": "hm"}])], []),
        ("none", [reasoning(), custom_call()], [without_id(custom_call())]),
        ("none", [user("x"), message("y")], [user("x"), message("y")]),
        ("encrypted", [by_id(), reasoning(), message("x")], [reasoning(), message("x")]),
        ("none", [*PARALLEL, message("x")], [*map(without_id, PARALLEL[1:3]), PARALLEL[3], message("x")]),
        ("none", [reasoning(), user("x"), message("y")], [user("x"), message("y")]),
        ("none", [reasoning(), {"type": "web_search_call", "id": "ws_1"}], [{"type": "web_search_call", "id": "ws_1"}]),
    ],
)
def test_reasoning_is_left_out_with_the_ids_of_what_it_led_to(
    replay: ReplayReasoning, items: list[Item], left: list[Item]
) -> None:
    before = [dict(item) for item in items]
    assert leave_out_reasoning(items, replay) == left
    assert items == before


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        (NOT_FOUND.format("rs_68a0"), "replay_reasoning='encrypted'"),
        ("Item 'r7' of type 'reasoning' was not found.", "replay_reasoning='encrypted'"),
        ("Item with id 'r1' not found.", "replay_reasoning='encrypted'"),
        ('No item with id "r1" exists: not found', "replay_reasoning='encrypted'"),
        (NOT_FOUND.format("ig_1"), "session_input_callback"),
        (UNREADABLE, "replay_reasoning='none'"),
        ("Oops. invalid_encrypted_content", "replay_reasoning='none'"),
        ("No tool output found for function call call_1.", ""),
        ("Item 'rs_1' of type 'reasoning' was provided without its required following item.", ""),
        ("404 page not found", ""),
        (NOT_SUPPORTED, ""),
    ],
)
def test_the_advice_fits_what_the_api_said(said: str, advice: str) -> None:
    found = advice_for_refusal(said, [user("x"), by_id(id="r1"), message("y")])
    assert advice in found
    assert bool(found) is bool(advice)


async def test_an_error_in_a_stream_gets_the_advice_too(
    server: ResponsesServer, model_with: ModelWith, session: AsyncSession
) -> None:
    event = {"type": "error", "code": "invalid_encrypted_content", "message": "No.", "sequence_number": 0}
    server.answer_raw(f"event: error\ndata: {json.dumps(event)}\n\n".encode(), "text/event-stream")
    with pytest.raises(ModelError, match=r"replay_reasoning='none'|ended before the answer did"):
        await Runner.run_streamed(Agent("A", None, model_with()), "Hi", session=session).result()


def test_only_a_refused_question_is_a_refusal_to_encrypt() -> None:
    class ApiError(Exception):
        def __init__(self, status_code: int, message: str) -> None:
            super().__init__(message)
            self.status_code = status_code

    assert refuses_encrypted_content(ApiError(400, NOT_SUPPORTED))
    assert refuses_encrypted_content(ApiError(400, "Unknown parameter: 'include'."))
    assert not refuses_encrypted_content(ApiError(400, UNREADABLE))
    assert not refuses_encrypted_content(ApiError(400, "Invalid tool."))
    assert not refuses_encrypted_content(ApiError(500, NOT_SUPPORTED))
    assert not refuses_encrypted_content(ValueError("include"))


async def test_a_model_of_ones_own_gets_what_is_left(session: AsyncSession) -> None:
    requests: list[ModelRequest] = []

    class Own:
        async def respond(self, request: ModelRequest) -> Any:
            requests.append(request)
            raise LookupError

    await session.add_items([user("Hi"), reasoning(), message("Hello")])
    with pytest.raises(ModelError):
        await Runner.run(Agent("A", None, Own()), "Bye", session=session, run_config=RunConfig(replay_reasoning="none"))
    assert list(requests[0].input) == [user("Hi"), without_id(message("Hello")), user("Bye")]
