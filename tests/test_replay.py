"""The replay window against a slow oracle, and each of its rules by itself.

The oracle is written from DESIGN.md's words, not from the code: it lists which items must be together, joins those
pairs into exchanges, tries every cut, and takes the longest suffix in which every rule holds.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import openai.types.beta
import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseInputItemParam
from pydantic import ValidationError
from strategies import (
    HOSTED_KINDS,
    INPUT_KINDS,
    INPUT_ROLES,
    OUTPUT_KIND,
    History,
    JsonObject,
    adversarial_histories,
    call,
    compaction,
    histories,
    json_objects,
    message,
    numbered,
    odd_items,
    output,
    reasoning,
    reference,
    whole_histories,
)

from agentmem.replay import (
    CALL_OF,
    SessionSettings,
    begins_earlier,
    estimate_tokens,
    exchange_members,
    find_window,
    first_items,
    is_input_message,
    is_output,
    replay_window,
    unanswered_calls,
    whole_exchanges,
)

# ---------------------------------------------------------------------------------------------------------- the oracle


def kind_of(item: JsonObject) -> object:
    """A message may leave its type out, and a reference may, or have null there."""
    if item.get("type") is None and "role" not in item and isinstance(item.get("id"), str):
        return "item_reference"
    if "type" in item:
        return item["type"]
    return "message" if "role" in item else None


def is_a(item: JsonObject, kinds: object) -> bool:
    return any(kind_of(item) == kind for kind in list(kinds))  # type: ignore[call-overload]  # any iterable of names


def starts_turns(item: JsonObject) -> bool:
    return kind_of(item) == "message" and any(item.get("role") == role for role in INPUT_ROLES)


def comes_from_model(item: JsonObject) -> bool:
    return not starts_turns(item) and not is_a(item, OUTPUT_KIND.values()) and not is_a(item, INPUT_KINDS)


def may_have_a_program(item: JsonObject) -> bool:
    """Calls that need an output, hosted calls, and whatever kinds come yet."""
    return not is_a(item, ["message", "reasoning", *OUTPUT_KIND.values(), *INPUT_KINDS]) or is_a(
        item, ["additional_tools", "configuration_update"]
    )


def is_by_a_program(item: JsonObject) -> bool:
    caller = item.get("caller")
    return may_have_a_program(item) and isinstance(caller, dict) and caller.get("type") == "program"


def may_be_a_call(item: JsonObject) -> bool:
    """Whether a reference may be to a call, as far as its id tells."""
    item_id = item.get("id")
    return kind_of(item) == "item_reference" and isinstance(item_id, str) and not item_id.startswith(("msg_", "rs_"))


def references_for_outputs(history: History) -> dict[int, int]:
    """For each output without a call the nearest reference before it that no older output needs."""
    found: dict[int, int] = {}
    for place, item in enumerate(history):
        if is_a(item, OUTPUT_KIND.values()) and not any(answers(history, before, place) for before in range(place)):
            free = [before for before in range(place) if may_be_a_call(history[before])]
            free = [before for before in free if before not in found.values()]
            if free:
                found[place] = free[-1]
    return found


def shared_id(item: JsonObject) -> str:
    """What both halves of an exchange have in common, as JSON: 1 and "1" are two ids, no id and null are one."""
    if kind_of(item) == "mcp_approval_request":
        value = item.get("id")
    elif kind_of(item) == "mcp_approval_response":
        value = item.get("approval_request_id")
    elif kind_of(item) == "local_shell_call_output" and item.get("call_id") is None:
        value = item.get("id")
    else:
        value = item.get("call_id")
    return json.dumps(value)


def answers(history: History, first: int, second: int) -> bool:
    """Whether the item at `second` is the output of the call at `first`: of its kind, with its id, and whatever
    stands between them with the same kind and id is calls and outputs that answer each other."""
    kind = kind_of(history[first])
    if not is_a(history[first], OUTPUT_KIND) or kind_of(history[second]) != OUTPUT_KIND[str(kind)]:
        return False
    if shared_id(history[first]) != shared_id(history[second]):
        return False
    open_calls = 0
    for item in history[first + 1 : second]:
        if shared_id(item) == shared_id(history[first]):
            open_calls += (kind_of(item) == kind) - (kind_of(item) == OUTPUT_KIND[str(kind)])
            if open_calls < 0:
                return False
    return open_calls == 0


def program_of(history: History, place: int) -> list[int]:
    """Where the program that made this call stands: the latest of that id before it that was still running."""
    caller = history[place].get("caller")
    assert isinstance(caller, dict)
    running = [
        before
        for before in range(place)
        if kind_of(history[before]) == "program"
        and shared_id(history[before]) == json.dumps(caller.get("caller_id"))
        and not any(answers(history, before, between) for between in range(before, place))
    ]
    return running[-1:]


def exchanges_of(history: History) -> list[set[int]]:
    """The exchanges that are whole, as sets of places; items that are valid alone are exchanges of one."""
    together: list[tuple[int, int]] = []
    alone: set[int] = set()  # places of items that lack another one
    references = references_for_outputs(history)
    for place, item in enumerate(history):
        partners: list[list[int]] = []
        if is_a(item, OUTPUT_KIND):
            answered = [after for after in range(place + 1, len(history)) if answers(history, place, after)]
            if answered or item.get("async") is not True:
                partners.append(answered)
        if is_by_a_program(item):
            partners.append(program_of(history, place))
        if is_a(item, OUTPUT_KIND.values()):
            calls = [before for before in range(place) if answers(history, before, place)]
            partners.append(calls or [references[place] for _ in "1" if place in references])
        if kind_of(item) == "compaction_trigger":
            partners.append([])
        if kind_of(item) == "reasoning":
            follower = [after for after in (place + 1,) if after < len(history)]
            partners.append([after for after in follower if comes_from_model(history[after])])
        for found in partners:
            if found:
                together += [(place, partner) for partner in found]
            else:
                alone.add(place)
    exchanges = [{place} for place in range(len(history))]
    for one, other in together:
        joined = set().union(*(exchange for exchange in exchanges if exchange & {one, other}))
        exchanges = [exchange for exchange in exchanges if not exchange & joined] + [joined]
    return [exchange for exchange in exchanges if not exchange & alone]


def turn_numbers(history: History) -> list[int]:
    """The turn of each item; 0 is what stands before the first user message."""
    numbers: list[int] = []
    for place, item in enumerate(history):
        begins = starts_turns(item) and (place == 0 or not starts_turns(history[place - 1]))
        numbers.append((numbers[-1] if numbers else 0) + begins)
    return numbers


class Cut(NamedTuple):
    """A suffix made of whole exchanges."""

    window: History
    turns: int
    tokens: int


def cuts(history: History, count_tokens: Callable[[JsonObject], int]) -> list[Cut]:
    """Every suffix of the history less its incomplete exchanges that cuts no exchange, longest first."""
    exchanges = exchanges_of(history)
    kept = sorted(place for exchange in exchanges for place in exchange)
    turn_of = turn_numbers(history)
    found = []
    for start in range(len(kept) + 1):
        suffix = kept[start:]
        if all(exchange <= set(suffix) or not exchange & set(suffix) for exchange in exchanges):
            window = [history[place] for place in suffix]
            turns = len({turn_of[place] for place in suffix})
            found.append(Cut(window, turns, sum(map(count_tokens, window))))
    return found


def fits(cut: Cut, settings: SessionSettings) -> bool:
    return (
        (settings.limit is None or len(cut.window) <= settings.limit)
        and (settings.max_turns is None or cut.turns <= settings.max_turns)
        and (settings.max_tokens is None or cut.tokens <= settings.max_tokens)
    )


def oracle(history: History, settings: SessionSettings) -> History:
    count_tokens = settings.count_tokens or estimate_tokens
    compactions = [place for place, item in enumerate(history) if kind_of(item) == "compaction"]
    if compactions and not settings.has_caps and all(map(is_input_message, history[: compactions[-1]])):
        return history[: compactions[-1]] + oracle_with_compaction(history[compactions[-1] :], settings, count_tokens)
    if compactions:
        return oracle_with_compaction(history[compactions[-1] :], settings, count_tokens)
    if not settings.has_caps:
        return [item for item in history if kind_of(item) != "compaction_trigger"]
    return next(cut.window for cut in cuts(history, count_tokens) if fits(cut, settings))


def oracle_with_compaction(
    rest: History, settings: SessionSettings, count_tokens: Callable[[JsonObject], int]
) -> History:
    """The window of a history that begins with its newest compaction, where that is near enough to be looked for."""
    begins, after = rest[0], rest[1:]
    turn_of = {id(item): turn for item, turn in zip(rest, turn_numbers(rest), strict=True)}

    def with_compaction(cut: Cut) -> Cut:
        window = [begins, *cut.window]
        turns = len({turn_of[id(item)] for item in window})
        return Cut(window, turns, cut.tokens + (count_tokens(begins) if settings.max_tokens is not None else 0))

    found = cuts(after, count_tokens if settings.max_tokens is not None else lambda item: 0)
    fitting = [cut for cut in [*map(with_compaction, found), *found] if fits(cut, settings)]
    return fitting[0].window


# ----------------------------------------------------------------------------------------------------------- strategies


def place_tokens(item: JsonObject) -> int:
    """A count that differs from item to item, 0 among them, and that no test has to guess."""
    return int(item["n"]) * 7 % 4


@st.composite
def some_settings(draw: st.DrawFn, *, capped: bool = False) -> SessionSettings:
    caps = {
        "limit": draw(st.none() | st.integers(0, 12)),
        "max_turns": draw(st.none() | st.integers(0, 4)),
        "max_tokens": draw(st.none() | st.integers(0, 25)),
    }
    if capped and set(caps.values()) == {None}:
        caps[draw(st.sampled_from(list(caps)))] = draw(st.integers(0, 12))
    return SessionSettings(**caps, count_tokens=place_tokens)


def every_settings(history: History) -> Iterator[SessionSettings]:
    """Each combination of caps that can make a difference, and one beyond."""
    total = sum(map(place_tokens, history))
    limits = [None, *range(len(history) + 2)]
    turns = [None, *range(max(turn_numbers(history), default=0) + 3)]
    tokens = [None, *sorted({0, 1, 2, 3, 5, total // 2, total - 1, total, total + 1} - {-1})]
    for limit, max_turns, max_tokens in itertools.product(limits, turns, tokens):
        yield SessionSettings(limit=limit, max_turns=max_turns, max_tokens=max_tokens, count_tokens=place_tokens)


def caps(settings: SessionSettings) -> str:
    return f"limit={settings.limit} max_turns={settings.max_turns} max_tokens={settings.max_tokens}"


# ---------------------------------------------------------------------------------------------------- window and oracle


@given(histories())
def test_the_window_is_the_oracles_for_every_combination_of_caps(history: History) -> None:
    found = cuts(history, place_tokens)
    for settings in every_settings(history):
        if settings.has_caps:
            expected = next(cut.window for cut in found if fits(cut, settings))
        else:
            expected = oracle(history, settings)
        assert replay_window(history, settings) == expected, caps(settings)


@given(histories(), st.integers(0, 700))
def test_the_window_is_the_oracles_with_the_default_count_of_tokens(history: History, max_tokens: int) -> None:
    settings = SessionSettings(max_tokens=max_tokens)
    assert replay_window(history, settings) == oracle(history, settings)


@given(histories())
def test_what_remains_of_a_history_is_its_whole_exchanges(history: History) -> None:
    assert whole_exchanges(history) == cuts(history, place_tokens)[0].window


# ------------------------------------------------------------------------------------------------------- rule by rule


@given(histories(), some_settings(capped=True))
def test_the_window_is_a_suffix_of_the_history_less_incomplete_exchanges(h: History, settings: SessionSettings) -> None:
    window, kept = replay_window(h, settings), whole_exchanges(h)
    assert window == kept[len(kept) - len(window) :]


@given(histories(), some_settings())
def test_the_window_is_never_longer_than_any_cap(history: History, settings: SessionSettings) -> None:
    window = replay_window(history, settings)
    turn_of = turn_numbers(history)
    assert settings.limit is None or len(window) <= settings.limit
    assert settings.max_turns is None or len({turn_of[item["n"]] for item in window}) <= settings.max_turns
    assert settings.max_tokens is None or sum(map(place_tokens, window)) <= settings.max_tokens


@given(histories(), some_settings())
def test_order_is_kept_and_no_item_is_doubled_or_made_up(history: History, settings: SessionSettings) -> None:
    places = [item["n"] for item in replay_window(history, settings)]
    assert places == sorted(set(places))
    assert [history[place] for place in places] == replay_window(history, settings)


@given(histories(), some_settings())
def test_the_history_is_left_as_it_was(history: History, settings: SessionSettings) -> None:
    before = json.dumps(history)
    replay_window(history, settings)
    assert json.dumps(history) == before


def halves(window: History, kinds: dict[str, str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The first and the second halves of these kinds in the window, each as the kind and the id that they share."""
    firsts = [(str(kind_of(item)), shared_id(item)) for item in window if is_a(item, kinds)]
    first_of = {second: first for first, second in kinds.items()}
    seconds = [(first_of[str(kind_of(item))], shared_id(item)) for item in window if is_a(item, first_of)]
    return firsts, seconds


