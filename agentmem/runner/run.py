"""The Runner: what callers see of a run. What happens in one is in ``loop``.

Rules kept here:

- Runs on one session in one process take turns.
- An agent of the Agents SDK is handed to the SDK's own Runner, with the session.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypedDict, overload

from pydantic import BaseModel

from ..items import Item, decode_item, encode_items
from .agent import Agent
from .config import RunConfig
from .history import SessionLike, SyncSessionLike, async_session
from .loop import Run
from .result import RunResult
from .sdk import sdk_runner
from .stream import Emit, RunStream
from .turnstile import turnstile

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RunOptions(TypedDict, total=False):
    """The keyword arguments that all ways to run have; :meth:`Runner.run` describes them."""

    session: SessionLike | SyncSessionLike | None
    max_turns: int
    context: object
    run_config: Any


class Runner:
    """Runs agents. It holds no state, so it is used without making one: ``await Runner.run(agent, "Hi")``.

    **Agents of the Agents SDK.** Each method takes one, too: the SDK's own Runner does the run, with the session,
    and gives back the SDK's result. `input`, `context` and `run_config` are then what the SDK takes. For its
    further options call its Runner yourself; agentmem's sessions work there just as well.
    """

    @overload
    @staticmethod
    async def run(
        agent: Agent, input: str | Iterable[Item | BaseModel], **options: Unpack[RunOptions]
    ) -> RunResult: ...
    @overload
    @staticmethod
    async def run(agent: Any, input: Any, **options: Unpack[RunOptions]) -> Any: ...

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
        """Runs the agent on the input until a model answers without asking for a tool.

        Each model call gets the session's replay window (less incomplete exchanges), the input, and what the run
        has produced. After each one, what is new is appended in one batch: the first time with the input.

        **Requests.** A model may ask for what only the caller can give: an approval, a computer's action, the output
        of a custom tool. That ends the run; the request is the last of ``new_items``' calls without an output, and
        waits in the session. It is replayed with its answer: give that as the next run's input.

        **Retrying.** If a run fails, run again with the same input, or with an empty list. Where the session
        ends with that input followed by tool outputs and no answer, the run goes on from there: it neither
        stores the input again nor repeats the tools, and starts with the agent that was handed to.

        Args:
            agent: where to begin.
            input: a user message, or items in the Responses input format. An empty list goes on with what
                the session holds.
            session: an agentmem session, async or sync, or any object with the Agents SDK's ``Session``
                protocol. None: nothing is remembered.
            max_turns: the most model calls of this run, 1 or more.
            context: any object of yours, for tools and instruction functions, in a
                :class:`~agentmem.runner.RunContext`; the model never sees it.
            run_config: an :class:`~agentmem.runner.RunConfig`: settings of this run alone.

        Returns:
            A :class:`RunResult`; the SDK's own result for an agent of the SDK.

        Concurrency: runs on one session in this process wait for each other, first come, first served, also
        across threads and event loops (for foreign sessions: runs on the same object). Tool calls of one
        response run at the same time.

        Cancellation: the model call or the tools under way are cancelled (a tool in a worker thread is waited
        for, unless it has a time limit) and nothing of that step is stored; steps before it are.

        Raises:
            ModelError: the model could not be called or its answer cannot be used.
            MaxTurnsExceeded: the model still asked for tools after `max_turns` calls. What they gave is stored.
            ToolError: a tool with ``raise_errors`` failed; its step is not stored.
            RunError: the instructions' function or the ``session_input_callback`` failed; or a tool started a
                run on the session of its own run.
            InvalidItemError: an item of the input (or of a foreign model's answer) is no faithful JSON.
            StorageError, SessionClosedError: from the session.
            TypeError, ValueError: an argument that is none.

            The message of each of agentmem's errors ends with what the session now holds of this turn.
        """
        core = async_session(session)
        runner = sdk_runner(agent, run_config)
        if runner is not None:
            async with _turn(core):
                return await runner.run(
                    agent, input, session=core, max_turns=max_turns, context=context, run_config=run_config
                )
        run = _checked_run(agent, input, core, max_turns, context, run_config)
        async with _turn(core):
            return await run.finish(max_turns)

    @overload
    @staticmethod
    def run_sync(agent: Agent, input: str | Iterable[Item | BaseModel], **options: Unpack[RunOptions]) -> RunResult: ...
    @overload
    @staticmethod
    def run_sync(agent: Any, input: Any, **options: Unpack[RunOptions]) -> Any: ...

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
        """:meth:`run`, for code that is not async: scripts, threads, notebooks, also while a loop is running.

        It runs on agentmem's background event loop, and blocks the calling thread until it is done.

        Raises:
            RuntimeError: called on that background loop itself; ``await Runner.run(...)`` there.
            Everything else: see :meth:`run`.
        """
        from ..blocking import run_blocking

        async def run() -> Any:
            return await Runner.run(
                agent, input, session=session, max_turns=max_turns, context=context, run_config=run_config
            )

        return run_blocking(run)

    @overload
    @staticmethod
    def run_streamed(
        agent: Agent, input: str | Iterable[Item | BaseModel], **options: Unpack[RunOptions]
    ) -> RunStream: ...
    @overload
    @staticmethod
    def run_streamed(agent: Any, input: Any, **options: Unpack[RunOptions]) -> Any: ...

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
        """:meth:`run`, event by event while it happens: text, calls, tool outputs, handoffs, last the result.

        The run begins when the first event is asked for. What is stored when, and the errors, are those of
        :meth:`run`; :class:`RunStream` says what is stored when it is closed or cancelled midway.

        Returns:
            A :class:`RunStream`; the SDK's ``RunResultStreaming`` for an agent of the SDK, whose runs on one
            session do not wait for each other.

        Raises:
            TypeError, ValueError, InvalidItemError: an argument that is none. Everything else comes from the stream.
        """
        core = async_session(session)
        runner = sdk_runner(agent, run_config)
        if runner is not None:
            return runner.run_streamed(
                agent, input, session=core, max_turns=max_turns, context=context, run_config=run_config
            )
        run = _checked_run(agent, input, core, max_turns, context, run_config)

        async def start(emit: Emit) -> RunResult:
            async with _turn(core):
                return await run.finish(max_turns, emit)

        return RunStream(start)


def _input_items(given: str | Iterable[Item | BaseModel]) -> list[Item]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, Iterable):
        raise TypeError(f"input is a string or a list of items, got {type(given).__name__}")
    # A copy in plain JSON: what is stored and what is sent are the same, whatever the caller does to his.
    return [decode_item(text) for text in encode_items(given)]


def _checked_run(
    agent: object, input: Any, session: SessionLike | None, max_turns: object, context: object, run_config: object
) -> Run:
    if not isinstance(agent, Agent):
        kind = f"{type(agent).__module__}.{type(agent).__name__}"
        raise TypeError(f"agent is an agentmem.Agent or an agent of the Agents SDK, got {kind}")
    config = RunConfig() if run_config is None else run_config
    if not isinstance(config, RunConfig):
        raise TypeError(f"run_config is an agentmem.RunConfig, got {run_config!r}")
    given = _input_items(input)
    if not given and session is None:
        raise ValueError("the input is empty and there is no session to go on with")
    if isinstance(max_turns, bool) or not isinstance(max_turns, int) or max_turns < 1:
        raise ValueError(f"max_turns is an int of 1 or more, got {max_turns!r}")
    return Run(agent, session, given, config, context)


def _turn(session: SessionLike | None) -> AbstractAsyncContextManager[None]:
    if session is None:
        return nullcontext()
    key = getattr(session, "run_key", None)
    return turnstile.turn(("object", id(session)) if key is None else key, session.session_id)
