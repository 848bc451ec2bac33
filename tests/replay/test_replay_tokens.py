"""The estimate of tokens against real counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import JsonObject, json_objects
from token_samples import TEXTS, TOKENS

from agentmem.replay.tokens import SAMPLE_BYTES, count_text_tokens, estimate_tokens


def message(text: str) -> JsonObject:
    return {"role": "user", "content": text}


def text_tokens(text: str) -> int:
    """What the text adds to the estimate of a message."""
    return estimate_tokens(message(text)) - estimate_tokens(message(""))


@pytest.mark.parametrize("sort", TEXTS)
def test_the_estimate_of_a_text_is_within_a_fifth(sort: str) -> None:
    assert text_tokens(TEXTS[sort]) == pytest.approx(TOKENS[sort], rel=0.2)


def test_the_estimate_of_texts_of_many_sorts_is_within_a_twentieth() -> None:
    assert sum(map(text_tokens, TEXTS.values())) == pytest.approx(sum(TOKENS.values()), rel=0.05)


@pytest.mark.parametrize("sort", TEXTS)
def test_a_long_text_of_which_parts_are_looked_at_counts_as_the_whole(sort: str) -> None:
    text = TEXTS[sort] * 200
    assert len(text.encode()) > SAMPLE_BYTES
    assert text_tokens(text) == pytest.approx(200 * text_tokens(TEXTS[sort]), rel=0.15)


@pytest.mark.parametrize("sort", ["JSON of records", "JSON with indents", "Python"])
def test_a_text_that_json_escapes_counts_as_the_text(sort: str) -> None:
    """The JSON of an item has a backslash before each quote in it; the model sees none."""
    escaped = json.dumps(TEXTS[sort]).encode()
    assert escaped.count(b"\\") > 5
    assert count_text_tokens(escaped) == pytest.approx(count_text_tokens(TEXTS[sort].encode()), rel=0.03)


def test_a_call_counts_its_arguments_and_little_else() -> None:
    """The JSON of this item has 34 tokens."""
    item = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city":"Berlin"}'}
    assert 25 <= estimate_tokens(item) <= 45


@given(json_objects())
def test_the_estimate_is_the_same_each_time_and_at_least_one(item: JsonObject) -> None:
    assert estimate_tokens(item) == estimate_tokens(json.loads(json.dumps(item))) >= 1


@given(st.text(max_size=200), st.text(max_size=200))
def test_more_text_never_has_fewer_tokens_by_much(one: str, other: str) -> None:
    """Where two texts meet, words may become one."""
    both = count_text_tokens((one + other).encode("utf-8", "surrogatepass"))
    assert both >= count_text_tokens(one.encode("utf-8", "surrogatepass")) - 3


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"a": "\ud800"},
        {"a": [[[[]]]]},
        {"content": [None, 5, "text", {}, {"type": None}]},
        {"output": {}},
        {"outputs": 5},
    ],
    ids=str,
)
def test_any_item_has_an_estimate(item: Any) -> None:
    assert 1 <= estimate_tokens(item) < 50