APPROVAL = {"mcp_approval_request": "mcp_approval_response"}
CALLS = {first: second for first, second in OUTPUT_KIND.items() if first not in APPROVAL}


@given(histories(), some_settings(capped=True))
def test_no_call_is_replayed_without_its_output(history: History, settings: SessionSettings) -> None:
    window = replay_window(history, settings)
    for place in range(len(window)):
        calls, outputs = halves([item for item in window[place:] if item.get("async") is not True], CALLS)
        assert all(outputs.count(name) >= calls.count(name) for name in calls)


@given(histories(), some_settings(capped=True))
def test_no_output_is_replayed_without_its_call(history: History, settings: SessionSettings) -> None:
    window = replay_window(history, settings)
    for place in range(len(window)):
        calls, outputs = halves(window[: place + 1], CALLS)
        without_call = sum(max(0, outputs.count(name) - calls.count(name)) for name in set(outputs))
        assert without_call <= sum(map(may_be_a_call, window[: place + 1]))


@given(histories(), some_settings(capped=True))
def test_no_half_of_an_approval_is_replayed(history: History, settings: SessionSettings) -> None:
    window = replay_window(history, settings)
    requests, responses = halves([item for item in window if item.get("async") is not True], APPROVAL)
    assert all(responses.count(name) >= requests.count(name) for name in requests)
    for place in range(len(window)):
        requests, responses = halves(window[: place + 1], APPROVAL)
        without_request = sum(max(0, responses.count(name) - requests.count(name)) for name in set(responses))
        assert without_request <= sum(map(may_be_a_call, window[: place + 1]))


