"""Something happens at the n-th cycle of an event loop: a cancellation, a fork, a replaced file.

The cycles are those in which something is ready, and the one after each of them, in which the loop would wait for a
thread; so they count progress and not time. A test that goes through all of them meets every state that a coroutine and
the tasks behind it pass through.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from exhaustive import exhaustive

try:
    import uvloop
except ImportError:  # there is none for Windows
    uvloop = None  # type: ignore[assignment]  # checked where it is used

T = TypeVar("T")


if TYPE_CHECKING:
    _Loop = asyncio.SelectorEventLoop
else:
    _Loop = object


class CycleLoop(_Loop):
    """An event loop that does something at its n-th cycle after :meth:`arm`, and `times` - 1 times after that.

    Mixed into a real loop, of which it knows only that callbacks run in the order in which they are scheduled, those
    scheduled meanwhile in the next cycle. Its own callback is the first of each cycle.

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
        self._is_scheduled = False
        self._progress = False
        super().__init__()
        self.set_exception_handler(lambda loop, context: self.complaints.append(context))
        if eager:
            if sys.version_info < (3, 12):
                raise ValueError("Python before 3.12 has no eager tasks")
            # anyio knows asyncio's factory, and starts its own tasks later under it; under another it fails.
            own = isinstance(self, asyncio.SelectorEventLoop)
            self.set_task_factory(asyncio.eager_task_factory if own else _start_eagerly)

    # The ignores: any arguments are passed on, which typeshed says with type variables.
    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        self._progress = True
        self._schedule()
        return super().call_soon(callback, *args, context=context)

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        super().call_soon_threadsafe(self._make_progress)
        return super().call_soon_threadsafe(callback, *args, context=context)

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            super().call_soon(self._begin_cycle)

    def _make_progress(self) -> None:
        self._progress = True
        if not self._is_scheduled:
            self._begin_cycle()  # it is the first of this cycle

    def _begin_cycle(self) -> None:
        self._is_scheduled = False
        self.cycles += 1
        if self._left is not None:
            self._left -= 1
            if -self._times < self._left <= 0:
                self.happened += self._action() is not False
                self._progress = True
        if self._progress:
            self._progress = False
            self._schedule()

    def arm(self, action: Callable[[], object]) -> None:
        """Begin to count; whatever `action` returns, False means that it came too late."""
        self._action, self._left = action, self._nth

    def disarm(self) -> None:
        self._left = None

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Like ``asyncio.run``: at the end every task that is left is cancelled and waited for."""
        try:
            return self.run_until_complete(main)
        finally:
            self.disarm()
            self.run_until_complete(_cancel_the_others())
            self.run_until_complete(self.shutdown_asyncgens())
            self.close()


def _start_eagerly(loop: Any, work: Any, *, eager_start: bool | None = None, **options: Any) -> Any:
    # uvloop 0.23 passes eager_start on, which asyncio's own factory takes from Python 3.13.3 on.
    return getattr(asyncio, "eager_task_factory")(loop, work, **options)  # noqa: B009  mypy checks for 3.11, too


class AsyncioCycleLoop(CycleLoop, asyncio.SelectorEventLoop):
    """asyncio's own."""


LOOPS: dict[str, type[CycleLoop]] = {"asyncio": AsyncioCycleLoop}

if uvloop is not None:
    # Made here, because in uvloop's stubs its loop is none of asyncio's.
    LOOPS["uvloop"] = type("UvloopCycleLoop", (CycleLoop, uvloop.Loop), {})
    uvloop.new_event_loop().close()  # with the first one libuv opens a pipe that it keeps


async def _cancel_the_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def cycle_loops(*, times: int = 1, eager: bool = False, kind: str = "asyncio", most: int = 300) -> Iterator[CycleLoop]:
    """Loops for n = 1, 2, …, until one has run in which nothing happened, because all was over before."""
    for nth in range(1, most):
        loop = LOOPS[kind](nth, times=times, eager=eager)
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

_PLAINEST, _LEAST_ALIKE = ("asyncio", False), ([*LOOPS][-1], TASK_FACTORIES[-1])

on_every_loop = pytest.mark.parametrize(
    ("kind", "eager"),
    [
        pytest.param(
            *loop,
            id=f"{loop[0]}, eager tasks" if loop[1] else loop[0],
            marks=() if loop in (_PLAINEST, _LEAST_ALIKE) else exhaustive,
        )
        for loop in itertools.product(LOOPS, TASK_FACTORIES)
    ],
)
