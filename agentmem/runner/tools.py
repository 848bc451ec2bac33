"""Function tools: a Python function that the model may call.

Rules kept here:

- The JSON schema and the validation of arguments come from the function's signature, through pydantic.
- Calls of one response run at the same time: async functions on the event loop, others in worker threads.
- A parameter annotated ``RunContext`` is the run's, not the model's: it is not in the schema.
- What goes wrong in a tool is told to the model, which can mend its call or say so, unless the tool was
  declared with ``raise_errors=True``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar, overload

import anyio
import anyio.to_thread
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import to_json

from ..errors import ToolError
from ..items import Item
from .context import RunContext, context_parameter
from .schema import strict_schema

P = ParamSpec("P")
R = TypeVar("R")

_NO_RUN: RunContext[Any] = RunContext(None, "")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # what the API takes as a function's name


@dataclass(frozen=True)
class ToolOutput:
    """What a call gave: the `value` that the function returned, and the `text` that the model gets."""

    value: Any
    text: str


class FunctionTool(Generic[P, R]):
    """A function that the model may call; made by :func:`function_tool`. Calling it calls the function.

    Attributes:
        name, description: as the model sees them.
        parameters: JSON schema of the arguments.
        strict: whether the API holds the model to that schema exactly. It does wherever strict mode can
            express the signature; parameters with defaults it cannot, so such a tool is sent without it.
        raise_errors: whether an error of the function ends the run.
        timeout_s: how long a call may take, in seconds; None for as long as it likes.
        function: the plain function.

    Raises:
        TypeError: a signature that has no JSON form: positional-only, ``*args`` and ``**kwargs`` parameters,
            or an annotation unknown to pydantic.
        ValueError: a name that the API refuses, or a time limit that is not above 0.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        description: str | None = None,
        raise_errors: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        own_name: str = getattr(function, "__name__", "")
        self.name = check_name(own_name if name is None else name, "a tool")
        self.description = _first_paragraph(function) if description is None else description
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"the tool {self.name!r}: timeout_s is a number of seconds above 0, got {timeout_s!r}")
        self.raise_errors = raise_errors
        self.timeout_s = timeout_s
        self._arguments, self._context_parameter = _arguments_adapter(function, self.name)
        schema = self._arguments.json_schema()
        all_required = len(schema.get("required", ())) == len(schema["properties"])
        strict = strict_schema(schema) if all_required else None
        self.strict = strict is not None
        self.parameters = schema if strict is None else strict

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the plain function."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"FunctionTool({self.name!r})"

    @property
    def spec(self) -> dict[str, Any]:
        """The tool as the Responses API takes it."""
        return function_spec(self.name, self.description, self.parameters, strict=self.strict)

    async def invoke(self, arguments: str, context: RunContext[Any] = _NO_RUN) -> ToolOutput:
        """Calls the function with the arguments that the model wrote, as JSON text.

        Arguments that do not fit the signature are reported in the returned text, and so is the function's
        own error, by name and message, and that its time was up.

        Cancellation: an async function is cancelled; one in a worker thread cannot be, and is waited for, unless
        it has a time limit.

        Raises:
            ToolError: from the function's error, if ``raise_errors`` is set.
        """
        try:
            # Some servers send "" for no arguments.
            args, kwargs = self._arguments.validate_json(arguments or "{}")
        except ValidationError as error:
            return _problem(f"invalid arguments for {self.name}: {_summary(error)}")
        if self._context_parameter is not None:
            kwargs[self._context_parameter] = context
        try:
            value = await self._call(args, kwargs)
            return ToolOutput(value, _as_text(value))
        except Exception as error:
            return self.failed(error)

    def failed(self, error: BaseException) -> ToolOutput:
        """What the model is told of an error of the function.

        Raises:
            ToolError: from it, if ``raise_errors`` is set.
        """
        if self.raise_errors:
            raise ToolError(f"the tool {self.name!r} failed: {type(error).__name__}: {error}") from error
        return _problem(f"{self.name} failed: {type(error).__name__}: {error}")

    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call: Callable[[], Any] = functools.partial(self.function, *args, **kwargs)
        with anyio.move_on_after(self.timeout_s):
            if inspect.iscoroutinefunction(self.function):
                return await call()
            value = await anyio.to_thread.run_sync(call, abandon_on_cancel=self.timeout_s is not None)
            return await value if inspect.isawaitable(value) else value
        raise TimeoutError(f"took longer than {self.timeout_s:g} s")