@given(histories(), some_settings(capped=True))
def test_no_reasoning_is_replayed_without_what_follows_it(history: History, settings: SessionSettings) -> None:
    window = replay_window(history, settings)
    for place, item in enumerate(window):
        if kind_of(item) == "reasoning":
            assert place + 1 < len(window)
            assert window[place + 1]["n"] == item["n"] + 1  # the very item that followed it in the history
            assert comes_from_model(window[place + 1])


@given(histories(), some_settings(capped=True))
def test_what_reasoning_led_to_is_not_replayed_without_it(history: History, settings: SessionSettings) -> None:
    window = replay_window(history, settings)
    places = {item["n"] for item in window}
    for place in places:
        if place and kind_of(history[place - 1]) == "reasoning" and comes_from_model(history[place]):
            assert place - 1 in places


@given(histories(), some_settings(capped=True))
def test_the_calls_of_a_program_are_replayed_inside_it_or_not_at_all(h: History, settings: SessionSettings) -> None:
    window = replay_window(h, settings)
    for place, item in enumerate(window):
        if is_by_a_program(item):
            name = ("program", json.dumps(item["caller"].get("caller_id")))
            begun, ended = halves(window[:place], OUTPUT_KIND)
            assert begun.count(name) > ended.count(name)
            assert name in halves(window[place:], OUTPUT_KIND)[1]


@given(histories(), some_settings(capped=True))
def test_no_longer_window_would_do(history: History, settings: SessionSettings) -> None:
    """Each longer suffix breaks a cap or cuts an exchange: alone, it would lose items to the rules above."""
    kept, window = whole_exchanges(history), replay_window(history, settings)
    turn_of, exchanges = turn_numbers(history), exchanges_of(history)
    for start in range(len(kept) - len(window)):
        longer = kept[start:]
        places = {item["n"] for item in longer}
        over = [
            settings.limit is not None and len(longer) > settings.limit,
            settings.max_turns is not None and len({turn_of[place] for place in places}) > settings.max_turns,
            settings.max_tokens is not None and sum(map(place_tokens, longer)) > settings.max_tokens,
        ]
        assert any(over) or any(exchange & places and exchange - places for exchange in exchanges)


@given(st.lists(odd_items() | json_objects(), max_size=8))
def test_settings_without_a_cap_leave_any_history_as_it_is(history: History) -> None:
    """Also what is incomplete in it, and ``count_tokens`` is no cap. Only a compaction's trigger is left out."""
    expected = [item for item in history if item.get("type") != "compaction_trigger"]
    for settings in (SessionSettings(), SessionSettings(count_tokens=place_tokens)):
        assert replay_window(history, settings) == expected


@given(histories())
def test_caps_that_are_far_away_drop_incomplete_exchanges_and_nothing_else(history: History) -> None:
    far = 10**6
    for settings in (
        SessionSettings(limit=far),
        SessionSettings(max_turns=far),
        SessionSettings(max_tokens=far),
        SessionSettings(limit=far, max_turns=far, max_tokens=far),
    ):
        assert replay_window(history, settings) == whole_exchanges(history)


@given(whole_histories())
def test_nothing_is_dropped_from_a_history_in_which_nothing_is_missing(history: History) -> None:
    assert whole_exchanges(history) == history


@given(histories(), some_settings())
def test_a_cap_of_zero_replays_nothing(history: History, settings: SessionSettings) -> None:
    for zero in ({"limit": 0}, {"max_turns": 0}, {"max_tokens": 0, "count_tokens": None}):
        assert replay_window(history, settings.model_copy(update=zero)) == []


def test_no_history_gives_no_window() -> None:
    for settings in (SessionSettings(), SessionSettings(limit=5), SessionSettings(limit=0)):
        assert replay_window([], settings) == []


@given(histories(), some_settings(capped=True))
def test_replaying_a_window_again_changes_nothing(history: History, settings: SessionSettings) -> None:
    """With the caps on items and tokens; where something was dropped between two turns, they may become one."""
    window = replay_window(history, settings)
    assert replay_window(window, settings.model_copy(update={"max_turns": None})) == window


@given(st.lists(json_objects(), max_size=6), st.integers(0, 8), st.integers(0, 500))
def test_any_json_objects_have_a_window(items: list[JsonObject], limit: int, max_tokens: int) -> None:
    settings = SessionSettings(limit=limit, max_tokens=max_tokens)
    assert replay_window(items, settings) == oracle(items, settings)


# ---------------------------------------------------------------------------------------------- parts of a history


@functools.cache
def caps_for_suffixes() -> list[SessionSettings]:
    return [
        SessionSettings(limit=limit, max_turns=max_turns, max_tokens=max_tokens, count_tokens=place_tokens)
        for limit in (None, 0, 1, 2, 4, 7)
        for max_turns in (None, 0, 1, 2)
        for max_tokens in (None, 0, 3, 8)
        if (limit, max_turns, max_tokens) != (None, None, None)
    ]


@given(histories())
def test_a_window_settled_from_the_newest_items_is_the_window_of_the_whole_history(history: History) -> None:
    for settings in caps_for_suffixes():
        whole = replay_window(history, settings)
        settled = False
        for start in range(len(history), -1, -1):
            window = find_window(history[start:], settings, at_start=False)
            assert window in (None, whole), f"{caps(settings)} from {start}"
            # Once it can tell, more of the history never unsettles it.
            assert window is not None or not settled
            settled = window is not None
        assert find_window(history, settings, at_start=True) == whole


def older_halves(newest: History) -> list[JsonObject]:
    """What may have stood before these items and would then belong to them."""
    older = [reasoning(), message("user"), message("assistant"), message("developer")]
    for item in newest:
        for first, second in OUTPUT_KIND.items():
            if kind_of(item) == second:
                older += [call(first, json.loads(shared_id(item))), reasoning()]
        caller = item.get("caller")
        if isinstance(caller, dict):
            older += [call("program", caller.get("caller_id"))]
        if is_a(item, OUTPUT_KIND):
            older += [{**item}, output(str(kind_of(item)), json.loads(shared_id(item)))]
    return older


