"""Items: what goes in comes back equal, and what JSON cannot hold is refused by name, index and path."""

from __future__ import annotations

import enum
import inspect
import itertools
import json
import os
import subprocess
import sys
from collections import ChainMap, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputItem, ResponseOutputMessage
from pydantic import BaseModel, ConfigDict, Field, RootModel, TypeAdapter
from strategies import JsonObject, json_objects, json_texts, json_values

from agentmem.errors import InvalidItemError
from agentmem.items import (
    HandoffCallItem,
    HandoffOutputItem,
    MessageOutputItem,
    ReasoningItem,
    RunItem,
    ToolCallItem,
    ToolCallOutputItem,
    decode_item,
    encode_item,
    encode_items,
    json_size_bytes,
    message_text,
)

DIGITS = sys.get_int_max_str_digits() or 4300
"""Python refuses to write or read longer integers."""


def stored(item: object) -> JsonObject:
    """The item as it comes back: through text, and through the bytes that a database keeps."""
    text = encode_item(item)
    assert decode_item(text) == decode_item(text.encode())
    return decode_item(text)


def nested(levels: int, innermost: object = 0) -> JsonObject:
    """An item of that many levels, objects and arrays in turn."""
    value = innermost
    for level in range(levels - 1, 0, -1):
        value = {"a": value} if level % 2 == 0 else [value]
    return {"a": value}


def refused(item: object) -> InvalidItemError:
    with pytest.raises(InvalidItemError) as caught:
        encode_item(item)
    return caught.value


# --------------------------------------------------------------------------------------------------------- round trips


@given(json_objects())
def test_any_json_object_comes_back_equal(item: JsonObject) -> None:
    """Same keys in the same order, same types, same floats to the last bit and sign: repr tells them all."""
    assert repr(stored(item)) == repr(item)


@given(json_objects())
def test_the_stored_text_is_json_that_others_can_read(item: JsonObject) -> None:
    assert json.loads(encode_item(item)) == item


@given(json_objects())
def test_the_stored_text_is_valid_unicode(item: JsonObject) -> None:
    """Lone surrogates have no UTF-8 form, and no database takes them: they are stored as escapes."""
    assert json.loads(encode_item(item).encode("utf-8")) == item


@given(json_objects())
def test_encoding_leaves_the_item_as_it_was(item: JsonObject) -> None:
    before = repr(item)
    encode_item(item)
    assert repr(item) == before


@given(st.lists(json_objects(), max_size=4))
def test_a_batch_keeps_its_order(items: list[JsonObject]) -> None:
    assert [decode_item(text) for text in encode_items(items)] == items
    assert encode_items(iter(items)) == encode_items(items)


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(-0.0)
@example(5e-324)
@example(2.2250738585072014e-308)
@example(1.7976931348623157e308)
@example(1e16)
@example(123456789012345680.0)
def test_every_finite_float_comes_back_to_the_last_bit(number: float) -> None:
    back = stored({"a": number})["a"]
    assert isinstance(back, float)
    assert back.hex() == number.hex()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("digits", [19, 20, 39, 400, DIGITS])
def test_an_integer_of_any_size_that_python_writes_comes_back(digits: int, sign: int) -> None:
    number = sign * (10**digits - 1)
    assert stored({"a": [number]}) == {"a": [number]}


@given(st.text(st.characters(categories=["Cs"]) | st.characters(), max_size=8))
@example("\ud800")
@example("\udc00\ud800")
@example("\ud83dx\ude00")
@example("\0\ud800\0")
def test_text_comes_back_equal_or_is_refused(text: str) -> None:
    """Lone surrogates come back; JSON has no form for a pair of them that is not the one character."""
    pair = any("\ud800" <= a <= "\udbff" and "\udc00" <= b <= "\udfff" for a, b in itertools.pairwise(text))
    for item in ({"a": text}, {text: "a"}, {"a": [{text: [text]}]}):
        if pair:
            assert "surrogate pair" in str(refused(item))
        else:
            assert stored(item) == item


