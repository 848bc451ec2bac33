"""What a run needs of a session: its history, and the turn that an earlier run may have left unfinished."""

from __future__ import annotations

from typing import Any, Protocol

from ..items import Item
from ..replay import is_input_message, is_output, whole_exchanges
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


async def history_before_input(session: SessionLike | None, input_items: list[Item], window: list[Item]) -> list[Item]:
    """Return what is sent before the input: the window's whole exchanges, and those that the input completes.

    A capped window leaves out a call that has no output yet, such as a request for approval. If the input has the
    output, the call is sent, however small the window is.

    Args:
        session: the session; None without one.
        input_items: the input of the run.
        window: the session's replay window, oldest first.
    """
    whole = whole_exchanges([*window, *input_items])
    limit = max(_FIRST_TAIL_ITEMS, 2 * len(window))
    while session is not None and _lacks_a_call(whole, input_items):
        tail = await session.get_items(limit=limit)
        whole_before = whole_exchanges(tail)
        whole = whole_exchanges([*tail, *input_items])
        is_found = len(whole_before) >= len(window) and not _lacks_a_call(whole, input_items)
        if is_found or len(tail) < limit:
            beyond_window = set(map(id, whole_before[: max(0, len(whole_before) - len(window))]))
            whole = [item for item in whole if id(item) not in beyond_window]
            break
        limit *= 4
    input_ids = set(map(id, input_items))
    return [item for item in whole if id(item) not in input_ids]


def _lacks_a_call(whole: list[Item], input_items: list[Item]) -> bool:
    """Whether an output in the input is not among the whole exchanges, because its call is not known."""
    known = set(map(id, whole))
    return any(is_output(item) and id(item) not in known for item in input_items)


async def unfinished_turn(session: SessionLike, input_items: list[Item], window: list[Item]) -> list[Item] | None:
    """Return the turn with which the session ends, if an earlier run with the same input left it unfinished.

    Args:
        session: the session.
        input_items: the input of the run; empty to continue whatever turn is unfinished.
        window: the session's replay window, oldest first.

    Returns:
        The input as it is stored, and everything after it. None if the session does not end with tool outputs that
        the model has not answered, or if that turn has another input.
    """
    if window and not is_output(window[-1]):
        return None  # the usual case, without a second read
    limit = 1  # the window may be empty only because the turn does not fit into it
    while True:
        tail = await session.get_items(limit=limit)
        if not tail or not is_output(tail[-1]):
            return None
        input_end = max((index + 1 for index, item in enumerate(tail) if is_input_message(item)), default=0)
        input_start = input_end - (len(input_items) or 1)
        if input_end and input_start >= 0:
            return tail[input_start:] if input_items in ([], tail[input_start:input_end]) else None
        if len(tail) < limit:
            return None
        limit = max(_FIRST_TAIL_ITEMS, limit * 4)


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