@given(histories(), st.data())
def test_no_older_items_change_a_window_that_was_settled(newest: History, data: st.DataObject) -> None:
    """Older items that complete what the newest have half of, more than anything else."""
    older = data.draw(st.lists(st.sampled_from(older_halves(newest)) | odd_items(), min_size=1, max_size=8))
    newest = [{**item, "n": item["n"] + len(older)} for item in newest]
    whole = [*numbered(older), *newest]
    for settings in caps_for_suffixes():
        window = find_window(newest, settings, at_start=False)
        if window is not None:
            assert window == oracle(whole, settings), caps(settings)


def test_an_exchange_that_is_never_whole_does_not_settle_the_window_where_it_goes_beyond_it() -> None:
    """Behind it stands an output whose call is further away: the window ends before that."""
    by_a_lost_program = call("function_call", "a", caller={"type": "program", "caller_id": "lost"})
    filler = [message("user")] * 3
    newest = [by_a_lost_program, message("user"), *filler, output("function_call", "b"), output("function_call", "a")]
    history = [call("function_call", "b"), *[message("user")] * 20, *newest, message("assistant")]
    assert oracle(history, SessionSettings(limit=4)) == history[-1:]
    assert replay_window(history, SessionSettings(limit=4)) == history[-1:]
    assert find_window(history[1:], SessionSettings(limit=4), at_start=False) is None


@given(histories(), some_settings(capped=True))
def test_a_whole_history_is_always_settled(history: History, settings: SessionSettings) -> None:
    assert find_window(history, settings, at_start=True) == oracle(history, settings)


@given(whole_histories(), st.integers(0, 10))
def test_whole_turns_with_more_items_than_the_limit_settle_the_window(history: History, limit: int) -> None:
    """So that no more of a session is read than its limit and one turn."""
    starts = [place for place, item in enumerate(history) if place in (0, *turn_starts(history))]
    for start in starts:
        if len(history) - start > limit:
            assert find_window(history[start:], SessionSettings(limit=limit), at_start=False) is not None


def turn_starts(history: History) -> list[int]:
    numbers = turn_numbers(history)
    return [place for place in range(1, len(history)) if numbers[place] > numbers[place - 1]]


# -------------------------------------------------------------------------------------------------------- the kinds


def api_kinds() -> dict[str, Any]:
    """The kinds of item that the installed openai client sends, with their TypedDicts; those in beta among them."""
    kinds = {}
    in_beta = getattr(openai.types.beta, "BetaResponseInputItemParam", None)  # older clients have none
    for shape in (*get_args(in_beta), *get_args(ResponseInputItemParam)):
        hint = typing_extensions.get_type_hints(shape).get("type")
        for part in (hint, *get_args(hint)):  # Literal["…"], or Optional[Literal["…"]]
            kinds.update({name: shape for name in get_args(part) if isinstance(name, str)})
    return kinds


def api_pairs() -> dict[str, str]:
    """First half to second half, by the API's way to name them: x_call and x_call_output (or x_output), x and
    x_output, x_request and x_response."""
    kinds = api_kinds()
    pairs = {}
    for second in kinds:
        if second.endswith("_output"):
            stem = second.removesuffix("_output")
            (pairs_with,) = [name for name in (stem, f"{stem}_call") if name in kinds]
            pairs[pairs_with] = second
        elif second.endswith("_response"):
            pairs[second.removesuffix("_response") + "_request"] = second
    return pairs


def test_the_clients_union_is_read_right() -> None:
    """Else the next tests would pass on nothing."""
    assert {"message", "function_call", "function_call_output", "reasoning", "item_reference"} <= api_kinds().keys()
    assert api_pairs()["computer_call"] == "computer_call_output"
    if "multi_agent_call" in api_kinds():
        assert api_pairs()["multi_agent_call"] == "multi_agent_call_output"


@pytest.mark.parametrize(("first", "second"), api_pairs().items())
def test_every_paired_kind_of_the_api_is_an_exchange(first: str, second: str) -> None:
    assert CALL_OF[second] == first
    assert OUTPUT_KIND[first] == second


@pytest.mark.parametrize("kind", sorted(kind for kind in api_kinds() if kind.endswith(("_call", "_request"))))
def test_every_call_of_the_api_has_an_output_or_is_hosted(kind: str) -> None:
    assert (kind in CALL_OF.values()) == (kind in api_pairs())


def test_an_exchange_is_of_one_pair_of_kinds() -> None:
    assert {first: second for second, first in CALL_OF.items()} == OUTPUT_KIND


@pytest.mark.parametrize(("first", "second"), api_pairs().items())
def test_exchanges_are_matched_by_the_field_that_the_api_documents(first: str, second: str) -> None:
    """The fields are those of the client's TypedDicts."""

    def id_field(kind: str) -> str:
        fields = typing_extensions.get_type_hints(api_kinds()[kind])
        return next(name for name in ("call_id", "approval_request_id", "id") if name in fields)

    begun, answer = {"type": first, id_field(first): "x"}, {"type": second, id_field(second): "x"}
    other = {"type": second, id_field(second): "y"}
    assert whole_exchanges([begun, answer]) == [begun, answer]
    assert whole_exchanges([begun, other]) == []


@pytest.mark.parametrize("kind", HOSTED_KINDS)
def test_hosted_calls_need_no_output(kind: str) -> None:
    item = {"type": kind, "id": "x", "call_id": "x"}
    assert whole_exchanges([item]) == [item]


@pytest.mark.parametrize("first", OUTPUT_KIND)
class TestEachPair:
    def test_is_replayed_whole(self, first: str) -> None:
        pair = [call(first), output(first)]
        assert replay_window(pair, SessionSettings(limit=2)) == pair

    def test_is_never_cut(self, first: str) -> None:
        history = [call(first), message("user"), output(first), message("assistant")]
        assert replay_window(history, SessionSettings(limit=3)) == history[-1:]
        assert replay_window(history, SessionSettings(limit=4)) == history

    def test_is_dropped_where_a_half_is_missing(self, first: str) -> None:
        user = message("user")
        assert replay_window([user, call(first)], SessionSettings(limit=9)) == [user]
        assert replay_window([output(first), user], SessionSettings(limit=9)) == [user]

    def test_is_no_pair_backwards(self, first: str) -> None:
        assert replay_window([output(first), call(first)], SessionSettings(limit=9)) == []

    def test_is_not_matched_across_ids(self, first: str) -> None:
        assert replay_window([call(first, "a"), output(first, "b")], SessionSettings(limit=9)) == []

    def test_is_not_matched_across_kinds(self, first: str) -> None:
        for other in OUTPUT_KIND.keys() - {first}:
            assert whole_exchanges([call(first), output(other)]) == []

    def test_may_be_parallel_and_in_any_order(self, first: str) -> None:
        calls = [call(first, name) for name in "abc"]
        for outputs in itertools.permutations([output(first, name) for name in "abc"]):
            history = [message("user"), *calls, *outputs]
            assert replay_window(history, SessionSettings(limit=7)) == history
            assert replay_window(history, SessionSettings(limit=6)) == history[1:]
        assert replay_window([*calls, output(first, "b")], SessionSettings(limit=9)) == [calls[1], output(first, "b")]

    def test_may_share_its_id_with_an_earlier_pair(self, first: str) -> None:
        pair = [call(first), output(first)]
        history = numbered([*pair, message("user"), *pair])
        assert replay_window(history, SessionSettings(limit=9)) == history
        assert replay_window(history, SessionSettings(limit=4)) == history[2:]


