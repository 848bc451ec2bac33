"""Function tools: Python functions that the model can call.

Rules:

- The JSON schema and the validation of the arguments come from the function's signature, through pydantic.
- An async function runs on the event loop. Any other runs in a thread of its own, with what belongs to the call: the
  validation of its arguments and the conversion of what it returns may run code of the caller's too.
- A parameter annotated ``RunContext`` gets the run's context. It is not in the schema.
- The model is told of an error in a tool, so that it can correct its call or tell the user. A tool with
  ``raise_errors=True`` ends the run instead.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar, overload

import anyio
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import to_json

from ..errors import ToolError
from ..threads import call_in_thread
from .context import RunContext, context_parameter
from .schema import strict_schema

P = ParamSpec("P")
R = TypeVar("R")

NO_RUN: RunContext[Any] = RunContext(None, "")
"""The context of a call outside of a run."""

_FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # the names that the API accepts


@dataclass(frozen=True, repr=False)
class ToolOutput:
    """The output of a call.

    Attributes:
        value: what the function returned.
        text: the text that the model gets.
    """

    value: Any
    text: str

    @classmethod
    def for_value(cls, value: Any) -> ToolOutput:
        """Return the output that gives the model a value."""
        return cls(value, _to_text(value))

    @classmethod
    def for_error(cls, text: str) -> ToolOutput:
        """Return the output that tells the model of an error."""
        text = _replace_lone_surrogates(f"Error: {text}")
        return cls(text, text)


class FunctionTool(Generic[P, R]):
    """A function that the model can call. Created by :func:`function_tool`; calling it calls the function.

    Attributes:
        name: the function's name for the model.
        description: the function's description for the model.
        parameters: the JSON schema of the arguments.
        strict: whether the API makes sure that the model's arguments fit the schema. It does if strict mode can express
            the signature. It cannot express a parameter with a default.
        raise_errors: whether an error of the function ends the run.
        timeout_s: the most seconds that a call may take; None for no limit.
        function: the plain function.

    Raises:
        TypeError: the signature has no JSON form, because it has positional-only, ``*args`` or ``**kwargs`` parameters,
            or an annotation that pydantic does not know.
        ValueError: the API does not accept the name, or ``timeout_s`` is not above 0.
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
        self._arguments_adapter, self._context_parameter = _inspect_signature(function, self.name)
        schema = self._arguments_adapter.json_schema()
        all_required = len(schema.get("required", ())) == len(schema["properties"])
        strict = strict_schema(schema) if all_required else None
        self.strict = strict is not None
        self.parameters = schema if strict is None else strict

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the plain function."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"FunctionTool({self.name!r})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Return what pickle stores: the name of a tool that its module defines, like that of a function.

        A copy is the tool itself then. Of any other tool, the function and the options are stored.
        """
        found: Any = sys.modules.get(self.__module__)
        qualified_name: str = getattr(self, "__qualname__", "")  # the function's, if it has one
        for name in qualified_name.split("."):
            found = getattr(found, name, None)
        if found is self:
            return qualified_name
        return _remake_tool, (self.function, self.name, self.description, self.raise_errors, self.timeout_s)

    @property
    def spec(self) -> dict[str, Any]:
        """The tool in the format of the Responses API."""
        return function_spec(self.name, self.description, self.parameters, strict=self.strict)

    async def invoke(self, arguments: str, context: RunContext[Any] = NO_RUN) -> ToolOutput:
        """Call the function with the model's arguments.

        If the arguments do not fit the signature, the function raises an error, or its time is up, the text of the
        output says so.

        Args:
            arguments: a JSON object as text, as the model wrote it.
            context: the run's context, for a parameter that is annotated ``RunContext``.

        Cancellation: an async function is cancelled. A function in a thread cannot be cancelled. It is waited for,
        unless it has a time limit.

        Raises:
            ToolError: the function raised an error or its time is up, and ``raise_errors`` is set. Its ``__cause__`` is
                the error.
        """
        begin = functools.partial(self._begin, arguments, context)
        try:
            with anyio.move_on_after(self.timeout_s):
                if inspect.iscoroutinefunction(self.function):
                    begun = begin()
                else:
                    begun = await call_in_thread(begin, abandon_on_cancel=self.timeout_s is not None)
                return begun if isinstance(begun, ToolOutput) else ToolOutput.for_value(await begun)
            raise TimeoutError(f"took longer than {self.timeout_s:g} s")
        except Exception as error:
            return self.output_for_error(error)

    def _begin(self, arguments: str, context: RunContext[Any]) -> ToolOutput | Awaitable[Any]:
        """Validate the arguments and call the function; return its output, or what must be awaited for its value."""
        try:
            # Some servers send "" for no arguments.
            args, kwargs = self._arguments_adapter.validate_json(arguments or "{}")
        except ValidationError as error:
            return ToolOutput.for_error(f"invalid arguments for {self.name}: {_summarize(error)}")
        if self._context_parameter is not None:
            kwargs[self._context_parameter] = context
        value: Any = self.function(*args, **kwargs)
        return value if inspect.isawaitable(value) else ToolOutput.for_value(value)

    def output_for_error(self, error: BaseException) -> ToolOutput:
        """Return the output that tells the model of an error of the function.

        Raises:
            ToolError: ``raise_errors`` is set. Its ``__cause__`` is `error`.
        """
        if self.raise_errors:
            raise ToolError(f"the tool {self.name!r} failed: {type(error).__name__}: {error}") from error
        return ToolOutput.for_error(f"{self.name} failed: {type(error).__name__}: {error}")


def _remake_tool(
    function: Callable[..., Any], name: str, description: str, raise_errors: bool, timeout_s: float | None
) -> FunctionTool[..., Any]:
    """Make the tool that was pickled."""
    return FunctionTool(function, name=name, description=description, raise_errors=raise_errors, timeout_s=timeout_s)


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
    """Decorate a function as a tool for an :class:`~agentmem.runner.Agent`, with or without options.

    ::

        @function_tool
        def get_weather(city: Annotated[str, Field(description="Name of the city")]) -> str:
            "The weather in a city."

    The function may be ``async``. A plain function runs in a thread of its own, so it may block, also to wait for a run
    (:meth:`Runner.run_sync`); it must be thread-safe, because several calls run at once. The arguments
    are validated, and converted where pydantic does so. The model gets a returned string as it is, any other value as
    JSON, and a value without a JSON form as ``str(value)``. A parameter annotated
    :class:`~agentmem.runner.RunContext` gets the run's context, and the model does not see it.

    Args:
        name: the function's name for the model. Default: its name.
        description: the function's description for the model. Default: the first paragraph of its docstring.
        raise_errors: whether an error of the function ends the run with :class:`~agentmem.errors.ToolError`. By
            default, the model is told of the error. Arguments that do not fit are the model's mistake; the model is
            always told of them.
        timeout_s: the most seconds that a call may take. After that it has failed with ``TimeoutError``. An async
            function is cancelled. A plain function cannot be cancelled; it runs to its end, and what it returns is
            dropped. Default: no limit.

    Raises:
        TypeError, ValueError: see :class:`FunctionTool`.
    """
    options = functools.partial(
        FunctionTool, name=name, description=description, raise_errors=raise_errors, timeout_s=timeout_s
    )
    return options if function is None else options(function)


def function_spec(name: str, description: str, parameters: dict[str, Any], *, strict: bool) -> dict[str, Any]:
    """Return a function in the format of the API: https://platform.openai.com/docs/guides/function-calling."""
    return {
        "type": "function",
        "name": name,
        "description": description,
        "parameters": parameters,
        "strict": strict,  # always given, because the API tries strict mode without it
    }


