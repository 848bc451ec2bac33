"""Fuzzing: no bytes, no items and no rows bring anything but the documented result, or the documented error."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
import warnings
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    HOSTED_KINDS,
    INPUT_KINDS,
    INPUT_ROLES,
    OUTPUT_KIND,
    History,
    JsonObject,
    adversarial_histories,
    json_objects,
    json_scalars,
    json_values,
    numbered,
)
from test_replay import cuts, every_settings, fits, oracle, place_tokens

from agentmem import AsyncSessionStore, SessionSettings
from agentmem.errors import CorruptItemWarning, InvalidItemError
from agentmem.items import Item, decode_item, encode_item, message_text
from agentmem.replay import estimate_tokens, replay_window, whole_exchanges

# The item codec

TOKENS = [*'{}[]:,"\\ \n\0', "null", "NaN", "-", "1e999", "0", "\\u", "\\ud800", "\\udc00", "\xff", "\ufeff", "//"]


@st.composite
def damaged_texts(draw: st.DrawFn) -> bytes:
    """The text of an item after some accidents."""
    data = encode_item(draw(json_objects(max_leaves=6))).encode()
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        new = draw(st.sampled_from(TOKENS).map(lambda token: token.encode("latin-1", "ignore")) | st.binary(max_size=3))
        data = draw(st.sampled_from([data[:start] + new + data[end:], data[:start] + new + data[start:], data[:end]]))
    return data


@given(damaged_texts())
@example(b'{"":-1e999}')
@example(rb'{"":"\ud83d\ude00\ud83d"}')
def test_a_damaged_text_is_an_item_or_a_value_error_and_what_is_read_can_be_stored_again(data: bytes) -> None:
    try:
        item = decode_item(data)
    except ValueError:
        assert not _is_item(data)
        return
    assert type(item) is dict
    try:
        again = encode_item(item)
    except InvalidItemError:
        # All that JSON's text can hold and agentmem's cannot: two escapes that are one character, and 1e999.
        assert re.search(r"surrogate pair|-?inf is not JSON", _refusal(item))
    else:
        assert decode_item(again) == item


def _refusal(item: Item) -> str:
    try:
        encode_item(item)
    except InvalidItemError as error:
        return str(error)
    return ""


def _is_item(data: bytes) -> bool:
    """Whether the standard library finds a JSON object that is all JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return type(json.loads(data.decode(), parse_constant=refuse)) is dict
    except ValueError:
        return False


class Hostile:
    """Does what it can to break whoever looks at it."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        raise RuntimeError


_odd_leaves: st.SearchStrategy[Any] = st.sampled_from(
    [float("nan"), float("-inf"), b"x", (1,), {1}, frozenset(), Decimal(1), object(), 1j, ..., range(2), int]
)
_odd_keys: st.SearchStrategy[Any] = st.sampled_from([1, 1.5, None, b"k", ("k",), frozenset()])
_hostile = st.builds(Hostile)


@given(
    st.recursive(
        json_scalars() | _odd_leaves | _hostile | st.text(max_size=3),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.text(max_size=3) | _odd_keys | _hostile, inner, max_size=3),
        ),
        max_leaves=8,
    )
)
def test_any_object_is_stored_equal_or_refused_by_name(value: Any) -> None:
    for item in (value, {"a": value}):
        try:
            text = encode_item(item)
        except InvalidItemError:
            continue
        assert decode_item(text) == item


# The replay window

_KINDS = [*OUTPUT_KIND, *OUTPUT_KIND.values(), *HOSTED_KINDS, "message", "reasoning", "not_known_yet"]
_KINDS += [kind for kind in INPUT_KINDS if kind != "compaction"]  # which has tests of its own
_few_ids = st.sampled_from(["a", "b"])
_any_value = json_values(max_leaves=3)
_known_fields: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(_KINDS) | _any_value,
    "role": st.sampled_from([*INPUT_ROLES, "assistant"]) | _any_value,
    "id": _few_ids | _any_value,
    "call_id": _few_ids | _any_value,
    "approval_request_id": _few_ids | _any_value,
    "caller": st.fixed_dictionaries({"type": st.just("program") | _any_value, "caller_id": _few_ids | _any_value})
    | _any_value,
    "content": _any_value,
    "summary": _any_value,
    "output": _any_value,
    "status": _any_value,
}


@st.composite
def soups(draw: st.DrawFn) -> History:
    """Items with anything in every field that the window looks at, among some that are as they should be."""
    strange = st.fixed_dictionaries({}, optional=_known_fields)
    others = {name: value for name, value in _known_fields.items() if name != "type"}
    typed = st.fixed_dictionaries({"type": st.sampled_from(_KINDS)}, optional=others)
    items: list[JsonObject] = draw(st.lists(strange | typed, max_size=6))
    for other in draw(adversarial_histories(max_size=4)):
        items.insert(draw(st.integers(0, len(items))), other)
    return numbered(items)


@given(soups())
def test_any_soup_of_items_has_the_window_that_the_rules_say(history: History) -> None:
    found = cuts(history, place_tokens)
    for settings in every_settings(history):
        expected = (
            next(cut.window for cut in found if fits(cut, settings)) if settings.has_caps else oracle(history, settings)
        )
        assert replay_window(history, settings) == expected


@given(soups(), st.integers(0, 8))
def test_a_window_of_any_soup_is_whole_and_has_a_size_and_a_text(history: History, limit: int) -> None:
    window = replay_window(history, SessionSettings(limit=limit, max_tokens=10**9))
    assert whole_exchanges(window) == window
    assert all(estimate_tokens(item) > 0 for item in history)
    assert all(isinstance(message_text(item), str) for item in history)


# The row reader

_cells = st.one_of(
    json_objects(max_leaves=3).map(encode_item),
    damaged_texts(),
    st.text(max_size=6),
    st.binary(max_size=6),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
)


_SESSION = """
    INSERT INTO agentmem_sessions (session_key, session_id, length, updated_at, stored_at, created_at)
    VALUES (7, 'user_123', ?, 0, 0, 0)