def test_an_output_answers_the_latest_call_of_its_id() -> None:
    """A call that was made again, because its first answer never came, is answered; the first is dropped."""
    lost, made_again, answer = numbered([call("function_call"), call("function_call"), output("function_call")])
    assert replay_window([lost, message("user"), made_again, answer], SessionSettings(limit=3)) == [
        message("user"),
        made_again,
        answer,
    ]


def test_an_answer_that_came_twice_is_replayed_once() -> None:
    history = numbered([call("function_call"), output("function_call"), output("function_call")])
    assert replay_window(history, SessionSettings(limit=9)) == history[:2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, "1"),
        (None, "None"),
        (None, ""),
        (True, "True"),
        (["a"], "['a']"),
        ({"a": 1}, "{'a': 1}"),
        (1, True),
        (1, 1.0),
    ],
)
def test_ids_of_different_types_are_different_ids(one: object, other: object) -> None:
    for first, second in ((one, other), (other, one)):
        assert whole_exchanges([call("function_call", first), output("function_call", second)]) == []


@pytest.mark.parametrize("call_id", ["", 1, 1.5, True, None, ["a"], {"a": [1]}, "\ud800", 10**400])
def test_an_id_may_be_any_json(call_id: object) -> None:
    """The API has only texts and null; an odd id must not make a session unreadable."""
    for first in OUTPUT_KIND:
        pair = [call(first, call_id), output(first, call_id)]
        assert whole_exchanges(pair) == pair
        assert whole_exchanges([message("user"), *pair[:1]]) == [message("user")]


def test_a_local_shell_output_is_matched_by_call_id_and_by_id() -> None:
    """The API documents ``id``; the Agents SDK writes ``call_id``."""
    begun = {"type": "local_shell_call", "id": "lsh_1", "call_id": "call_1"}
    answers: list[JsonObject] = [
        {"id": "call_1"},
        {"call_id": "call_1"},
        {"call_id": "call_1", "id": "lsho_1"},
        {"call_id": None, "id": "call_1"},
    ]
    for answer in answers:
        history = [begun, {"type": "local_shell_call_output", **answer}]
        assert whole_exchanges(history) == history
    assert whole_exchanges([begun, {"type": "local_shell_call_output", "id": "call_2"}]) == []


def test_a_hosted_tool_search_has_no_id_and_is_an_exchange_with_the_output_that_follows() -> None:
    for field in ({"call_id": None}, {}):
        begun, answer = {"type": "tool_search_call", **field}, {"type": "tool_search_output", "call_id": None}
        history = numbered([begun, answer, message("user"), begun, answer])
        assert replay_window(history, SessionSettings(limit=9)) == history
        assert replay_window(history, SessionSettings(limit=4)) == history[2:]
        assert replay_window(history, SessionSettings(limit=1)) == []


# -------------------------------------------------------------------------------------------------------- programs

BY_PROGRAM = {"caller": {"type": "program", "caller_id": "p"}}
PROGRAM = [
    call("program", "p"),
    call("function_call", "a", **BY_PROGRAM),
    output("function_call", "a", **BY_PROGRAM),
    call("shell_call", "b", **BY_PROGRAM),
    output("shell_call", "b", **BY_PROGRAM),
    output("program", "p"),
]


def test_a_program_and_the_calls_that_it_made_are_one_exchange() -> None:
    history = [message("user"), *PROGRAM, message("assistant")]
    assert replay_window(history, SessionSettings(limit=8)) == history
    for limit in range(1, 7):
        assert replay_window(history, SessionSettings(limit=limit)) == history[-1:]
    assert replay_window(history, SessionSettings(limit=7)) == history[1:]


@pytest.mark.parametrize("missing", [0, 2, 4, 5])
def test_a_program_without_its_output_or_that_of_a_call_is_dropped_whole(missing: int) -> None:
    user = message("user")
    rest = PROGRAM[:missing] + PROGRAM[missing + 1 :]
    assert replay_window([user, *rest], SessionSettings(limit=9)) == [user]


@pytest.mark.parametrize("missing", [1, 3])
def test_an_output_inside_a_program_without_its_call_is_dropped_alone(missing: int) -> None:
    rest = PROGRAM[:missing] + PROGRAM[missing + 1 :]
    expected = PROGRAM[:missing] + PROGRAM[missing + 2 :]
    assert replay_window(rest, SessionSettings(limit=9)) == expected


@pytest.mark.parametrize("kind", HOSTED_KINDS)
def test_a_hosted_call_of_a_program_goes_with_its_program(kind: str) -> None:
    hosted = {"type": kind, "id": "x", **BY_PROGRAM}
    history = [PROGRAM[0], hosted, PROGRAM[-1], message("assistant")]
    assert replay_window(history, SessionSettings(limit=4)) == history
    assert replay_window(history, SessionSettings(limit=3)) == history[3:]
    for rest in ([hosted], [PROGRAM[0], hosted], [hosted, PROGRAM[-1]], [PROGRAM[0], PROGRAM[-1], hosted]):
        assert hosted not in replay_window(rest, SessionSettings(limit=9))
        assert hosted not in whole_exchanges(rest)


def test_a_program_may_call_a_program() -> None:
    inner = [
        call("program", "q", **BY_PROGRAM),
        call("function_call", "c", caller={"type": "program", "caller_id": "q"}),
        output("function_call", "c"),
        output("program", "q"),
    ]
    history = [PROGRAM[0], *inner, PROGRAM[-1]]
    assert replay_window(history, SessionSettings(limit=6)) == history
    assert replay_window(history, SessionSettings(limit=5)) == []
    assert replay_window([PROGRAM[0], *inner], SessionSettings(limit=9)) == []


def test_a_call_is_inside_the_latest_program_of_its_id_that_is_still_running() -> None:
    lost = [message("user"), PROGRAM[0], message("user")]
    assert replay_window([*lost, *PROGRAM], SessionSettings(limit=9)) == [lost[0], lost[2], *PROGRAM]
    assert replay_window([*PROGRAM, *lost, *PROGRAM], SessionSettings(limit=6)) == PROGRAM


def test_no_program_calls_itself() -> None:
    itself = [call("program", "p", **BY_PROGRAM), output("program", "p")]
    assert whole_exchanges(itself) == []
    inside = [PROGRAM[0], *itself, PROGRAM[-1]]
    assert replay_window(inside, SessionSettings(limit=4)) == inside
    assert replay_window(inside, SessionSettings(limit=3)) == []


