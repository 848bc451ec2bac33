"""Readings, fed slice by slice as an engine feeds them: the right items from no more rows than it takes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    History,
    call,
    compaction,
    histories,
    json_objects,
    message,
    numbered,
    odd_items,
    output,
    reasoning,
    whole_histories,
)

from agentmem.items import Item, encode_item
from agentmem.reading import SLICE_ROWS, HistoryReading, PopReading, Row, TailReading, WindowReading
from agentmem.replay import SessionSettings, find_window, replay_window

CORRUPT: list[Any] = [b"{", b"[1]", b"\xff\xfe", b'{"a":NaN}', b'{"a":1}x', b"null", None, 5, "text"]
"""What a damaged database may hold in place of an item; SQLite keeps any type in any column."""

ERASED_ROW = b""
NO_ITEMS = [ERASED_ROW, *CORRUPT]
"""What may stand between the items of a session."""


def rows_of(items: History) -> list[Row]:
    """The rows of a session, oldest first."""
    return [(position, encode_item(item).encode()) for position, item in enumerate(items)]


class Fed(NamedTuple):
    items: list[Item]
    read: int
    """How many rows were fed."""
    slices: list[int]
    """How many rows were asked for, each time."""


def feed(reading: TailReading, rows: list[Row]) -> Fed:
    """Feed a session's rows, oldest first here, as an engine does: newest first, so many as are wanted."""
    newest_first = rows[::-1]
    read, slices, wanted = 0, [], reading.first
    while wanted:
        assert wanted > 0
        part = newest_first[read : read + wanted]
        read += len(part)
        slices.append(wanted)
        at_start = len(part) < wanted
        wanted = reading.feed(part, at_start=at_start)
        assert not (at_start and wanted), "wants rows beyond the beginning"
    return Fed(reading.result(), read, slices)


@st.composite
def damaged(draw: st.DrawFn, items: History) -> list[Row]:
    """The rows of a session, with corrupt and erased ones anywhere among them."""
    rows = [data for _, data in rows_of(items)]
    for place in draw(st.lists(st.integers(0, len(rows)), max_size=8)):
        rows.insert(place, draw(st.sampled_from(NO_ITEMS)))
    return list(enumerate(rows))


def corrupt_positions(rows: list[Row]) -> list[int]:
    """Newest first."""
    return [position for position, data in reversed(rows) if data in CORRUPT]


# ------------------------------------------------------------------------------------------------------------ tails


@given(st.lists(json_objects(), max_size=12), st.none() | st.integers(0, 14), st.data())
def test_a_tail_is_the_newest_valid_items_oldest_first(items: History, limit: int | None, data: st.DataObject) -> None:
    rows = data.draw(damaged(items))
    expected = items if limit is None else items[max(0, len(items) - limit) :]
    assert feed(TailReading(limit), rows).items == expected


@given(histories(), st.integers(0, 14), st.data())
def test_a_tail_reads_up_to_its_oldest_item_and_no_row_further(items: History, limit: int, data: st.DataObject) -> None:
    rows = data.draw(damaged(items))
    reading = TailReading(limit)
    fed = feed(reading, rows)
    if len(fed.items) == limit:
        assert reading.oldest == (len(rows) - fed.read if limit else None)
    else:
        assert fed.read == len(rows)


@given(histories(), st.none() | st.integers(0, 14), st.data())
def test_oldest_is_where_the_oldest_item_stands(items: History, limit: int | None, data: st.DataObject) -> None:
    rows = data.draw(damaged(items))
    reading = TailReading(limit)
    taken = feed(reading, rows).items
    if taken:
        assert reading.oldest is not None
        assert json.loads(rows[reading.oldest][1]) == taken[0]
    else:
        assert reading.oldest is None


@given(histories(), st.none() | st.integers(0, 14), st.data())
def test_corrupt_are_the_rows_that_were_passed_over(items: History, limit: int | None, data: st.DataObject) -> None:
    rows = data.draw(damaged(items))
    reading = TailReading(limit)
    fed = feed(reading, rows)
    assert reading.corrupt == corrupt_positions(rows[len(rows) - fed.read :])


