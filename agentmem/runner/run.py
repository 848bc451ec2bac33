"""The Runner: replays a session to a model, runs its tools, follows handoffs, and appends what happened.

Rules kept here:

- A run appends only whole exchanges, one batch per model call: the input together with the first response,
  calls together with their outputs. A step that fails or is cancelled adds nothing.
- So a run that is given the input of an unfinished turn goes on with it, and repeats nothing.
- Runs on one session in one process take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field

from pydantic import BaseModel

from ..errors import MaxTurnsExceeded, ModelError, RunError
from ..items import (
    HandoffCallItem,
    HandoffOutputItem,
    Item,
    MessageOutputItem,
    ReasoningItem,
    RunItem,
    ToolCallItem,
    ToolCallOutputItem,
    decode_item,
    encode_items,
    message_text,
)
from ..replay import is_output, whole_exchanges
from .agent import Agent, handoff_output
from .history import SessionLike, SyncSessionLike, async_session, last_agent, unfinished_turn
from .model import ModelRequest, ModelResponse, Usage
from .result import RunResult
from .tools import ToolOutput, run_calls
from .turnstile import turnstile


class Runner:
    """Runs agents. It holds no state, so it is used without making one: ``await Runner.run(agent, "Hi")``."""

    @staticmethod
    async def run(
        agent: Agent,
        input: str | Iterable[Item | BaseModel],
        *,
        session: SessionLike | SyncSessionLike | None = None,
        max_turns: int = 10,
    ) -> RunResult:
        """Runs the agent on the input until a model answers without asking for a tool.

        Each model call gets the session's replay window (less incomplete exchanges), the input, and what the run
        has produced. After each one, what is new is appended in one batch: the first time with the input.

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

        Concurrency: runs on one session in this process wait for each other, first come, first served, also
        across threads and event loops (for foreign sessions: runs on the same object). Tool calls of one
        response run at the same time.

        Cancellation: the model call or the tools under way are cancelled (a tool in a worker thread is waited
        for) and nothing of that step is stored; steps before it are.

        Raises:
            ModelError: the model could not be called or its answer cannot be used. The message says what
                the session holds.
            MaxTurnsExceeded: the model still asked for tools after `max_turns` calls. What they gave is stored.
            ToolError: a tool with ``raise_errors`` failed; its step is not stored.
            RunError: a tool started a run on the session of its own run.
            InvalidItemError: an item of the input (or of a foreign model's answer) is no faithful JSON.
            StorageError, SessionClosedError: from the session.
            TypeError, ValueError: an argument that is none.
        """
        given = _input_items(input)
        core = async_session(session)
        _check(agent, given, core, max_turns)
        async with _turn(core):
            run = _Run(agent, core, given)
            await run.load()
            for _ in range(max_turns):
                result = await run.step()
                if result is not None:
                    return result
            error = MaxTurnsExceeded(f"the model still asks for tools after {max_turns} calls (max_turns)")
            run.tell_state(error)
            raise error

    @staticmethod
    def run_sync(
        agent: Agent,
        input: str | Iterable[Item | BaseModel],
        *,
        session: SessionLike | SyncSessionLike | None = None,
        max_turns: int = 10,
    ) -> RunResult:
        """:meth:`run`, for code that is not async: scripts, threads, notebooks, also while a loop is running.

        It runs on agentmem's background event loop, and blocks the calling thread until it is done.

        Raises:
            RuntimeError: called on that background loop itself; ``await Runner.run(...)`` there.
            Everything else: see :meth:`run`.
        """
        from ..sync import run_blocking

        return run_blocking(Runner.run, agent, input, session=session, max_turns=max_turns)


@dataclass
class _Run:
    """One run under way.

    Attributes:
        agent: who is speaking.
        sent: what the next model call is sent.
        unstored: the input, until it is stored.
        exchanges: tool outputs that the session holds of this turn.
    """

    agent: Agent
    session: SessionLike | None
    given: list[Item]
    sent: list[Item] = field(default_factory=list)
    replayed: list[Item] = field(default_factory=list)
    unstored: list[Item] = field(default_factory=list)
    new_items: list[RunItem] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    exchanges: int = 0

    async def load(self) -> None:
        """Reads the history, and finds out whether the input is already in it."""
        window = await self.session.get_items() if self.session is not None else []
        turn = await unfinished_turn(self.session, self.given, window) if self.session is not None else None
        if turn is None:
            # Together, because the input may answer what the history asks (an approval).
            given = {id(item) for item in self.given}
            whole = whole_exchanges([*window, *self.given])
            self.replayed = [item for item in whole if id(item) not in given]
            self.sent = [*self.replayed, *self.given]
            self.unstored = self.given
        else:
            window, turn = whole_exchanges(window), whole_exchanges(turn)
            # However narrow the window: a turn that is under way is sent whole, as in the run that began it.
            self.replayed = window if len(window) >= len(turn) else turn
            self.sent = list(self.replayed)
            self.exchanges = sum(map(is_output, turn))
            self.agent = last_agent(self.agent, turn)

    async def step(self) -> RunResult | None:
        """One model call with all that follows from it; the result, if that was the last one."""
        response = await self._ask()
        self.usage += response.usage
        speaker = self.agent
        calls = [item for item in response.output if item.get("type") == "function_call"]
        try:
            final = None if calls else speaker.parse(_last_text(response.output))
            outputs, heir = await _answer_calls(speaker, calls)
        except RunError as error:  # the text is no output_type; or a ToolError
            self.tell_state(error)
            raise
        await self._store([*response.output, *(output.raw_item for output in outputs)])
        handoffs = speaker.handoff_targets()
        self.new_items += [_typed(item, speaker, handoffs) for item in response.output]
        self.new_items += outputs
        self.exchanges += len(outputs)
        self.agent = heir
        if calls:
            return None
        return RunResult(final, self.new_items, self.usage, speaker, self.given, self.replayed)

    async def _ask(self) -> ModelResponse:
        model = self.agent.resolve_model()
        request = ModelRequest(
            input=list(self.sent),
            instructions=self.agent.instructions,
            tools=self.agent.tool_specs(),
            text_format=self.agent.text_format,
        )
        try:
            return await model.respond(request)
        except RunError as error:
            self.tell_state(error)
            raise
        except Exception as error:
            failure = ModelError(f"{type(model).__name__} failed: {type(error).__name__}: {error}")
            self.tell_state(failure)
            raise failure from error

    async def _store(self, produced: list[Item]) -> None:
        if self.session is not None:
            await self.session.add_items([*self.unstored, *produced])
        self.unstored = []
        self.sent += produced

    def tell_state(self, error: RunError) -> None:
        """Adds to the error's message what the session holds."""
        if self.session is None:
            return
        name = self.session.session_id
        if self.exchanges:
            plural = "" if self.exchanges == 1 else "s"
            state = (
                f"the session {name!r} holds the input and {self.exchanges} tool exchange{plural} of this turn; "
                "run again with the same input (or an empty list) to go on from there"
            )
        else:
            state = f"nothing was added to the session {name!r}"
        error.args = (f"{error}; {state}",)


def _input_items(given: str | Iterable[Item | BaseModel]) -> list[Item]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, Iterable):
        raise TypeError(f"input is a string or a list of items, got {type(given).__name__}")
    # A copy in plain JSON: what is stored and what is sent are the same, whatever the caller does to his.
    return [decode_item(text) for text in encode_items(given)]