@pytest.mark.parametrize("levels", [1, 2, 199, 200, 201, 202, 254, 255, 256])
def test_nesting_comes_back_up_to_the_stated_depth(levels: int) -> None:
    for item in (nested(levels), nested(levels, "\ud800"), nested(levels - 1, []) if levels > 1 else {}):
        assert stored(item) == item
        assert json_size_bytes(item) == compact_size(item)


@pytest.mark.parametrize("levels", [257, 500, 5_000, 100_000])
@pytest.mark.parametrize("form", ["objects", "arrays", "both"])
def test_deeper_nesting_is_refused_by_name(levels: int, form: str) -> None:
    value: object = "x"
    for level in range(levels - 1):
        value = {"a": value} if form == "objects" or (form == "both" and level % 2) else [value]
    error = refused({"deep": value})
    assert error.path.startswith("$.deep")
    assert "nested deeper than 256 levels" in str(error)
    assert len(str(error)) < 300


class Loud(str):
    __slots__ = ()


class Count(int):
    pass


class Ratio(float):
    pass


class Names(dict[str, Any]):
    pass


class Row(list[Any]):
    pass


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.IntFlag):
    READ = 4


@pytest.mark.parametrize(
    "value",
    [
        Loud("é"),
        Loud("\ud800"),
        Count(7),
        Count(10**400),
        Ratio(0.1),
        Colour.RED,
        Level.LOW,
        Access.READ,
        Names(a=Names(b=Row([1]))),
        Row([Row([])]),
        OrderedDict([("z", 1), ("a", OrderedDict())]),
        defaultdict(list, {"a": [1], "b": []}),
        {Colour.RED: {Loud("k"): 1}},
    ],
    ids=repr,
)
def test_subclasses_of_the_json_types_come_back_equal(value: Any) -> None:
    """Alone, and next to what takes the slow path."""
    for item in ({"a": value}, {"a": [value], "b": "\ud800"}):
        back = stored(item)
        assert back == item
        assert json.dumps(back) == json.dumps(item)  # the same keys in the same order


@pytest.mark.parametrize("item", [Names(b=1, a=2), OrderedDict(b=1, a=2), defaultdict(int, {"b": 1, "a": 2})])
def test_an_item_may_be_a_subclass_of_dict(item: JsonObject) -> None:
    assert list(stored(item).items()) == [("b", 1), ("a", 2)]


@pytest.mark.parametrize("kind", [MappingProxyType, UserDict, ChainMap])
def test_an_item_may_be_a_mapping_of_any_kind(kind: Callable[[JsonObject], Mapping[str, Any]]) -> None:
    for members in ({"b": 1, "a": [2]}, {}, {"a": "\ud800"}):
        item = kind(members)
        (text,) = encode_items([item])
        assert decode_item(text) == item
    with pytest.raises(InvalidItemError, match=r"item 0 at \$\.b: bytes has no faithful JSON form"):
        encode_items([kind({"b": b"x"})])
    with pytest.raises(TypeError, match=r"put it in a list, \[item\]"):
        encode_items(kind({"role": "user"}))


# ----------------------------------------------------------------------------------------------------------- bad input


