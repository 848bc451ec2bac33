"""Models: what answers a request, and the OpenAI Responses API as one of them.

Rules kept here:

- ``openai`` is imported when a model is first called, in a worker thread, because it takes a second.
- Items go in and come out in the Responses *input* format, so what came out can be stored and sent again.
- Whatever goes wrong in a call is one :class:`~agentmem.errors.ModelError`, which keeps what the API said.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import anyio.to_thread
from pydantic_core import to_json

from ..errors import ModelError
from ..items import Item

if TYPE_CHECKING:
    from openai import AsyncOpenAI

DEFAULT_MODEL = "gpt-5.6-luna"
"""Used where neither the agent nor OPENAI_DEFAULT_MODEL names one; the Agents SDK's default, too (0.24)."""

_DEFAULT_BASE_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Usage:
    """Tokens of one or more model calls, as the model counted them; usages add up with ``+``."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.total_tokens + other.total_tokens,
        )


@dataclass(frozen=True)
class ModelRequest:
    """What a model is asked.

    Attributes:
        input: the history and what is new, oldest first, in the Responses input format.
        instructions: of the agent that is speaking.
        tools: function tools and handoffs, as the Responses API takes them.
        text_format: the ``text.format`` of the Responses API where the answer must be JSON of a schema.
    """

    input: Sequence[Item]
    instructions: str | None = None
    tools: Sequence[dict[str, Any]] = ()
    text_format: dict[str, Any] | None = None


@dataclass(frozen=True)
class ModelResponse:
    """What a model answered: items in the Responses input format, ready to be stored and replayed."""

    output: list[Item]
    usage: Usage = field(default_factory=lambda: Usage(requests=1))
    response_id: str | None = None


@runtime_checkable
class Model(Protocol):
    """What :class:`~agentmem.runner.Runner` needs of a model; any object with this method will do."""

    async def respond(self, request: ModelRequest) -> ModelResponse:
        """The answer to one request.

        Raises:
            ModelError: there is none; the message says why. (What else is raised, the Runner wraps into it.)
        """
        ...


class OpenAIResponsesModel:
    """A model behind the OpenAI Responses API, or any server that speaks it.

    Without a `client`, OPENAI_API_KEY and OPENAI_BASE_URL choose the server, read at each call. One client,
    and so one pool of connections, serves all models of an event loop; it is closed when the loop shuts
    down. It retries twice and times out as the ``openai`` package does by default.

    Args:
        model: the name of the model.
        client: an ``openai.AsyncOpenAI`` of your own: other retries, time-outs, Azure. It is yours to close, and
            usable on the event loop where it was first used.
        settings: further arguments of ``client.responses.create``, such as ``{"temperature": 0}`` or
            ``{"store": False}``.
    """

    def __init__(
        self, model: str, client: AsyncOpenAI | None = None, *, settings: Mapping[str, Any] | None = None
    ) -> None:
        if not model or not isinstance(model, str):
            raise ValueError(f"a model's name is a string that is not empty, got {model!r}")
        self.model = model
        self._client = client
        self._settings = dict(settings or {})

    def __repr__(self) -> str:
        return f"OpenAIResponsesModel({self.model!r})"

    async def respond(self, request: ModelRequest) -> ModelResponse:
        """See :meth:`Model.respond`.

        An answer that the API cut short (``max_output_tokens``, a content filter) counts as failed: stored, it would
        be replayed as if the model had meant to end there.

        Cancellation: ends the request and passes through.

        Raises:
            ModelError: no key and no server is set, the server cannot be reached or refuses, or the answer
                failed or was cut short.
        """
        client = self._client or await _shared_client()
        try:
            # Not typed: a request is plain JSON here, where openai has a union of 30 typed dicts.
            create: Any = client.responses.create
            response = await create(**self._arguments(request))
        except Exception as error:  # openai's own; ValueError for what is no UTF-8 or JSON; httpx2's for a bad URL
            raise ModelError(f"{self.model}: {_what_happened(error, client)}") from error
        to_dict = getattr(response, "to_dict", None)
        if not callable(to_dict):  # openai hands over the text of an answer that is no JSON
            raise ModelError(f"{self.model}: {client.base_url} answered no JSON; is it the URL of a Responses API?")
        return self._read(to_dict(mode="json", warnings=False))

    def _arguments(self, request: ModelRequest) -> dict[str, Any]:
        body: dict[str, Any] = {"input": [_in_utf8(_input_form(item)) for item in request.input]}
        if request.instructions:
            body["instructions"] = request.instructions
        if request.tools:
            body["tools"] = [*self._settings.get("tools", ()), *request.tools]
        if request.text_format:
            body["text"] = {**self._settings.get("text", {}), "format": request.text_format}
        # extra_body goes out as it is. As arguments, each item would be compared with the 30 kinds of
        # input: 1 ms an item, in which the event loop stands still (200 items: 204 ms against 7, openai 3.54).
        body.update(self._settings.get("extra_body", {}))
        # The empty input, which older clients insist on, is replaced by the body's.
        return {**self._settings, "model": self.model, "input": [], "extra_body": body}

    def _read(self, response: dict[str, Any]) -> ModelResponse:
        status, output = response.get("status", "completed"), response.get("output")
        if status == "incomplete":
            reason = (response.get("incomplete_details") or {}).get("reason") or "no reason given"
            raise ModelError(f"{self.model}: the answer was cut short ({reason})")
        if status not in ("completed", None) or response.get("error") or not isinstance(output, list):
            error = response.get("error") or {}
            said = f"{error.get('code')}: {error.get('message')}" if error else "no error given"
            raise ModelError(f"{self.model}: the response is {status!r} ({said})")
        return ModelResponse([_input_form(item) for item in output], _usage(response), response.get("id"))


def default_model() -> OpenAIResponsesModel:
    """The model of an agent that names none: OPENAI_DEFAULT_MODEL, or :data:`DEFAULT_MODEL`."""
    return OpenAIResponsesModel(os.environ.get("OPENAI_DEFAULT_MODEL") or DEFAULT_MODEL)


def _input_form(item: Item) -> Item:
    """The item as the API takes it back; the same object where nothing is to be dropped.

    Dropped is what openai 3.54 has in its output types and not in its input types: ``created_by``, on items
    and on the chunks of a shell's output. And ``status`` on reasoning, which the input types have but the
    API refuses ("Unknown parameter: 'input[1].status'", https://github.com/BerriAI/litellm/issues/13420).
    """
    chunks = item.get("output")
    if item.get("type") == "shell_call_output" and isinstance(chunks, list):
        item = {**item, "output": [_without(chunk, "created_by") for chunk in chunks]}
    item = _without(item, "created_by")
    return _without(item, "status") if item.get("type") == "reasoning" else item


def _in_utf8(item: Item) -> Item:
    """The item with "?" for lone surrogates, which have no UTF-8 form: one of them would fail every request of its
    session. The stored item keeps them."""
    try:
        to_json(item)
    except ValueError:
        text = json.dumps(item, ensure_ascii=False).encode("utf-8", "replace")
        replaced: Item = json.loads(text)
        return replaced
    return item


def _without(value: Any, key: str) -> Any:
    if isinstance(value, dict) and key in value:
        return {name: member for name, member in value.items() if name != key}
    return value


def _usage(response: dict[str, Any]) -> Usage:
    usage = response.get("usage") or {}  # compatible servers may leave it out
    count = {name: usage.get(name) or 0 for name in ("input_tokens", "output_tokens", "total_tokens")}
    return Usage(requests=1, **count)


def _what_happened(error: Exception, client: AsyncOpenAI) -> str:
    """One line: what the API said, or why it could not be asked."""
    status = getattr(error, "status_code", None)
    if status is None:
        reason = f" ({error.__cause__})" if error.__cause__ is not None else ""
        return f"no answer from {client.base_url}: {type(error).__name__}: {error}{reason}"
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, dict) else None
    return f"{client.base_url} answered {status}: {said or error}"


# One client per event loop and environment: connections are kept between runs, and none is used on a loop
# other than its own, where asyncio's transports do not work. With each client stands the generator that closes it.
_Owned = tuple["AsyncOpenAI", AsyncGenerator[None, None]]
_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, ...], _Owned]]
_clients = weakref.WeakKeyDictionary()
_clients_lock = threading.Lock()


async def _shared_client() -> AsyncOpenAI:
    environment = tuple(
        os.environ.get(name, "").strip()
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID")
    )
    key, base_url = environment[:2]
    if not key and not base_url:
        raise ModelError(
            "no model to call. Either set OPENAI_API_KEY; or set OPENAI_BASE_URL to a server that speaks the OpenAI "
            "Responses API (with the OPENAI_API_KEY that it wants, if any); or give the agent a model object, such "
            "as Agent(..., model=agentmem.runner.OfflineModel()), which needs no network"
        )
    loop = asyncio.get_running_loop()
    with _clients_lock:
        for closed in [other for other in _clients if other.is_closed()]:
            del _clients[closed]  # its connections refer to the loop, so it would never go by itself
        of_loop = _clients.setdefault(loop, {})
    if environment not in of_loop:
        try:
            client = await anyio.to_thread.run_sync(_make_client, key, base_url or _DEFAULT_BASE_URL)
        except Exception as error:
            raise ModelError(f"no client for {base_url or _DEFAULT_BASE_URL}: {error}") from error
        if environment in of_loop:
            await client.close()  # another task of this loop was faster
        else:
            owner = _close_with_loop(client)
            of_loop[environment] = (client, owner)
            await owner.__anext__()
    return of_loop[environment][0]


def _make_client(key: str, base_url: str) -> AsyncOpenAI:
    # In a worker thread: about 0.8 s to import openai, 0.1 s for its Responses API, 0.03 s to read the
    # certificates for each client (openai 3.54), in which the event loop would stand still.
    from openai import AsyncOpenAI

    # A server that wants no key still gets one, because the client insists. OPENAI_BASE_URL="" counts as not set.
    client = AsyncOpenAI(api_key=key or "none", base_url=base_url)
    _ = client.responses
    return client


async def _close_with_loop(client: AsyncOpenAI) -> AsyncGenerator[None, None]:
    """Stands still until the event loop shuts down, and closes the client then.

    asyncio has one hook for "this loop is about to close": ``loop.shutdown_asyncgens()``, called by
    asyncio.run(), anyio and uvicorn, finishes every async generator that was begun on the loop.
    """
    try:
        yield
    finally:
        with _clients_lock:
            _clients.pop(asyncio.get_running_loop(), None)
        await client.close()
