"""Checks of reads: limits, replay windows, corrupt rows."""

from __future__ import annotations

from collections.abc import Sequence

from ..items import ERASED, Item, encode_items
from ..reading import TailReading, WindowReading
from ..replay import SessionSettings, replay_window
from .fixtures import Check, OpenEngine, expect_equal, make_items, make_rows, read_items, scratch_session


async def a_limit_takes_exactly_the_newest_items(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        await engine.append(session_id, make_rows(0, 1500))  # more than one slice of the reading or the engine
        for limit in (0, 1, 10, 511, 512, 513, 1499, 1500, 1501):
            expected = make_items(max(0, 1500 - limit), 1500)
            expect_equal(await read_items(engine, session_id, limit), expected, f"the last {limit}")


async def the_replay_window_is_that_of_the_pure_function(open_engine: OpenEngine) -> None:
    history = _long_history()
    async with scratch_session(open_engine) as (engine, session_id):
        await engine.append(session_id, encode_items(history))
        for settings in (
            *(SessionSettings(limit=limit) for limit in range(30)),
            *(SessionSettings(max_turns=turns) for turns in range(5)),
            *(SessionSettings(max_tokens=tokens) for tokens in (0, 10, 50, 100, 1000, 10**6)),
            SessionSettings(limit=40, max_turns=3, max_tokens=400),
        ):
            window = await engine.read(session_id, WindowReading(settings))
            expect_equal(window, replay_window(history, settings), f"the window of {settings!r}")


async def a_window_reads_no_more_than_it_takes(open_engine: OpenEngine) -> None:
    """However the history came to be: with outputs at its end, in each turn or nowhere else whose call is missing."""
    orphan: Item = {"type": "function_call_output", "call_id": "lost", "output": "1"}
    turn: list[Item] = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    histories = {
        "whole turns": (turn * 2000, 100),
        "an orphan at the end": ([*turn * 2000, orphan], 1_024),
        "an orphan in each turn": ([*turn, orphan] * 1500, 1_024),
        "nothing but orphans": ([orphan] * 4000, 2_048),
    }
    for name, (history, most) in histories.items():
        async with scratch_session(open_engine) as (engine, session_id):
            await engine.append(session_id, encode_items(history))
            for settings in (SessionSettings(limit=20), SessionSettings(max_tokens=300)):
                reading = _CountingReading(settings)
                window = await engine.read(session_id, reading)
                expect_equal(window, replay_window(history, settings), f"{name}: the window of {settings!r}")
                expect_equal(reading.rows <= most, True, f"{name}: {reading.rows} rows read, of at most {most}")


class _CountingReading(WindowReading):
    """Counts the rows that it is fed."""

    rows = 0

    def feed(self, rows: Sequence[tuple[int, bytes]], *, at_start: bool) -> int:
        self.rows += len(rows)
        return super().feed(rows, at_start=at_start)

    def feed_joined(self, joined: bytes, count: int, oldest: int) -> bool:
        self.rows += count
        return super().feed_joined(joined, count, oldest)


async def a_corrupt_row_hides_no_other(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        await engine.append(session_id, [*make_rows(0, 2), "not JSON", *make_rows(2, 3), "[]", *make_rows(3, 4)])
        reading = TailReading(3)
        expect_equal(await engine.read(session_id, reading), make_items(1, 4), "the last 3 items that can be read")
        expect_equal(reading.corrupt, [4, 2], "positions that could not be read")
        expect_equal(await read_items(engine, session_id), make_items(0, 4), "all items that can be read")


async def erased_rows_are_passed_over(open_engine: OpenEngine) -> None:
    texts = [ERASED, *make_rows(0, 2), ERASED, *make_rows(2, 3), ERASED, *make_rows(3, 30), ERASED]
    async with scratch_session(open_engine) as (engine, session_id):
        await engine.append(session_id, texts)
        for limit in (1, 2, 26, 27, 28, 29, 30, 31, 40, None):
            expected = make_items(0 if limit is None else max(0, 30 - limit), 30)
            reading = TailReading(limit)
            expect_equal(await engine.read(session_id, reading), expected, f"the last {limit} that were not erased")
            expect_equal(reading.corrupt, [], "positions that could not be read")
        stored = await engine.rows(session_id, 0, 100)
        expect_equal(stored, [(position, text.encode()) for position, text in enumerate(texts)], "rows as stored")
        await engine.append(session_id + "+", [ERASED] * 3)
        for reading in (TailReading(2), TailReading(None)):
            expect_equal(await engine.read(session_id + "+", reading), [], "items where every one was erased")


def _long_history() -> list[Item]:
    """200 turns: a question, reasoning, two parallel calls, a message, their outputs, an answer. In every seventh turn,
    one call has no output."""
    history: list[Item] = []
    for turn in range(200):
        history.append({"role": "user", "content": f"question {turn}"})
        history.append({"type": "reasoning", "id": f"r{turn}", "summary": []})
        calls = [f"c{turn}a", f"c{turn}b"]
        history += [{"type": "function_call", "call_id": call, "name": "f", "arguments": "{}"} for call in calls]
        history.append({"role": "assistant", "content": "a moment"})
        answered = calls if turn % 7 else calls[:1]
        history += [{"type": "function_call_output", "call_id": call, "output": "1"} for call in answered]
        history.append({"role": "assistant", "content": f"answer {turn}"})
    return history


CHECKS: tuple[Check, ...] = (
    a_limit_takes_exactly_the_newest_items,
    the_replay_window_is_that_of_the_pure_function,
    a_window_reads_no_more_than_it_takes,
    a_corrupt_row_hides_no_other,
    erased_rows_are_passed_over,
)