def test_what_one_item_lacks_makes_all_that_are_linked_to_it_incomplete() -> None:
    """Through a program inside a program, and reasoning that led to a call in there."""
    inner = [
        call("program", "p", caller={"type": "program", "caller_id": "outer"}),
        reasoning(),
        call("function_call", "a", **BY_PROGRAM),
        output("function_call", "a"),
        output("program", "p"),
    ]
    assert whole_exchanges(inner) == []
    assert find_window([message("user"), *inner], SessionSettings(limit=5), at_start=False) is None
    whole = [call("program", "outer"), *inner, output("program", "outer")]
    assert whole_exchanges(whole) == whole
    assert replay_window(whole, SessionSettings(limit=6)) == []


def test_a_call_by_a_program_that_has_ended_is_dropped() -> None:
    late = [call("function_call", "a", **BY_PROGRAM), output("function_call", "a")]
    assert whole_exchanges([PROGRAM[0], PROGRAM[-1], *late]) == [PROGRAM[0], PROGRAM[-1]]


def test_a_call_that_the_model_made_itself_needs_no_program() -> None:
    callers: list[object] = [{"type": "direct"}, None, "program", []]
    for caller in callers:
        pair = [call("function_call", caller=caller), output("function_call", caller=caller)]
        assert whole_exchanges(pair) == pair


# -------------------------------------------------------------------------------------------------------- reasoning


@pytest.mark.parametrize(
    "followed_by",
    [
        message("assistant"),
        {"type": "message", "role": "assistant", "content": []},
        {"type": "web_search_call", "id": "ws"},
        {"type": "not_known_yet"},
    ],
    ids=lambda item: str(item.get("type")),
)
def test_reasoning_and_the_item_that_it_led_to_are_one_exchange(followed_by: JsonObject) -> None:
    history = [message("user"), reasoning(), followed_by]
    assert replay_window(history, SessionSettings(limit=3)) == history
    assert replay_window(history, SessionSettings(limit=2)) == history[1:]
    assert replay_window(history, SessionSettings(limit=1)) == []


@pytest.mark.parametrize("kind", INPUT_KINDS)
def test_what_the_application_puts_into_the_input_is_nothing_that_reasoning_led_to(kind: str) -> None:
    history = [reasoning(), {"type": kind, "id": "fc_1"}]
    assert reasoning() not in replay_window(history, SessionSettings(limit=9))
    assert reasoning() not in whole_exchanges(history)


def test_reasoning_that_led_to_a_call_stays_with_the_calls_output() -> None:
    exchange = [reasoning(), call("function_call"), output("function_call")]
    assert replay_window(exchange, SessionSettings(limit=3)) == exchange
    assert replay_window(exchange, SessionSettings(limit=2)) == []
    assert replay_window(exchange[:2], SessionSettings(limit=9)) == []


def test_reasoning_after_reasoning_leads_to_the_same_item() -> None:
    exchange = [reasoning(), reasoning(), message("assistant")]
    assert replay_window(exchange, SessionSettings(limit=3)) == exchange
    assert replay_window(exchange, SessionSettings(limit=2)) == []


@pytest.mark.parametrize("then", [[], *([message(role)] for role in INPUT_ROLES)], ids=["nothing", *INPUT_ROLES])
def test_reasoning_that_led_to_nothing_is_dropped(then: History) -> None:
    """As after a run that was broken off."""
    assert replay_window([message("user"), reasoning(), *then], SessionSettings(limit=9)) == [message("user"), *then]


def test_an_output_is_nothing_that_reasoning_led_to() -> None:
    history = [call("function_call"), reasoning(), output("function_call")]
    assert replay_window(history, SessionSettings(limit=9)) == [history[0], history[2]]


# -------------------------------------------------------------------------------------------------------- compactions


def test_without_caps_the_window_begins_with_the_newest_compaction() -> None:
    before = [message("user"), compaction(), message("user")]
    after = [compaction(), message("user"), message("assistant")]
    assert replay_window([*before, *after], SessionSettings()) == after
    assert replay_window(after[:1], SessionSettings()) == after[:1]


def test_without_caps_the_messages_that_the_api_puts_before_a_compaction_stay() -> None:
    compacted = numbered([message("user"), message("developer"), compaction(), message("user"), message("assistant")])
    assert replay_window(compacted, SessionSettings()) == compacted
    assert replay_window([message("assistant"), *compacted], SessionSettings()) == compacted[2:]
    assert replay_window(compacted, SessionSettings(limit=9)) == compacted[2:]


def test_with_a_compaction_nothing_older_is_sent_and_it_counts() -> None:
    history = numbered([message("user"), compaction(), message("user"), message("assistant"), message("user")])
    for limit in (4, 5, 100):
        assert replay_window(history, SessionSettings(limit=limit)) == history[1:]
    assert replay_window(history, SessionSettings(limit=3)) == [history[1], *history[3:]]
    assert replay_window(history, SessionSettings(limit=2)) == [history[1], *history[4:]]


def test_a_compaction_stays_where_there_is_room_for_one_item_alone() -> None:
    history = numbered([message("user"), compaction(), message("user"), message("assistant")])
    assert replay_window(history, SessionSettings(limit=1)) == [history[1]]
    assert replay_window(history, SessionSettings(max_turns=1)) == [history[1]]
    assert replay_window(history, SessionSettings(max_tokens=9, count_tokens=lambda item: 9)) == [history[1]]
    for nothing in (SessionSettings(limit=0), SessionSettings(max_turns=0), SessionSettings(max_tokens=0)):
        assert replay_window(history, nothing) == []


def test_a_compaction_in_the_midst_of_a_turn_counts_as_a_part_of_it() -> None:
    """As the API makes it: between what it compacted and the answer."""
    history = numbered([message("user"), compaction(), message("assistant")])
    assert replay_window(history, SessionSettings(max_turns=1)) == history[1:]


def test_a_compaction_that_alone_has_more_tokens_than_the_cap_leaves_what_fits_after_it() -> None:
    def count_tokens(item: JsonObject) -> int:
        return 100 if item.get("type") == "compaction" else 1

    history = numbered([message("user"), compaction(), message("user"), message("assistant")])
    assert replay_window(history, SessionSettings(max_tokens=50, count_tokens=count_tokens)) == history[2:]


@pytest.mark.parametrize("settings", [SessionSettings(), SessionSettings(limit=9)], ids=["no caps", "a cap"])
def test_what_a_compaction_stands_between_is_not_replayed_by_half(settings: SessionSettings) -> None:
    cut = [reasoning(), call("function_call"), compaction(), output("function_call"), message("assistant")]
    assert replay_window(cut, settings) == [cut[2], cut[4]]


def test_an_older_compaction_is_not_replayed() -> None:
    history = numbered([compaction(), message("user"), compaction(), message("user")])
    assert replay_window(history, SessionSettings(limit=9)) == history[2:]
    assert replay_window(history, SessionSettings(limit=1)) == history[2:3]


@given(histories(), st.lists(odd_items(), max_size=7), some_settings())
def test_a_window_with_a_compaction_is_the_oracles(before: History, after: History, settings: SessionSettings) -> None:
    """Near enough to the end to be looked for with any caps."""
    history = numbered([*before, compaction(), *after])
    assert replay_window(history, settings) == oracle(history, settings)
    if settings.has_caps:
        assert find_window(history[len(before) :], settings, at_start=False) == oracle(history, settings)


