"""The model behind OpenAI's Responses API, or behind a compatible server.

Every failure of a call is a :class:`~agentmem.errors.ModelError`, whose message has what the API said.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from copy import copy, deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from pydantic_core import to_json

from ..errors import ModelError
from ..items import Item
from .client import shared_client, shown_url
from .model import Model, ModelRequest, ModelResponse, Usage
from .reasoning import (
    ENCRYPTED_CONTENT,
    advice_for_refusal,
    leave_out_reasoning,
    may_encrypt,
    refuses_encrypted_content,
)

if TYPE_CHECKING:
    from openai import AsyncOpenAI

DEFAULT_MODEL = "gpt-5.6-luna"
"""The model if neither the agent nor OPENAI_DEFAULT_MODEL names one; also the default of the Agents SDK (0.24)."""

# The servers and models that refused to give encrypted reasoning. They are not asked again in this process.
_without_encrypted_content: set[tuple[str, str]] = set()


class OpenAIResponsesModel:
    """A model behind OpenAI's Responses API, or behind a compatible server.

    Without a ``client``, OPENAI_API_KEY and OPENAI_BASE_URL choose the server; they are read in each call. All models
    on an event loop then share one client, and so one pool of connections. It is closed when the loop shuts down. It
    has the default retries (two) and timeouts of the ``openai`` package.

    **Reasoning.** Each request asks for ``reasoning.encrypted_content``, so that a session can be replayed when the
    provider has forgotten its reasoning; not if the model's name says that it does not reason, or once the server has
    refused to give it. With ``"store": False`` the provider keeps nothing, so stored reasoning without its content is
    not sent.

    Args:
        model: the name of the model.
        client: your own ``openai.AsyncOpenAI``, for other retries or timeouts, or for Azure. It can be used only on the
            event loop where it was first used, and agentmem does not close it.
        settings: further arguments of ``client.responses.create``, such as ``{"temperature": 0}`` or
            ``{"store": False}``. What ``include`` names is asked for besides; ``{"include": None}`` asks for nothing.

    Raises:
        ValueError: ``model`` is empty or not a string.
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

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle stores.

        Raises:
            TypeError: the model has a client, which holds connections.
        """
        if self._client is not None:
            raise TypeError(
                f"{type(self).__name__} with a client of yours cannot be pickled, because a client holds connections; "
                "make the model where it is used, or leave the client out"
            )
        return self.__dict__

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy that has the same client, which ``dataclasses.asdict`` of a result or config needs."""
        copied = copy(self)
        copied._settings = deepcopy(self._settings, memo)
        return copied

    async def respond(self, request: ModelRequest) -> ModelResponse:
        """Return the answer to a request; see :meth:`Model.respond`.

        An answer that the API cut short (because of ``max_output_tokens`` or a content filter) is an error. If it were
        stored, it would be replayed as if the model had meant to end there.

        Cancellation: ends the request.

        Raises:
            ModelError: neither a key nor a server is set, the server cannot be reached or refuses the request, or the
                answer failed or was cut short.
        """
        async with self._api_call(request) as (client, create):
            response = await create()
            to_dict = getattr(response, "to_dict", None)
            if not callable(to_dict):  # openai returns the text of an answer that is not JSON
                raise ModelError(
                    f"{self.model}: the answer of {shown_url(client.base_url)} is not JSON; is it the URL of a "
                    "Responses API?"
                )
            return self._to_model_response(to_dict(mode="json", warnings=False))

    async def stream(self, request: ModelRequest) -> AsyncGenerator[str | Item | ModelResponse, None]:
        """Yield the answer to a request in parts; see :meth:`StreamingModel.stream`.

        Closing the generator ends the request.

        Raises:
            ModelError: as in :meth:`respond`, or the stream ended before the answer did.
        """
        async with (
            self._api_call(request) as (client, create),
            await create(stream=True) as events,
        ):
            async for event in events:
                if event.type in _TEXT_DELTAS:
                    yield event.delta
                elif event.type == "response.output_item.done":
                    yield _to_input_format(event.item.to_dict(mode="json", warnings=False))
                elif event.type in _LAST_EVENTS:
                    yield self._to_model_response(event.response.to_dict(mode="json", warnings=False))
                    return
                elif event.type == "error":
                    advice = advice_for_refusal(f"{event.code}: {event.message}", request.input)
                    raise ModelError(f"{self.model}: the stream failed ({event.code}: {event.message}){advice}")
            raise ModelError(
                f"{self.model}: the stream of {shown_url(client.base_url)} ended before the answer did; "
                "does the server stream the Responses API?"
            )

    @asynccontextmanager
    async def _api_call(self, request: ModelRequest) -> AsyncIterator[tuple[AsyncOpenAI, Callable[..., Any]]]:
        """Yield the client and a function that sends the request; turn every error in the block into a ModelError."""
        client = self._client or await shared_client()
        try:
            yield client, partial(self._create, client, request)
        except ModelError:
            raise
        except Exception as error:  # openai's errors; ValueError for invalid UTF-8 or JSON; httpx2's for a bad URL
            description = f"{self.model}: {_describe_error(error, client)}"
            advice = advice_for_refusal(f"{description} {getattr(error, 'code', None)}", request.input)
            raise ModelError(description + advice) from error

    async def _create(self, client: AsyncOpenAI, request: ModelRequest, **options: Any) -> Any:
        """Send the request; without asking for encrypted reasoning if the server refuses that.

        The result has the type Any, because a request is plain JSON here, and openai has a union of 30 typed dicts.
        """
        create: Any = client.responses.create
        settings = {**self._settings, **request.settings}
        server_and_model = (str(client.base_url), self.model)
        is_asking = server_and_model not in _without_encrypted_content and self._may_ask_for_reasoning(settings)
        try:
            return await create(**self._arguments(request, settings, encrypted=is_asking), **options)
        except Exception as error:
            if not (is_asking and refuses_encrypted_content(error)):
                raise
        response = await create(**self._arguments(request, settings, encrypted=False), **options)
        _without_encrypted_content.add(server_and_model)
        return response

    def _may_ask_for_reasoning(self, settings: Mapping[str, Any]) -> bool:
        """Whether the caller leaves it to this class to ask for encrypted reasoning, and the model may have some."""
        include = settings.get("include", ())
        is_ours = include is not None and ENCRYPTED_CONTENT not in include
        return is_ours and "include" not in settings.get("extra_body", {}) and may_encrypt(self.model)

    def _arguments(self, request: ModelRequest, settings: Mapping[str, Any], *, encrypted: bool) -> dict[str, Any]:
        items = leave_out_reasoning(request.input, "encrypted") if settings.get("store") is False else request.input
        body: dict[str, Any] = {"input": [_replace_lone_surrogates(_to_input_format(item)) for item in items]}
        if request.instructions:
            body["instructions"] = request.instructions
        if request.tools:
            body["tools"] = [*settings.get("tools", ()), *request.tools]
        if request.text_format:
            body["text"] = {**settings.get("text", {}), "format": request.text_format}
        include = [*(settings.get("include") or ()), *([ENCRYPTED_CONTENT] if encrypted else ())]
        if include:
            body["include"] = include
        # The body is sent as it is. If the items were arguments, the client would compare each with the 30 kinds of
        # input, which blocks the event loop for 1 ms an item (200 items: 204 ms against 7, openai 3.54).
        body.update(settings.get("extra_body", {}))
        # Older clients insist on an input. The body's input replaces this empty one.
        arguments = {name: value for name, value in settings.items() if name != "include"}
        return {**arguments, "model": self.model, "input": [], "extra_body": body}

    def _to_model_response(self, response: dict[str, Any]) -> ModelResponse:
        status, output = response.get("status", "completed"), response.get("output")
        if "status" not in response and not isinstance(output, list):  # of another API, or an error with status 200
            details = str(response.get("error") or "it has no output")
            raise ModelError(f"{self.model}: the answer is no response ({details[:200]}); {_MAY_NOT_SPEAK}")
        if status == "incomplete":
            reason = (response.get("incomplete_details") or {}).get("reason") or "no reason given"
            raise ModelError(f"{self.model}: the answer was cut short ({reason})")
        if status not in ("completed", None) or response.get("error") or not isinstance(output, list):
            error = response.get("error") or {}
            details = f"{error.get('code')}: {error.get('message')}" if error else "no error given"
            raise ModelError(f"{self.model}: the response is {status!r} ({details})")
        return ModelResponse([_to_input_format(item) for item in output], _to_usage(response), response.get("id"))


