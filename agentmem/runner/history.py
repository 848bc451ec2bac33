"""What a run needs of a session: its history, and the turn that an earlier run may have left unfinished."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ..items import Item
from ..replay import begins_earlier, exchange_members, is_input_message, is_output
from .agent import Agent, handoff_output

_FIRST_TAIL_ITEMS = 16
"""How many of the latest items are read first to look for something that the window does not have. Each further read
takes four times as many."""


class SessionLike(Protocol):
    """The part of a session that a run needs; agentmem's async sessions have it, and those of the Agents SDK."""

    session_id: str

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """Return the latest items, oldest first; without a limit, those to replay."""

    async def add_items(self, items: list[Any]) -> None:
        """Append all items or none."""


class SyncSessionLike(Protocol):
    """A sync wrapper of a session. A run uses the async session inside it."""

    @property
    def async_session(self) -> SessionLike:
        """The session that does the work."""


def unwrap_session(session: Any) -> SessionLike | None:
    """Return the async session inside a sync wrapper, or the session itself.

    Raises:
        TypeError: it is neither.
    """
    async_session = getattr(session, "async_session", session)
    required = ("session_id", "get_items", "add_items")
    if async_session is not None and not all(hasattr(async_session, name) for name in required):
        raise TypeError(f"session is an agentmem session or has the methods of one (as the SDK's), got {session!r}")
    return async_session  # type: ignore[no-any-return]  # checked as far as a structural type can be


@dataclass(frozen=True)
class UnfinishedTurn:
    """The turn with which a session ends, and which the model has not answered.

    Attributes:
        items: its input as it is stored, and everything after it, oldest first.
        input_length: how many of them are the input.
    """

    items: list[Item]
    input_length: int


async def unfinished_turn(session: SessionLike, input_items: list[Item]) -> UnfinishedTurn | None:
    """Return the turn with which the session ends, if an earlier run with the same input left it unfinished.

    A run stores its input as it is, together with the first response, and then only what follows from it. So the turn
    is known by what was stored for it: the input, item by item, and no message after it.

    Args:
        session: the session.
        input_items: the input of the run; empty to continue whatever turn is unfinished.

    Returns:
        None if the session does not end with an output that the model has not answered, or if the last turn has another
        input.
    """
    limit = 1
    while True:
        tail = await session.get_items(limit=limit)
        if not tail or not is_output(tail[-1]):
            return None
        if len(tail) < limit or _has_turn_start(tail, input_items):
            return _find_turn(tail, input_items)
        limit = max(_FIRST_TAIL_ITEMS, limit * 4)


def _has_turn_start(tail: list[Item], input_items: list[Item]) -> bool:
    """Whether older items than these cannot change what :func:`_find_turn` finds."""
    last_message = _last_message_index(tail)
    if last_message is None:
        return False
    if not input_items:
        return not all(map(is_input_message, tail[: last_message + 1]))
    return last_message >= (_last_message_index(input_items) or 0)


def _find_turn(tail: list[Item], input_items: list[Item]) -> UnfinishedTurn | None:
    """Find the input in the latest items of a session, with no message between it and their end."""
    last_message, last_in_input = _last_message_index(tail), _last_message_index(input_items)
    if not input_items:
        if last_message is None:
            return None
        start = last_message
        while start and is_input_message(tail[start - 1]):
            start -= 1
        return UnfinishedTurn(tail[start:], last_message + 1 - start)
    length = len(input_items)
    if last_in_input is None:  # such as the output of a call, or the response to an approval request
        candidates = range(0 if last_message is None else last_message + 1, len(tail) - length + 1)
    else:  # its last message is the last one there
        start = -1 if last_message is None else last_message - last_in_input
        candidates = range(max(0, start), start + 1)
    starts = [start for start in candidates if tail[start : start + length] == input_items]
    # What a model added can equal the input, where its server counts the calls of each response from 1. So an input
    # that something was added to is preferred.
    continued = [start for start in starts if start + length < len(tail)]
    return UnfinishedTurn(tail[(continued or starts)[-1] :], length) if starts else None


def _last_message_index(items: list[Item]) -> int | None:
    return next((index for index in reversed(range(len(items))) if is_input_message(items[index])), None)


async def history_before(
    session: SessionLike | None, current: list[Item], window: list[Item], *, stored: int = 0
) -> list[Item]:
    """Return what is sent before a turn: the window's whole exchanges, and those that the turn completes.

    A capped window leaves out a call that has no output yet, such as a request for approval, or a program that still
    runs. If the turn has the output, the call is sent, however small the window is and however old the call.

    Args:
        session: the session; None without one.
        current: the items of the turn: the input of the run, or a turn that it continues.
        window: the session's replay window without the items of the turn, oldest first.
        stored: how many of the turn's items are stored; they are the latest of the session.
    """
    before, limit = window, max(_FIRST_TAIL_ITEMS, 2 * len(window))
    while session is not None and begins_earlier([*before, *current], len(before)):
        tail = await session.get_items(limit=limit + stored)
        before = tail[: max(0, len(tail) - stored)]
        if len(before) < limit:
            break
        limit *= 4
    return _select_history(before, current, window)


def _select_history(before: list[Item], current: list[Item], window: list[Item]) -> list[Item]:
    """Return the whole exchanges of the window, and all that are in one exchange with the turn.

    Args:
        before: the window, or the latest items before the turn.
        current: the items of the turn.
        window: the window. Some of its items can be older than those of `before`.
    """
    older = len(window)  # how many items of the window are older than `before`, or not found there yet
    in_window: set[int] = set()
    for index in reversed(range(len(before))):
        if older and before[index] == window[older - 1]:
            older -= 1
            in_window.add(index)
    known = [*window[:older], *before]
    in_window = {*range(older), *(index + older for index in in_window)}
    exchanges = exchange_members([*known, *current], running_from=len(known))
    return [
        item
        for item, members in zip(known, exchanges, strict=False)
        if any(index in in_window or index >= len(known) for index in members)
    ]


def whole_turn(history: list[Item], turn: list[Item]) -> list[Item]:
    """Return a stored turn as it is sent after its history: without what nobody can answer any more."""
    members = exchange_members([*history, *turn], running_from=len(history))
    return [item for item, own in zip(turn, members[len(history) :], strict=True) if own]


def without_turn(window: list[Item], turn: list[Item]) -> list[Item]:
    """Return a replay window without the items of the turn with which the session ends.

    The window can have all of them, the latest ones, or all but those of incomplete exchanges.
    """
    length = len(window)
    for item in reversed(turn):
        if length and window[length - 1] == item:
            length -= 1
    return window[:length]


def agent_after(agent: Agent, turn: list[Item]) -> Agent:
    """Return the agent that is active at the end of the turn, after its handoffs.

    Args:
        agent: the agent at the beginning of the turn.
        turn: the items of the turn, oldest first.
    """
    outputs = {item.get("call_id"): item.get("output") for item in turn if is_output(item)}
    for item in turn:
        if item.get("type") == "function_call":
            target = agent.handoff_targets().get(str(item.get("name")))
            if target is not None and outputs.get(item.get("call_id")) == handoff_output(target):
                agent = target
    return agent