@given(histories(), histories(), some_settings(capped=True))
def test_a_compaction_that_is_further_away_is_found_or_the_window_is_as_without_it(
    before: History, after: History, settings: SessionSettings
) -> None:
    history = numbered([*before, compaction(), *after])
    window = replay_window(history, settings)
    without = [{**item, "n": item["n"] + len(before) + 1} for item in after]
    assert window in (oracle(history, settings), oracle(without, settings))
    if len(after) < first_items(settings):
        assert window == oracle(history, settings)


def test_a_trigger_of_a_compaction_is_never_replayed() -> None:
    """It must be the last item of a request."""
    trigger = {"type": "compaction_trigger"}
    for history in ([message("user"), trigger], [message("user"), trigger, message("user")], [trigger]):
        kept = [item for item in history if item is not trigger]
        for settings in (SessionSettings(), SessionSettings(limit=9), SessionSettings(max_tokens=999)):
            assert replay_window(history, settings) == kept
        assert whole_exchanges(history) == kept


# ---------------------------------------------------------------------------------- references and asynchronous calls


@pytest.mark.parametrize("refer", [reference(), {"id": "fc_1"}, {"type": None, "id": "fc_1"}], ids=str)
def test_an_output_whose_call_is_only_referred_to_stays_with_the_reference(refer: JsonObject) -> None:
    history = [message("user"), refer, output("function_call", "call_1"), message("assistant")]
    assert replay_window(history, SessionSettings(limit=4)) == history
    assert replay_window(history, SessionSettings(limit=3)) == history[1:]
    assert replay_window(history, SessionSettings(limit=2)) == history[3:]
    assert whole_exchanges(history) == history


def test_each_output_has_a_reference_of_its_own() -> None:
    two = [reference("fc_1"), reference("fc_2"), output("function_call", "a"), output("function_call", "b")]
    assert replay_window(two, SessionSettings(limit=4)) == two
    assert replay_window(two, SessionSettings(limit=3)) == []
    orphan = [reference(), output("function_call", "a"), output("function_call", "b")]
    assert replay_window(orphan, SessionSettings(limit=3)) == orphan[:2]


@pytest.mark.parametrize("item_id", ["msg_1", "rs_1", "ws_1", "mcp_1"])
def test_a_reference_to_something_that_needs_no_output_is_no_call(item_id: str) -> None:
    history = [reference(item_id), output("function_call")]
    assert replay_window(history, SessionSettings(limit=9)) == history[:1]


def test_a_message_without_a_type_is_no_reference() -> None:
    history = [{"type": None, "id": "fc_1", "role": "user"}, output("function_call")]
    assert replay_window(history, SessionSettings(limit=9)) == history[:1]


def test_a_call_that_is_there_answers_before_any_reference() -> None:
    history = [call("function_call", "a"), reference(), output("function_call", "a"), output("function_call", "b")]
    assert replay_window(history, SessionSettings(limit=9)) == history
    assert replay_window(history[:3], SessionSettings(limit=2)) == []


@pytest.mark.parametrize("kind", ["function_call", "custom_tool_call"])
def test_an_asynchronous_call_stays_without_its_output_and_takes_it_whenever_it_comes(kind: str) -> None:
    pending = [message("user"), reasoning(), call(kind, **{"async": True}), message("assistant")]
    assert replay_window(pending, SessionSettings(limit=9)) == pending
    assert replay_window(pending, SessionSettings(limit=2)) == pending[3:]
    assert whole_exchanges(pending) == pending
    answered = [*pending, message("user"), message("assistant"), output(kind)]
    assert replay_window(answered, SessionSettings(limit=9)) == answered
    assert replay_window(answered, SessionSettings(limit=3)) == []


def test_a_call_that_is_not_asynchronous_needs_its_output() -> None:
    for value in (False, None, "true", 1):
        assert whole_exchanges([call("function_call", **{"async": value})]) == []


# -------------------------------------------------------------------------------------------------------- turns


def test_a_turn_runs_from_a_user_message_up_to_the_next() -> None:
    work = [message("user"), call("shell_call"), output("shell_call"), message("assistant")]
    history = numbered([message("user"), message("assistant"), *work])
    assert replay_window(history, SessionSettings(max_turns=1)) == history[2:]
    assert replay_window(history, SessionSettings(max_turns=2)) == history


@given(st.lists(st.sampled_from(INPUT_ROLES), min_size=1, max_size=5))
def test_an_unbroken_group_of_user_system_and_developer_messages_begins_one_turn(roles: list[str]) -> None:
    earlier, turn = [message("user"), message("assistant")], [*map(message, roles), message("assistant")]
    assert replay_window([*earlier, *turn], SessionSettings(max_turns=1)) == turn
    assert replay_window([*earlier, *turn[:-1]], SessionSettings(max_turns=1)) == turn[:-1]


def test_a_turn_may_be_a_user_message_alone() -> None:
    history = numbered([message("user"), message("assistant"), message("user")])
    assert replay_window(history, SessionSettings(max_turns=1)) == history[2:]


def test_what_stands_before_the_first_user_message_counts_as_a_turn() -> None:
    history = [message("assistant", "Welcome!"), message("user"), message("assistant")]
    assert replay_window(history, SessionSettings(max_turns=1)) == history[1:]
    assert replay_window(history, SessionSettings(max_turns=2)) == history


def test_turns_are_those_of_the_stored_history_whatever_is_dropped_from_it() -> None:
    """Two user messages with an unanswered call between them stay two turns."""
    history = numbered([message("user"), call("function_call"), message("user"), message("assistant")])
    assert replay_window(history, SessionSettings(max_turns=1)) == history[2:]
    assert replay_window(history, SessionSettings(max_turns=2)) == [history[0], *history[2:]]


def test_a_turn_of_which_nothing_remains_is_not_counted() -> None:
    history = numbered([message("user"), message("assistant"), message("user"), call("function_call", "x")])
    history.append({**output("function_call", "y"), "n": 4})
    assert replay_window(history, SessionSettings(max_turns=2)) == history[:3]
    nothing = numbered([message("user"), message("assistant"), call("shell_call", "x")])
    assert replay_window(nothing, SessionSettings(max_turns=1)) == nothing[:2]


def test_an_exchange_over_two_turns_is_replayed_with_both_or_not_at_all() -> None:
    history = [message("user"), call("function_call"), message("user", "Well?"), output("function_call")]
    assert replay_window(history, SessionSettings(max_turns=1)) == []
    assert replay_window(history, SessionSettings(max_turns=2)) == history


@pytest.mark.parametrize(
    ("item", "begins"),
    [
        ({"role": "user", "content": "x"}, True),
        ({"type": "message", "role": "system", "content": []}, True),
        ({"role": "developer"}, True),
        ({"role": "assistant"}, False),
        ({"role": None}, False),
        ({"role": ["user"]}, False),
        ({"role": {}}, False),
        ({"type": "additional_tools", "role": "developer"}, False),
        ({"type": "function_call_output", "role": "user"}, False),
        ({"content": "x"}, False),
        ({}, False),
    ],
)
def test_turns_begin_with_messages_in_an_input_role(item: JsonObject, begins: bool) -> None:
    assert is_input_message(item) is begins