class Plain(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int = 1


class Always:
    """Equal to everything, as unittest.mock.ANY is."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]  # what the data model asks for next to __eq__


WHEN = datetime(2024, 5, 6, tzinfo=UTC)
NO_FORM = "has no faithful JSON form"
UNFAITHFUL: list[tuple[Any, str]] = [
    (float("nan"), "nan is not JSON"),
    (float("inf"), "inf is not JSON"),
    (float("-inf"), "-inf is not JSON"),
    (Ratio("nan"), "nan is not JSON"),
    (b"x", f"bytes {NO_FORM}"),
    (b"", f"bytes {NO_FORM}"),
    (bytearray(b"x"), f"bytearray {NO_FORM}"),
    (memoryview(b"x"), f"memoryview {NO_FORM}"),
    ((), f"tuple {NO_FORM}; make it a list"),
    ((1, 2), f"tuple {NO_FORM}; make it a list"),
    ({1}, f"set {NO_FORM}; make it a list"),
    (set(), f"set {NO_FORM}; make it a list"),
    (frozenset({"a"}), f"frozenset {NO_FORM}; make it a list"),
    (deque([1]), f"deque {NO_FORM}"),
    (range(3), f"range {NO_FORM}"),
    ({}.keys(), f"dict_keys {NO_FORM}"),
    (MappingProxyType({"a": 1}), f"mappingproxy {NO_FORM}"),
    (WHEN, f"datetime {NO_FORM}"),
    (WHEN.date(), f"date {NO_FORM}"),
    (WHEN.timetz(), f"time {NO_FORM}"),
    (timedelta(1), f"timedelta {NO_FORM}"),
    (Decimal("1.5"), f"Decimal {NO_FORM}"),
    (Decimal(1), f"Decimal {NO_FORM}"),
    (Fraction(1, 2), f"Fraction {NO_FORM}"),
    (1j, f"complex {NO_FORM}"),
    (complex(1), f"complex {NO_FORM}"),
    (UUID(int=1), f"UUID {NO_FORM}"),
    (Path("a"), f"Path {NO_FORM}"),
    (Plain.RED, f"Plain {NO_FORM}"),
    (Point(), f"Point {NO_FORM}"),
    (Always(), f"Always {NO_FORM}"),
    (object(), f"object {NO_FORM}"),
    (int, f"type {NO_FORM}"),
    (len, f"builtin_function_or_method {NO_FORM}"),
    (..., f"ellipsis {NO_FORM}"),
    ({1: "a"}, "the key 1 is int; JSON keys are strings"),
    ({True: "a"}, "the key True is bool"),
    ({None: "a"}, "the key None is NoneType"),
    ({1.5: "a"}, "the key 1.5 is float"),
    ({b"k": "a"}, "the key b'k' is bytes"),
    ({("k",): "a"}, "the key ('k',) is tuple"),
    ({"a": 1, 2: "b"}, "the key 2 is int"),
    (OrderedDict([(date(2024, 5, 6), 1)]), "is date; JSON keys are strings"),
    (10**DIGITS, "an integer of more digits than Python converts"),
    (-(10**DIGITS), "an integer of more digits than Python converts"),
    (Count(10**DIGITS), "an integer of more digits than Python converts"),
    ("\ud83d\ude00", "a surrogate pair"),
    ({"\ud83d\ude00": 1}, "a surrogate pair"),
]
UNFAITHFUL_IDS = [f"{place}-{problem[:24]}" for place, (_, problem) in enumerate(UNFAITHFUL)]


@pytest.mark.parametrize(("value", "problem"), UNFAITHFUL, ids=UNFAITHFUL_IDS)
def test_what_json_cannot_hold_is_refused_by_index_and_path(value: Any, problem: str) -> None:
    places: list[tuple[JsonObject, str]] = [
        ({"v": value}, "$.v"),
        ({"role": "user", "content": [{"text": "x"}, {"a": {"b": [0, value]}}]}, "$.content[1].a.b[1]"),
        (OrderedDict(a=value), "$.a"),
        ({"s": "\ud800", "v": [value]}, "$.v[0]"),
        ({"first": value, "second": value}, "$.first"),
    ]
    for item, path in places:
        for index, batch in [(0, [item]), (2, [{"a": 1}, {}, item]), (1, [{}, item, item, {}])]:
            with pytest.raises(InvalidItemError) as caught:
                encode_items(batch)
            assert (caught.value.index, caught.value.path) == (index, path)
            assert f"item {index} at {path}: " in str(caught.value)
            assert problem in str(caught.value)
            assert "nothing of this batch was stored" in str(caught.value)


@given(json_objects(), st.data())
def test_one_bad_value_anywhere_in_any_item_is_found_by_its_path(item: JsonObject, data: st.DataObject) -> None:
    """Walk into the item at random, put the bad value there, and expect the path of that walk."""
    bad = data.draw(st.sampled_from([float("nan"), b"x", (1,), {1}, WHEN, Decimal(1)]))
    item = {"role": "user", **item}
    place: Any = item
    path = "$"
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        path += f".{key}" if isinstance(place, dict) else f"[{key}]"
        if not (isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans())):
            break
        place = place[key]
    place[key] = bad
    assert refused(item).path == path


@pytest.mark.parametrize(
    "item",
    ["text", b"bytes", None, 5, 1.5, True, [], [{"a": 1}], (), {1}, object(), WHEN, Point(), RootModel[list[int]]([1])],
    ids=lambda item: type(item).__name__,
)
def test_an_item_that_is_no_object_is_refused(item: object) -> None:
    with pytest.raises(InvalidItemError) as caught:
        encode_items([{}, item])
    assert (caught.value.index, caught.value.path) == (1, "$")
    assert type(item).__name__ in str(caught.value)


def test_keys_of_an_item_are_checked_too() -> None:
    error = refused({1: "a"})
    assert error.path == "$"
    assert "the key 1 is int" in str(error)


def test_an_item_that_holds_itself_is_refused() -> None:
    loop: JsonObject = {}
    loop["a"] = loop
    ring: list[object] = []
    ring.append(ring)
    for item, path in ((loop, "$.a.a.a"), ({"b": loop}, "$.b.a.a"), ({"c": ring}, "$.c[0][0]")):
        error = refused(item)
        assert error.path.startswith(path)
        assert "nested deeper" in str(error)


def test_a_value_that_appears_twice_is_no_loop() -> None:
    shared = {"a": [1]}
    assert stored({"x": shared, "y": [shared, shared]}) == {"x": shared, "y": [shared, shared]}


def test_a_generator_inside_an_item_is_refused_and_not_stored_as_a_list() -> None:
    assert "generator has no faithful JSON form" in str(refused({"a": (n for n in [1])}))


def test_an_item_too_deep_for_the_stack_that_is_left_is_refused_and_not_a_crash() -> None:
    item = nested(256)

    def encode_at(frames: int) -> str:
        return encode_item(item, 7) if frames == 0 else encode_at(frames - 1)

    left = sys.getrecursionlimit() - len(inspect.stack(0))
    with pytest.raises(InvalidItemError, match="nested too deeply for what is left of the call stack") as caught:
        encode_at(left - 100)
    assert (caught.value.index, caught.value.path) == (7, "$")
    assert decode_item(encode_at(0)) == item


@pytest.mark.parametrize(
    "items",
    [{"role": "user"}, OrderedDict(), "text", b"bytes", ResponseFunctionToolCall.construct(call_id="c")],
    ids=lambda items: type(items).__name__,
)
def test_a_single_item_in_place_of_a_list_is_a_type_error(items: Any) -> None:
    with pytest.raises(TypeError, match=r"put it in a list, \[item\]"):
        encode_items(items)


@pytest.mark.parametrize("items", [None, 5])
def test_what_cannot_be_iterated_is_a_type_error(items: Any) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        encode_items(items)


def test_bytes_are_refused_by_path_also_where_python_forbids_to_compare_them() -> None:
    """Under ``python -bb`` comparing bytes to text raises."""
    script = (
        "from agentmem.items import encode_item\n"
        "from agentmem.errors import InvalidItemError\n"
        "for item, path in (({'a': [b'x']}, '$.a[0]'), ({'a': {b'k': 1}}, '$.a')):\n"
        "    try:\n"
        "        encode_item(item)\n"
        "    except InvalidItemError as error:\n"
        "        assert error.path == path, error\n"
        "    else:\n"
        "        raise AssertionError('stored')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-bb", "-c", script], check=True, env=environment)


# ----------------------------------------------------------------------------------------------------- pydantic objects


class Part(BaseModel):
    text: str
    detail: str | None = None


class Note(BaseModel):
    """What users write themselves."""

    model_config = ConfigDict(populate_by_name=True)

    role: str = "user"
    content: list[Part]
    sent_at: datetime = Field(alias="sentAt")
    scores: list[float] = []
    data: Any = None


NOTE = Note(content=[Part(text="hi")], sentAt=WHEN)
NOTE_JSON = {
    "role": "user",
    "content": [{"text": "hi", "detail": None}],
    "sentAt": "2024-05-06T00:00:00Z",
    "scores": [],
    "data": None,
}


def test_a_pydantic_object_is_stored_as_its_json_form() -> None:
    """With its defaults, its aliases, and dates and the like as text."""
    assert stored(NOTE) == NOTE_JSON


def test_pydantic_objects_may_stand_anywhere_in_an_item() -> None:
    assert stored({"type": "x", "a": [NOTE, {"b": NOTE}]}) == {"type": "x", "a": [NOTE_JSON, {"b": NOTE_JSON}]}
    assert stored(NOTE.model_copy(update={"data": [NOTE]}))["data"] == [NOTE_JSON]
    assert stored({"a": RootModel[list[int]]([1, 2])}) == {"a": [1, 2]}


def test_a_pydantic_object_that_is_no_json_object_is_no_item() -> None:
    assert "an item is a JSON object" in str(refused(RootModel[list[int]]([1])))
    assert stored(RootModel[dict[str, int]]({"a": 1})) == {"a": 1}


@given(json_values(keys=st.text(max_size=8)))
def test_any_json_in_a_pydantic_object_comes_back_equal(value: Any) -> None:
    """But for keys with lone surrogates, which pydantic refuses."""
    assert repr(stored(Note.model_construct(data=value))["data"]) == repr(value)


@pytest.mark.parametrize(
    ("fields", "path", "problem"),
    [
        ({"scores": [float("nan")]}, "$.a[0].scores[0]", "nan is not JSON"),
        ({"scores": [1.0, float("inf")]}, "$.a[0].scores[1]", "inf is not JSON"),
        ({"data": ["\ud83d\ude00"]}, "$.a[0].data[0]", "surrogate pair"),
        ({"data": object()}, "$.a[0]", "Note cannot be converted to JSON"),
        ({"data": b"\xff"}, "$.a[0]", "Note cannot be converted to JSON"),
        ({"data": {"\ud800": 1}}, "$.a[0]", "Note cannot be converted to JSON"),
    ],
    ids=["nan", "inf", "pair", "object", "bytes", "key"],
)
def test_a_pydantic_object_that_json_cannot_hold_is_refused(fields: JsonObject, path: str, problem: str) -> None:
    error = refused({"a": [Note.model_construct(**fields)]})
    assert error.path == path
    assert problem in str(error)


def test_a_pydantic_object_that_holds_itself_is_refused() -> None:
    note = NOTE.model_copy()
    note.data = [note]
    assert "cannot be converted to JSON" in str(refused(note))


def test_a_to_dict_of_the_users_own_is_left_alone() -> None:
    """Only the openai client's models are asked for theirs: any other takes arguments that agentmem cannot know."""

    class Own(BaseModel):
        role: str = "user"

        def to_dict(self) -> dict[str, str]:
            raise AssertionError("not ours to call")

    assert stored(Own()) == {"role": "user"}


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Hello 😀", "annotations": []}],
}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": '{"a": 1}'}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "so"}], "content": []}
WEB_SEARCH = {
    "type": "web_search_call",
    "id": "ws_1",
    "status": "completed",
    "action": {"type": "search", "query": "agentmem"},
}
SENT = {
    "message": MESSAGE,
    "call": CALL,
    "call with null": {**CALL, "status": None},
    "call with new field": {**CALL, "since_tomorrow": {"a": [1.0, None]}},
    "reasoning": REASONING,
    "encrypted reasoning": {**REASONING, "encrypted_content": "gAAAA", "status": None},
}
SENT_BY_A_NEWER_API: dict[str, tuple[JsonObject, JsonObject]] = {
    "new status": (CALL, {**CALL, "status": "paused"}),
    "new content": (MESSAGE, {**MESSAGE, "content": [{"type": "output_smell", "scent": "pine"}]}),
    "new types": (REASONING, {**REASONING, "summary": "short", "id": 5}),
    "new action": (WEB_SEARCH, {**WEB_SEARCH, "action": {"type": "x"}}),
}
OUTPUT_ITEM: TypeAdapter[Any] = TypeAdapter(ResponseOutputItem)


