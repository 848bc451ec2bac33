"""What a run tells its tools and instruction functions about itself. Plain data."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

C = TypeVar("C")


@dataclass(frozen=True)
class RunContext(Generic[C]):
    """Handed to every tool that has a parameter annotated ``RunContext``, and to instruction functions.

    Attributes:
        context: the object that the caller gave the run as ``context``; the same object, never sent to the model.
        agent_name: the agent that is speaking.
        session_id: the session of the run; None where it has none.
    """

    context: C
    agent_name: str
    session_id: str | None = None


def context_parameter(function: Callable[..., object], signature: inspect.Signature) -> str | None:
    """The name of the function's parameter for the run's context, if it has one.

    Raises:
        NameError: an annotation names what is not defined where the function is.
    """
    hints = typing.get_type_hints(function)
    names = [name for name in signature.parameters if _is_context(hints.get(name))]
    return names[0] if names else None


def _is_context(annotation: Any) -> bool:
    return annotation is RunContext or typing.get_origin(annotation) is RunContext
