"""One run under way: the model calls, what follows from each, and what is appended.

Rules kept here:

- A run appends only whole exchanges, one batch per model call: the input together with the first response,
  calls together with their outputs. A step that fails or is cancelled adds nothing.
- So a run that is given the input of an unfinished turn goes on with it, and repeats nothing.
- Every failure says what the session holds.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import AgentMemError, MaxTurnsExceeded, ModelError, RunError
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
from ..replay import is_call, is_output, replay_window, whole_exchanges
from .agent import Agent, handoff_output
from .config import RunConfig
from .context import RunContext
from .history import SessionLike, history_for, last_agent, unfinished_turn
from .model import Model, ModelRequest, ModelResponse, StreamingModel, Usage, resolve_model
from .result import RunResult
from .stream import Emit, TextDelta
from .tools import ToolOutput, run_calls


@dataclass
class Run:
    """One run under way.

    Attributes:
        agent: who is speaking.
        given: the run's input.
        context: the caller's object, for tools and instructions.
        emit: takes each event of a streamed run; None where nobody looks.
        sent: what the next model call is sent.
        unstored: the input, until it is stored.
        exchanges: tool outputs that the session holds of this turn.
    """

    agent: Agent
    session: SessionLike | None
    given: list[Item]
    config: RunConfig
    context: object = None
    emit: Emit | None = None
    sent: list[Item] = field(default_factory=list)
    replayed: list[Item] = field(default_factory=list)
    unstored: list[Item] = field(default_factory=list)
    new_items: list[RunItem] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    exchanges: int = 0

    async def finish(self, max_turns: int, emit: Emit | None = None) -> RunResult:
        """All of it, from reading the history to the last answer; `emit` takes the events, if anybody looks."""
        self.emit = emit
        with self._failures_tell_state():
            await self._load()
            for _ in range(max_turns):
                result = await self._step()
                if result is not None:
                    return result
            raise MaxTurnsExceeded(f"the model still asks for tools after {max_turns} calls (max_turns)")

    async def _load(self) -> None:
        """Reads the history, and finds out whether the input is already in it."""
        window = await self._window()
        turn = await unfinished_turn(self.session, self.given, window) if self.session is not None else None
        if turn is None:
            history, current = await history_for(self.session, self.given, window), self.given
            self.unstored = self.given
        else:
            # However narrow the window: a turn that is under way is sent whole, as in the run that began it.
            window, current = whole_exchanges(window), whole_exchanges(turn)
            history = window[: max(0, len(window) - len(current))]
            self.exchanges = sum(map(is_output, current))
            self.agent = last_agent(self.agent, current)
        self.sent = await self._merged(history, current)
        self.replayed = _less(self.sent, self.unstored)

    async def _window(self) -> list[Item]:
        settings = self.config.session_settings
        if self.session is None:
            return []
        if settings is None:
            return await self.session.get_items()
        with_settings = getattr(self.session, "with_settings", None)
        if with_settings is not None:  # agentmem's: reads only as much as the window takes
            window: list[Item] = await with_settings(settings).get_items()
            return window
        return replay_window(await self.session.get_items(), settings)

    async def _merged(self, history: list[Item], current: list[Item]) -> list[Item]:
        callback = self.config.session_input_callback
        if callback is None:
            return [*history, *current]
        try:
            merged = callback(list(history), list(current))
            items = encode_items(await merged if inspect.isawaitable(merged) else merged)
        except Exception as error:
            raise RunError(f"the session_input_callback failed: {type(error).__name__}: {error}") from error
        return whole_exchanges([decode_item(item) for item in items])

    async def _step(self) -> RunResult | None:
        """One model call with all that follows from it; the result, if that was the last one."""
        speaker = self.agent
        response = await self._ask()
        self.usage += response.usage
        calls = [item for item in response.output if item.get("type") == "function_call"]
        outputs, heir = await self._answer(calls)
        produced = [*response.output, *(output.raw_item for output in outputs)]
        asks_for_more = _asks_for_more(produced)
        final = None if calls or asks_for_more else speaker.parse(_last_text(response.output))
        await self._store(produced)
        self.new_items += [_typed(item, speaker) for item in response.output]
        self.new_items += outputs
        self.exchanges += len(outputs)
        self.agent = heir
        if calls and not asks_for_more:
            return None
        return RunResult(final, self.new_items, self.usage, heir, self.given, self.replayed)

    async def _ask(self) -> ModelResponse:
        config = self.config
        model = self.agent.resolve_model() if config.model is None else resolve_model(config.model)
        request = ModelRequest(
            input=list(self.sent),
            instructions=await self.agent.resolve_instructions(self._run_context()),
            tools=self.agent.tool_specs(),
            text_format=self.agent.text_format,
            settings=config.model_settings or {},
        )
        try:
            return await (model.respond(request) if self.emit is None else self._ask_streamed(model, request))
        except RunError:
            raise
        except Exception as error:
            raise ModelError(f"{type(model).__name__} failed: {type(error).__name__}: {error}") from error

    async def _ask_streamed(self, model: Model, request: ModelRequest) -> ModelResponse:
        response: ModelResponse | None = None
        whole = 0  # items that were shown
        if not isinstance(model, StreamingModel):
            response = await model.respond(request)
            for item in response.output:
                if _kind(item) == "message":
                    self._show(TextDelta(message_text(item), self.agent.name))
        else:
            async with aclosing(model.stream(request)) as answer:
                async for part in answer:
                    if isinstance(part, str):
                        self._show(TextDelta(part, self.agent.name))
                    elif isinstance(part, ModelResponse):
                        response = part
                    else:
                        self._show(_typed(part, self.agent))
                        whole += 1
        if response is None:
            raise ModelError(f"{type(model).__name__} ended its stream without a ModelResponse")
        for item in response.output[whole:]:
            self._show(_typed(item, self.agent))
        return response

    async def _answer(self, calls: Sequence[Item]) -> tuple[list[RunItem], Agent]:
        """The outputs of the calls, in their order, and the agent that goes on."""
        agent, targets = self.agent, self.agent.handoff_targets()
        tool_outputs = iter(
            await run_calls(
                [call for call in calls if call.get("name") not in targets],
                {tool.name: tool for tool in agent.tools},
                self._run_context(),
                lambda call, output: self._show(_tool_output(call, output, agent)),
            )
        )
        heir: Agent | None = None
        outputs: list[RunItem] = []
        for call in calls:
            target = targets.get(str(call.get("name")))
            if target is None:
                outputs.append(_tool_output(call, next(tool_outputs), agent))
                continue
            if heir is None:
                heir = target
                item = _output_of(call, handoff_output(target))
                outputs.append(HandoffOutputItem(item, agent.name, target_agent_name=target.name))
            else:
                text = f"Error: the conversation was already handed over to {heir.name}"
                outputs.append(_tool_output(call, ToolOutput(text, text), agent))
            self._show(outputs[-1])
        return outputs, heir or agent

    async def _store(self, produced: list[Item]) -> None:
        if self.session is not None:
            await self.session.add_items([*self.unstored, *produced])
        self.unstored = []
        self.sent += produced

    def _show(self, event: TextDelta | RunItem) -> None:
        if self.emit is not None:
            self.emit(event)

    def _run_context(self) -> RunContext[Any]:
        return RunContext(self.context, self.agent.name, None if self.session is None else self.session.session_id)

    @contextmanager
    def _failures_tell_state(self) -> Iterator[None]:
        try:
            yield
        except AgentMemError as error:
            if self.session is not None:
                error.args = (f"{error}; {self._state(self.session.session_id)}",)
            raise

    def _state(self, name: str) -> str:
        if not self.exchanges:
            return f"nothing was added to the session {name!r}"
        plural = "" if self.exchanges == 1 else "s"
        return (
            f"the session {name!r} holds the input and {self.exchanges} tool exchange{plural} of this turn; "
            "run again with the same input (or an empty list) to go on from there"
        )


def _tool_output(call: Item, output: ToolOutput, agent: Agent) -> RunItem:
    return ToolCallOutputItem(_output_of(call, output.text), agent.name, output=output.value)


def _output_of(call: Item, text: str) -> Item:
    return {"type": "function_call_output", "call_id": call.get("call_id"), "output": text}


def _typed(item: Item, agent: Agent) -> RunItem:
    kind = _kind(item)
    if kind == "message":
        return MessageOutputItem(item, agent.name)
    if kind == "reasoning":
        return ReasoningItem(item, agent.name)
    if kind == "function_call" and item.get("name") in agent.handoff_targets():
        return HandoffCallItem(item, agent.name)
    if kind.endswith("_output"):  # a hosted tool that reports in an item of its own
        return ToolCallOutputItem(item, agent.name, output=item.get("output"))
    if kind.endswith("_call"):
        return ToolCallItem(item, agent.name)
    return RunItem(item, agent.name)


def _kind(item: Item) -> str:
    return str(item.get("type", "message"))


def _last_text(output: list[Item]) -> str:
    messages = [item for item in output if _kind(item) == "message"]
    return message_text(messages[-1]) if messages else ""


def _asks_for_more(produced: list[Item]) -> bool:
    """Whether the model asks for what only the caller can give, such as an approval."""
    whole = set(map(id, whole_exchanges(produced)))
    return any(is_call(item) and id(item) not in whole for item in produced)


def _less(items: list[Item], without: list[Item]) -> list[Item]:
    """The items less one, the latest, for each equal one in `without`."""
    left = items[::-1]
    for item in without:
        if item in left:
            left.remove(item)
    return left[::-1]