def check_name(name: str, what: str) -> str:
    """Return a function's name, if the API accepts it.

    Args:
        name: the name.
        what: what has the name, for the error's message.

    Raises:
        ValueError: the API does not accept the name.
    """
    if not _FUNCTION_NAME.fullmatch(name):
        raise ValueError(f"{what} cannot be called {name!r}: the API accepts 1 to 64 letters, digits, _ and -")
    return name


def _inspect_signature(function: Callable[..., Any], name: str) -> tuple[TypeAdapter[Any], str | None]:
    """Create the adapter that validates a function's arguments.

    Returns:
        The adapter, which converts a JSON object to ``(args, kwargs)``; and the name of the parameter for the run's
        context, which is not among the arguments (None if there is none).
    """
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(
                f"the tool {name!r} has the parameter {str(parameter)!r} ({parameter.kind.description}), but a model "
                "gives arguments by name only: make it a plain parameter"
            )

    # pydantic validates the arguments for this function and calls it, instead of the tool's own. That one must run
    # elsewhere, and a ValidationError that it raises itself must not count as one of its arguments.
    @functools.wraps(function)
    def return_arguments(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    stand_in: Any = return_arguments  # Any, because pydantic accepts functions but its types do not
    try:
        hidden = context_parameter(function, signature)
        visible = [parameter for parameter in signature.parameters.values() if parameter.name != hidden]
        stand_in.__signature__ = signature.replace(parameters=visible)
        adapter: TypeAdapter[Any] = TypeAdapter(stand_in)
        adapter.json_schema()
    except (PydanticUserError, NameError) as error:
        raise TypeError(f"the signature of the tool {name!r} has no JSON form: {error}") from error
    return adapter, hidden


def _first_paragraph(function: Callable[..., Any]) -> str:
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())


def _summarize(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'all'}: {problem['msg']}" for problem in problems)


def _to_text(value: Any) -> str:
    if isinstance(value, str):
        return _replace_lone_surrogates(value)
    try:
        return to_json(value).decode()
    except ValueError:  # PydanticSerializationError is a ValueError
        return _replace_lone_surrogates(str(value))


def _replace_lone_surrogates(text: str) -> str:
    # A lone surrogate (as in a file name that cannot be decoded) has no UTF-8 form. If it were stored, every later
    # request of the session would fail.
    return text.encode("utf-8", "replace").decode()