_MAY_NOT_SPEAK = (
    "the server may not speak the Responses API (POST /responses): use the URL of one that does, or give the agent a "
    "model object of your own (agentmem.runner.Model)"
)

# The types of a stream's events: https://platform.openai.com/docs/api-reference/responses-streaming
_TEXT_DELTAS = {"response.output_text.delta", "response.refusal.delta"}
_LAST_EVENTS = {"response.completed", "response.incomplete", "response.failed"}


def resolve_model(model: str | Model | None) -> Model:
    """Return the model object for the model of an agent or a run.

    None stands for the name in OPENAI_DEFAULT_MODEL, or for :data:`DEFAULT_MODEL`.
    """
    if model is None:
        model = os.environ.get("OPENAI_DEFAULT_MODEL") or DEFAULT_MODEL
    return OpenAIResponsesModel(model) if isinstance(model, str) else model


def _to_input_format(item: Item) -> Item:
    """Convert an item of a response to the API's input format; return the same object if nothing must be removed.

    Removed is what the output types of openai 3.54 have and its input types do not: ``created_by``, of items and of the
    chunks of a shell's output. And ``status`` of reasoning, which the input types have but the API refuses ("Unknown
    parameter: 'input[1].status'", https://github.com/BerriAI/litellm/issues/13420).
    """
    chunks = item.get("output")
    if item.get("type") == "shell_call_output" and isinstance(chunks, list):
        item = {**item, "output": [_without(chunk, "created_by") for chunk in chunks]}
    item = _without(item, "created_by")
    return _without(item, "status") if item.get("type") == "reasoning" else item


