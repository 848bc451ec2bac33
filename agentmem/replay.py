"""The replay window: the newest part of a session that is sent to the model.

The window is the longest suffix of the history, without its incomplete exchanges, for which these rules hold:

- It has at most ``limit`` items, ``max_turns`` turns and ``max_tokens`` tokens.
- No exchange is cut: a call stays with its output, an approval request with its response, and reasoning with the item
  that it led to. An asynchronous call is whole without an output, too.
- The order of the items is kept. Settings without a cap leave the history as it is.

The Responses API defines what an exchange is, and answers 400 to a half of one:
https://platform.openai.com/docs/guides/function-calling and https://platform.openai.com/docs/guides/reasoning.

All functions here are pure. :func:`find_window` takes the newest items of a history and says when it needs older ones,
so that an engine reads only as many rows as the window needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from .items import Item, json_size_bytes

CALL_OF = {
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
"""Every kind of exchange in the API: the type of its second half, and that of its first (openai 3.54,
``ResponseInputItemParam``)."""

_CALLS = frozenset(CALL_OF.values())
_INPUT_ROLES = frozenset({"user", "system", "developer"})

_Cap = Annotated[int, Field(strict=True, ge=0)]


class SessionSettings(BaseModel):
    """The caps of the replay window, which ``get_items()`` without a limit returns. The module describes its rules.

    A cap of None is no cap. Settings only choose what is read; they never delete anything.

    Args:
        limit: at most this many items; 0 or more.
        max_turns: at most this many turns; 0 or more. A turn begins with a user, system or developer message and goes
            on up to the next one. Consecutive messages of these roles begin one turn together.
        max_tokens: at most this many tokens, as ``count_tokens`` counts them; 0 or more.
        count_tokens: a function that returns the number of tokens of an item, 0 or more. Default:
            :func:`estimate_tokens`. It must be pure, because it is called more than once for an item. A sync session
            calls it in the thread of the call, an async one in other threads; so it may block, and read sessions.

    Raises:
        pydantic.ValidationError (a ValueError): a cap is negative or not an int, or a setting is unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: _Cap | None = None
    max_turns: _Cap | None = None
    max_tokens: _Cap | None = None
    count_tokens: Callable[[Item], int] | None = Field(default=None, repr=False)

    @property
    def has_caps(self) -> bool:
        """Whether at least one cap is set."""
        return not (self.limit is None and self.max_turns is None and self.max_tokens is None)