@given(odd_items())
def test_outputs_are_the_second_halves(item: JsonObject) -> None:
    assert is_output(item) is is_a(item, OUTPUT_KIND.values())
    assert all(is_output({"type": second}) and not is_output({"type": first}) for first, second in OUTPUT_KIND.items())


# -------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("name", ["limit", "max_turns", "max_tokens"])
@pytest.mark.parametrize("value", [-1, True, False, "5", 5.0, 1.5, float("nan"), [1], b"5"])
def test_a_cap_is_zero_or_a_positive_int_or_none(name: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        SessionSettings.model_validate({name: value})
    assert isinstance(caught.value, ValueError)
    assert [error["loc"] for error in caught.value.errors()] == [(name,)]
    for good in (0, 1, 10**9, None):
        assert getattr(SessionSettings.model_validate({name: good}), name) == good


@pytest.mark.parametrize("value", [5, "len", [len]])
def test_count_tokens_is_a_function(value: object) -> None:
    with pytest.raises(ValidationError):
        SessionSettings.model_validate({"count_tokens": value})


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_items"):
        SessionSettings(max_items=5)  # type: ignore[call-arg]  # what the test is about


def test_settings_cannot_be_changed() -> None:
    settings: Any = SessionSettings(limit=5)
    with pytest.raises(ValidationError, match="frozen"):
        settings.limit = 6
    assert settings.limit == 5
    assert settings == SessionSettings(limit=5) != SessionSettings(limit=6)


def test_settings_know_whether_they_bound_anything() -> None:
    assert not SessionSettings().has_caps
    assert not SessionSettings(count_tokens=len).has_caps
    assert all(SessionSettings.model_validate({name: 0}).has_caps for name in ("limit", "max_turns", "max_tokens"))


# -------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("tokens", [-1, -(10**9)])
def test_a_negative_count_of_tokens_is_a_value_error(tokens: int) -> None:
    settings = SessionSettings(max_tokens=5, count_tokens=lambda item: tokens)
    with pytest.raises(ValueError, match=f"count_tokens returned {tokens} for an item of type 'message'"):
        replay_window([message("user")], settings)


@pytest.mark.parametrize("tokens", [None, "5", 5.0, True])
def test_a_count_of_tokens_that_is_no_int_is_a_type_error(tokens: Any) -> None:
    settings = SessionSettings(max_tokens=5, count_tokens=lambda item: tokens)
    with pytest.raises(TypeError, match=f"count_tokens returned {tokens!r} for an item of type 'message'"):
        replay_window([message("user")], settings)


def test_tokens_are_not_counted_where_nothing_caps_them() -> None:
    def count_tokens(item: JsonObject) -> int:
        raise AssertionError("not asked for")

    settings = SessionSettings(limit=1, max_turns=1, count_tokens=count_tokens)
    assert replay_window([message("user"), message("user")], settings) == [message("user")]


@given(adversarial_histories())
def test_tokens_of_dropped_items_do_not_count(history: History) -> None:
    kept = whole_exchanges(history)
    assert replay_window(history, SessionSettings(max_tokens=sum(map(estimate_tokens, kept)))) == kept


@given(json_objects())
def test_any_item_has_tokens_by_the_default_count(item: JsonObject) -> None:
    assert estimate_tokens(item) >= 1


# ------------------------------------------------------------------------------ what a run needs to know of a history


@pytest.mark.parametrize("kind", ["function_call", "custom_tool_call"])
def test_an_asynchronous_call_is_replayed_without_its_output_and_with_its_reasoning(kind: str) -> None:
    pending = call(kind, **{"async": True})
    history = numbered([message("user"), reasoning(), pending, message("assistant"), message("user")])
    assert whole_exchanges(history) == history
    for limit, length in enumerate([0, 1, 2, 2, 4, 5]):
        assert replay_window(history, SessionSettings(limit=limit)) == history[len(history) - length :]


def test_the_output_of_an_asynchronous_call_is_never_replayed_without_it() -> None:
    pending = call("custom_tool_call", **{"async": True})
    history = numbered([pending, message("user"), output("custom_tool_call"), message("assistant")])
    assert replay_window(history, SessionSettings(limit=3)) == history[3:]
    assert replay_window(history, SessionSettings(limit=4)) == history
    assert whole_exchanges(history[1:]) == [history[1], history[3]]


def test_only_true_makes_a_call_asynchronous() -> None:
    for value in (False, None, 1, "true"):
        assert whole_exchanges([call("function_call", **{"async": value})]) == []


@given(histories())
def test_the_members_of_an_exchange_are_the_oracles_and_none_where_one_is_missing(history: History) -> None:
    exchanges = {place: exchange for exchange in exchanges_of(history) for place in exchange}
    assert [set(members) for members in exchange_members(history)] == [
        exchanges.get(place, set()) for place in range(len(history))
    ]


P1 = {"caller": {"type": "program", "caller_id": "p1"}}
RUNNING = numbered(
    [message("user"), reasoning(), call("program", "p1"), call("shell_call", **P1), output("shell_call")]
)


def test_a_program_runs_while_its_turn_goes_on_and_its_calls_have_their_outputs() -> None:
    assert whole_exchanges(RUNNING) == RUNNING[:1]
    for running_from in range(len(RUNNING)):
        assert [set(members) for members in exchange_members(RUNNING, running_from=running_from)] == [
            {0},
            *[{1, 2, 3, 4}] * 4,
        ]
    for lacking in (RUNNING[:3], RUNNING[:4]):
        assert [bool(members) for members in exchange_members(lacking, running_from=0)] == [
            True,
            *[False] * (len(lacking) - 1),
        ]


def test_a_program_that_an_earlier_turn_left_behind_does_not_run() -> None:
    history = [*RUNNING, message("user")]
    assert [bool(members) for members in exchange_members(history, running_from=5)] == [True, *[False] * 4, True]


def test_an_output_without_its_call_and_a_call_without_its_program_begin_earlier() -> None:
    assert not begins_earlier(RUNNING, 0)
    assert begins_earlier(RUNNING[3:], 0)
    assert begins_earlier(RUNNING[4:], 0)
    assert not begins_earlier([output("shell_call", "b"), *RUNNING], 1)  # asked is what is from there on
    assert not begins_earlier([message("user"), reasoning(), message("user")], 0)


@pytest.mark.parametrize("first", OUTPUT_KIND)
def test_a_call_is_unanswered_until_its_output_comes_after_it(first: str) -> None:
    one, other = call(first, "a"), call(first, "b")
    assert unanswered_calls([one, message("user"), other]) == [one, other]
    assert unanswered_calls([one, other, output(first, "a")]) == [other]
    assert unanswered_calls([output(first, "a"), one]) == [one]
    assert unanswered_calls([one, output(first, "a"), output(first, "a"), one]) == [one]
