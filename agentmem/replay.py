"""The replay window: which end of a session the model can take.

A window is the longest suffix of the history, less its incomplete exchanges, such that

- it holds at most ``limit`` items, ``max_turns`` turns and ``max_tokens`` tokens;
- no exchange is cut: a call stays with its output, an approval request with its response,
  reasoning with the item that it led to;
- order is kept, and a settings object without any cap leaves the history as it is.

Exchanges are defined by the Responses API, which answers 400 to half of one:
https://platform.openai.com/docs/guides/function-calling and /docs/guides/reasoning.

Everything here is pure. :func:`settle_window` works on a *suffix* of the history and says when it needs
more of it, so that an engine reads only as many rows as the window takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from .items import Item, json_size_bytes

OUTPUT_OF = {
    "function_call_output": "function_call",
    "custom_tool_call_output": "custom_tool_call",
    "computer_call_output": "computer_call",
    "local_shell_call_output": "local_shell_call",
    "shell_call_output": "shell_call",
    "apply_patch_call_output": "apply_patch_call",
    "tool_search_output": "tool_search_call",
    "program_output": "program",
    "mcp_approval_response": "mcp_approval_request",
}
"""Every paired kind of the API, by its second half (openai 3.54, ``ResponseInputItemParam``)."""

_CALLS = frozenset(OUTPUT_OF.values())
_INPUT_ROLES = frozenset({"user", "system", "developer"})

_Cap = Annotated[int, Field(strict=True, ge=0)]


class SessionSettings(BaseModel):
    """What ``get_items()`` without a limit replays; see the module for the rules.

    Args:
        limit: at most this many items.
        max_turns: at most this many turns. A turn begins with a user message (or an unbroken group of
            user, system and developer messages) and runs up to the next one.
        max_tokens: at most this many tokens, as counted by ``count_tokens``.
        count_tokens: tokens of one item, 0 or more. It must be pure: it is called from worker threads, and
            again for the same item. Default: :func:`estimate_tokens`.

    ``None`` means no such cap. Nothing is ever deleted: the settings only choose what is read.

    Raises:
        pydantic.ValidationError (a ValueError): a cap is negative or not an int, or an unknown name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: _Cap | None = None
    max_turns: _Cap | None = None
    max_tokens: _Cap | None = None
    count_tokens: Callable[[Item], int] | None = None

    @property
    def has_caps(self) -> bool:
        """Whether anything bounds the window."""
        return not (self.limit is None and self.max_turns is None and self.max_tokens is None)