def test_the_openai_clients_objects_are_what_these_tests_build() -> None:
    """Else the next ones would pass on something else."""
    assert isinstance(OUTPUT_ITEM.validate_python(MESSAGE), ResponseOutputMessage)
    assert isinstance(OUTPUT_ITEM.validate_python(CALL), ResponseFunctionToolCall)
    assert "Reasoning" in type(OUTPUT_ITEM.validate_python(REASONING)).__name__


@pytest.mark.parametrize("raw", SENT.values(), ids=SENT.keys())
def test_the_openai_clients_objects_are_stored_as_the_api_sent_them(raw: JsonObject) -> None:
    """Without fields that were never set: the API refuses an explicit null for some of them."""
    checked = OUTPUT_ITEM.validate_python(raw)
    for item in (checked, type(checked).construct(**raw)):
        assert stored(item) == raw
        assert stored({"type": "batch", "items": [item]}) == {"type": "batch", "items": [raw]}


@pytest.mark.parametrize(("known", "raw"), SENT_BY_A_NEWER_API.values(), ids=SENT_BY_A_NEWER_API.keys())
def test_what_the_client_does_not_know_yet_is_stored_without_a_warning(known: JsonObject, raw: JsonObject) -> None:
    """The client builds its objects unchecked, so that an older one works with a newer API."""
    assert stored(type(OUTPUT_ITEM.validate_python(known)).construct(**raw)) == raw


