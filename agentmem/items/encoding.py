"""Items as JSON text: an item is a JSON object, is stored as its JSON text, and comes back equal.

Rules:

- :func:`decode_item` returns an equal item for every text that :func:`encode_item` makes: key order, Unicode, big
  integers, floats, lone surrogates. The fast path decodes each text that it makes and compares; the slow path writes
  only values that JSON can express exactly.
- A value that JSON cannot express exactly (NaN, infinity, a key that is not a string, bytes, a tuple, a set, any other
  object) raises :class:`~agentmem.errors.InvalidItemError` with the item's index and the value's path.
- A pydantic model, as an item or inside one, is replaced by its JSON form.

The module does no I/O.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from ..errors import InvalidItemError

Item = dict[str, Any]
"""An item in the input format of OpenAI's Responses API: a JSON object."""

ERASED = ""
"""What is stored in the place of an item that was erased. No item's JSON text is empty."""

MAX_DEPTH = 256
"""The deepest nesting of objects and arrays that is accepted in an item. The model APIs accept much less. The limit
keeps decoding away from Python's recursion limit (1,000 by default, which includes the caller's own frames)."""

MAX_STORED_DEPTH = 1_000
"""The deepest nesting that is read. Items that other programs stored may be deeper than ``MAX_DEPTH``. Without a limit,
a row of 100,000 levels would overflow the stack of Python 3.11 in a program that has raised its recursion limit."""

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def encode_items(items: Iterable[object]) -> list[str]:
    """Encode each item as JSON text, in the same order.

    Args:
        items: JSON objects (dicts, or mappings of another kind) or pydantic models, oldest first.

    Raises:
        InvalidItemError: an item has no faithful JSON form.
        TypeError: ``items`` is a single item instead of a list, or is not iterable.
    """
    if isinstance(items, (str, bytes, Mapping, BaseModel)):
        raise TypeError(f"items must be a list of items, got one {type(items).__name__}: put it in a list, [item]")
    return [encode_item(item, index) for index, item in enumerate(items)]


