"""The interface of models: what the Runner asks a model, and what it answers.

Items go in and come out in the *input* format of the Responses API, so an answer can be stored and sent again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..items import Item


@dataclass(frozen=True)
class Usage:
    """The tokens of one or more model calls, as the model counted them. ``+`` adds usages.

    Attributes:
        requests: the number of model calls.
        input_tokens, output_tokens, total_tokens: as the API reports them.
    """

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


@dataclass(frozen=True, repr=False)
class ModelRequest:
    """A request to a model.

    Attributes:
        input: the history and the new items, oldest first, in the Responses input format.
        instructions: the instructions of the active agent; None if it has none.
        tools: function tools and handoffs, in the format of the Responses API.
        text_format: the ``text.format`` of the Responses API, if the answer must be JSON that fits a schema.
        settings: further arguments of ``client.responses.create`` for this run.
    """

    input: Sequence[Item]
    instructions: str | None = None
    tools: Sequence[dict[str, Any]] = ()
    text_format: dict[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<ModelRequest: {len(self.input)} items, {len(self.tools)} tools>"


@dataclass(frozen=True, repr=False)
class ModelResponse:
    """The answer of a model.

    Attributes:
        output: items in the Responses input format, oldest first.
        usage: the tokens of this call.
        response_id: the API's id of the response, if it has one.
    """

    output: list[Item]
    usage: Usage = field(default_factory=lambda: Usage(requests=1))
    response_id: str | None = None

    def __repr__(self) -> str:
        return f"<ModelResponse: {len(self.output)} items, {self.usage.total_tokens} tokens>"


@runtime_checkable
class Model(Protocol):
    """A model for :class:`~agentmem.runner.Runner`: any object with this method."""

    async def respond(self, request: ModelRequest) -> ModelResponse:
        """Return the answer to a request.

        Raises:
            ModelError: there is no answer; the message says why. The Runner turns any other error into a ModelError.
        """
        ...


@runtime_checkable
class StreamingModel(Model, Protocol):
    """A model that can also stream its answer. ``Runner.run_streamed`` gets the answers of other models as a whole."""

    def stream(self, request: ModelRequest) -> AsyncGenerator[str | Item | ModelResponse, None]:
        """Yield the answer to a request: pieces of text, each output item when it is complete, last the response.

        Raises:
            ModelError: as in ``respond``; also after a part of the answer.
        """
        ...


def check_model(model: object, owner: str) -> None:
    """Check the argument ``model`` of an agent or a run.

    Args:
        model: the argument.
        owner: the name of the class that has it, for the error's message.

    Raises:
        TypeError: it is neither a name nor a model object nor None.
        ValueError: it is an empty name.
    """
    if model is not None and not isinstance(model, (str, Model)):
        raise TypeError(f"{owner}: model is a model's name, a Model object or None, got {model!r}")
    if isinstance(model, type):
        raise TypeError(f"{owner}: model is the class {model.__name__}; make an object of it")
    if model == "":
        raise ValueError(f"{owner}: a model's name must not be empty")