def test_a_tail_of_nothing_reads_nothing() -> None:
    reading = TailReading(0)
    assert reading.first == 0
    assert feed(reading, rows_of([{"a": 1}])) == Fed([], 0, [])


def test_a_session_without_a_valid_row_is_read_to_its_beginning() -> None:
    rows: list[Row] = list(enumerate(CORRUPT))
    reading = TailReading(1)
    assert feed(reading, rows).items == []
    assert (reading.oldest, reading.corrupt) == (None, list(range(len(rows)))[::-1])


@pytest.mark.parametrize(
    "reading",
    [TailReading(20), HistoryReading(), WindowReading(SessionSettings(limit=20)), PopReading(())],
    ids=lambda reading: type(reading).__name__,
)
def test_erased_rows_are_passed_over_without_a_word_and_end_nothing(reading: TailReading) -> None:
    items = numbered([message("user"), message("assistant")])
    rows = [(0, ERASED_ROW), (1, encode_item(items[0]).encode()), (2, ERASED_ROW), (3, encode_item(items[1]).encode())]
    rows += [(position, ERASED_ROW) for position in range(4, 100)]
    taken = items[-1:] if isinstance(reading, PopReading) else items
    fed = feed(reading, rows)
    assert (fed.items, reading.corrupt) == (taken, [])
    assert reading.oldest == (3 if isinstance(reading, PopReading) else 1)
    assert len(fed.slices) <= 8 or isinstance(reading, PopReading)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_joined_text_with_an_erased_row_in_it_is_not_enough(place: int) -> None:
    texts = [encode_item(message("user")).encode()] * 2
    texts.insert(place, ERASED_ROW)
    reading = TailReading(3)
    assert not reading.feed_joined(b",".join(texts), 3, 0)
    assert feed(reading, list(enumerate(texts))).items == [message("user")] * 2


def test_a_session_without_rows_has_no_items() -> None:
    for reading in (TailReading(None), TailReading(3), WindowReading(SessionSettings(limit=3))):
        assert feed(reading, []).items == []
        assert (reading.oldest, reading.corrupt) == (None, [])


# ---------------------------------------------------------------------------------------------------------- windows


@st.composite
def capped_settings(draw: st.DrawFn) -> SessionSettings:
    caps: dict[str, Any] = {
        "limit": draw(st.none() | st.integers(0, 12)),
        "max_turns": draw(st.none() | st.integers(0, 4)),
        "max_tokens": draw(st.none() | st.integers(0, 300)),
    }
    if set(caps.values()) == {None}:
        caps["limit"] = draw(st.integers(0, 12))
    return SessionSettings(**caps)


@given(histories(), capped_settings(), st.data())
def test_a_window_is_that_of_all_valid_items(items: History, settings: SessionSettings, data: st.DataObject) -> None:
    """However the rows come in slices, and whatever corrupt ones stand between them."""
    rows = data.draw(damaged(items))
    assert feed(WindowReading(settings), rows).items == replay_window(items, settings)


@given(st.lists(histories(), min_size=2, max_size=8), capped_settings(), st.data())
def test_a_window_of_a_long_session_is_the_same(
    parts: list[History], settings: SessionSettings, data: st.DataObject
) -> None:
    """Long enough for several slices."""
    items = numbered([item for part in parts for item in part])
    rows = data.draw(damaged(items))
    assert feed(WindowReading(settings), rows).items == replay_window(items, settings)


@given(st.lists(histories(), max_size=4), capped_settings(), st.data())
def test_a_window_reads_less_than_twice_the_rows_that_tell(
    parts: list[History], settings: SessionSettings, data: st.DataObject
) -> None:
    """Or its first slice, where that is more."""
    rows = data.draw(damaged(numbered([item for part in parts for item in part])))
    reading = WindowReading(settings)
    fed = feed(reading, rows)
    assert fed.read <= max(reading.first, 2 * needed_rows(rows, settings) - 1)


