"""What follows from a failed attempt, without a server: which are tried again, for how long, and what is in doubt."""

from __future__ import annotations

import pytest

from agentmem.engines.postgres.retry import (
    ANSWER_TIMEOUT_S,
    FIRST_PAUSE_S,
    MAX_PAUSE_S,
    Decision,
    Failure,
    Retries,
)

NOT_CONNECTED = Failure(had_connection=False, is_connection_lost=True)
LOST = Failure(had_connection=True, is_connection_lost=True)
LOST_IN_COMMIT = Failure(had_connection=True, is_connection_lost=True, may_be_committed=True)
DEADLOCK = Failure(had_connection=True, is_rolled_back=True)
REFUSED = Failure(had_connection=True)
LOGIN_REFUSED = Failure(had_connection=False)
UNREACHABLE = Failure(had_connection=False, is_connection_lost=True, is_unreachable=True)


@pytest.mark.parametrize(
    ("failure", "decision"),
    [
        (NOT_CONNECTED, Decision.TRY_AGAIN),
        (LOST, Decision.TRY_AGAIN),
        (LOST_IN_COMMIT, Decision.TRY_AGAIN),
        (DEADLOCK, Decision.TRY_AGAIN),
        (REFUSED, Decision.RAISE),
        (LOGIN_REFUSED, Decision.GIVE_UP),
        (UNREACHABLE, Decision.GIVE_UP),
    ],
)
def test_a_first_failure_is_tried_again_where_another_connection_or_another_moment_may_help(
    failure: Failure, decision: Decision
) -> None:
    retries = Retries(now=100, deadline=105)
    assert retries.decide(failure, now=101) is decision
    assert retries.in_doubt == (failure is LOST_IN_COMMIT)


@pytest.mark.parametrize("failure", [NOT_CONNECTED, LOGIN_REFUSED])
def test_without_a_connection_a_call_gives_up_when_its_time_is_over(failure: Failure) -> None:
    retries = Retries(now=100, deadline=105)
    assert retries.left_s(now=102) == 3
    assert retries.decide(NOT_CONNECTED, now=104.9) is Decision.TRY_AGAIN
    assert retries.decide(failure, now=105) is Decision.GIVE_UP


@pytest.mark.parametrize("failure", [LOST, DEADLOCK])
def test_work_that_has_begun_has_the_time_of_its_call_and_one_more_attempt_where_it_took_longer(
    failure: Failure,
) -> None:
    in_time = Retries(now=100, deadline=105)
    assert in_time.decide(failure, now=101) is Decision.TRY_AGAIN
    assert in_time.left_s(now=101) == 4
    assert in_time.decide(failure, now=104) is Decision.TRY_AGAIN
    assert in_time.decide(failure, now=105) is Decision.GIVE_UP
    late = Retries(now=100, deadline=105)
    assert late.decide(failure, now=120) is Decision.TRY_AGAIN  # its statement may have taken that long
    assert late.decide(NOT_CONNECTED, now=120) is Decision.GIVE_UP


def test_a_call_that_comes_to_its_first_attempt_when_its_time_is_over_has_no_other() -> None:
    retries = Retries(now=110, deadline=105)
    assert retries.decide(LOST, now=110) is Decision.GIVE_UP


def test_of_calls_that_go_together_the_first_deadline_ends_the_attempts_and_the_last_one_the_doubt() -> None:
    assert Retries(now=100, deadline=105, settle_by=160).decide(NOT_CONNECTED, now=105) is Decision.GIVE_UP
    retries = Retries(now=100, deadline=105, settle_by=160)
    assert retries.decide(LOST_IN_COMMIT, now=104) is Decision.TRY_AGAIN
    assert retries.decide(NOT_CONNECTED, now=105) is Decision.TRY_AGAIN
    assert retries.decide(NOT_CONNECTED, now=160) is Decision.GIVE_UP


@pytest.mark.parametrize("then", [REFUSED, LOGIN_REFUSED, NOT_CONNECTED, DEADLOCK])
def test_once_an_attempt_may_be_committed_any_error_is_tried_again_until_the_time_is_over(then: Failure) -> None:
    retries = Retries(now=100, deadline=105)
    assert retries.decide(LOST_IN_COMMIT, now=100) is Decision.TRY_AGAIN
    assert retries.decide(then, now=101) is Decision.TRY_AGAIN
    assert retries.decide(then, now=105) is Decision.GIVE_UP
    assert retries.in_doubt


def test_a_call_that_may_not_wait_has_one_attempt() -> None:
    retries = Retries(now=100, deadline=100)
    assert retries.decide(LOST, now=100) is Decision.GIVE_UP


def test_statements_have_less_time_once_the_work_was_lost_but_a_second_at_least() -> None:
    retries = Retries(now=100, deadline=105)
    assert retries.statement_limit_s == 5 + ANSWER_TIMEOUT_S
    retries.decide(NOT_CONNECTED, now=101)
    assert retries.statement_limit_s == 5 + ANSWER_TIMEOUT_S
    retries.decide(LOST, now=102)
    assert retries.statement_limit_s == 3
    retries.decide(LOST, now=104.5)
    assert retries.statement_limit_s == 1


def test_pauses_grow_to_a_limit() -> None:
    retries = Retries(now=100, deadline=105)
    pauses = [retries.next_pause_s() for _ in range(10)]
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == MAX_PAUSE_S == max(pauses)
