"""The loop of a run: the model calls, the tools and handoffs that follow from each, and what is stored.

Rules:

- A run appends only whole exchanges, in one batch per model call: the input together with the first response, calls
  together with their outputs. A model call that fails or is cancelled, with all that follows from it, adds nothing.
- So a run with the input of an unfinished turn can continue it, and repeats nothing.
- The message of every error says what the session now holds, or that this is in doubt.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..errors import AgentMemError, MaxTurnsExceeded, ModelError, RunError, StorageError
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
from ..replay import SessionSettings, exchange_members, is_output, replay_window
from ..threads import call_in_thread
from .agent import Agent, handoff_output
from .answer import answer_text, call_output, calls_to_run, waits_for_caller
from .config import RunConfig
from .context import RunContext
from .history import (
    SessionLike,
    UnfinishedTurn,
    agent_after,
    history_before,
    unfinished_turn,
    whole_turn,
    without_turn,
)
from .model import Model, ModelRequest, ModelResponse, StreamingModel, Usage
from .reasoning import leave_out_reasoning
from .responses_api import resolve_model
from .result import RunResult
from .run_queue import run_queue
from .stream import OnEvent, TextDelta
from .tool_calls import run_calls
from .tools import ToolOutput


@dataclass(repr=False)
class Run:
    """A run, and its state.

    Attributes:
        agent: the active agent.
        session: the session; None without one.
        input_items: the input of the run.
        config: the settings of the run.
        context: the caller's object for tools and instruction functions.
        on_event: gets each event of a streamed run; None in other runs.
        to_send: the items that the next model call is sent.
        replayed: as in the result.
        unstored_input: the input until it is stored; then an empty list.
        new_items: the items that the run has produced so far.
        usage: the sum over the model calls so far.
        stored_outputs: how many tool outputs of this turn the session holds.
        doubtful_items: how many items the session holds or not, because the write of them is in doubt.
    """

    agent: Agent
    session: SessionLike | None
    input_items: list[Item]
    config: RunConfig
    context: object = None
    on_event: OnEvent | None = None
    to_send: list[Item] = field(default_factory=list)
    replayed: list[Item] = field(default_factory=list)
    unstored_input: list[Item] = field(default_factory=list)
    new_items: list[RunItem] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    stored_outputs: int = 0
    doubtful_items: int = 0

    async def run(self, max_turns: int, on_event: OnEvent | None = None) -> RunResult:
        """Do the whole run, from reading the history to the last answer.

        Args:
            max_turns: the most model calls.
            on_event: gets the events of a streamed run.
        """
        self.on_event = on_event
        with self._session_state_in_errors():
            await self._load_history()
            for _ in range(max_turns):
                result = await self._call_model_and_tools()
                if result is not None:
                    return result
            raise MaxTurnsExceeded(f"the model still asks for tools after {max_turns} calls (max_turns)")

    async def _load_history(self) -> None:
        """Read the history, and find out whether the input is the beginning of an unfinished turn in it."""
        window = await self._read_window()
        turn = await self._unfinished_turn(window)
        if turn is None:
            history, current = await history_before(self.session, self.input_items, window), self.input_items
            self.unstored_input = self.input_items
        else:
            # The turn is sent whole, however small the window is, as it was in the run that began it.
            window, stored = without_turn(window, turn.items), len(turn.items)
            history = await history_before(self.session, turn.items, window, stored=stored)
            current = leave_out_reasoning(whole_turn(history, turn.items), self.config.replay_reasoning)
            self.stored_outputs = sum(map(is_output, turn.items[turn.input_length :]))
            self.agent = agent_after(self.agent, current)
        history = leave_out_reasoning(history, self.config.replay_reasoning)
        self.to_send = await self._apply_input_callback(history, current)
        self.replayed = _without(self.to_send, self.unstored_input)

    async def _unfinished_turn(self, window: list[Item]) -> UnfinishedTurn | None:
        settings = self.config.session_settings or getattr(self.session, "settings", None)
        is_whole_history = isinstance(settings, SessionSettings) and not settings.has_caps
        if self.session is None or (is_whole_history and not (window and is_output(window[-1]))):
            return None  # the usual case, without a second read
        return await unfinished_turn(self.session, self.input_items)

    async def _read_window(self) -> list[Item]:
        settings = self.config.session_settings
        if self.session is None:
            return []
        if settings is None:
            return await self.session.get_items()
        with_settings = getattr(self.session, "with_settings", None)
        if with_settings is not None:  # a session of agentmem's, which reads only as many rows as the window needs
            window: list[Item] = await with_settings(settings).get_items()
            return window
        items = await self.session.get_items()
        return await call_in_thread(partial(replay_window, items, settings))  # count_tokens is the caller's code

    async def _apply_input_callback(self, history: list[Item], current: list[Item]) -> list[Item]:
        callback = self.config.session_input_callback
        if callback is None:
            return [*history, *current]

        def begin() -> list[str] | Awaitable[Any]:
            merged = callback(list(history), list(current))
            return merged if inspect.isawaitable(merged) else encode_items(merged)

        try:
            with run_queue.step("its session_input_callback"):
                begun = begin() if inspect.iscoroutinefunction(callback) else await call_in_thread(begin)
                texts = begun if isinstance(begun, list) else encode_items(await begun)
        except Exception as error:
            raise RunError(f"the session_input_callback failed: {type(error).__name__}: {error}") from error
        items = [decode_item(text) for text in texts]
        whole = [item for item, members in zip(items, exchange_members(items, running_from=0), strict=True) if members]
        return [*whole, *(item for item in items[-1:] if item.get("type") == "compaction_trigger")]  # none is replayed

    async def _call_model_and_tools(self) -> RunResult | None:
        """Call the model, run the tools and handoffs that it asks for, and store all of it.

        Returns:
            The result of the run; None if the model must be called again.
        """
        agent = self.agent
        response = await self._call_model()
        self.usage += response.usage
        calls = calls_to_run(response.output, agent.function_names())
        outputs, next_agent = await self._run_tools_and_handoffs(calls)
        produced = [*response.output, *(output.raw_item for output in outputs)]
        needs_caller = waits_for_caller(produced)
        text = None if calls or needs_caller else answer_text(response.output)
        final_output = None if text is None else await _final_output(agent, text)
        await self._store(produced)
        self.new_items += [_to_run_item(item, agent) for item in response.output]
        self.new_items += outputs
        self.stored_outputs += len(outputs)
        self.agent = next_agent
        if calls and not needs_caller:
            return None
        return RunResult(final_output, self.new_items, self.usage, next_agent, self.input_items, self.replayed)

    async def _call_model(self) -> ModelResponse:
        config = self.config
        model = self.agent.resolve_model() if config.model is None else resolve_model(config.model)
        request = ModelRequest(
            input=list(self.to_send),
            instructions=await self.agent.resolve_instructions(self._run_context()),
            tools=self.agent.tool_specs(),
            text_format=self.agent.text_format,
            settings=config.model_settings or {},
        )
        try:
            if self.on_event is None:
                return await model.respond(request)
            return await self._call_model_streamed(model, request)
        except RunError:
            raise
        except Exception as error:
            raise ModelError(f"{type(model).__name__} failed: {type(error).__name__}: {error}") from error

    async def _call_model_streamed(self, model: Model, request: ModelRequest) -> ModelResponse:
        response: ModelResponse | None = None
        emitted_items = 0
        if not isinstance(model, StreamingModel):
            response = await model.respond(request)
            for item in response.output:
                if _kind(item) == "message":
                    self._emit(TextDelta(message_text(item), self.agent.name))
        else:
            async with aclosing(model.stream(request)) as answer:
                async for part in answer:
                    if isinstance(part, str):
                        self._emit(TextDelta(part, self.agent.name))
                    elif isinstance(part, ModelResponse):
                        response = part
                    else:
                        self._emit(_to_run_item(part, self.agent))
                        emitted_items += 1
        if response is None:
            raise ModelError(f"{type(model).__name__} ended its stream without a ModelResponse")
        for item in response.output[emitted_items:]:
            self._emit(_to_run_item(item, self.agent))
        return response

    async def _run_tools_and_handoffs(self, calls: Sequence[Item]) -> tuple[list[RunItem], Agent]:
        """Return the outputs of the calls, in their order, and the agent that is active afterwards."""
        agent, targets = self.agent, self.agent.handoff_targets()
        tool_outputs = iter(
            await run_calls(
                [call for call in calls if call.get("name") not in targets],
                {tool.name: tool for tool in agent.tools},
                self._run_context(),
                lambda call, output: self._emit(_tool_output_item(call, output, agent)),
            )
        )
        next_agent: Agent | None = None
        outputs: list[RunItem] = []
        for call in calls:
            target = targets.get(str(call.get("name")))
            if target is None:
                outputs.append(_tool_output_item(call, next(tool_outputs), agent))
                continue
            if next_agent is None:
                next_agent = target
                item = call_output(call, handoff_output(target))
                outputs.append(HandoffOutputItem(item, agent.name, target_agent_name=target.name))
            else:
                text = f"Error: the conversation was already handed over to {next_agent.name}"
                outputs.append(_tool_output_item(call, ToolOutput(text, text), agent))
            self._emit(outputs[-1])
        return outputs, next_agent or agent

    async def _store(self, produced: list[Item]) -> None:
        if self.session is not None:
            items = [*self.unstored_input, *produced]
            try:
                await self.session.add_items(items)
            except StorageError as error:
                self.doubtful_items = len(items) if error.in_doubt else 0
                raise
        self.unstored_input = []
        self.to_send += produced

    def _emit(self, event: TextDelta | RunItem) -> None:
        if self.on_event is not None:
            self.on_event(event)

    def _run_context(self) -> RunContext[Any]:
        return RunContext(self.context, self.agent.name, None if self.session is None else self.session.session_id)

    @contextmanager
    def _session_state_in_errors(self) -> Iterator[None]:
        """Append to the message of each error of agentmem's what the session now holds of this turn."""
        try:
            yield
        except AgentMemError as error:
            if self.session is not None:
                error.args = (f"{error}; {self._session_state(self.session.session_id)}",)
            raise

    def _session_state(self, session_id: str) -> str:
        session = f"the session {session_id!r}"
        plural = "" if self.stored_outputs == 1 else "s"
        stored = f"{session} holds the input and {self.stored_outputs} tool exchange{plural} of this turn"
        if self.doubtful_items:
            items = "item" if self.doubtful_items == 1 else f"{self.doubtful_items} items"
            doubt = (
                f"it is in doubt whether {session} holds the last {items} of this run, all or nothing: look at its "
                "latest items before you run again"
            )
            return f"{stored}; {doubt}" if self.stored_outputs else doubt
        if self.stored_outputs:
            return f"{stored}; run again with the same input (or an empty list) to go on from there"
        return f"nothing was added to {session}"


