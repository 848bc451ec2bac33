"""Work that is finished whatever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from anyio import CancelScope

T = TypeVar("T")


class UncancellableTask(asyncio.Task[T]):
    """A task that runs to its end, also where every task of the loop is cancelled, as ``asyncio.run`` does last.

    ``asyncio.run`` waits for it then, so it must end by itself. No ``await`` inside it is ever cancelled.
    """

    def cancel(self, msg: Any = None) -> bool:
        """Do nothing: False, as for a task that is done."""
        return False


async def despite_cancellation(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end whatever is cancelled meanwhile; then raise the cancellation, if there was one."""
    task = UncancellableTask(work, loop=asyncio.get_running_loop())
    cancelled: asyncio.CancelledError | None = None
    with CancelScope(shield=True):  # else a cancelled anyio scope would cancel the wait on every loop cycle
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled from task.exception()
    return task.result()
