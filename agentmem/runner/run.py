"""The Runner: the interface that callers use. What happens in a run is in ``loop``.

Rules:

- In one process, one run at a time on each session.
- An agent of the Agents SDK is handed over to the SDK's own Runner, together with the session.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, overload

from pydantic import BaseModel

from ..items import Item, decode_item, encode_items
from .agent import Agent
from .config import RunConfig
from .history import SessionLike, SyncSessionLike, unwrap_session
from .loop import Run
from .result import RunResult
from .run_queue import STEP_WAIT_S, run_queue
from .sdk import own_connections, sdk_runner
from .stream import OnEvent, RunStream

SDK_RUN_WAIT_S = 600.0
"""How long a run waits for a run of the Agents SDK that was under way when it came. The SDK's Runner does not say when
it is in a tool, so all of it counts as one; this is as long as the ``openai`` client waits for an answer."""


class Runner:
    """Runs agents. It has no state, so no object of it is needed: ``await Runner.run(agent, "Hi")``.

    **Agents of the Agents SDK.** Every method also accepts one. Then the SDK's own Runner does the run, with the
    session, and its result is returned. ``input``, ``context`` and ``run_config`` are those that the SDK accepts. For
    its other options, call its Runner directly; it works with agentmem's sessions as well.
    """

    @overload
    @staticmethod
    async def run(
        agent: Agent,
        input: str | Iterable[Item | BaseModel],
        *,
        session: SessionLike | SyncSessionLike | None = None,
        max_turns: int = 10,
        context: object = None,
        run_config: RunConfig | None = None,
    ) -> RunResult: ...
    @overload
    @staticmethod
    async def run(
        agent: Any,
        input: Any,
        *,
        session: SessionLike | SyncSessionLike | None = None,
        max_turns: int = 10,
        context: object = None,
        run_config: Any = None,
    ) -> Any: ...

    @staticmethod
    async def run(
        agent: Any,
        input: Any,
        *,
        session: SessionLike | SyncSessionLike | None = None,
        max_turns: int = 10,
        context: object = None,
        run_config: Any = None,
    ) -> Any:
        """Run the agent on the input until the model answers without calling a tool.

        Each model call is sent the session's replay window without incomplete exchanges, the input, and what the run
        has produced so far. After each model call, the new items are appended in one batch; the first batch includes
        the input.

        **Requests to the caller.** A model can ask for something that only the caller can give: an approval, an action
        on a computer, the output of a custom tool. The run then ends. The request is the call without an output in
        ``new_items``, and it stays in the session. Pass the answer as the input of the next run; the request is sent
        together with it, and with the program that made it, if one did.

        **Asynchronous calls.** A call with ``"async": true`` does not end the run. Unless it is a function call of a
        tool of the agent, which is run, it stays pending: it is sent without an output until a later run has the output
        in its input.

        **Retrying.** If a run fails, run again with the same input, or with an empty list. If the last turn of the
        session has that input, item by item, and ends with outputs that the model has not answered, the run continues
        from there. It does not store the input again and does not repeat the tools, and it starts with the agent that
        was active.

        Args:
            agent: the agent that is active first.
            input: a user message, or items in the Responses input format. An empty list continues with what the
                session holds.
            session: an agentmem session, async or sync, or any object with the Agents SDK's ``Session`` protocol.
                None: nothing is remembered.
            max_turns: the most model calls of this run; 1 or more.
            context: any object, for tools and instruction functions. They get it in a
                :class:`~agentmem.runner.RunContext`; it is never sent to the model.
            run_config: an :class:`~agentmem.runner.RunConfig` with settings of this run.

        Returns:
            A :class:`RunResult`. For an agent of the SDK, the SDK's result.

        Concurrency: runs on one session wait for each other in the order of their calls, also across the threads and
        event loops of this process. (For a session that is not agentmem's: runs on the same object.) Runs that would
        wait for each other are refused. The tool calls of one response run at the same time. Plain functions of yours
        (tools, instructions, callbacks) run in threads of their own, async ones on the event loop.

        Cancellation: the model call or the tools of the moment are cancelled, and nothing of them is stored; what was
        complete before is. A function in a thread cannot be cancelled and is waited for, unless it is a tool with a
        time limit.

        Raises:
            ModelError: the model could not be called, or its answer is unusable.
            MaxTurnsExceeded: the model still asked for tools after ``max_turns`` calls. The outputs of the last ones
                are stored.
            ToolError: a tool with ``raise_errors=True`` failed. Nothing of the model call that asked for it is stored.
            RunError: the instructions function or the ``session_input_callback`` failed; or this run was started by a
                tool and would wait for the run of that tool, directly (on the same session) or through other runs; or
                it waited for ``RunConfig.session_wait_s``.
            InvalidItemError: an item of the input, or of the answer of a model of your own, has no faithful JSON form.
            StorageError: the session's database failed; ``agentmem.errors`` lists the kinds.
            SessionClosedError: the session was closed.
            TypeError: an argument has the wrong type.
            ValueError: ``max_turns`` is less than 1, or the input is empty and there is no session.

            The message of each error of agentmem's that is raised in the run ends with what the session now holds of
            this turn.
        """
        return await _prepare(agent, input, session, max_turns, context, run_config)()

    @overload
    @staticmethod
    def run_sync(
        agent: Agent,
        input: str | Iterable[Item | BaseModel],
        *,
        session: SessionLike | SyncSessionLike | None = None,
        max_turns: int = 10,
        context: object = None,
        run_config: RunConfig | None = None,
    ) -> RunResult: ...
    @overload
    @staticmethod
    def run_sync(
        agent: Any,
        input: Any,
        *,
        session: SessionLike | SyncSessionLike | None = None,
        max_turns: int = 10,
        context: object = None,
        run_config: Any = None,
    ) -> Any: ...

    @staticmethod
    def run_sync(
        agent: Any,
        input: Any,
        *,
        session: SessionLike | SyncSessionLike | None = None,
        max_turns: int = 10,
        context: object = None,
        run_config: Any = None,
    ) -> Any:
        """Do the same as :meth:`run`, in sync code: scripts, threads and notebooks, also while an event loop runs.

        The run is on agentmem's background event loop. The calling thread waits for it. What is sent, what is stored,
        and how to go on after an error or a request to the caller is the same as there. A model object with a client of
        its own works on one event loop only, so do not use it here and in ``await Runner.run(...)`` too.

        Args:
            agent: the agent that is active first.
            input: a user message, or items in the Responses input format. An empty list continues with what the
                session holds.
            session: an agentmem session, sync or async. None: nothing is remembered.
            max_turns: the most model calls of this run; 1 or more.
            context: any object, for tools and instruction functions. It is never sent to the model.
            run_config: an :class:`~agentmem.runner.RunConfig` with settings of this run.

        Returns:
            A :class:`RunResult`. For an agent of the SDK, the SDK's result.

        Ctrl+C ends the model call or the tools of the moment, and nothing of them is stored; what was complete before
        is. A tool in a thread is waited for, unless it has a time limit. A second Ctrl+C waits for nothing.

        Raises:
            RuntimeError: it was called on that background loop; use ``await Runner.run(...)`` there.
            BackgroundLoopError: that loop has ended.
            Everything that :meth:`run` raises.
        """
        from ..blocking import run_blocking

        # Prepared here, because to read the input may run code of the caller's: a generator, a pydantic model.
        return run_blocking(_prepare(agent, input, session, max_turns, context, run_config))

    @overload
    @staticmethod
    def run_streamed(
        agent: Agent,
        input: str | Iterable[Item | BaseModel],
        *,
        session: SessionLike | SyncSessionLike | None = None,
        max_turns: int = 10,
        context: object = None,
        run_config: RunConfig | None = None,
    ) -> RunStream: ...
    @overload
    @staticmethod
    def run_streamed(
        agent: Any,
        input: Any,
        *,
        session: SessionLike | SyncSessionLike | None = None,
        max_turns: int = 10,
        context: object = None,
        run_config: Any = None,
    ) -> Any: ...

    @staticmethod
    def run_streamed(
        agent: Any,
        input: Any,
        *,
        session: SessionLike | SyncSessionLike | None = None,
        max_turns: int = 10,
        context: object = None,
        run_config: Any = None,
    ) -> Any:
        """Do the same as :meth:`run`, and yield events meanwhile: text, calls, tool outputs, handoffs, then the result.

        The run starts when the first event is asked for. It stores the same as :meth:`run` at the same times.
        :class:`RunStream` says what is stored when it is closed or cancelled before the end.

        Returns:
            A :class:`RunStream`. For an agent of the SDK, the SDK's ``RunResultStreaming``; such runs on one session do
            not wait for each other.

        Raises:
            TypeError, ValueError, InvalidItemError: as in :meth:`run`, for an argument. The stream raises everything
                else.
        """
        async_session = unwrap_session(session)
        runner = sdk_runner(agent, run_config)
        if runner is not None:
            return runner.run_streamed(
                agent, input, session=async_session, max_turns=max_turns, context=context, run_config=run_config
            )
        run = _checked_run(agent, input, async_session, max_turns, context, run_config)

        async def start(on_event: OnEvent) -> RunResult:
            async with _hold_session(async_session, run.config.session_wait_s):
                return await run.run(max_turns, on_event)

        return RunStream(start)


def _to_items(input: str | Iterable[Item | BaseModel]) -> list[Item]:
    if isinstance(input, str):
        return [{"role": "user", "content": input}]
    if not isinstance(input, Iterable):
        raise TypeError(f"input is a string or a list of items, got {type(input).__name__}")
    # A copy in plain JSON, so that the same is stored and sent even if the caller changes the items meanwhile.
    return [decode_item(text) for text in encode_items(input)]


def _checked_run(
    agent: object, input: Any, session: SessionLike | None, max_turns: object, context: object, run_config: object
) -> Run:
    if not isinstance(agent, Agent):
        kind = f"{type(agent).__module__}.{type(agent).__name__}"
        raise TypeError(f"agent is an agentmem.Agent or an agent of the Agents SDK, got {kind}")
    config = RunConfig() if run_config is None else run_config
    if not isinstance(config, RunConfig):
        raise TypeError(f"run_config is an agentmem.RunConfig, got {run_config!r}")
    input_items = _to_items(input)
    if not input_items and session is None:
        raise ValueError("the input is empty and there is no session to go on with")
    if isinstance(max_turns, bool) or not isinstance(max_turns, int) or max_turns < 1:
        raise ValueError(f"max_turns is an int of 1 or more, got {max_turns!r}")
    return Run(agent, session, input_items, config, context)


def _prepare(
    agent: Any, input: Any, session: Any, max_turns: int, context: object, run_config: Any
) -> Callable[[], Coroutine[Any, Any, Any]]:
    """Check the arguments of a run, and return the function that does it."""
    async_session = unwrap_session(session)
    runner = sdk_runner(agent, run_config)
    if runner is not None:

        async def run_by_sdk() -> Any:
            async with _hold_session(async_session, STEP_WAIT_S), own_connections(run_config) as config:
                with run_queue.step("the Agents SDK", at_least_s=SDK_RUN_WAIT_S):
                    return await runner.run(
                        agent, input, session=async_session, max_turns=max_turns, context=context, run_config=config
                    )

        return run_by_sdk
    run = _checked_run(agent, input, async_session, max_turns, context, run_config)

    async def run_here() -> RunResult:
        async with _hold_session(async_session, run.config.session_wait_s):
            return await run.run(max_turns)

    return run_here


def _hold_session(session: SessionLike | None, step_wait_s: float | None) -> AbstractAsyncContextManager[None]:
    if session is None:
        return nullcontext()
    key = getattr(session, "run_key", None)
    key = ("object", id(session)) if key is None else key
    return run_queue.hold(key, session.session_id, step_wait_s=step_wait_s)