"""


def test_any_cells_in_a_real_file_are_read_where_they_are_items_and_each_other_is_warned_about_once(
    tmp_path: Path,
) -> None:
    path = tmp_path / "conversations.db"
    loop = asyncio.new_event_loop()
    store = AsyncSessionStore(path)
    loop.run_until_complete(store.open())
    other = sqlite3.connect(path, isolation_level=None)

    @given(st.lists(_cells, max_size=8), st.none() | st.integers(0, 9))
    def check(cells: list[Any], limit: int | None) -> None:
        other.execute("DELETE FROM agentmem_items")
        other.execute("DELETE FROM agentmem_sessions")
        other.execute(_SESSION, (len(cells),))
        rows = [(position, cell, cell, cell) for position, cell in enumerate(cells)]
        # As text, also where the bytes are none: so does a damaged page.
        as_text = "CASE typeof(?) WHEN 'blob' THEN CAST(? AS TEXT) ELSE ? END"
        other.executemany(
            f"INSERT INTO agentmem_items (session_key, position, created_at, item) VALUES (7, ?, 0, {as_text})", rows
        )
        stored = other.execute("SELECT CAST(item AS BLOB) FROM agentmem_items ORDER BY position").fetchall()
        valid = [position for position, (data,) in enumerate(stored) if _is_item(data)]
        loop.run_until_complete(_read_and_pop(store, [data for (data,) in stored], valid, limit))

    try:
        check()
    finally:
        other.close()
        loop.run_until_complete(store.close())
        loop.close()


async def _read_and_pop(store: AsyncSessionStore, stored: list[bytes], valid: list[int], limit: int | None) -> None:
    session = store.session("user_123")
    taken = valid if limit is None else valid[max(0, len(valid) - limit) :]
    with _warned() as positions:
        assert await session.get_items(limit) == [json.loads(stored[position]) for position in taken]
    # What was passed over on the way to the oldest item that was taken, or to the beginning.
    reached = taken[0] if limit is not None and len(taken) == limit and taken else 0 if limit != 0 else len(stored)
    corrupt = [position for position in range(reached, len(stored)) if position not in valid and stored[position]]
    assert positions == corrupt[::-1]
    with _warned() as positions:
        assert await session.pop_item() == (json.loads(stored[valid[-1]]) if valid else None)
    above = range(valid[-1] + 1 if valid else 0, len(stored))
    assert positions == [position for position in above if stored[position]][::-1]  # no text: an erased item's
    with _warned():
        left = await session.get_items()
    assert left == [json.loads(stored[position]) for position in valid[:-1]]
    await session.add_items([{"next": True}])  # at the next position, whatever was removed


@contextlib.contextmanager
def _warned() -> Any:
    """The positions that are warned about, in order."""
    positions: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield positions
    for warning in caught:
        assert warning.category is CorruptItemWarning
        positions.append(int(str(warning.message).partition("at position ")[2].partition(" ")[0]))