def estimate_tokens(item: Item) -> int:
    """The default token count: one per four bytes of the item's compact JSON, rounded up.

    Four bytes a token is OpenAI's rule of thumb for English text
    (https://help.openai.com/en/articles/4936856); the JSON around the text makes the estimate err on the
    high side for it. Text in other scripts and code can take more: give ``count_tokens`` for exact caps.
    """
    return -(-json_size_bytes(item) // 4)


def replay_window(items: Sequence[Item], settings: SessionSettings) -> list[Item]:
    """The part of a whole history, oldest first, that `settings` replay.

    Raises:
        ValueError, TypeError: ``count_tokens`` returned a negative number, or no int.
    """
    if not settings.has_caps:
        return list(items)
    window = settle_window(items, settings, whole=True)
    assert window is not None  # a whole history leaves nothing open
    return window


def whole_exchanges(items: Sequence[Item]) -> list[Item]:
    """The items, oldest first, less every exchange that is not complete."""
    exchanges = _exchanges(items, whole=True)
    return [
        item for item, exchange in zip(items, exchanges, strict=True) if exchange is None or not exchange.incomplete
    ]


def is_output(item: Item) -> bool:
    """Whether the item is the second half of an exchange: a tool's output or an approval's response."""
    return _kind(item) in OUTPUT_OF


def is_call(item: Item) -> bool:
    """Whether the item is the first half of an exchange: it asks for a tool's output or an approval."""
    return _kind(item) in _CALLS


def is_input_message(item: Item) -> bool:
    """Whether the item is a user, system or developer message: what turns begin with."""
    role = item.get("role")
    return isinstance(role, str) and role in _INPUT_ROLES and _kind(item) == "message"


def settle_window(items: Sequence[Item], settings: SessionSettings, *, whole: bool) -> list[Item] | None:
    """The replay window, from the newest `items` of a history; None when it takes older ones to tell.

    Args:
        items: a suffix of the history, oldest first.
        settings: the caps; at least one is set.
        whole: whether `items` reach back to the beginning of the history.
    """
    exchanges = _exchanges(items, whole=whole)
    limit, max_turns, max_tokens = settings.limit, settings.max_turns, settings.max_tokens
    count_tokens = settings.count_tokens or estimate_tokens
    taken: list[int] = []  # indexes, newest first
    valid = 0  # how many of them form the longest window found so far
    awaited = 0  # members of exchanges already entered that are still to come
    turns = tokens = 0
    new_turn = True
    # All caps only grow tighter as the window grows, so the first item that breaks one ends the search.
    for index in range(len(items) - 1, -1, -1):
        exchange = exchanges[index]
        if limit is not None and len(taken) >= limit:
            break
        if max_turns is not None and new_turn and turns >= max_turns:
            break
        if exchange is None or not exchange.incomplete:
            if exchange is not None and exchange.unsettled:
                return None
            if max_tokens is not None:
                tokens += _tokens(items[index], count_tokens)
                if tokens > max_tokens:
                    break
            turns += new_turn
            new_turn = False
            taken.append(index)
            if exchange is not None:
                awaited += -1 if exchange.entered else len(exchange.members) - 1
                exchange.entered = True
            if not awaited:
                valid = len(taken)
        # Turns are those of the history as it is stored, whatever was dropped from it.
        if (
            max_turns is not None
            and index
            and is_input_message(items[index])
            and not is_input_message(items[index - 1])
        ):
            new_turn = True
    else:
        if not whole:
            return None  # older items may fit too, or be the reasoning that led to the oldest one here
    return [items[index] for index in reversed(taken[:valid])]


def _tokens(item: Item, count_tokens: Callable[[Item], int]) -> int:
    tokens = count_tokens(item)
    if isinstance(tokens, bool) or not isinstance(tokens, int):
        raise TypeError(f"count_tokens returned {tokens!r} for an item of type {_kind(item)!r}; it must be an int")
    if tokens < 0:
        raise ValueError(f"count_tokens returned {tokens} for an item of type {_kind(item)!r}; it must be 0 or more")
    return tokens


class _Exchange:
    """Items that are valid only together.

    Attributes:
        members: their indexes.
        incomplete: a half is missing from the history for good.
        unsettled: a half may stand before the part of the history that is known.
        entered: the search for the window has taken a member.
    """

    __slots__ = ("entered", "incomplete", "members", "unsettled")

    def __init__(self, index: int) -> None:
        self.members = [index]
        self.incomplete = False
        self.unsettled = False
        self.entered = False


def _exchanges(items: Sequence[Item], *, whole: bool) -> list[_Exchange | None]:
    """The exchange of each item; None for one that is valid by itself, as most are."""
    exchanges: list[_Exchange | None] = [None] * len(items)
    unanswered: dict[tuple[str, str], list[int]] = {}
    reasoning: int | None = None  # the one that waits for the item that it led to
    for index, item in enumerate(items):
        # As _kind() does: calling it would cost as much as the rest does for a message.
        kind = item.get("type", "message" if "role" in item else "")
        if not isinstance(kind, str):
            kind = ""
        if reasoning is not None:
            if _is_from_model(item):
                _join(exchanges, reasoning, index)
            else:
                _exchange(exchanges, reasoning).incomplete = True
            reasoning = None
        if kind == "message":
            continue
        if kind == "reasoning":
            reasoning = index
        elif kind in _CALLS:
            program = _program_id(item)
            if program is not None:
                running = unanswered.get(("program", program))
                _join_or_mark(exchanges, running[-1] if running else None, index, whole)
            unanswered.setdefault((kind, _call_id(item, kind)), []).append(index)  # only now: no program calls itself
        elif kind in OUTPUT_OF:
            # The latest call of that id: an id that comes twice has been answered in between.
            calls = unanswered.get((OUTPUT_OF[kind], _call_id(item, kind)))
            _join_or_mark(exchanges, calls.pop() if calls else None, index, whole)
    if reasoning is not None:
        _exchange(exchanges, reasoning).incomplete = True
    # Outputs come after their calls, and the end of the history is known: these will not be answered.
    for calls in unanswered.values():
        for index in calls:
            _exchange(exchanges, index).incomplete = True
    return exchanges


def _exchange(exchanges: list[_Exchange | None], index: int) -> _Exchange:
    exchange = exchanges[index]
    if exchange is None:
        exchange = exchanges[index] = _Exchange(index)
    return exchange


def _join_or_mark(exchanges: list[_Exchange | None], first: int | None, second: int, whole: bool) -> None:
    if first is not None:
        _join(exchanges, first, second)
    elif whole:
        _exchange(exchanges, second).incomplete = True
    else:
        _exchange(exchanges, second).unsettled = True


def _join(exchanges: list[_Exchange | None], first: int, second: int) -> None:
    kept, merged = _exchange(exchanges, first), exchanges[second]
    if merged is None:  # the usual case
        kept.members.append(second)
        exchanges[second] = kept
        return
    if kept is merged:
        return
    if len(kept.members) < len(merged.members):
        kept, merged = merged, kept
    kept.members += merged.members
    kept.incomplete |= merged.incomplete
    kept.unsettled |= merged.unsettled
    for index in merged.members:
        exchanges[index] = kept


def _kind(item: Item) -> str:
    kind = item.get("type", "message" if "role" in item else "")
    return kind if isinstance(kind, str) else ""


def _is_from_model(item: Item) -> bool:
    """Whether reasoning can have led to the item; kinds that are not known yet count as the model's."""
    return not is_output(item) and not is_input_message(item)


def _call_id(item: Item, kind: str) -> str:
    """What both halves of an exchange share: the repr of any JSON value, so that 1 and "1" are two ids. A hosted
    tool may give none, or null."""
    if kind == "mcp_approval_request":
        return repr(item.get("id"))
    if kind == "mcp_approval_response":
        return repr(item.get("approval_request_id"))
    call_id = item.get("call_id")
    if call_id is None and kind == "local_shell_call_output":
        call_id = item.get("id")  # the API documents this one as the call's id; the Agents SDK writes "call_id"
    return repr(call_id)


def _program_id(item: Item) -> str | None:
    """The program that made this call, where one did: the call is valid only inside its program's exchange."""
    caller = item.get("caller")
    if isinstance(caller, dict) and caller.get("type") == "program":
        return repr(caller.get("caller_id"))
    return None