# -------------------------------------------------------------------------------------------------------- corrupt texts

CORRUPT: list[Any] = [
    "",
    " ",
    "{",
    '{"a"',
    '{"a":1',
    '{"a":1,}',
    '{"a":1} x',
    '{"a":1}{"a":1}',
    "{'a':1}",
    '{"a":NaN}',
    '{"a":[Infinity]}',
    '{"a":-Infinity}',
    '{"a":"\ud800","b":NaN}',
    '{"a":"\x00"}',
    '{"a":"\\ud800","b":}',
    '{"a":' + "9" * (DIGITS + 1) + "}",
    "null",
    "true",
    "5",
    '"text"',
    "[]",
    '[{"a":1}]',
    "\ufeff{}",
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"a":' * 100_000 + "1" + "}" * 100_000,
    b"\xff\xfe",
    b'{"a":"\xff"}',
    b'{"a":"\xc3"}',
    b'{"a":"\xed\xa0\x80"}',  # a lone surrogate as if it had a UTF-8 form
    '{"a":1}'.encode("utf-16"),
    b"\x00\x01\x02\x03",
    b"SQLite format 3\x00",
    None,
    5,
    1.5,
    [1],
    {"a": 1},
    object(),
]


def brief(data: object) -> str:
    """An id for a test: without a memory address, which differs between the processes that run the tests."""
    return "object" if type(data) is object else ascii(data)[:24].replace("\\", "")


