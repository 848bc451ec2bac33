"""The caller's code inside an engine (token counters, progress functions): its errors reach the caller as they are.

Rules kept here:

- Such code runs in the middle of the engine's work, often in another thread. Whatever the type of its error is (also
  that of the driver or of the network, ``StopIteration`` or ``SystemExit``), it says nothing about the database, is no
  reason to try again, and must not end a thread or an event loop.
- So it is wrapped where the caller's code is called (:func:`guarded`), and unwrapped where the call returns
  (``PooledEngine.raise_mapped``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class CallbackFailed(Exception):  # noqa: N818  the error that it holds is raised instead
    """Code of the caller's raised an error.

    Attributes:
        error: what it raised.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(repr(error))
        self.error = error


def guarded(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that does the same, and raises CallbackFailed with whatever `function` raises."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            raise CallbackFailed(error) from error

    return call
