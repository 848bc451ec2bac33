"""What a run takes from a session: the session itself, and a turn that an earlier run left unfinished."""

from __future__ import annotations

from typing import Any, Protocol

from ..items import Item
from ..replay import is_input_message, is_output, whole_exchanges
from .agent import Agent, handoff_output

_TAIL = 16
"""Items first read to find where an unfinished turn began; four times as many each time they are too few."""


class SessionLike(Protocol):
    """What a run needs of a session; agentmem's async sessions have it, and the Agents SDK's."""

    session_id: str

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """The latest items, oldest first; without a limit, what is to be replayed."""

    async def add_items(self, items: list[Any]) -> None:
        """Appends all items or none."""


class SyncSessionLike(Protocol):
    """A sync wrapper; a run uses the async session that it wraps."""

    @property
    def async_session(self) -> SessionLike:
        """The session that does the work."""


def async_session(session: Any) -> SessionLike | None:
    """The async session inside a sync wrapper, or the session itself.

    Raises:
        TypeError: it is neither.
    """
    core = getattr(session, "async_session", session)
    if core is not None and not all(hasattr(core, name) for name in ("session_id", "get_items", "add_items")):
        raise TypeError(f"session is an agentmem session or has the methods of one (as the SDK's), got {session!r}")
    return core  # type: ignore[no-any-return]  # checked as far as a structural type can be


async def history_for(session: SessionLike | None, given: list[Item], window: list[Item]) -> list[Item]:
    """What is sent before the input: the window's whole exchanges, and those that the input makes whole.

    A capped window leaves out what is not answered yet, such as a request for approval. Where the input answers it, it
    is sent, however narrow the window.
    """
    whole = whole_exchanges([*window, *given])
    limit = max(_TAIL, 2 * len(window))
    while session is not None and _answers_what_is_not_in(whole, given):
        tail = await session.get_items(limit=limit)
        before = whole_exchanges(tail)
        whole = whole_exchanges([*tail, *given])
        found = len(before) >= len(window) and not _answers_what_is_not_in(whole, given)
        if found or len(tail) < limit:
            beyond_window = set(map(id, before[: max(0, len(before) - len(window))]))
            whole = [item for item in whole if id(item) not in beyond_window]
            break
        limit *= 4
    ours = set(map(id, given))
    return [item for item in whole if id(item) not in ours]


def _answers_what_is_not_in(whole: list[Item], given: list[Item]) -> bool:
    known = set(map(id, whole))
    return any(is_output(item) and id(item) not in known for item in given)


async def unfinished_turn(session: SessionLike, given: list[Item], window: list[Item]) -> list[Item] | None:
    """The input and all that the session holds after it, if it is `given` and awaits the model's answer."""
    if window and not is_output(window[-1]):
        return None  # the usual case costs no second read
    tail: list[Item] = []
    limit = 1  # a window can be empty because the turn does not fit into it
    while True:
        tail = await session.get_items(limit=limit)
        if not tail or not is_output(tail[-1]):
            return None
        end = max((index + 1 for index, item in enumerate(tail) if is_input_message(item)), default=0)
        start = end - (len(given) or 1)
        if end and start >= 0:
            return tail[start:] if given in ([], tail[start:end]) else None
        if len(tail) < limit:
            return None
        limit = max(_TAIL, limit * 4)


def last_agent(agent: Agent, turn: list[Item]) -> Agent:
    """The agent that goes on with the turn, after the handoffs in it."""
    outputs = {item.get("call_id"): item.get("output") for item in turn if is_output(item)}
    for item in turn:
        if item.get("type") == "function_call":
            target = agent.handoff_targets().get(str(item.get("name")))
            if target is not None and outputs.get(item.get("call_id")) == handoff_output(target):
                agent = target
    return agent