def estimate_tokens(item: Item) -> int:
    """Estimate the tokens of an item: one for every four bytes of its compact JSON, rounded up.

    Four bytes a token is OpenAI's rule of thumb for English text (https://help.openai.com/en/articles/4936856). The
    JSON around the text is counted too, so the estimate for English text is too high rather than too low. Code and text
    in other scripts can have more tokens; set ``count_tokens`` where a cap must be exact.
    """
    return -(-json_size_bytes(item) // 4)


def replay_window(items: Sequence[Item], settings: SessionSettings) -> list[Item]:
    """Return the replay window of a whole history.

    Args:
        items: all items of the session, oldest first.
        settings: the caps.

    Returns:
        The items of the window, oldest first; all items if no cap is set.

    Raises:
        TypeError: ``count_tokens`` returned something other than an int.
        ValueError: ``count_tokens`` returned a negative number.
    """
    if not settings.has_caps:
        return list(items)
    window = find_window(items, settings, at_start=True)
    assert window is not None  # there are no older items to ask for
    return window


def whole_exchanges(items: Sequence[Item]) -> list[Item]:
    """Return the items without those of incomplete exchanges, in the same order.

    Args:
        items: the history, oldest first. A half of an exchange that is not among them counts as missing.
    """
    return [item for item, members in zip(items, exchange_members(items), strict=True) if members]


def exchange_members(items: Sequence[Item], *, running_from: int | None = None) -> list[Sequence[int]]:
    """Return for each item the indexes of its exchange, its own among them; none if the exchange is incomplete.

    Args:
        items: the history, oldest first. A half of an exchange that is not among them counts as missing.
        running_from: the index where the turn begins that the model is asked to go on with. A program that runs in this
            turn is whole without an output if each of its calls has one: the API resumes it, and needs all of it
            (https://developers.openai.com/api/docs/guides/tools-programmatic-tool-calling). None: no program runs.
    """
    exchanges = _group_into_exchanges(items, at_start=True, running_from=running_from)
    return [
        (index,) if exchange is None else () if exchange.is_incomplete else exchange.members
        for index, exchange in enumerate(exchanges)
    ]


def begins_earlier(items: Sequence[Item], start: int) -> bool:
    """Whether an item from the index `start` on needs one that is older than all of these, such as the call of an
    output."""
    exchanges = _group_into_exchanges(items, at_start=False)
    return any(exchange is not None and exchange.may_begin_earlier for exchange in exchanges[start:])


def unanswered_calls(items: Sequence[Item]) -> list[Item]:
    """Return the calls, programs and approval requests whose output or response is not among the items after them."""
    unanswered: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(items):
        kind = _kind(item)
        if kind in _CALLS:
            unanswered.setdefault((kind, _call_id(item, kind)), []).append(index)
        elif kind in CALL_OF:
            calls = unanswered.get((CALL_OF[kind], _call_id(item, kind)))
            if calls:
                calls.pop()
    return [items[index] for index in sorted(index for calls in unanswered.values() for index in calls)]


def is_async_call(item: Item) -> bool:
    """Whether the item is a call for whose output the model does not wait.

    It may come in any later request, and until then the call is sent without one
    (https://developers.openai.com/api/docs/guides/async-tool-calling).
    """
    return item.get("async") is True and is_call(item)


def is_output(item: Item) -> bool:
    """Whether the item is the second half of an exchange: the output of a call, or the response to an approval
    request."""
    return _kind(item) in CALL_OF


def is_call(item: Item) -> bool:
    """Whether the item is the first half of an exchange: a call that needs an output, or an approval request."""
    return _kind(item) in _CALLS


def is_input_message(item: Item) -> bool:
    """Whether the item is a user, system or developer message, as turns begin with."""
    role = item.get("role")
    return isinstance(role, str) and role in _INPUT_ROLES and _kind(item) == "message"


def find_window(items: Sequence[Item], settings: SessionSettings, *, at_start: bool) -> list[Item] | None:
    """Find the replay window from the newest items of a history.

    Args:
        items: the newest items of the history, oldest first.
        settings: the caps; at least one must be set.
        at_start: whether the history has no items before these.

    Returns:
        The items of the window, oldest first. None if the window depends on older items.

    Raises:
        TypeError, ValueError: as in :func:`replay_window`.
    """
    exchanges = _group_into_exchanges(items, at_start=at_start)
    limit, max_turns, max_tokens = settings.limit, settings.max_turns, settings.max_tokens
    count_tokens = settings.count_tokens or estimate_tokens
    taken: list[int] = []  # indexes, newest first
    valid_count = 0  # how many of them are the longest valid window so far
    missing_members = 0  # members, not taken yet, of exchanges of which a member was taken
    turns = tokens = 0
    begins_turn = True
    # The more items are taken, the less is left under each cap. So the first item over a cap ends the search.
    for index in range(len(items) - 1, -1, -1):
        exchange = exchanges[index]
        if limit is not None and len(taken) >= limit:
            break
        if max_turns is not None and begins_turn and turns >= max_turns:
            break
        if exchange is None or not exchange.is_incomplete:
            if exchange is not None and exchange.may_begin_earlier:
                return None
            if max_tokens is not None:
                tokens += _checked_token_count(items[index], count_tokens)
                if tokens > max_tokens:
                    break
            turns += begins_turn
            begins_turn = False
            taken.append(index)
            if exchange is not None:
                missing_members += -1 if exchange.is_entered else len(exchange.members) - 1
                exchange.is_entered = True
            if not missing_members:
                valid_count = len(taken)
        # Turns are counted in the history as it is stored, with the items that are left out of the window.
        if (
            max_turns is not None
            and index
            and is_input_message(items[index])
            and not is_input_message(items[index - 1])
        ):
            begins_turn = True
    else:
        if not at_start:
            return None  # older items may fit too, or one may be the reasoning that led to the oldest item here
    return [items[index] for index in reversed(taken[:valid_count])]


def _checked_token_count(item: Item, count_tokens: Callable[[Item], int]) -> int:
    tokens = count_tokens(item)
    if isinstance(tokens, bool) or not isinstance(tokens, int):
        raise TypeError(f"count_tokens returned {tokens!r} for an item of type {_kind(item)!r}; it must be an int")
    if tokens < 0:
        raise ValueError(f"count_tokens returned {tokens} for an item of type {_kind(item)!r}; it must be 0 or more")
    return tokens


class _Exchange:
    """Items that are valid only together.

    Attributes:
        members: the indexes of the items.
        is_incomplete: whether a half is missing from the history.
        may_begin_earlier: whether the first half is not among the known items, but may be among older ones.
        is_entered: whether the search for the window has taken a member.
    """

    __slots__ = ("is_entered", "is_incomplete", "may_begin_earlier", "members")

    def __init__(self, index: int) -> None:
        self.members = [index]
        self.is_incomplete = False
        self.may_begin_earlier = False
        self.is_entered = False


def _group_into_exchanges(
    items: Sequence[Item], *, at_start: bool, running_from: int | None = None
) -> list[_Exchange | None]:
    """Find the exchange of each item; None for an item that is valid by itself, as most are."""
    exchanges: list[_Exchange | None] = [None] * len(items)
    unanswered: dict[tuple[str, str], list[int]] = {}  # the indexes of calls, by their type and id
    reasoning: int | None = None  # the index of reasoning that needs the next item
    for index, item in enumerate(items):
        # The same as _kind(), written out: for a message, the call would take as long as everything else here.
        kind = item.get("type", "message" if "role" in item else "")
        if not isinstance(kind, str):
            kind = ""
        if reasoning is not None:
            if _can_follow_reasoning(item):
                _join(exchanges, reasoning, index)
            else:
                _exchange_at(exchanges, reasoning).is_incomplete = True
            reasoning = None
        if kind == "message":
            continue
        if kind == "reasoning":
            reasoning = index
        elif kind in _CALLS:
            program = _program_id(item)
            if program is not None:
                running = unanswered.get(("program", program))
                _join_or_mark(exchanges, running[-1] if running else None, index, at_start)
            # Added only after the lookup above, because a program does not call itself.
            unanswered.setdefault((kind, _call_id(item, kind)), []).append(index)
        elif kind in CALL_OF:
            # The latest call with this id: where an id is used twice, the earlier call was answered in between.
            calls = unanswered.get((CALL_OF[kind], _call_id(item, kind)))
            _join_or_mark(exchanges, calls.pop() if calls else None, index, at_start)
    if reasoning is not None:
        _exchange_at(exchanges, reasoning).is_incomplete = True
    # An output comes after its call, and there are no items after these. So what is unanswered here stays unanswered.
    for calls in unanswered.values():
        for index in calls:
            if not is_async_call(items[index]) and not _is_running(items, exchanges[index], index, running_from):
                _exchange_at(exchanges, index).is_incomplete = True
    return exchanges


def _is_running(items: Sequence[Item], exchange: _Exchange | None, index: int, running_from: int | None) -> bool:
    """Whether the item at `index` is a program with calls of its own that the turn from `running_from` on is part of.

    A call of the program that has no output is not looked for: it makes the exchange incomplete by itself.
    """
    if running_from is None or exchange is None or _kind(items[index]) != "program":
        return False
    call_id = _call_id(items[index], "program")
    owned = [member for member in exchange.members if _program_id(items[member]) == call_id]
    return bool(owned) and max(exchange.members) >= running_from


def _exchange_at(exchanges: list[_Exchange | None], index: int) -> _Exchange:
    """The exchange of the item at this index; created if there is none."""
    exchange = exchanges[index]
    if exchange is None:
        exchange = exchanges[index] = _Exchange(index)
    return exchange


def _join_or_mark(exchanges: list[_Exchange | None], first: int | None, second: int, at_start: bool) -> None:
    """Join the halves of an exchange; without the first half, say whether it is missing or may be older."""
    if first is not None:
        _join(exchanges, first, second)
    elif at_start:
        _exchange_at(exchanges, second).is_incomplete = True
    else:
        _exchange_at(exchanges, second).may_begin_earlier = True


def _join(exchanges: list[_Exchange | None], first: int, second: int) -> None:
    kept, merged = _exchange_at(exchanges, first), exchanges[second]
    if merged is None:  # the usual case
        kept.members.append(second)
        exchanges[second] = kept
        return
    if kept is merged:
        return
    if len(kept.members) < len(merged.members):
        kept, merged = merged, kept
    kept.members += merged.members
    kept.is_incomplete |= merged.is_incomplete
    kept.may_begin_earlier |= merged.may_begin_earlier
    for index in merged.members:
        exchanges[index] = kept


def _kind(item: Item) -> str:
    kind = item.get("type", "message" if "role" in item else "")
    return kind if isinstance(kind, str) else ""


def _can_follow_reasoning(item: Item) -> bool:
    """Whether the model may have written the item after reasoning; an unknown type counts as the model's."""
    return not is_output(item) and not is_input_message(item)


def _call_id(item: Item, kind: str) -> str:
    """The id that both halves of an exchange have, as the repr of a JSON value, so that 1 and "1" are different ids.

    A hosted tool may have no id, or null.
    """
    if kind == "mcp_approval_request":
        return repr(item.get("id"))
    if kind == "mcp_approval_response":
        return repr(item.get("approval_request_id"))
    call_id = item.get("call_id")
    if call_id is None and kind == "local_shell_call_output":
        call_id = item.get("id")  # documented by the API as the call's id; the Agents SDK writes "call_id"
    return repr(call_id)


def _program_id(item: Item) -> str | None:
    """The id of the program that made this call; None if no program did.

    Such a call is valid only together with its program and the program's output.
    """
    caller = item.get("caller")
    if isinstance(caller, dict) and caller.get("type") == "program":
        return repr(caller.get("caller_id"))
    return None
