"""A report says of every session whether it is whole, and of what is wrong, where; whatever the engine."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem.checking import MAX_PROBLEMS, Checker, CheckReport, Problem

ITEM = b'{"role": "user", "content": "one"}'


def checked(end: int | None, positions: Iterable[int], session_id: str = "user_123", data: bytes = ITEM) -> CheckReport:
    checker = Checker()
    checker.begin_session(session_id, end)
    for position in positions:
        checker.add_row(position, data)
    checker.end_session()
    return checker.report()


def said(report: CheckReport) -> list[str]:
    assert len(report.problems) == min(report.problem_count, MAX_PROBLEMS)
    return [str(problem) for problem in report.problems]


@pytest.mark.parametrize(
    ("end", "positions", "problems"),
    [
        (0, [], []),
        (3, [0, 1, 2], []),
        (1, [], ["position 0: missing"]),
        (3, [], ["position 0: missing, up to position 2"]),
        (3, [0, 2], ["position 1: missing"]),
        (6, [0, 1, 4, 5], ["position 2: missing, up to position 3"]),
        (4, [0, 1], ["position 2: missing, up to position 3"]),
        (4, [2, 3], ["position 0: missing, up to position 1"]),
        (5, [1, 3], ["position 0: missing", "position 2: missing", "position 4: missing"]),
        (1, [0, 1], ["position 1: not below the session's next position, 1"]),
        (0, [0, 1, 2], ["position 0: not below the session's next position, 0, up to position 2"]),
        (2, [0, 7], ["position 1: missing", "position 7: not below the session's next position, 2"]),
        (-1, [], ["its next position is -1"]),
        (-1, [0], ["its next position is -1", "position 0: not below the session's next position, -1"]),
        (None, [0, 1], ["its next position is not a whole number"]),
        (None, [1], ["its next position is not a whole number", "position 0: missing"]),
    ],
)
def test_positions_go_from_0_to_the_end_of_the_session_without_a_gap(
    end: int | None, positions: list[int], problems: list[str]
) -> None:
    report = checked(end, positions)
    assert [line.removeprefix("session 'user_123'").lstrip(":, ") for line in said(report)] == problems
    assert (report.sessions, report.items) == (1, len(positions))


@given(st.integers(0, 12), st.sets(st.integers(0, 12)))
def test_a_session_is_whole_just_if_its_positions_are_those_below_its_end(end: int, positions: set[int]) -> None:
    assert (checked(end, sorted(positions)).problem_count == 0) == (positions == set(range(end)))


@pytest.mark.parametrize("data", [b"{", b"[1]", b"null", b"17", b"\xff\x00", b'{"a": NaN}', b"\x1b[31m{\n"])
def test_a_row_that_cannot_be_read_is_named_in_one_line_and_counts_as_there(data: bytes) -> None:
    report = checked(1, [0], data=data)
    (line,) = said(report)
    assert line.startswith("session 'user_123', position 0: cannot be read: ")
    assert line.isprintable()
    assert report.problems[0].session_id == "user_123"
    assert report.problems[0].position == 0


def test_the_row_of_an_erased_item_is_whole_and_counts_as_no_item() -> None:
    told: list[tuple[int, int]] = []
    checker = Checker(lambda done, of: told.append((done, of)))
    checker.begin_session("user_123", 4)
    for position, data in enumerate([b"", ITEM, b""]):
        checker.add_row(position, data)
    checker.end_session()
    report = checker.report()
    assert said(report) == ["session 'user_123', position 3: missing"]
    assert (report.items, told[-1]) == (1, (3, 3))


def test_a_session_id_is_shown_short_and_harmless_and_kept_whole() -> None:
    session_id = "\x1b[31m\n" + "x" * 1000
    (problem,) = checked(1, [], session_id).problems
    assert str(problem).isprintable()
    assert len(str(problem)) < 200
    assert problem.session_id == session_id


def test_what_the_database_does_not_give_is_said_once_and_only_up_to_the_session_s_end() -> None:
    checker = Checker()
    checker.begin_session("user_123", 10)
    checker.add_row(0, ITEM)
    checker.add_unreadable_rows(2, 4, "malformed")
    checker.add_row(5, ITEM)
    checker.add_unreadable_rows(7, 2**32 - 1, "malformed")
    checker.end_session()
    checker.begin_session("other", 0)
    checker.add_unreadable_rows(0, 2**32 - 1, "malformed")
    checker.end_session()
    assert said(checker.report()) == [
        "session 'user_123', position 1: missing",
        "session 'user_123', position 2: cannot be read, up to position 4: malformed",
        "session 'user_123', position 6: missing",
        "session 'user_123', position 7: cannot be read, up to position 9: malformed",
    ]


def test_more_problems_than_anyone_reads_are_counted_and_not_kept() -> None:
    checker = Checker()
    for number in range(3 * MAX_PROBLEMS):
        checker.add_damage(f"page {number}")
    report = checker.report()
    assert report.problem_count == 3 * MAX_PROBLEMS
    assert report.problems == tuple(Problem(f"page {number}") for number in range(MAX_PROBLEMS))


def test_progress_rises_to_the_number_of_items() -> None:
    told: list[tuple[int, int]] = []
    checker = Checker(lambda done, of: told.append((done, of)))
    checker.expect_items(5000)
    checker.begin_session("user_123", 6000)
    for position in range(6000):
        checker.add_row(position, ITEM)
    checker.end_session()
    checker.report()
    assert told[0] == (0, 5000)
    assert told[-1] == (6000, 6000)
    assert told == sorted(told)
    assert len(told) > 5
    assert all(done <= of for done, of in told)