def needed_rows(rows: list[Row], settings: SessionSettings) -> int:
    """The smallest number of newest rows from which the window can be told."""
    for count in range(len(rows)):
        items = [json.loads(data) for _, data in rows[len(rows) - count :] if data not in NO_ITEMS]
        if find_window(items, settings, at_start=False) is not None:
            return count
    return len(rows)


@given(st.lists(whole_histories(), max_size=6), st.integers(1, 20))
def test_a_limit_reads_no_further_than_twice_itself_and_a_turn(parts: list[History], limit: int) -> None:
    """On histories in which nothing is missing."""
    items = numbered([item for part in parts for item in part])
    starts = [place for place, item in enumerate(items) if item.get("role") in ("user", "system", "developer")]
    longest = max((b - a for a, b in itertools.pairwise([*starts, len(items)])), default=0)
    fed = feed(WindowReading(SessionSettings(limit=limit)), rows_of(items))
    assert fed.read <= max(limit + 8, 2 * (limit + longest))


@given(histories(), capped_settings(), st.data())
def test_a_window_names_the_corrupt_rows_that_it_met(
    h: History, settings: SessionSettings, data: st.DataObject
) -> None:
    rows = data.draw(damaged(h))
    reading = WindowReading(settings)
    fed = feed(reading, rows)
    assert reading.corrupt == corrupt_positions(rows[len(rows) - fed.read :])


CHAT = [message("user"), message("assistant")]
TOOLS = [
    message("user"),
    reasoning(),
    call("function_call", "a"),
    call("function_call", "b"),
    output("function_call", "a"),
    output("function_call", "b"),
    reasoning(),
    message("assistant"),
]