def _tool_output_item(call: Item, output: ToolOutput, agent: Agent) -> RunItem:
    return ToolCallOutputItem(call_output(call, output.text), agent.name, output=output.value)


def _to_run_item(item: Item, agent: Agent) -> RunItem:
    kind = _kind(item)
    if kind == "message":
        return MessageOutputItem(item, agent.name)
    if kind == "reasoning":
        return ReasoningItem(item, agent.name)
    if kind == "function_call" and item.get("name") in agent.handoff_targets():
        return HandoffCallItem(item, agent.name)
    if kind.endswith("_output"):  # a hosted tool or a program, whose output is an item of its own
        return ToolCallOutputItem(item, agent.name, output=item.get("result" if kind == "program_output" else "output"))
    if kind.endswith("_call") or kind == "program":
        return ToolCallItem(item, agent.name)
    return RunItem(item, agent.name)


def _kind(item: Item) -> str:
    return str(item.get("type", "message"))


async def _final_output(agent: Agent, text: str) -> Any:
    if agent.output_type is None:
        return text
    return await call_in_thread(partial(agent.parse, text))  # its validators are the caller's code


def _without(items: list[Item], removed: list[Item]) -> list[Item]:
    """Return the items; for each one in `removed`, the latest equal item is left out."""
    left = items[::-1]
    for item in removed:
        if item in left:
            left.remove(item)
    return left[::-1]