def _check(agent: object, given: list[Item], session: SessionLike | None, max_turns: object) -> None:
    if not isinstance(agent, Agent):
        raise TypeError(f"agent is an agentmem.Agent, got {type(agent).__module__}.{type(agent).__name__}")
    if not given and session is None:
        raise ValueError("the input is empty and there is no session to go on with")
    if isinstance(max_turns, bool) or not isinstance(max_turns, int) or max_turns < 1:
        raise ValueError(f"max_turns is an int of 1 or more, got {max_turns!r}")


def _turn(session: SessionLike | None) -> AbstractAsyncContextManager[None]:
    if session is None:
        return nullcontext()
    key = getattr(session, "run_key", None)
    return turnstile.turn(("object", id(session)) if key is None else key, session.session_id)


async def _answer_calls(agent: Agent, calls: Sequence[Item]) -> tuple[list[RunItem], Agent]:
    """The outputs of the calls, in their order, and the agent that goes on."""
    targets = agent.handoff_targets()
    tool_calls = [call for call in calls if call.get("name") not in targets]
    tool_outputs = iter(await run_calls(tool_calls, {tool.name: tool for tool in agent.tools}))
    heir: Agent | None = None
    outputs: list[RunItem] = []
    for call in calls:
        target = targets.get(str(call.get("name")))
        if target is None:
            outputs.append(_tool_output(call, next(tool_outputs), agent))
        elif heir is None:
            heir = target
            item = _output_of(call, handoff_output(target))
            outputs.append(HandoffOutputItem(item, agent.name, target_agent_name=target.name))
        else:
            text = f"Error: the conversation was already handed over to {heir.name}"
            outputs.append(_tool_output(call, ToolOutput(text, text), agent))
    return outputs, heir or agent


def _tool_output(call: Item, output: ToolOutput, agent: Agent) -> RunItem:
    return ToolCallOutputItem(_output_of(call, output.text), agent.name, output=output.value)


def _output_of(call: Item, text: str) -> Item:
    return {"type": "function_call_output", "call_id": call.get("call_id"), "output": text}


def _typed(item: Item, agent: Agent, handoffs: dict[str, Agent]) -> RunItem:
    kind = str(item.get("type", "message"))
    if kind == "message":
        return MessageOutputItem(item, agent.name)
    if kind == "reasoning":
        return ReasoningItem(item, agent.name)
    if kind == "function_call" and item.get("name") in handoffs:
        return HandoffCallItem(item, agent.name)
    if kind.endswith("_output"):  # a hosted tool that reports in an item of its own
        return ToolCallOutputItem(item, agent.name, output=item.get("output"))
    if kind.endswith("_call"):
        return ToolCallItem(item, agent.name)
    return RunItem(item, agent.name)


def _last_text(output: list[Item]) -> str:
    messages = [item for item in output if item.get("type", "message") == "message"]
    return message_text(messages[-1]) if messages else ""
