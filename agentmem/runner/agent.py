"""Agents: what answers in a run, and what it may use.

An agent holds no state and does no I/O; one agent may serve any number of runs at once.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import ModelError, RunError
from .context import RunContext
from .model import Model, checked_model, resolve_model
from .schema import inline_root, strict_schema
from .tools import FunctionTool, check_name, function_spec

Instructions = Callable[[RunContext[Any]], "str | Awaitable[str]"]

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


@dataclass(frozen=True, eq=False)
class Agent:
    """A model with instructions, tools, and other agents that it may hand the conversation to.

    Args:
        name: shown in results, and to the model that may hand over to this agent.
        instructions: the system prompt; or a function, sync or async, that makes it for each model call from the
            run's :class:`~agentmem.runner.RunContext` (a sync one runs on the event loop). None or "": none.
        model: a name, for the OpenAI Responses API or a server that speaks it; or a
            :class:`~agentmem.runner.Model`. None: OPENAI_DEFAULT_MODEL, or the default of this version.
        tools: functions decorated with :func:`~agentmem.runner.function_tool`.
        handoffs: agents that this one may hand over to. A list is kept as it is, so two agents can refer to
            each other: ``friends = []; a = Agent("A", "…", handoffs=friends); friends.append(b)``.
        output_type: a pydantic model or dataclass; the final output is then one of these instead of text.

    Raises:
        TypeError: an argument of the wrong type, such as a plain function among the tools.
        ValueError: an empty name, or two tools of one name. (Handoffs may change, so they are checked in a run.)
    """

    name: str
    instructions: str | Instructions | None
    model: str | Model | None = None
    tools: Sequence[FunctionTool[..., Any]] = ()
    handoffs: Sequence[Agent] = field(default=(), repr=False)
    output_type: type[Any] | None = None
    _output: _OutputFormat | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_type("name", self.name, str, "a string")
        if not (self.instructions is None or isinstance(self.instructions, str) or callable(self.instructions)):
            raise TypeError(f"Agent: instructions is a string, a function or None, got {self.instructions!r}")
        checked_model(self.model, "Agent")
        _check_type("handoffs", self.handoffs, Sequence, "a list of agents")
        if not self.name:
            raise ValueError("an agent's name must not be empty")
        object.__setattr__(self, "tools", tuple(self.tools))
        for tool in self.tools:
            if not isinstance(tool, FunctionTool):
                advice = "; decorate it with @function_tool" if callable(tool) else ""
                raise TypeError(f"the agent {self.name!r} has {tool!r} among its tools, which is no tool{advice}")
        _check_unique(self, [tool.name for tool in self.tools])
        self.handoff_targets()
        if self.output_type is not None:
            object.__setattr__(self, "_output", _OutputFormat(self.output_type))

    def resolve_model(self) -> Model:
        """The model to call; a name becomes an :class:`~agentmem.runner.OpenAIResponsesModel`."""
        return resolve_model(self.model)

    async def resolve_instructions(self, context: RunContext[Any]) -> str | None:
        """The system prompt of a model call in this run.

        Raises:
            RunError: the function of the instructions failed, or gave what is no string.
        """
        if self.instructions is None or isinstance(self.instructions, str):
            return self.instructions
        try:
            text = self.instructions(context)
            text = await text if inspect.isawaitable(text) else text
        except Exception as error:
            raise RunError(f"the instructions of {self.name!r} failed: {type(error).__name__}: {error}") from error
        if not isinstance(text, str):
            raise RunError(f"the instructions of {self.name!r} are a function that gave no string but {text!r}")
        return text

    def handoff_targets(self) -> dict[str, Agent]:
        """The agents to hand over to, by the name of the function that the model calls for it.

        Raises:
            TypeError: something among the handoffs is no agent.
            ValueError: two functions of this agent would have the same name.
        """
        for target in self.handoffs:
            _check_type("handoffs", target, Agent, "a list of agents")
        names = [handoff_name(target) for target in self.handoffs]
        _check_unique(self, [*(tool.name for tool in self.tools), *names])
        return dict(zip(names, self.handoffs, strict=True))

    def tool_specs(self) -> list[dict[str, Any]]:
        """Tools and handoffs as the Responses API takes them."""
        specs = [tool.spec for tool in self.tools]
        for name, target in self.handoff_targets().items():
            about = f"Hands the conversation over to the agent {target.name}, who goes on from here."
            specs.append(function_spec(name, about, _NO_ARGUMENTS, strict=True))
        return specs

    @property
    def text_format(self) -> dict[str, Any] | None:
        """The ``text.format`` of a request, where ``output_type`` asks for one."""
        return self._output.text_format if self._output else None

    def parse(self, text: str) -> Any:
        """The final output that a final message's text stands for.

        Raises:
            ModelError: the text is no JSON of ``output_type``.
        """
        return self._output.parse(text) if self._output else text


class _OutputFormat:
    """How a type is asked of the model and read from its answer."""

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
            raise ModelError(f"the model's answer is no {self._name} ({reason}): {text[:200]!r}") from error


def handoff_name(target: Agent) -> str:
    """The function that the model calls to hand over to `target`.

    Raises:
        ValueError: nothing of the agent's name can stand in a function's name.
    """
    slug = re.sub(r"[^a-zA-Z0-9]+", "_", target.name).strip("_").lower()
    if not slug:
        raise ValueError(f"an agent to hand over to needs a name with an ASCII letter or digit, got {target.name!r}")
    return check_name(f"transfer_to_{slug}", "a handoff")


def handoff_output(target: Agent) -> str:
    """What the model reads when the handoff has happened; the Agents SDK's text for it."""
    return json.dumps({"assistant": target.name}, ensure_ascii=False, separators=(",", ":"))


def _check_type(argument: str, value: object, expected: Any, description: str) -> None:
    if not isinstance(value, expected) or (expected is Sequence and isinstance(value, str)):
        raise TypeError(f"Agent: {argument} is {description}, got {value!r}")


def _check_unique(agent: Agent, names: list[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        which = ", ".join(sorted(twice))
        raise ValueError(f"the agent {agent.name!r} has more than one tool or handoff called {which}")
