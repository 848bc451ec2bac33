"""The context of a run, for its tools and instruction functions. Plain data."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

C = TypeVar("C")


@dataclass(frozen=True, repr=False)
class RunContext(Generic[C]):
    """The context of a run. Instruction functions get it, and tools in a parameter that is annotated ``RunContext``.

    Attributes:
        context: the object that the caller passed to the run as ``context``. It is never sent to the model.
        agent_name: the name of the active agent.
        session_id: the id of the run's session; None without a session.
    """

    context: C
    agent_name: str
    session_id: str | None = None

    def __repr__(self) -> str:
        where = "" if self.session_id is None else f" on session {self.session_id!r}"
        return f"<RunContext of {self.agent_name!r}{where}>"


def context_parameter(function: Callable[..., object], signature: inspect.Signature) -> str | None:
    """Return the name of the function's first parameter that is annotated ``RunContext``; None if there is none.

    Raises:
        NameError: an annotation refers to a name that the function's module does not define.
    """
    hints = typing.get_type_hints(function)
    names = [name for name in signature.parameters if _is_run_context(hints.get(name))]
    return names[0] if names else None


def _is_run_context(annotation: Any) -> bool:
    return annotation is RunContext or typing.get_origin(annotation) is RunContext
