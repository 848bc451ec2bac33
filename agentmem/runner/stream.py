"""A streamed run: its events while they happen.

Rules kept here:

- The run is a task of its own, so it goes on while the consumer is busy, and lets the next run on its session
  begin as soon as it is over. Events wait in memory until they are taken.
- Nothing is started before the first event is asked for. Whoever leaves early ends the run, and waits until it
  has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

from ..cancellation import despite_cancellation
from ..items import RunItem
from .result import RunResult


@dataclass(frozen=True)
class TextDelta:
    """A piece of a message's text (or refusal), in the order in which the model writes it."""

    text: str
    agent_name: str


RunEvent: TypeAlias = "TextDelta | RunItem | RunResult"
"""What a streamed run yields: pieces of text, each typed item of ``agentmem.items`` when it is whole (a message, a
call; a tool's output as soon as that tool is done; a handoff), and last the result."""

Emit = Callable[["TextDelta | RunItem"], None]


class RunStream:
    """The events of one run, oldest first; made by :meth:`Runner.run_streamed`.

    ::

        async with Runner.run_streamed(agent, "Hi", session=session) as stream:
            async for event in stream:
                if isinstance(event, TextDelta):
                    print(event.text, end="")

    It is iterated once, by one task. The error that a failed run raises comes after the events that led to it. An
    event of a model call that fails later on (its text, its calls) was seen but is not stored.

    Leaving the ``async with`` early, :meth:`close`, or cancelling the task that iterates ends the run: the model
    call or the tools under way are cancelled. The session then holds the steps that were complete, each a whole
    exchange: the input together with the first response, calls together with their outputs; nothing where not
    even the first response was. Running again with the same input goes on from there.
    """

    def __init__(self, start: Callable[[Emit], Coroutine[Any, Any, RunResult]]) -> None:
        self._start = start
        self._events: asyncio.Queue[TextDelta | RunItem | None] = asyncio.Queue()
        self._run: asyncio.Task[RunResult] | None = None
        self._begun = self._outcome_told = False

    def __aiter__(self) -> AsyncGenerator[RunEvent, None]:
        """The events; what a failed run raises is raised after them, see :meth:`Runner.run`.

        Raises:
            RuntimeError: it was iterated or closed before.
        """
        if self._begun:
            raise RuntimeError("a run's stream is iterated once; start another run")
        self._begun = True
        return self._iterate()

    async def _iterate(self) -> AsyncGenerator[RunEvent, None]:
        try:
            self._run = asyncio.get_running_loop().create_task(self._start(self._events.put_nowait))
            self._run.add_done_callback(lambda run: self._events.put_nowait(None))
            while (event := await self._events.get()) is not None:
                yield event
            self._outcome_told = True
            yield self._run.result()
        finally:
            await self._end()

    async def result(self) -> RunResult:
        """Takes the events that are left without looking at them; the result of the run.

        Raises:
            RuntimeError: it was iterated or closed before.
            Everything else: see :meth:`Runner.run`.
        """
        *_, last = [event async for event in self]
        assert isinstance(last, RunResult)  # the last event of a run that did not fail
        return last

    async def close(self) -> None:
        """End the run, if it is still under way, and wait until it has ended. Idempotent.

        Raises:
            Whatever the run had failed with, if the stream was not iterated far enough to raise it.
        """
        self._begun = True
        await self._end()
        if self._run is not None and not self._outcome_told and not self._run.cancelled():
            self._outcome_told = True
            self._run.result()

    async def _end(self) -> None:
        if self._run is not None and not self._run.done():
            self._run.cancel()
            await despite_cancellation(_ended(self._run))

    async def __aenter__(self) -> RunStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            await self.close()
        else:
            self._outcome_told = True  # the error under way is the one to raise
            await self.close()


async def _ended(run: asyncio.Task[Any]) -> None:
    await asyncio.wait([run])