@pytest.mark.parametrize(
    ("turn", "settings", "most"),
    [
        (CHAT, SessionSettings(limit=20), 28),
        (CHAT, SessionSettings(max_turns=3), 24),
        (CHAT, SessionSettings(max_tokens=640), 4 * 18),  # a fifth of the 64 tokens an item that the guess is made on
        (CHAT, SessionSettings(limit=20, max_turns=3), 24),
        (CHAT, SessionSettings(limit=0), 0),
        (CHAT, SessionSettings(max_turns=0), 0),
        (TOOLS, SessionSettings(limit=20), 28),
        (TOOLS, SessionSettings(max_turns=3), 2 * 24),
        (TOOLS, SessionSettings(max_tokens=640), 4 * 18),
        (TOOLS, SessionSettings(limit=1_000), 2 * SLICE_ROWS),
    ],
    ids=str,
)
def test_a_window_of_ten_thousand_rows_reads_only_its_end(turn: History, settings: SessionSettings, most: int) -> None:
    items = numbered(turn * (10_000 // len(turn)))
    fed = feed(WindowReading(settings), rows_of(items))
    assert fed.read <= most
    assert fed.items == replay_window(items, settings)


ORPHAN = output("function_call", "lost")
LOST_PROGRAM = {"caller": {"type": "program", "caller_id": "lost"}}
LATE = [call("function_call", "late"), *CHAT * 5_000, output("function_call", "late")]


@pytest.mark.parametrize(
    "settings", [SessionSettings(limit=20), SessionSettings(max_turns=10), SessionSettings(max_tokens=300)], ids=str
)
@pytest.mark.parametrize(
    ("history", "most"),
    [
        ([*CHAT * 5_000, ORPHAN], 1_024),
        ([*CHAT * 5_000, ORPHAN, *CHAT], 1_024),
        ([*CHAT * 5_000, ORPHAN, *CHAT * 9], 1_024),
        ([*CHAT * 5_000, ORPHAN, *CHAT * 11], 1_024),
        ([*CHAT * 5_000, *CHAT[:1], *[ORPHAN] * 20, *CHAT], 1_024),
        (LATE, 1_024),
        ([message("user"), ORPHAN, message("assistant")] * 3_000, 1_024),
        ([message("user"), call("function_call", "lost"), message("assistant")] * 3_000, 120),
        ([message("user"), reasoning()] * 5_000, 120),
        ([*CHAT * 5_000, call("function_call", "c", **LOST_PROGRAM), output("function_call", "c")], 1_024),
        ([*CHAT * 200, *[ORPHAN] * 10_000], 10_240),
        ([*CHAT * 200, *[call("function_call", "lost")] * 10_000], 1_536),
        (
            [*CHAT * 200, *[call("function_call", "c", **LOST_PROGRAM), output("function_call", "c")] * 5_000],
            10_240,
        ),
        ([*CHAT * 200, *[{"type": "compaction_trigger"}] * 10_000], 1_536),
    ],
    ids=[
        "an orphan at the end",
        "an orphan before a turn",
        "an orphan at the edge",
        "an orphan beyond the edge",
        "orphans in a row",
        "an output long after its call",
        "an orphan in each turn",
        "a call without output in each turn",
        "reasoning that led to nothing in each turn",
        "a call of a lost program",
        "only orphans",
        "only calls without output",
        "only calls of a lost program",
        "only triggers",
    ],
)
def test_a_window_reads_no_further_than_its_reach_however_the_history_came_to_be(
    history: History, most: int, settings: SessionSettings
) -> None:
    fed = feed(WindowReading(settings), rows_of(history))
    assert fed.read <= most
    assert fed.items == replay_window(history, settings)


@pytest.mark.parametrize("settings", [SessionSettings(limit=20), SessionSettings(max_tokens=200)], ids=str)
@pytest.mark.parametrize("orphans", [10_000, 1_000_000], ids=["ten thousand", "a million"])
def test_how_many_orphans_there_are_makes_no_difference(orphans: int, settings: SessionSettings) -> None:
    """With a cap that even they would exceed, if their calls were found."""
    newest_first = itertools.repeat((0, encode_item(ORPHAN).encode()), orphans)
    reading = WindowReading(settings)
    read, wanted = 0, reading.first
    while wanted:
        part = list(itertools.islice(newest_first, wanted))
        read += len(part)
        wanted = reading.feed(part, at_start=len(part) < wanted)
    assert read <= 2_048
    assert reading.result() == []


def test_an_orphan_takes_no_room_from_what_is_whole() -> None:
    history = numbered([*CHAT * 1_000, ORPHAN, *CHAT])
    kept = [item for item in history if item["type" if "type" in item else "role"] != ORPHAN["type"]]
    assert feed(WindowReading(SessionSettings(limit=20)), rows_of(history)).items == kept[-20:]


def test_an_output_in_a_long_window_finds_its_call_as_far_as_the_window_reaches() -> None:
    history = numbered([*CHAT, call("function_call"), *CHAT * 1_500, output("function_call"), *CHAT])
    fed = feed(WindowReading(SessionSettings(limit=4_000)), rows_of(history))
    assert fed.items == history
    without = [item for item in history if item.get("call_id") is None]
    assert feed(WindowReading(SessionSettings(limit=3_000)), rows_of(history)).items == without[-3_000:]


def test_a_program_that_made_thousands_of_calls_is_whole() -> None:
    by_program = {"caller": {"type": "program", "caller_id": "p"}}
    calls = [half for n in range(2_000) for half in (call("shell_call", n, **by_program), output("shell_call", n))]
    history = [*CHAT, call("program", "p"), *calls, output("program", "p"), *CHAT]
    for settings in (SessionSettings(limit=5_000), SessionSettings(max_turns=3)):
        assert feed(WindowReading(settings), rows_of(history)).items == history


# --------------------------------------------------------------------------------------------------- compactions


def test_without_caps_no_row_before_the_newest_compaction_is_read() -> None:
    history = numbered([*CHAT * 5_000, compaction(), *CHAT * 5])
    fed = feed(HistoryReading(), rows_of(history))
    assert fed.items == history[-11:]
    assert fed.read <= SLICE_ROWS


def test_without_caps_and_compaction_all_rows_are_read() -> None:
    history = numbered(CHAT * 1_000)
    assert feed(HistoryReading(), rows_of(history)).items == history
    assert feed(HistoryReading(), []).items == []


@given(histories(), st.lists(odd_items(), max_size=7), st.none() | capped_settings(), st.data())
def test_a_window_with_a_compaction_is_that_of_all_items(
    before: History, after: History, settings: SessionSettings | None, data: st.DataObject
) -> None:
    items = numbered([*before, compaction(), *after])
    if settings is None:
        reading: TailReading = HistoryReading()
        assert feed(reading, data.draw(damaged(items))).items == replay_window(items, SessionSettings())
    else:
        assert feed(WindowReading(settings), rows_of(items)).items == replay_window(items, settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TailReading(None),
        lambda: TailReading(5_000),
        lambda: WindowReading(SessionSettings(limit=5_000)),
        lambda: WindowReading(SessionSettings(max_turns=2)),
        lambda: WindowReading(SessionSettings(max_tokens=10**9)),
    ],
)
def test_no_slice_is_longer_than_what_holds_the_interpreter_for_a_moment(make: Callable[[], TailReading]) -> None:
    """Also where one turn is longer than many slices, so that nearly all of the session is read."""
    items = numbered([message("user"), message("assistant"), message("user"), *[message("assistant")] * 6_000])
    fed = feed(make(), rows_of(items))
    assert fed.read >= 5_000
    assert max(fed.slices) <= SLICE_ROWS


def test_a_window_is_not_looked_for_after_each_slice() -> None:
    """That would take quadratic time in a session whose window is far away."""
    looks = 0

    def count_tokens(item: Item) -> int:
        nonlocal looks
        looks += 1
        return 0

    items = numbered([message("user"), *[message("assistant")] * 20_000])
    settings = SessionSettings(max_tokens=1, count_tokens=count_tokens)
    assert feed(WindowReading(settings), rows_of(items)).items == items
    assert looks <= 3 * len(items)


# ------------------------------------------------------------------------------------------------ reading once more


def begin(reading: TailReading, rows: list[Row], slices: int) -> None:
    """Feed so many slices of a session, as far as it wants them; then the connection is lost."""
    newest_first, read, wanted = rows[::-1], 0, reading.first
    for _ in range(slices):
        if not wanted:
            break
        part = newest_first[read : read + wanted]
        read += len(part)
        wanted = reading.feed(part, at_start=len(part) < wanted)


@given(
    histories(),
    histories(),
    st.one_of(st.none() | st.integers(0, 14), capped_settings()),
    st.integers(0, 4),
    st.data(),
)
def test_a_reading_that_restarts_gives_what_a_new_one_gives(
    before: History, after: History, limit: int | SessionSettings | None, slices: int, data: st.DataObject
) -> None:
    """Also where the session was changed meanwhile, and nothing of what it held before is left."""

    def make() -> TailReading:
        return WindowReading(limit) if isinstance(limit, SessionSettings) else TailReading(limit)

    rows = data.draw(damaged(after))
    again, new = make(), make()
    begin(again, data.draw(damaged(before)), slices)
    again.restart()
    assert feed(again, rows) == feed(new, rows)
    assert (again.oldest, again.corrupt) == (new.oldest, new.corrupt)


@given(histories(), st.integers(1, 14))
def test_a_reading_restarts_after_rows_that_came_joined(items: History, limit: int) -> None:
    rows = rows_of(items)
    newest = rows[::-1][:limit]
    reading = TailReading(limit)
    assert reading.feed_joined(b",".join(text for _, text in newest), len(newest), newest[-1][0] if newest else 0)
    assert reading.result() == items[-limit:]
    reading.restart()
    assert (reading.result(), reading.oldest, reading.corrupt) == ([], None, [])
    assert feed(reading, rows).items == items[-limit:]


def test_a_window_that_restarts_reads_no_further_than_a_new_one() -> None:
    """However far it had to look before."""
    settings = SessionSettings(max_turns=3)
    again = WindowReading(settings)
    begin(again, rows_of(numbered([message("user"), *[message("assistant")] * 3_000])), slices=6)
    again.restart()
    rows = rows_of(numbered(CHAT * 1_000))
    assert feed(again, rows) == feed(WindowReading(settings), rows)
