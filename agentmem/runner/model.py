"""Models: what answers a request, and the OpenAI Responses API as one of them.

Rules kept here:

- Items go in and come out in the Responses *input* format, so what came out can be stored and sent again.
- Whatever goes wrong in a call is one :class:`~agentmem.errors.ModelError`, which keeps what the API said.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic_core import to_json

from ..errors import ModelError
from ..items import Item
from .client import shared_client

if TYPE_CHECKING:
    from openai import AsyncOpenAI

DEFAULT_MODEL = "gpt-5.6-luna"
"""Used where neither the agent nor OPENAI_DEFAULT_MODEL names one; the Agents SDK's default, too (0.24)."""


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
        settings: further arguments for this run, in the names of ``client.responses.create``.
    """

    input: Sequence[Item]
    instructions: str | None = None
    tools: Sequence[dict[str, Any]] = ()
    text_format: dict[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


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


@runtime_checkable
class StreamingModel(Model, Protocol):
    """A model that also answers bit by bit. Of any other, ``Runner.run_streamed`` shows an answer when it is whole."""

    def stream(self, request: ModelRequest) -> AsyncGenerator[str | Item | ModelResponse, None]:
        """The answer to one request: text as it comes, each output item when it is whole, last the whole response.

        Raises:
            ModelError: as ``respond`` does, in the midst of the answer too.
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
        async with self._answering(request) as (client, create, arguments):
            response = await create(**arguments)
            to_dict = getattr(response, "to_dict", None)
            if not callable(to_dict):  # openai hands over the text of an answer that is no JSON
                raise ModelError(f"{self.model}: {client.base_url} answered no JSON; is it the URL of a Responses API?")
            return self._read(to_dict(mode="json", warnings=False))

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Item | ModelResponse, None]:
        """See :meth:`StreamingModel.stream`, and :meth:`respond` for what counts as failed.

        Closing it ends the request.
        """
        async with (
            self._answering(request) as (client, create, arguments),
            await create(**arguments, stream=True) as events,
        ):
            async for event in events:
                if event.type in _TEXT_DELTAS:
                    yield event.delta
                elif event.type == "response.output_item.done":
                    yield _input_form(event.item.to_dict(mode="json", warnings=False))
                elif event.type in _LAST_EVENTS:
                    yield self._read(event.response.to_dict(mode="json", warnings=False))
                    return
                elif event.type == "error":
                    raise ModelError(f"{self.model}: the stream failed ({event.code}: {event.message})")
            raise ModelError(
                f"{self.model}: the stream of {client.base_url} ended before the answer did; "
                "does the server stream the Responses API?"
            )

    @asynccontextmanager
    async def _answering(self, request: ModelRequest) -> AsyncIterator[tuple[AsyncOpenAI, Any, dict[str, Any]]]:
        """The client, its untyped ``create`` and the arguments; whatever goes wrong comes out as one ModelError."""
        client = self._client or await shared_client()
        try:
            # Not typed: a request is plain JSON here, where openai has a union of 30 typed dicts.
            yield client, client.responses.create, self._arguments(request)
        except ModelError:
            raise
        except Exception as error:  # openai's own; ValueError for what is no UTF-8 or JSON; httpx2's for a bad URL
            raise ModelError(f"{self.model}: {_what_happened(error, client)}") from error

    def _arguments(self, request: ModelRequest) -> dict[str, Any]:
        settings = {**self._settings, **request.settings}
        body: dict[str, Any] = {"input": [_in_utf8(_input_form(item)) for item in request.input]}
        if request.instructions:
            body["instructions"] = request.instructions
        if request.tools:
            body["tools"] = [*settings.get("tools", ()), *request.tools]
        if request.text_format:
            body["text"] = {**settings.get("text", {}), "format": request.text_format}
        # extra_body goes out as it is. As arguments, each item would be compared with the 30 kinds of
        # input: 1 ms an item, in which the event loop stands still (200 items: 204 ms against 7, openai 3.54).
        body.update(settings.get("extra_body", {}))
        # The empty input, which older clients insist on, is replaced by the body's.
        return {**settings, "model": self.model, "input": [], "extra_body": body}

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


_TEXT_DELTAS = {"response.output_text.delta", "response.refusal.delta"}
_LAST_EVENTS = {"response.completed", "response.incomplete", "response.failed"}
"""Of a stream (https://platform.openai.com/docs/api-reference/responses-streaming)."""


def resolve_model(model: str | Model | None) -> Model:
    """The model object for what an agent or a run names; for None OPENAI_DEFAULT_MODEL, or :data:`DEFAULT_MODEL`."""
    if model is None:
        model = os.environ.get("OPENAI_DEFAULT_MODEL") or DEFAULT_MODEL
    return OpenAIResponsesModel(model) if isinstance(model, str) else model


def checked_model(model: object, whose: str) -> None:
    """Raises TypeError or ValueError where `model` is no model's name, no model object and not None."""
    if model is not None and not isinstance(model, (str, Model)):
        raise TypeError(f"{whose}: model is a model's name, a Model object or None, got {model!r}")
    if isinstance(model, type):
        raise TypeError(f"{whose}: model is the class {model.__name__}; make an object of it")
    if model == "":
        raise ValueError(f"{whose}: a model's name must not be empty")


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
