"""Something happens at the n-th cycle of an event loop: a cancellation, a fork, a replaced file.

A cycle in which nothing is ready waits for a thread, so the cycles count progress and not time. A test that goes
through all of them meets every state that a coroutine and the tasks behind it pass through.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class _Counter(selectors.DefaultSelector):
    """Counts the cycles: an event loop calls select() once in each."""

    def __init__(self, loop: CycleLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(0 if self._loop.begin_cycle() else timeout)


class CycleLoop(asyncio.SelectorEventLoop):
    """An event loop that does something at its n-th cycle after :meth:`arm`, and `times` - 1 times after that.

    Attributes:
        cycles: how many there were.
        happened: how often it was done.
        complaints: what was given to the loop's exception handler, which should be nothing.
    """

    def __init__(self, nth: int = 0, *, times: int = 1, eager: bool = False) -> None:
        self.cycles = 0
        self.happened = 0
        self.complaints: list[dict[str, Any]] = []
        self._nth = nth
        self._times = times
        self._left: int | None = None
        self._action: Callable[[], object] = lambda: None
        super().__init__(_Counter(self))
        self.set_exception_handler(lambda loop, context: self.complaints.append(context))
        if eager:
            if sys.version_info < (3, 12):
                raise ValueError("Python before 3.12 has no eager tasks")
            self.set_task_factory(asyncio.eager_task_factory)

    def arm(self, action: Callable[[], object]) -> None:
        """Begin to count; whatever `action` returns, False means that it came too late."""
        self._action, self._left = action, self._nth

    def disarm(self) -> None:
        self._left = None

    def begin_cycle(self) -> bool:
        self.cycles += 1
        if self._left is None:
            return False
        self._left -= 1
        if not -self._times < self._left <= 0:
            return False
        self.happened += self._action() is not False
        return True

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Like ``asyncio.run``: at the end every task that is left is cancelled and waited for."""
        try:
            return self.run_until_complete(main)
        finally:
            self.disarm()
            self.run_until_complete(_cancel_the_others())
            self.run_until_complete(self.shutdown_asyncgens())
            self.close()


async def _cancel_the_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def cycle_loops(*, times: int = 1, eager: bool = False, most: int = 300) -> Iterator[CycleLoop]:
    """Loops for n = 1, 2, …, until one has run in which nothing happened, because all was over before."""
    for nth in range(1, most):
        loop = CycleLoop(nth, times=times, eager=eager)
        try:
            yield loop
        finally:
            if not loop.is_closed():  # the test failed before it ran the loop
                loop.close()
        assert loop.complaints == [], f"cycle {nth}: {loop.complaints}"
        if not loop.happened:
            assert nth > 2, "nothing ever happened: the test does not arm its loop"
            return
    raise AssertionError(f"not over after {most} cycles")


TASK_FACTORIES = [False, True] if sys.version_info >= (3, 12) else [False]
"""For ``eager=``: whether tasks begin to run where they are created, which Python 3.12 introduced."""