@overload
def function_tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...
@overload
def function_tool(
    *,
    name: str | None = None,
    description: str | None = None,
    raise_errors: bool = False,
    timeout_s: float | None = None,
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...


def function_tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    raise_errors: bool = False,
    timeout_s: float | None = None,
) -> Any:
    """Makes a function a tool that an :class:`~agentmem.runner.Agent` can use; with or without options.

    ::

        @function_tool
        def get_weather(city: Annotated[str, Field(description="Name of the city")]) -> str:
            "The weather in a city."

    The function may be ``async``; a plain one runs in a worker thread, so it may block but must be
    thread-safe: several calls run at once. Arguments are validated, and coerced where pydantic does so. A
    returned string goes to the model as it is, any other value as JSON, and what JSON cannot hold as ``str(value)``.
    A parameter annotated :class:`~agentmem.runner.RunContext` is given the run's, and the model does not see it.

    Args:
        name: what the model calls it; by default the function's name.
        description: by default the first paragraph of the docstring.
        raise_errors: end the run with :class:`~agentmem.errors.ToolError` when the function raises. By
            default the model is told. (Arguments that do not fit are the model's mistake, and always told to it.)
        timeout_s: seconds that a call may take; then it counts as failed with ``TimeoutError``. An async function
            is cancelled; a thread cannot be, so a plain one runs on to its end, and what it returns is dropped.

    Raises:
        TypeError, ValueError: see :class:`FunctionTool`.
    """
    options = functools.partial(
        FunctionTool, name=name, description=description, raise_errors=raise_errors, timeout_s=timeout_s
    )
    return options if function is None else options(function)


def function_spec(name: str, description: str, parameters: dict[str, Any], *, strict: bool) -> dict[str, Any]:
    """A function as the Responses API takes it (https://platform.openai.com/docs/guides/function-calling)."""
    return {
        "type": "function",
        "name": name,
        "description": description,
        "parameters": parameters,
        "strict": strict,  # explicit, because the API tries strict mode where it is left out
    }


def check_name(name: str, what: str) -> str:
    """`name`, if the API takes it as the name of a function.

    Raises:
        ValueError: it does not.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{what} cannot be called {name!r}: the API takes 1 to 64 letters, digits, _ and -")
    return name


async def run_calls(
    calls: Sequence[Item],
    tools: Mapping[str, FunctionTool[..., Any]],
    context: RunContext[Any] = _NO_RUN,
    on_output: Callable[[Item, ToolOutput], None] = lambda call, output: None,
) -> list[ToolOutput]:
    """Runs the ``function_call`` items at the same time; their outputs come in the order of the calls.

    Args:
        on_output: called with each call and its output as soon as there is one.

    Cancellation: cancels all of them; returns or raises only when none is running any more.

    Raises:
        ToolError: a tool with ``raise_errors`` failed; the others were cancelled. The first one counts.
        SystemExit, KeyboardInterrupt: likewise, from any tool.
    """
    outputs: list[ToolOutput | None] = [None] * len(calls)
    failures: list[BaseException] = []

    async def answer(call: Item) -> ToolOutput:
        name = call.get("name")
        tool = tools.get(name) if isinstance(name, str) else None
        if tool is None:
            return _problem(f"there is no tool called {name!r}; there are: {', '.join(tools) or 'none'}")
        try:
            return await tool.invoke(str(call.get("arguments") or ""), context)
        except asyncio.CancelledError as error:
            if group.cancel_scope.cancel_called or anyio.current_effective_deadline() == -math.inf:
                raise
            return tool.failed(error)  # something that it awaited was cancelled, and not the run

    async def run(index: int, call: Item) -> None:
        try:
            output = outputs[index] = await answer(call)
            on_output(call, output)
        except (ToolError, SystemExit, KeyboardInterrupt) as error:
            # Kept instead of raised: a task group would wrap it into an exception group, and asyncio would end the
            # event loop on the last two, which for ``run_sync`` is that of all sync calls.
            failures.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for index, call in enumerate(calls):
            group.start_soon(run, index, call)
    if failures:
        raise failures[0]
    return [output for output in outputs if output is not None]


def _arguments_adapter(function: Callable[..., Any], name: str) -> tuple[TypeAdapter[Any], str | None]:
    """Validates JSON arguments by the function's signature, and gives back ``(args, kwargs)``; and the name of the
    parameter that the model does not give."""
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(
                f"the tool {name!r} has the parameter {str(parameter)!r} ({parameter.kind.description}), but a model "
                "gives arguments by name only: make it a plain parameter"
            )

    # Stands in for the function, so that validating does not call it: it must run elsewhere, and its own
    # ValidationError must not pass for one of its arguments.
    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    stand_in: Any = bind  # pydantic takes functions, which its types do not say
    try:
        hidden = context_parameter(function, signature)
        given = [parameter for parameter in signature.parameters.values() if parameter.name != hidden]
        stand_in.__signature__ = signature.replace(parameters=given)
        adapter: TypeAdapter[Any] = TypeAdapter(stand_in)
        adapter.json_schema()
    except (PydanticUserError, NameError) as error:
        raise TypeError(f"the signature of the tool {name!r} has no JSON form: {error}") from error
    return adapter, hidden


def _first_paragraph(function: Callable[..., Any]) -> str:
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())


def _summary(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'all'}: {problem['msg']}" for problem in problems)


def _problem(text: str) -> ToolOutput:
    text = _sendable(f"Error: {text}")
    return ToolOutput(text, text)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return _sendable(value)
    try:
        return to_json(value).decode()
    except ValueError:  # PydanticSerializationError is one
        return _sendable(str(value))


def _sendable(text: str) -> str:
    # A lone surrogate (an undecodable file name, say) has no UTF-8 form: stored, it would make every later
    # request of the session fail.
    return text.encode("utf-8", "replace").decode()
