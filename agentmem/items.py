"""Items: one JSON object each, stored as JSON text and returned equal.

Rules kept here:

- What :func:`encode_item` accepts, :func:`decode_item` returns equal: key order, unicode, big
  integers, floats, lone surrogates. The fast path checks that on every item, by decoding what it
  encoded; the other one writes nothing but what JSON holds exactly.
- What JSON cannot hold faithfully (NaN, infinity, keys that are not strings, bytes, tuples, sets,
  any other object) raises :class:`~agentmem.errors.InvalidItemError` with its index and path.
- pydantic models, at the top or inside, are taken as their JSON form.

The second half of the module names the kinds of item that a run produces, for
``RunResult.new_items``. No I/O here.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from .errors import InvalidItemError

Item = dict[str, Any]
"""One item in the OpenAI Responses input format: a JSON object."""

MAX_DEPTH = 256
"""Deepest nesting of objects and arrays in an item. The model APIs stop far below; the bound keeps
decoding clear of Python's recursion limit (1,000 by default, shared with the caller's own frames)."""

MAX_STORED_DEPTH = 1_000
"""Deepest nesting that is read. Items that other programs stored may be deeper than agentmem's own; but under Python
before 3.12 a program that raised its recursion limit would overflow the stack on a row of 100,000 levels."""

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def encode_items(items: Iterable[object]) -> list[str]:
    """The JSON text of each item, in order.

    Args:
        items: JSON objects (dicts) or pydantic models, oldest first.

    Raises:
        InvalidItemError: an item that JSON cannot hold faithfully.
        TypeError: ``items`` is a single item instead of a list of them, or not iterable.
    """
    if isinstance(items, (str, bytes, dict, BaseModel)):
        raise TypeError(f"items must be a list of items, got one {type(items).__name__}: put it in a list, [item]")
    return [encode_item(item, index) for index, item in enumerate(items)]


def encode_item(item: object, index: int = 0) -> str:
    """The JSON text of one item.

    Raises:
        InvalidItemError: it is no JSON object, or holds what JSON cannot hold faithfully.
    """
    if type(item) is dict:
        try:
            # Fast path, about 3 µs for a message of 400 bytes: pydantic's core writes some things as JSON that
            # are none (bytes, tuples, dates), so the text counts only if it decodes to an equal item.
            # As "null", NaN and infinity come back unequal too.
            data = to_json(item, inf_nan_mode="null")
            if from_json(data) == item:
                return data.decode()
        except (ValueError, TypeError, RecursionError, BytesWarning):
            pass  # not swallowed: the path below stores it, or names what is wrong and where
    try:
        plain = _plain(item, None, 0, index)
        if type(plain) is not dict:
            raise _invalid(index, None, f"an item is a JSON object (a dict), got {type(item).__name__}")
        # ASCII escapes, because a lone surrogate has no UTF-8 form.
        return json.dumps(plain, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise _invalid(index, None, "nested too deep for the stack that is left here") from None


def decode_item(data: str | bytes) -> Item:
    """The item that a stored text holds.

    Raises:
        ValueError: the text is not the JSON of an object: the row is corrupt.
    """
    try:
        item = from_json(data, allow_inf_nan=False)
    except (ValueError, TypeError):
        # The standard library reads what pydantic's core refuses: lone surrogates, and more than 200 levels.
        try:
            text = data if isinstance(data, str) else str(data, "utf-8")  # left to itself it also tries UTF-16
            if _is_too_deep(text):
                raise ValueError(f"nested deeper than {MAX_STORED_DEPTH} levels")
            item = json.loads(text, parse_constant=_refuse_constant)
        except (TypeError, RecursionError) as error:
            raise ValueError(f"not JSON text: {error}") from error
    if type(item) is not dict:
        raise ValueError(f"not a JSON object but {type(item).__name__}")
    return item


def decode_joined(joined: bytes, count: int) -> list[Item] | None:
    """The items of `count` stored texts, joined by commas, in one go; None where they must be decoded one by one.

    It cannot tell corrupt texts that only together are JSON, as nothing but intent makes them.
    """
    try:
        items: list[Item] = from_json(b"[%b]" % joined, allow_inf_nan=False)
    except ValueError:
        return None
    return items if len(items) == count and all(type(item) is dict for item in items) else None


def json_size_bytes(item: Item) -> int:
    """Length in bytes of the item's compact JSON in UTF-8."""
    try:
        return len(to_json(item))
    except ValueError:  # lone surrogates, or very deep
        return len(json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _is_too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_STORED_DEPTH:
        return False
    # Without what is escaped inside them, every quote begins or ends a string.
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    depth = 0
    for bracket in re.findall(r"[\[{}\]]", outside):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_STORED_DEPTH:
            return True
    return False


class _Place(NamedTuple):
    """Where in an item: a key or an index, and what it is in. Written out only for an error."""

    inside: _Place | None
    step: str | int


def _invalid(index: int, place: _Place | None, problem: str) -> InvalidItemError:
    steps: list[str] = []
    while place is not None:
        steps.append(f"[{place.step}]" if isinstance(place.step, int) else f".{place.step}")
        place = place.inside
    path = "$" + "".join(reversed(steps))
    return InvalidItemError(
        f"item {index} at {_shortened(path)}: {problem}; nothing of this batch was stored", index=index, path=path
    )


def _named(key: object) -> str:
    try:
        return f"the key {_shortened(repr(key))}"
    except Exception:  # an integer of more digits than Python writes, or a repr of the user's own
        return "a key"


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else text[:100] + "…" + text[-80:]


def _plain(value: object, place: _Place | None, depth: int, index: int) -> object:
    """A copy of `value` made of what JSON holds exactly, or the error that names what is in the way."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _checked_text(value, place, index)
    if isinstance(value, int):
        try:
            str(int(value))
        except ValueError:  # sys.get_int_max_str_digits()
            raise _invalid(index, place, "an integer of more digits than Python converts; make it a string") from None
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _invalid(index, place, f"{value!r} is not JSON; use null or a string")
        return value
    if depth >= MAX_DEPTH:
        raise _invalid(index, place, f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, BaseModel):
        return _plain(_model_json(value, index, place), place, depth, index)
    if isinstance(value, dict):
        result = {}
        for key, member in value.items():
            if not isinstance(key, str):
                raise _invalid(index, place, f"{_named(key)} is {type(key).__name__}, JSON keys are strings")
            result[_checked_text(key, place, index)] = _plain(member, _Place(place, key), depth + 1, index)
        return result
    if isinstance(value, list):
        elements = []
        for number, member in enumerate(value):
            elements.append(_plain(member, _Place(place, number), depth + 1, index))
        return elements
    advice = "make it a list" if isinstance(value, (tuple, set, frozenset)) else "convert it to JSON types first"
    raise _invalid(index, place, f"{type(value).__name__} has no faithful JSON form; {advice}")


def _checked_text(text: str, place: _Place | None, index: int) -> str:
    # One lone surrogate comes back from its \u escape; two that form a pair come back as one character.
    if _SURROGATE_PAIR.search(text):
        advice = "text.encode('utf-16', 'surrogatepass').decode('utf-16')"
        raise _invalid(index, place, f"a surrogate pair as two code points is one character in JSON; use {advice}")
    return text


def _model_json(model: BaseModel, index: int, place: _Place | None) -> object:
    openai = sys.modules.get("openai")  # not imported here: whoever has an object of its classes has loaded it
    try:
        if openai is not None and isinstance(model, openai.BaseModel):
            # The client's models say themselves what the API takes back: to_dict() leaves out what was never set,
            # because the API refuses an explicit null for it. No warnings: the client builds them unchecked, so
            # what a newer API sends need not fit their types.
            return model.to_dict(mode="json", warnings=False)
        return model.model_dump(mode="json", by_alias=True)
    except ValueError as error:  # PydanticSerializationError is one
        raise _invalid(
            index, place, f"{type(model).__name__} does not turn into JSON: {_shortened(str(error))}"
        ) from error


@dataclass(frozen=True)
class RunItem:
    """One item that a run added, with the agent that it came from.

    Attributes:
        raw_item: the item as it is stored and replayed (see :meth:`to_input_item`).
        agent_name: name of the agent that was speaking.
    """

    type: ClassVar[str] = "run_item"

    raw_item: Item
    agent_name: str

    def to_input_item(self) -> Item:
        """The item in the form in which it is sent to the model."""
        return self.raw_item


@dataclass(frozen=True)
class MessageOutputItem(RunItem):
    """A message from the model."""

    type: ClassVar[str] = "message_output_item"

    @property
    def text(self) -> str:
        """The message's text; a refusal counts as text."""
        return message_text(self.raw_item)


@dataclass(frozen=True)
class ToolCallItem(RunItem):
    """The model asks for a tool; hosted tools (web search and the like) have no separate output."""

    type: ClassVar[str] = "tool_call_item"


@dataclass(frozen=True)
class ToolCallOutputItem(RunItem):
    """What the tool answered; ``output`` is the value that the tool returned, before it became text."""

    type: ClassVar[str] = "tool_call_output_item"

    output: Any = None


@dataclass(frozen=True)
class HandoffCallItem(RunItem):
    """The model hands the conversation to another agent."""

    type: ClassVar[str] = "handoff_call_item"


@dataclass(frozen=True)
class HandoffOutputItem(RunItem):
    """The handoff happened: ``target_agent_name`` goes on from here."""

    type: ClassVar[str] = "handoff_output_item"

    target_agent_name: str = ""


@dataclass(frozen=True)
class ReasoningItem(RunItem):
    """The model's reasoning, mostly opaque; replayed together with the item that it led to."""

    type: ClassVar[str] = "reasoning_item"


def message_text(item: Item) -> str:
    """The text of a message item, from either form of ``content`` (a string, or a list of parts)."""
    content = item.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part for part in content if isinstance(part, dict))
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)
