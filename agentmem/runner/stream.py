"""A streamed run: the caller gets its events while they happen.

Rules:

- The run is a task of its own. So it goes on while the caller is busy, and the next run on its session can begin as
  soon as it ends. Its events wait in memory until the caller takes them.
- The run starts when the caller asks for the first event. A caller who leaves early cancels the run, and waits until it
  has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

from ..cancellation import despite_cancellation
from ..errors import RunError
from ..event_loop import running_loop
from ..handle import refuse_copies
from ..items import RunItem
from .result import RunResult


@dataclass(frozen=True, repr=False)
class TextDelta:
    """A piece of the text (or refusal) of a message, in the order in which the model writes them.

    Attributes:
        text: the piece.
        agent_name: the name of the active agent.
    """

    text: str
    agent_name: str

    def __repr__(self) -> str:
        return f"<TextDelta of {self.agent_name!r}: {len(self.text)} characters>"


RunEvent: TypeAlias = "TextDelta | RunItem | RunResult"
"""An event of a streamed run: a piece of text; an item of ``agentmem.items`` when it is complete (a message, a call, a
handoff, or the output of a tool as soon as that tool is done); and, as the last event, the result."""

OnEvent = Callable[["TextDelta | RunItem"], None]
"""A function that takes each event but the result."""


class RunStream:
    """The events of one run, in the order in which they happen. Created by :meth:`Runner.run_streamed`.

    ::

        async with Runner.run_streamed(agent, "Hi", session=session) as stream:
            async for event in stream:
                if isinstance(event, TextDelta):
                    print(event.text, end="")

    One task can iterate over it, once. If the run fails, its error is raised after the events that came before it. The
    events of a model call that fails later (its text, its calls) were seen, but are not stored.

    The run is cancelled, with its model call or its tools, when the ``async with`` block is left early, when
    :meth:`close` is called, or when the task that iterates is cancelled. The session then holds what was complete: the
    input together with the first response, and calls together with their outputs. It holds nothing of the run if not
    even the first response was complete. Running again with the same input continues from there.
    """

    __reduce_ex__ = refuse_copies

    def __init__(self, start: Callable[[OnEvent], Coroutine[Any, Any, RunResult]]) -> None:
        self._start = start
        self._events: asyncio.Queue[TextDelta | RunItem | None] = asyncio.Queue()
        self._task: asyncio.Task[RunResult] | None = None
        self._is_used = False  # iterated or closed
        self._is_closed = False
        self._is_outcome_delivered = False

    def __repr__(self) -> str:
        if self._task is None:
            return "<RunStream: not started>"
        return "<RunStream: ended>" if self._task.done() else "<RunStream: running>"

    def __aiter__(self) -> AsyncGenerator[RunEvent, None]:
        """Return an iterator over the events. After them it raises the error of a failed run; see :meth:`Runner.run`.

        Raises:
            RuntimeError: the stream was iterated or closed before.
            RunError: by the iterator: the stream was closed meanwhile, in another task.
        """
        if self._is_used:
            raise RuntimeError("a run's stream is iterated once; start another run")
        self._is_used = True
        return self._iterate()

    async def _iterate(self) -> AsyncGenerator[RunEvent, None]:
        if self._is_closed:
            raise RunError("the run's stream was closed before the run began; nothing was stored")
        try:
            self._task = running_loop().create_task(self._start(self._events.put_nowait))
            self._task.add_done_callback(lambda task: self._events.put_nowait(None))
            while (event := await self._events.get()) is not None:
                yield event
            self._is_outcome_delivered = True
            if self._is_closed and self._task.cancelled():
                raise RunError(
                    "the run's stream was closed before the run ended; the session holds the steps that were complete, "
                    "and running again with the same input continues from there"
                )
            yield self._task.result()
        finally:
            await self._cancel_and_wait()

    async def result(self) -> RunResult:
        """Run to the end, and return the result without the other events.

        Raises:
            RuntimeError: the stream was iterated or closed before.
            Everything that :meth:`Runner.run` raises.
        """
        *_, last = [event async for event in self]
        assert isinstance(last, RunResult)  # the last event of a run that did not fail
        return last

    async def close(self) -> None:
        """Cancel the run, if it has not ended, and wait until it has. A second call does nothing.

        It may be called in another task than the one that iterates. That one still gets the events that came before,
        and then a RunError which says that the stream was closed.

        Raises:
            The error of a run that had failed before, if the iteration has not raised it yet.
        """
        self._is_used = self._is_closed = True
        await self._cancel_and_wait()
        if self._task is not None and not self._is_outcome_delivered and not self._task.cancelled():
            self._is_outcome_delivered = True
            self._task.result()

    async def _cancel_and_wait(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await despite_cancellation(_wait_until_done(self._task))

    async def __aenter__(self) -> RunStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            await self.close()
        else:
            self._is_outcome_delivered = True  # the caller's error is raised instead
            await self.close()


async def _wait_until_done(task: asyncio.Task[Any]) -> None:
    await asyncio.wait([task])