def _replace_lone_surrogates(item: Item) -> Item:
    """Return the item with "?" in place of lone surrogates; the stored item keeps them.

    They have no UTF-8 form, so every request of the session would fail.
    """
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


def _to_usage(response: dict[str, Any]) -> Usage:
    usage = response.get("usage") or {}  # compatible servers may leave it out
    counts = {name: usage.get(name) or 0 for name in ("input_tokens", "output_tokens", "total_tokens")}
    return Usage(requests=1, **counts)


def _describe_error(error: Exception, client: AsyncOpenAI) -> str:
    """Describe a failed call in one line: the API's error, or why there was no answer."""
    status = getattr(error, "status_code", None)
    if status is None:
        reason = f" ({error.__cause__})" if error.__cause__ is not None else ""
        return f"no answer from {shown_url(client.base_url)}: {type(error).__name__}: {error}{reason}"
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    description = f"{shown_url(client.base_url)} answered {status}: {message or error}"
    if status in (404, 405) and not _names_what_was_sent(str(message or error), error):
        return f"{description}; {_MAY_NOT_SPEAK}"
    return description


def _names_what_was_sent(message: str, error: Any) -> bool:
    """Whether the message of a 404 is about something in the request (a model or an item that there is not).

    A server that does not know the path has not read the request.
    """
    sent = _ids(json.loads(error.request.content))
    return any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", message) for name in sent)


def _ids(value: object, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, member in value.items():
            yield from _ids(member, name)
    elif isinstance(value, list):
        for member in value:
            yield from _ids(member, key)
    elif isinstance(value, str) and (key in ("model", "id", "conversation") or key.endswith(("_id", "_ids"))):
        yield value