def encode_item(item: object, index: int = 0) -> str:
    """Encode one item as JSON text.

    Args:
        item: a JSON object (a dict, or any mapping, which comes back as a dict) or a pydantic model.
        index: the item's index in its batch, for the error.

    Raises:
        InvalidItemError: `item` is not a JSON object, or holds a value that has no faithful JSON form.
    """
    if isinstance(item, Mapping) and not isinstance(item, dict):
        item = dict(item)
    if type(item) is dict:
        try:
            # The fast path: about 3 µs for a message of 400 bytes. pydantic-core also encodes values that are not JSON
            # (bytes, tuples, dates), so the text counts only if it decodes to an equal item. NaN and infinity become
            # null, which is not equal either.
            data = to_json(item, inf_nan_mode="null")
            if from_json(data) == item:
                return data.decode()
        except (ValueError, TypeError, RecursionError, BytesWarning):
            pass  # nothing is lost: the slow path below encodes the item, or says which value is invalid
    try:
        plain = _to_plain_json(item, None, 0, index)
        if type(plain) is not dict:
            raise _invalid(index, None, f"an item is a JSON object (a dict), got {type(item).__name__}")
        # With ASCII escapes, because a lone surrogate has no UTF-8 form.
        return json.dumps(plain, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise _invalid(index, None, "nested too deeply for what is left of the call stack") from None


def decode_item(data: str | bytes) -> Item:
    """Decode the JSON text of one stored item.

    Raises:
        ValueError: the text is not the JSON of an object, so the row is corrupt.
    """
    try:
        item = from_json(data, allow_inf_nan=False)
    except (ValueError, TypeError):
        # pydantic-core refuses lone surrogates and more than 200 levels; the standard library reads them.
        try:
            text = data if isinstance(data, str) else str(data, "utf-8")  # json.loads() would also try UTF-16
            if _is_nested_too_deeply(text):
                raise ValueError(f"nested deeper than {MAX_STORED_DEPTH} levels")
            item = json.loads(text, parse_constant=_refuse_constant)
        except (TypeError, RecursionError) as error:
            raise ValueError(f"not JSON text: {error}") from error
    if type(item) is not dict:
        raise ValueError(f"not a JSON object but {type(item).__name__}")
    return item


def decode_joined(joined: bytes, count: int) -> list[Item] | None:
    """Decode many stored texts at once.

    Corrupt texts that are valid JSON only together, such as ``{"a":[1`` and ``2]},{}``, are not detected. Accidental
    damage does not produce them.

    Args:
        joined: the texts, joined by commas.
        count: how many texts there are.

    Returns:
        The items in the order of the texts. None if the texts must be decoded one by one, because at least one of them
        is corrupt or needs the standard library's decoder.
    """
    try:
        items: list[Item] = from_json(b"[%b]" % joined, allow_inf_nan=False)
    except ValueError:
        return None
    return items if len(items) == count and all(type(item) is dict for item in items) else None


def compact_json(item: Item) -> bytes:
    """Return the item's compact JSON in UTF-8, in which a lone surrogate has the three bytes that WTF-8 gives it."""
    try:
        return to_json(item)
    except ValueError:  # a lone surrogate, or very deep nesting
        return json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def json_size_bytes(item: Item) -> int:
    """Return the length of the item's compact JSON, in bytes of UTF-8."""
    return len(compact_json(item))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _is_nested_too_deeply(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_STORED_DEPTH:
        return False
    # Once escaped backslashes and escaped quotes are removed, every quote begins or ends a string.
    outside_strings = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    depth = 0
    for bracket in re.findall(r"[\[{}\]]", outside_strings):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_STORED_DEPTH:
            return True
    return False


class _Path(NamedTuple):
    """The path of a value in an item, as a linked list from the value up: its key or index, and its parent's path.

    It becomes text only for an error, so that a valid item pays nothing for it.
    """

    parent: _Path | None
    step: str | int


def _invalid(index: int, path: _Path | None, problem: str) -> InvalidItemError:
    steps: list[str] = []
    while path is not None:
        steps.append(f"[{path.step}]" if isinstance(path.step, int) else f".{path.step}")
        path = path.parent
    path_text = "$" + "".join(reversed(steps))
    return InvalidItemError(
        f"item {index} at {_shorten(path_text)}: {problem}; nothing of this batch was stored",
        index=index,
        path=path_text,
    )


def _describe_key(key: object) -> str:
    try:
        return f"the key {_shorten(repr(key))}"
    except Exception:  # an integer of too many digits for Python to print, or the error of a custom __repr__
        return "a key"


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else text[:100] + "…" + text[-80:]


def _to_plain_json(value: object, path: _Path | None, depth: int, index: int) -> object:
    """Copy `value` into the types that JSON can express exactly.

    Args:
        value: the item, or a value inside it.
        path: the value's path in the item; None for the item itself.
        depth: how many objects and arrays surround the value.
        index: the item's index in its batch, for the error.

    Raises:
        InvalidItemError: the value, or one inside it, has no faithful JSON form.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _check_text(value, path, index)
    if isinstance(value, int):
        try:
            str(int(value))
        except ValueError:  # sys.get_int_max_str_digits()
            raise _invalid(
                index, path, "an integer of more digits than Python converts to text; make it a string"
            ) from None
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _invalid(index, path, f"{value!r} is not JSON; use null or a string")
        return value
    if depth >= MAX_DEPTH:
        raise _invalid(index, path, f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, BaseModel):
        return _to_plain_json(_dump_model(value, path, index), path, depth, index)
    if isinstance(value, dict):
        members = {}
        for key, member in value.items():
            if not isinstance(key, str):
                raise _invalid(index, path, f"{_describe_key(key)} is {type(key).__name__}; JSON keys are strings")
            members[_check_text(key, path, index)] = _to_plain_json(member, _Path(path, key), depth + 1, index)
        return members
    if isinstance(value, list):
        elements = []
        for number, element in enumerate(value):
            elements.append(_to_plain_json(element, _Path(path, number), depth + 1, index))
        return elements
    advice = "make it a list" if isinstance(value, (tuple, set, frozenset)) else "convert it to JSON types first"
    raise _invalid(index, path, f"{type(value).__name__} has no faithful JSON form; {advice}")


def _check_text(text: str, path: _Path | None, index: int) -> str:
    # A lone surrogate survives as a \u escape. Two that form a pair would come back as one character.
    if _SURROGATE_PAIR.search(text):
        advice = "text.encode('utf-16', 'surrogatepass').decode('utf-16')"
        raise _invalid(index, path, f"a surrogate pair as two code points is one character in JSON; use {advice}")
    return text


def _dump_model(model: BaseModel, path: _Path | None, index: int) -> object:
    openai = sys.modules.get("openai")  # not imported: a caller who has one of its objects has loaded it
    try:
        if openai is not None and isinstance(model, openai.BaseModel):
            # to_dict() leaves out fields that were never set, because the API refuses an explicit null for them.
            # Without warnings: the client builds its models unvalidated, so a newer API's answer may not fit the types.
            return model.to_dict(mode="json", warnings=False)
        return model.model_dump(mode="json", by_alias=True)
    except ValueError as error:  # PydanticSerializationError is a ValueError
        raise _invalid(
            index, path, f"{type(model).__name__} cannot be converted to JSON: {_shorten(str(error))}"
        ) from error