@pytest.mark.parametrize("data", CORRUPT, ids=brief)
def test_a_corrupt_text_is_a_value_error_and_nothing_else(data: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_item(data)
    if isinstance(data, str) and "\ud800" not in data:
        with pytest.raises(ValueError, match=r"."):
            decode_item(data.encode())


@given(json_objects(), st.data())
def test_every_truncation_of_an_item_is_a_value_error(item: JsonObject, data: st.DataObject) -> None:
    encoded = encode_item(item).encode()
    with pytest.raises(ValueError, match=r"."):
        decode_item(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_bytes_decode_to_an_object_or_are_a_value_error(data: bytes) -> None:
    try:
        item = decode_item(data)
    except ValueError:
        return
    assert type(item) is dict


# ----------------------------------------------------------------------------------------------------------------- size


def compact_size(item: JsonObject) -> int:
    return len(json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))


_without_floats = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | json_texts(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(json_texts(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(json_texts(), _without_floats, max_size=4))
def test_the_size_is_that_of_the_compact_json_in_utf8(item: JsonObject) -> None:
    assert json_size_bytes(item) == compact_size(item)


@given(json_objects())
def test_the_size_of_an_item_without_lone_surrogates_is_that_of_its_stored_text(item: JsonObject) -> None:
    """Also with floats, for which there are several compact forms."""
    text = encode_item(item)
    if text.isascii() and "\\u" in text:  # the form in which lone surrogates are stored
        return
    assert json_size_bytes(item) == len(text.encode())


def test_the_size_of_a_message_is_as_counted_by_hand() -> None:
    assert json_size_bytes({"role": "user", "content": "é"}) == len('{"role":"user","content":"__"}')


# ------------------------------------------------------------------------------------------------------ typed run items

RUN_ITEMS: dict[type[RunItem], str] = {
    MessageOutputItem: "message_output_item",
    ToolCallItem: "tool_call_item",
    ToolCallOutputItem: "tool_call_output_item",
    HandoffCallItem: "handoff_call_item",
    HandoffOutputItem: "handoff_output_item",
    ReasoningItem: "reasoning_item",
}


@pytest.mark.parametrize(("kind", "name"), RUN_ITEMS.items(), ids=RUN_ITEMS.values())
def test_a_run_item_names_its_kind_and_gives_the_stored_item(kind: type[RunItem], name: str) -> None:
    item = kind(MESSAGE, "Alice's agent")
    assert isinstance(item, RunItem)
    assert (item.type, kind.type) == (name, name)
    assert item.to_input_item() == item.raw_item == MESSAGE
    assert item.agent_name == "Alice's agent"


@pytest.mark.parametrize("kind", RUN_ITEMS)
def test_a_run_item_cannot_be_changed(kind: type[RunItem]) -> None:
    item = kind(MESSAGE, "agent")
    with pytest.raises(FrozenInstanceError):
        item.agent_name = "other"  # type: ignore[misc]  # what the test is about


def test_a_tool_output_keeps_the_value_that_the_tool_returned() -> None:
    assert ToolCallOutputItem({}, "agent", output=[1]).output == [1]
    assert ToolCallOutputItem({}, "agent").output is None


def test_a_handoff_output_names_who_goes_on() -> None:
    assert HandoffOutputItem({}, "agent", target_agent_name="Bob").target_agent_name == "Bob"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Hello", "Hello"),
        ([{"type": "output_text", "text": "Hel"}, {"type": "output_text", "text": "lo"}], "Hello"),
        ([{"type": "refusal", "refusal": "No."}], "No."),
        ([{"type": "input_image", "image_url": "…"}, {"type": "input_text", "text": "x"}], "x"),
        ([{"type": "output_text", "text": None}, "stray", None], ""),
        ([], ""),
        (None, ""),
        (5, ""),
    ],
)
def test_the_text_of_a_message_in_each_form_of_content(content: object, text: str) -> None:
    item = {"type": "message", "role": "assistant", "content": content}
    assert message_text(item) == MessageOutputItem(item, "agent").text == text


def test_a_message_without_content_has_no_text() -> None:
    assert message_text({"role": "assistant"}) == ""


@given(json_objects())
def test_any_item_has_a_text(item: JsonObject) -> None:
    assert isinstance(message_text(item), str)
