"""Calls of code that may block, such as the caller's own, each in a thread of its own.

Rules:

- The number of threads has no limit. A call may wait for other calls: a tool starts a run, whose tools start runs.
  Under any limit, calls that wait could take up all threads and leave none for those that they wait for.
- So the threads are not those of ``anyio.to_thread`` or ``asyncio.to_thread``, which have a limit. Besides, an
  application shares these with its web framework.
- A thread ends with its call, so there are never more threads than calls. (To start one takes 0.05 ms.)
- A thread is a daemon if that of its event loop is. So a call under ``asyncio.run`` ends before the program does, and
  one on agentmem's background loop does not keep a program from ending.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, TypeVar

from anyio.lowlevel import checkpoint_if_cancelled

from .cancellation import despite_cancellation

T = TypeVar("T")


async def call_in_thread(call: Callable[[], T], *, abandon_on_cancel: bool = False) -> T:
    """Call a plain function in a new thread, with a copy of the caller's context variables.

    Args:
        call: the function.
        abandon_on_cancel: whether a cancellation leaves the call to its thread, which then drops the outcome.

    Returns:
        What the function returns.

    Cancellation: a call that has not begun does not begin. One that has begun is waited for, unless
    ``abandon_on_cancel`` is set, because Python cannot end a thread.

    Raises:
        RuntimeError: the system has no thread left.
        Everything that the function raises. A ``StopIteration`` becomes a ``RuntimeError``, as in a coroutine.
    """
    await checkpoint_if_cancelled()
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()
    thread = threading.Thread(target=_call, args=(call, copy_context(), loop, outcome), name="agentmem-call")
    thread.start()
    try:
        if abandon_on_cancel:
            return await outcome
        try:
            await despite_cancellation(_wait_until_done(outcome))
        except asyncio.CancelledError as cancelled:
            raise cancelled from outcome.exception()
        return outcome.result()
    finally:
        del outcome  # it may be the error, whose traceback refers to this frame


async def _wait_until_done(outcome: asyncio.Future[Any]) -> None:
    # It does not raise the error: a task that raises a SystemExit stops its event loop.
    await asyncio.wait([outcome])


def _call(call: Callable[[], T], context: Context, loop: asyncio.AbstractEventLoop, outcome: asyncio.Future[T]) -> None:
    context.run(_forget_async_library)
    try:
        deliver, value = outcome.set_result, context.run(call)
    except BaseException as error:  # raised where the call is awaited
        deliver, value = outcome.set_exception, _without_stop_iteration(error)  # type: ignore[assignment]  # either pair
    try:
        loop.call_soon_threadsafe(_deliver, outcome, deliver, value)
    except RuntimeError:
        if not loop.is_closed():  # closed: nobody waits any more
            raise
    finally:
        del value  # it may be the error, whose traceback refers to this frame


def _deliver(outcome: asyncio.Future[T], deliver: Callable[[Any], None], value: object) -> None:
    if not outcome.done():  # done: it was abandoned
        deliver(value)


def _without_stop_iteration(error: BaseException) -> BaseException:
    if not isinstance(error, StopIteration):
        return error
    replacement = RuntimeError("a function raised StopIteration")
    replacement.__cause__ = error
    return replacement


def _forget_async_library() -> None:
    """Clear what sniffio noted in the copied context: no event loop runs in this thread.

    Otherwise ``anyio.run`` in it would fail. Who never loaded sniffio has no such note.
    """
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:
        sniffio.current_async_library_cvar.set(None)
