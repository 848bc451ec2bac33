"""Work that finishes even if its caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from anyio import CancelScope

from .event_loop import running_loop

T = TypeVar("T")


class UncancellableTask(asyncio.Task[T]):
    """A task that cannot be cancelled, not even by ``asyncio.run``, which cancels every task of its loop at the end.

    ``asyncio.run`` then waits for the task, so the task must end by itself.
    """

    def cancel(self, msg: Any = None) -> bool:
        """Do nothing, and return False, as a task that is done does."""
        return False


async def despite_cancellation(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end even if the caller is cancelled meanwhile.

    Returns:
        What the coroutine returns.

    Raises:
        asyncio.CancelledError: the caller was cancelled. It is raised when the coroutine has ended; its ``__cause__``
            is the error of the coroutine, if there was one.
        RuntimeError: no event loop of asyncio runs. The coroutine has not begun.
        Everything that the coroutine raises, otherwise.
    """
    try:
        loop = running_loop()
    except RuntimeError:
        work.close()  # else it would be a warning that nothing awaited it
        raise
    task = UncancellableTask(work, loop=loop)
    cancelled: asyncio.CancelledError | None = None
    with CancelScope(shield=True):  # a cancelled anyio scope would otherwise cancel the wait on every loop cycle
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled from task.exception()
    return task.result()
