"""The OpenAI model, through the real client and real HTTP: what is sent, what comes back, and how it fails."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import gc
import pickle
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import openai
import pytest
from responses_server import ResponsesServer, call, message, reasoning, response

from agentmem import RunConfig
from agentmem.errors import ModelError
from agentmem.runner import Agent, Model, OfflineModel, OpenAIResponsesModel, Runner, Usage, function_tool
from agentmem.runner.client import clients_by_loop
from agentmem.runner.model import ModelRequest
from agentmem.runner.reasoning import ENCRYPTED_CONTENT

pytestmark = pytest.mark.anyio

HELLO = ModelRequest([{"role": "user", "content": "Hi"}])


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No key and no server but those that a test sets."""
    for name in ("API_KEY", "BASE_URL", "ORG_ID", "PROJECT_ID", "DEFAULT_MODEL"):
        monkeypatch.delenv(f"OPENAI_{name}", raising=False)
    return monkeypatch


@pytest.fixture
async def client(server: ResponsesServer) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client that does not try again, so that a failure is seen at once."""
    async with openai.AsyncOpenAI(api_key="k", base_url=server.url, max_retries=0) as own:
        yield own


@pytest.fixture
def model(client: openai.AsyncOpenAI) -> OpenAIResponsesModel:
    return OpenAIResponsesModel("test-model", client)


async def test_a_request_carries_model_instructions_input_tools_and_format(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    @function_tool
    def now() -> str:
        """The time."""
        return "now"

    server.answer(message("Hello"))
    text_format = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": False}
    await model.respond(ModelRequest(HELLO.input, "Be kind.", [now.spec], text_format))
    assert server.requests == [
        {
            "model": "test-model",
            "input": HELLO.input,
            "instructions": "Be kind.",
            "tools": [now.spec],
            "text": {"format": text_format},
            "include": [ENCRYPTED_CONTENT],
        }
    ]


async def test_what_is_not_set_is_not_sent(server: ResponsesServer, model: OpenAIResponsesModel) -> None:
    server.answer(message("Hello"))
    await model.respond(HELLO)
    assert server.requests == [{"model": "test-model", "input": HELLO.input, "include": [ENCRYPTED_CONTENT]}]


async def test_settings_are_further_arguments_of_the_request(
    server: ResponsesServer, client: openai.AsyncOpenAI
) -> None:
    @function_tool
    def now() -> str:
        return "now"

    settings: dict[str, Any] = {
        "temperature": 0,
        "store": False,
        "tools": [{"type": "web_search"}],
        "text": {"verbosity": "low"},
        "extra_body": {"of_a_server": 1},
    }
    server.answer(message("Hello"))
    model = OpenAIResponsesModel("m", client, settings=settings)
    await model.respond(ModelRequest(HELLO.input, tools=[now.spec], text_format={"type": "json_object"}))
    [sent] = server.requests
    assert (sent["temperature"], sent["store"], sent["of_a_server"]) == (0, False, 1)
    assert sent["tools"] == [{"type": "web_search"}, now.spec]
    assert sent["text"] == {"verbosity": "low", "format": {"type": "json_object"}}


async def test_the_answer_has_output_usage_and_id(server: ResponsesServer, model: OpenAIResponsesModel) -> None:
    server.answer(reasoning(), message("Hello"), id="resp_7")
    answer = await model.respond(HELLO)
    assert answer.output == [reasoning(), message("Hello")]
    assert answer.usage == Usage(requests=1, input_tokens=10, output_tokens=5, total_tokens=15)
    assert answer.response_id == "resp_7"


def test_usages_add_up() -> None:
    assert Usage(1, 2, 3, 5) + Usage(1, 10, 20, 30) == Usage(2, 12, 23, 35)


async def test_every_kind_of_item_comes_back_as_the_api_sent_it(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    output = [
        message("Hello", phase="final_answer"),
        {**message(""), "content": [{"type": "refusal", "refusal": "No."}]},
        reasoning(content=[{"type": "reasoning_text", "text": "hm"}]),
        call("f", x=1),
        {"id": "ws_1", "type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "x"}},
        {
            "id": "ci_1",
            "type": "code_interpreter_call",
            "status": "completed",
            "container_id": "c",
            "code": None,
            "outputs": None,
        },
        {"id": "mcpr_1", "type": "mcp_approval_request", "name": "n", "arguments": "{}", "server_label": "s"},
        {"id": "new_1", "type": "a_kind_of_tomorrow", "payload": {"deep": [1, None]}},
    ]
    server.answer(*output)
    assert (await model.respond(HELLO)).output == output


async def test_fields_that_the_api_sends_but_does_not_take_back_are_dropped(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    shell = {
        "id": "sh_1",
        "type": "shell_call_output",
        "call_id": "c",
        "max_output_length": 9,
        "status": "completed",
        "created_by": "x",
        "output": [{"stdout": "", "stderr": "", "outcome": {"type": "timeout"}, "created_by": "x"}],
    }
    server.answer({**reasoning(), "status": None}, shell, {**call("f"), "created_by": "x"})
    answer = await model.respond(HELLO)
    clean = {key: value for key, value in shell.items() if key != "created_by"}
    clean["output"] = [{"stdout": "", "stderr": "", "outcome": {"type": "timeout"}}]
    assert answer.output == [reasoning(), clean, call("f")]


async def test_such_fields_are_not_sent_either_where_the_session_holds_them(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    stored = [{**reasoning(), "status": "completed"}, {**message("x"), "created_by": "y"}]
    server.answer(message("Hello"))
    await model.respond(ModelRequest(stored))
    assert server.requests[0]["input"] == [reasoning(), message("x")]
    assert stored[0]["status"] == "completed"  # the caller's item is left as it was


async def test_a_server_that_reports_no_usage_and_no_status_is_good_enough(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    server.answer_with(lambda _: {"output": [message("Hello")]})
    answer = await model.respond(HELLO)
    assert answer.output == [message("Hello")]
    assert answer.usage == Usage(requests=1)


@pytest.mark.parametrize(("status", "kind"), [(400, "BadRequest"), (401, "Authentication"), (500, "InternalServer")])
async def test_an_error_of_the_api_is_a_model_error_with_what_it_said(
    server: ResponsesServer, model: OpenAIResponsesModel, status: int, kind: str
) -> None:
    server.fail(status, "The words of the API.")
    with pytest.raises(ModelError, match=rf"test-model: {server.url}/ answered {status}: The words of the API\.$") as e:
        await model.respond(HELLO)
    assert type(e.value.__cause__).__name__ == f"{kind}Error"


MAY_NOT_SPEAK = "the server may not speak the Responses API (POST /responses)"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"detail":"Not Found"}'),
        (404, b"404 page not found"),
        (404, b""),
        (404, b'{"error":{"code":404,"message":"File Not Found","type":"not_found_error"}}'),
        (404, b'{"error":{"code":"404","message":"Resource not found"}}'),
        (405, b'{"detail":"Method Not Allowed"}'),
        (200, b'{"error":"Unexpected endpoint or method. (POST /v1/responses)"}'),
        (200, b'{"object":"chat.completion","choices":[]}'),
    ],
)
async def test_a_server_that_has_no_such_path_may_not_speak_the_responses_api(
    server: ResponsesServer, model: OpenAIResponsesModel, status: int, body: bytes
) -> None:
    server.answer_raw(body, "application/json" if body.startswith(b"{") else "text/plain", status)
    with pytest.raises(ModelError, match=re.escape(MAY_NOT_SPEAK)):
        await model.respond(HELLO)


async def test_so_it_is_for_a_stream(server: ResponsesServer, model: OpenAIResponsesModel) -> None:
    server.answer_raw(b"404 page not found", "text/plain", 404)
    with pytest.raises(ModelError, match=re.escape(MAY_NOT_SPEAK)):
        await Runner.run_streamed(Agent("A", None, model), "Hi").result()


@pytest.mark.parametrize(
    "said",
    [
        "The model `test-model` does not exist or you do not have access to it.",
        "Item with id 'rs_1' not found. Items are not persisted when `store` is set to false.",
        "Previous response with id 'resp_7' not found.",
        "Vector store vs_1 not found.",
    ],
)
async def test_a_server_that_lacks_what_was_asked_for_does_speak_it(
    server: ResponsesServer, model: OpenAIResponsesModel, said: str
) -> None:
    server.fail(404, said)
    tools = [{"type": "file_search", "vector_store_ids": ["vs_1"]}]
    settings = {"previous_response_id": "resp_7", "tools": tools}
    with pytest.raises(ModelError, match="answered 404: ") as caught:
        await model.respond(ModelRequest([reasoning(), message("x")], settings=settings))
    assert MAY_NOT_SPEAK not in str(caught.value)


async def test_an_error_without_json_is_a_model_error_too(server: ResponsesServer, model: OpenAIResponsesModel) -> None:
    server.answer_raw(b"<h1>Bad gateway</h1>", "text/html", 502)
    with pytest.raises(ModelError, match="answered 502"):
        await model.respond(HELLO)


async def test_a_server_that_is_not_there_is_a_model_error_that_names_it() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused for certain
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        async with openai.AsyncOpenAI(api_key="k", base_url=url, max_retries=0) as client:
            with pytest.raises(ModelError, match=f"no answer from {url}/: APIConnectionError") as caught:
                await OpenAIResponsesModel("m", client).respond(HELLO)
    assert isinstance(caught.value.__cause__, openai.APIConnectionError)


@pytest.mark.parametrize(
    "body", [(b"<h1>Hello</h1>", "text/html"), (b"{", "application/json"), (b"[]", "application/json")]
)
async def test_an_answer_that_is_no_response_is_a_model_error(
    server: ResponsesServer, model: OpenAIResponsesModel, body: tuple[bytes, str]
) -> None:
    server.answer_raw(*body)
    with pytest.raises(ModelError):
        await model.respond(HELLO)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"status": "failed", "error": {"code": "server_error", "message": "Oops."}}, "'failed' .server_error: Oops"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "cut short .max_output_tok"),
        ({"status": "queued"}, "the response is 'queued'"),
        ({"output": None}, "no error given"),
    ],
)
async def test_a_response_that_did_not_complete_is_a_model_error(
    server: ResponsesServer, model: OpenAIResponsesModel, fields: dict[str, Any], complaint: str
) -> None:
    server.answer(message("Hal"), **fields)
    with pytest.raises(ModelError, match=complaint):
        await model.respond(HELLO)


async def test_a_lone_surrogate_is_sent_as_a_question_mark_so_that_the_session_stays_usable(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    server.answer(message("Hello"))
    asked = {"role": "user", "content": "half a 😀: \ud83d"}
    await model.respond(ModelRequest([HELLO.input[0], asked]))
    assert server.requests[0]["input"] == [HELLO.input[0], {"role": "user", "content": "half a 😀: ?"}]
    assert asked["content"] == "half a 😀: \ud83d"


async def test_cancellation_passes_through(server: ResponsesServer, model: OpenAIResponsesModel) -> None:
    gate = threading.Event()
    server.answer(message("too late"), gate=gate)
    task = asyncio.create_task(model.respond(HELLO))
    await anyio.to_thread.run_sync(server.wait_for_request)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()


async def test_without_key_and_server_the_error_names_the_three_ways_out() -> None:
    with pytest.raises(ModelError) as caught:
        await Runner.run(Agent("A", None), "Hi")
    for way in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "agentmem.runner.OfflineModel()"):
        assert way in str(caught.value)


async def test_a_server_of_ones_own_needs_no_key(server: ResponsesServer, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OPENAI_BASE_URL", server.url)
    server.answer(message("Hello"))
    assert (await Runner.run(Agent("A", None), "Hi")).final_output == "Hello"
    assert server.headers[0]["authorization"] == "Bearer none"
    assert server.requests[0]["model"] == "gpt-5.6-luna"


async def test_key_and_server_come_from_the_environment_at_each_call(
    server: ResponsesServer, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("OPENAI_BASE_URL", server.url)
    for key in ("first", "second"):
        environment.setenv("OPENAI_API_KEY", key)
        server.answer(message("Hello"))
        await OpenAIResponsesModel("m").respond(HELLO)
    assert [headers["authorization"] for headers in server.headers] == ["Bearer first", "Bearer second"]


async def test_a_base_url_that_is_none_is_a_model_error(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OPENAI_BASE_URL", "http://localhost:nonsense")
    with pytest.raises(ModelError, match="nonsense"):
        await OpenAIResponsesModel("m").respond(HELLO)


def test_runs_on_one_loop_share_a_connection_that_is_closed_with_the_loop(
    server: ResponsesServer, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("OPENAI_BASE_URL", server.url)

    async def talk() -> None:
        for _ in range(3):
            server.answer(message("Hello"))
            await OpenAIResponsesModel("m").respond(HELLO)

    asyncio.run(talk())
    assert len(server.connections) == 1
    asyncio.run(talk())
    assert len(server.connections) == 2
    assert [loop for loop in clients_by_loop() if loop.is_closed()] == []
    # Had a connection been left open, collecting it would be a ResourceWarning, which fails the test.
    gc.collect()


async def test_many_first_calls_at_once_make_one_client(
    server: ResponsesServer, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("OPENAI_BASE_URL", server.url)
    environment.setenv("OPENAI_API_KEY", "many")
    async with anyio.create_task_group() as group:
        for _ in range(8):
            server.answer(message("Hello"))
            group.start_soon(OpenAIResponsesModel("m").respond, HELLO)
    mine = clients_by_loop()[asyncio.get_running_loop()]
    assert [client.api_key for client in mine].count("many") == 1


def test_importing_the_runner_does_not_import_openai() -> None:
    script = "import sys, agentmem.runner; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_model_is_anything_that_responds() -> None:
    assert isinstance(OfflineModel(), Model)
    assert isinstance(OpenAIResponsesModel("m"), Model)
    assert repr(OpenAIResponsesModel("m")) == "OpenAIResponsesModel('m')"
    with pytest.raises(ValueError, match="a model's name"):
        OpenAIResponsesModel("")


def test_the_scripted_server_refuses_what_the_api_refuses() -> None:
    from responses_server import refused

    user = {"role": "user", "content": "x"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": ""}
    assert refused([user, call("f"), output, reasoning(), message("x"), user]) is None
    assert "No tool output found" in str(refused([user, call("f")]))
    assert "No tool call found" in str(refused([user, output]))
    assert "required following item" in str(refused([reasoning(), user]))
    assert "status" in str(refused([{**reasoning(), "status": None}, message("x")]))
    assert "created_by" in str(refused([{**message("x"), "created_by": "y"}]))
    assert response()["status"] == "completed"


async def test_a_model_with_a_client_is_copied_with_it_and_refuses_to_be_pickled_by_name(
    server: ResponsesServer, model: OpenAIResponsesModel
) -> None:
    config = RunConfig(model=model)
    (from_config, *_) = dataclasses.asdict(config).values()
    for twin in (copy.copy(model), copy.deepcopy(model), from_config):
        server.answer(message("Hello"))
        assert (await twin.respond(HELLO)).output[0]["role"] == "assistant"
    with pytest.raises(TypeError, match="OpenAIResponsesModel with a client of yours cannot be pickled"):
        pickle.dumps(config)


def test_a_model_without_a_client_is_pickled() -> None:
    twin = pickle.loads(pickle.dumps(OpenAIResponsesModel("test-model", settings={"store": False})))
    assert vars(twin) == vars(OpenAIResponsesModel("test-model", settings={"store": False}))


async def test_a_password_in_the_base_url_is_not_shown_where_the_server_fails(server: ResponsesServer) -> None:
    url = server.url.replace("://", "://me:hunter2@")
    async with openai.AsyncOpenAI(api_key="k", base_url=url, max_retries=0) as client:
        server.fail(500, "broken")
        with pytest.raises(ModelError, match=r"127\.0\.0\.1") as raised:
            await OpenAIResponsesModel("test-model", client).respond(HELLO)
        assert "hunter2" not in str(raised.value)
