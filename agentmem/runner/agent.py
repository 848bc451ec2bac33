"""Agents: a model's name, instructions, tools and handoffs.

An agent has no state and does no I/O. Any number of runs can use one agent at once.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import ModelError, RunError
from ..threads import call_in_thread
from .context import RunContext
from .model import Model, check_model
from .responses_api import resolve_model
from .run_queue import run_queue
from .schema import inline_root, strict_schema
from .tools import FunctionTool, check_name, function_spec

Instructions = Callable[[RunContext[Any]], "str | Awaitable[str]"]

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


@dataclass(frozen=True, eq=False, repr=False)
class Agent:
    """A model with instructions, tools, and other agents that it can hand the conversation over to.

    Args:
        name: shown in results, and to models that can hand over to this agent.
        instructions: the system prompt. Or a function that returns it for each model call, given the run's
            :class:`~agentmem.runner.RunContext`. An async one runs on the event loop, a plain one in a thread of its
            own, so it may block. None or "": no instructions.
        model: the name of a model, for OpenAI's Responses API or a compatible server; or a
            :class:`~agentmem.runner.Model`. None: the name in OPENAI_DEFAULT_MODEL, else ``gpt-5.6-luna``.
        tools: functions decorated with :func:`~agentmem.runner.function_tool`.
        handoffs: agents that this agent can hand over to. A list is kept and not copied, so that two agents can refer
            to each other: ``friends = []; a = Agent("A", "…", handoffs=friends); friends.append(b)``.
        output_type: a pydantic model or a dataclass. The final output is then an instance of it instead of text.

    Raises:
        TypeError: an argument has the wrong type, such as a plain function among the tools.
        ValueError: the name is empty, two tools or handoffs have the same name, or the API does not accept one of
            these names. Handoffs that are added to the list later are checked in the run.
    """

    name: str
    instructions: str | Instructions | None = None
    model: str | Model | None = None
    tools: Sequence[FunctionTool[..., Any]] = ()
    handoffs: Sequence[Agent] = ()
    output_type: type[Any] | None = None
    _output_format: _OutputFormat | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        _check_type("name", self.name, str, "a string")
        if not (self.instructions is None or isinstance(self.instructions, str) or callable(self.instructions)):
            raise TypeError(f"Agent: instructions is a string, a function or None, got {self.instructions!r}")
        check_model(self.model, "Agent")
        _check_type("handoffs", self.handoffs, Sequence, "a list of agents")
        if not self.name:
            raise ValueError("an agent's name must not be empty")
        object.__setattr__(self, "tools", tuple(self.tools))
        for tool in self.tools:
            if not isinstance(tool, FunctionTool):
                advice = "; decorate it with @function_tool" if callable(tool) else ""
                raise TypeError(f"the agent {self.name!r} has {tool!r} among its tools, which is not a tool{advice}")
        _check_unique_names(self, [tool.name for tool in self.tools])
        self.handoff_targets()
        if self.output_type is not None:
            object.__setattr__(self, "_output_format", _OutputFormat(self.output_type))

    def __repr__(self) -> str:
        return f"Agent({self.name!r})"

    def resolve_model(self) -> Model:
        """Return the model to call; a name becomes an :class:`~agentmem.runner.OpenAIResponsesModel`."""
        return resolve_model(self.model)

    async def resolve_instructions(self, context: RunContext[Any]) -> str | None:
        """Return the system prompt for a model call in this run.

        Raises:
            RunError: the instructions are a function, and it raised an error or did not return a string.
        """
        if self.instructions is None or isinstance(self.instructions, str):
            return self.instructions
        call = partial(self.instructions, context)
        try:
            with run_queue.step(f"the instructions function of {self.name!r}"):
                text = call() if inspect.iscoroutinefunction(self.instructions) else await call_in_thread(call)
                text = await text if inspect.isawaitable(text) else text
        except Exception as error:
            raise RunError(f"the instructions of {self.name!r} failed: {type(error).__name__}: {error}") from error
        if not isinstance(text, str):
            raise RunError(f"the instructions of {self.name!r} are a function that returned {text!r} and not a string")
        return text

    def handoff_targets(self) -> dict[str, Agent]:
        """Return the agents that this agent can hand over to, by the name of the function that the model calls for it.

        Raises:
            TypeError: something in ``handoffs`` is not an agent.
            ValueError: two tools or handoffs have the same name, or the API does not accept the name of a handoff.
        """
        for target in self.handoffs:
            _check_type("handoffs", target, Agent, "a list of agents")
        names = [handoff_name(target) for target in self.handoffs]
        _check_unique_names(self, [*(tool.name for tool in self.tools), *names])
        return dict(zip(names, self.handoffs, strict=True))

    def function_names(self) -> set[str]:
        """Return the names of the functions that the model can call: the tools and the handoffs."""
        return {tool.name for tool in self.tools} | self.handoff_targets().keys()

    def tool_specs(self) -> list[dict[str, Any]]:
        """Return the tools and handoffs in the format of the Responses API."""
        specs = [tool.spec for tool in self.tools]
        for name, target in self.handoff_targets().items():
            description = f"Hands the conversation over to the agent {target.name}, who goes on from here."
            specs.append(function_spec(name, description, _NO_ARGUMENTS, strict=True))
        return specs

    @property
    def text_format(self) -> dict[str, Any] | None:
        """The ``text.format`` of a request for ``output_type``; None without an output type."""
        return self._output_format.text_format if self._output_format else None

    def parse(self, text: str) -> Any:
        """Return the final output for the text of the last message: the text, or an instance of ``output_type``.

        Raises:
            ModelError: the text is not JSON that fits ``output_type``.
        """
        return self._output_format.parse(text) if self._output_format else text


class _OutputFormat:
    """The request for an output type, and the parser of its JSON."""

    def __init__(self, output_type: type[Any]) -> None:
        self._adapter: TypeAdapter[Any] = TypeAdapter(output_type)
        self._name = getattr(output_type, "__name__", "output")
        schema = inline_root(self._adapter.json_schema())
        if schema.get("type") != "object":
            raise TypeError(f"output_type is a pydantic model or a dataclass (a JSON object), got {self._name}")
        strict = strict_schema(schema)
        self.text_format = {
            "type": "json_schema",
            "name": re.sub(r"[^a-zA-Z0-9_-]", "_", self._name)[:64],
            "schema": schema if strict is None else strict,
            "strict": strict is not None,
        }

    def parse(self, text: str) -> Any:
        try:
            return self._adapter.validate_json(text)
        except ValidationError as error:
            reason = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise ModelError(f"the model's answer is not a valid {self._name} ({reason}): {text[:200]!r}") from error


def handoff_name(target: Agent) -> str:
    """Return the name of the function that the model calls to hand over to `target`.

    Raises:
        ValueError: the agent's name has no ASCII letter or digit, or is too long.
    """
    slug = re.sub(r"[^a-zA-Z0-9]+", "_", target.name).strip("_").lower()
    if not slug:
        raise ValueError(f"an agent to hand over to needs a name with an ASCII letter or digit, got {target.name!r}")
    return check_name(f"transfer_to_{slug}", "a handoff")


def handoff_output(target: Agent) -> str:
    """Return the output of the handoff's function call; the Agents SDK writes the same text."""
    return json.dumps({"assistant": target.name}, ensure_ascii=False, separators=(",", ":"))


def _check_type(argument: str, value: object, expected: Any, description: str) -> None:
    if not isinstance(value, expected) or (expected is Sequence and isinstance(value, str)):
        raise TypeError(f"Agent: {argument} is {description}, got {value!r}")


def _check_unique_names(agent: Agent, names: list[str]) -> None:
    duplicates = {name for name in names if names.count(name) > 1}
    if duplicates:
        joined = ", ".join(sorted(duplicates))
        raise ValueError(f"the agent {agent.name!r} has more than one tool or handoff called {joined}")
