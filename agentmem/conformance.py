"""What every engine must do, as checks that anyone can run against one.

Each check is an async function of one argument: a function that opens the database anew, as another handle or
process would. It raises :class:`NotConforming` when a promise is broken. No test framework is needed::

    for check in CHECKS:
        await check(lambda: SQLiteEngine("scratch.db"))

A check uses session ids of its own and may share a database with the others and with itself.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from .engines.base import Engine, Reading
from .errors import SessionClosedError
from .items import Item, encode_items
from .reading import TailReading, WindowReading
from .replay import SessionSettings, replay_window

Open = Callable[[], Engine]


class NotConforming(AssertionError):  # noqa: N818  an assertion like pytest's, with a name of its own
    """An engine broke a promise; the message says which."""


async def items_come_back_in_the_order_in_which_they_were_appended(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        for start in range(0, 12, 3):
            await engine.append(session_id, _rows(start, start + 3))
        _same(await _read(engine, session_id), _items(0, 12), "order across appends")


async def positions_are_issued_without_gaps_from_0(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        await engine.append(session_id, _rows(0, 3))
        await engine.pop(session_id, TailReading(1))
        await engine.append(session_id, _rows(3, 6))
        _same(await engine.read(session_id, _Positions()), [4, 3, 2, 1, 0], "positions, newest first")


async def text_is_stored_as_it_is(open_engine: Open) -> None:
    texts = ["", "\u0000", "\U0001f600 \ud83d é 漢 \u2028", "' OR 1=1; -- \"", "x" * 1_000_000, "\\u0000 \\ud800"]
    items: list[Item] = [{"z": text, "a": 10**40, text[:20]: [None, True, 1.5, {}]} for text in texts]
    async with _fresh(open_engine) as (engine, session_id):
        await engine.append(session_id, encode_items(items))
        read = await _read(engine, session_id)
        _same(read, items, "items")
        _same([list(item) for item in read], [list(item) for item in items], "order of keys")


async def sessions_know_nothing_of_each_other(open_engine: Open) -> None:
    endings = ["", " ", "a", "A", "%", "_", "'", '"', "é", "e\u0301", "\U0001f600", "0", "00"]
    async with _fresh(open_engine) as (engine, session_id):
        for index, ending in enumerate(endings):
            await engine.append(session_id + ending, _rows(index, index + 1))
        for index, ending in enumerate(endings):
            _same(
                await _read(engine, session_id + ending), _items(index, index + 1), f"session id ending in {ending!r}"
            )
        await engine.clear(session_id)
        await engine.pop(session_id + " ", TailReading(1))
        for index, ending in enumerate(endings[2:], 2):
            _same(await _read(engine, session_id + ending), _items(index, index + 1), f"after others went: {ending!r}")


async def a_limit_takes_exactly_the_newest_items(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        await engine.append(session_id, _rows(0, 1500))  # more than the engine and the reading take in one slice
        for limit in (0, 1, 10, 511, 512, 513, 1499, 1500, 1501):
            expected = _items(max(0, 1500 - limit), 1500)
            _same(await _read(engine, session_id, limit), expected, f"the last {limit}")


async def the_replay_window_is_that_of_the_pure_function(open_engine: Open) -> None:
    history = _long_history()
    async with _fresh(open_engine) as (engine, session_id):
        await engine.append(session_id, encode_items(history))
        for settings in (
            *(SessionSettings(limit=limit) for limit in range(30)),
            *(SessionSettings(max_turns=turns) for turns in range(5)),
            *(SessionSettings(max_tokens=tokens) for tokens in (0, 10, 50, 100, 1000, 10**6)),
            SessionSettings(limit=40, max_turns=3, max_tokens=400),
        ):
            window = await engine.read(session_id, WindowReading(settings))
            _same(window, replay_window(history, settings), f"the window of {settings!r}")


async def batches_of_many_tasks_are_whole_and_in_order(open_engine: Open) -> None:
    tasks, batches, size = 64, 5, 3
    async with _fresh(open_engine) as (engine, session_id):

        async def add(task: int) -> None:
            for batch in range(batches):
                rows = encode_items([{"task": task, "batch": batch, "place": place} for place in range(size)])
                await engine.append(session_id, rows)

        await asyncio.gather(*(add(task) for task in range(tasks)))
        items = await _read(engine, session_id)
        _same(len(items), tasks * batches * size, "number of items")
        next_batch = [0] * tasks
        for start in range(0, len(items), size):
            task, batch = items[start]["task"], next_batch[items[start]["task"]]
            expected = [{"task": task, "batch": batch, "place": place} for place in range(size)]
            _same(items[start : start + size], expected, "a batch")
            next_batch[task] += 1


async def a_read_sees_one_state(open_engine: Open) -> None:
    size = 700  # more than one slice, so that a read that is no snapshot can see half a batch
    async with _fresh(open_engine) as (engine, session_id):

        async def add() -> None:
            for _ in range(10):
                await engine.append(session_id, _rows(0, size))

        async def look() -> None:
            while not adding.done():
                _same(len(await _read(engine, session_id)) % size, 0, "items beyond whole batches in a read")

        adding = asyncio.ensure_future(add())
        await asyncio.gather(adding, look(), look())


async def a_write_that_returned_is_seen_by_every_handle(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        other = open_engine()
        try:
            for count in range(1, 20):
                await engine.append(session_id, _rows(count - 1, count))
                _same(len(await _read(engine, session_id)), count, "items that the writer's handle reads")
                _same(len(await _read(other, session_id)), count, "items that another handle reads")
        finally:
            await other.close()


async def pop_removes_the_newest_item(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        _same(await engine.pop(session_id, TailReading(1)), [], "pop from a session that does not exist")
        await engine.append(session_id, _rows(0, 2))
        _same(await engine.pop(session_id, TailReading(1)), _items(1, 2), "pop")
        _same(await _read(engine, session_id), _items(0, 1), "what a pop leaves")
        _same(await engine.pop(session_id, TailReading(1)), _items(0, 1), "pop of the last item")
        _same(await engine.pop(session_id, TailReading(1)), [], "pop from an empty session")


async def many_pops_at_once_remove_each_item_once(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        await engine.append(session_id, _rows(0, 20))
        popped = await asyncio.gather(*(engine.pop(session_id, TailReading(1)) for _ in range(25)))
        numbers = [item["n"] for items in popped for item in items]
        _same(sorted(numbers), list(range(20)), "what 25 pops from 20 items returned")
        _same(await _read(engine, session_id), [], "what they left")


async def a_corrupt_row_hides_no_other(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        await engine.append(session_id, [*_rows(0, 2), "no JSON", *_rows(2, 3), "[]", *_rows(3, 4)])
        reading = TailReading(3)
        _same(await engine.read(session_id, reading), _items(1, 4), "the last 3 items that can be read")
        _same(reading.corrupt, [4, 2], "positions that could not be read")
        _same(await _read(engine, session_id), _items(0, 4), "all items that can be read")


async def pop_removes_corrupt_rows_above_the_newest_item_only(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        await engine.append(session_id, ["no JSON", *_rows(0, 2), "{", "[]"])
        _same(await engine.pop(session_id, TailReading(1)), _items(1, 2), "pop below corrupt rows")
        _same(await engine.read(session_id, _Positions()), [1, 0], "positions that it left")
        _same(await engine.pop(session_id, TailReading(1)), _items(0, 1), "pop of the last item")
        _same(await engine.pop(session_id, TailReading(1)), [], "pop where no row can be read")
        _same(await engine.read(session_id, _Positions()), [0], "rows that a pop must not remove")


async def clear_leaves_nothing_behind(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        await engine.clear(session_id)  # of a session that does not exist
        await engine.append(session_id, _rows(0, 1000))
        await engine.clear(session_id)
        _same(await engine.read(session_id, _Positions()), [], "rows after clear")
        await engine.append(session_id, _rows(5, 6))
        _same(await engine.read(session_id, _Positions()), [0], "positions after clear")
        _same(await _read(engine, session_id), _items(5, 6), "items after clear")


async def sessions_are_listed_in_pages_by_the_bytes_of_their_ids(open_engine: Open) -> None:
    # Case, digits, punctuation, and characters whose order in UTF-16 or in a language is another one.
    endings = [
        "a",
        "A",
        "B",
        "b",
        "ab",
        "aB",
        "a b",
        "9",
        "10",
        "_",
        "-",
        "%",
        " ",
        "é",
        "e\u0301",
        "z",
        "\uffee",
        "😀",
    ]
    async with _fresh(open_engine) as (engine, prefix):
        for length, ending in enumerate(endings, 1):
            await engine.append(prefix + ending, _rows(0, length))
        expected = [(prefix + ending, length) for length, ending in enumerate(endings, 1)]
        expected.sort(key=lambda session: session[0].encode())
        for most in (1, 2, 5, len(endings), 1000):
            _same(await _sessions(engine, prefix, most), expected, f"sessions in pages of {most}")
        after = await engine.sessions(expected[3][0], 2)
        _same(after, expected[4:6], "the page after a session")
        await engine.clear(expected[3][0])
        _same(await engine.sessions(expected[3][0], 2), after, "the page after a session that is gone")
        del expected[3]
        listed: list[tuple[str, int]] = []
        while page := await engine.sessions(listed[-1][0] if listed else None, 100):
            listed += page
        _same([id_ for id_, _ in listed], sorted((id_ for id_, _ in listed), key=str.encode), "all ids, in order")
        _same([session for session in listed if session[0].startswith(prefix)], expected, "sessions among all")


async def a_listed_length_is_the_position_that_is_issued_next(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        other = open_engine()
        try:
            _same(await _sessions(other, session_id), [], "sessions before the first append")
            await engine.append(session_id, [*_rows(0, 3), "no JSON"])
            _same(await _sessions(other, session_id), [(session_id, 4)], "after an append")
            await engine.pop(session_id, TailReading(1))  # with the corrupt row above
            _same(await _sessions(other, session_id), [(session_id, 2)], "after a pop")
            await engine.pop(session_id, TailReading(2))
            _same(await _sessions(other, session_id), [(session_id, 0)], "after pops of everything")
            await engine.clear(session_id)
            _same(await _sessions(other, session_id), [], "after clear")
        finally:
            await other.close()


async def rows_come_in_slices_as_they_were_stored(open_engine: Open) -> None:
    odd = ['{"b": 1,  "a": 1e2}', "no JSON", "", "[]", '{"é": "\\ud83d 😀"}', f'{{"n": {10**40}}}', "\u007f\n"]
    texts = [*odd, *_rows(0, 600), *(json.dumps({"x": "é" * 200_000}) for _ in range(10)), *odd]
    stored = [(position, text.encode()) for position, text in enumerate(texts)]
    async with _fresh(open_engine) as (engine, session_id):
        _same(await engine.rows(session_id, 0, 10), [], "rows of a session that there is not")
        for neighbour in ("", "+"):  # whose rows may lie beside these
            await engine.append(session_id + neighbour, texts)
        await engine.append(session_id, _rows(0, 1))
        stored.append((len(stored), _rows(0, 1)[0].encode()))
        for start, most in ((0, 1), (0, 7), (0, 10_000), (5, 512), (600, 3), (len(stored) - 1, 1), (len(stored), 1)):
            _same(
                await _slices(engine, session_id, start, most), stored[start:], f"rows from {start} in slices of {most}"
            )
        await engine.pop(session_id, TailReading(1))
        _same(await engine.rows(session_id, len(stored) - 1, 1), [], "rows at a position that a pop has freed")


async def writes_that_wait_together_happen_in_the_order_in_which_they_were_asked_for(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        other = session_id + "-other"
        await asyncio.gather(
            engine.append(session_id, _rows(0, 2)),
            engine.append(other, _rows(0, 1)),
            engine.append(session_id, _rows(2, 3)),
            engine.clear(session_id),
            engine.append(session_id, _rows(3, 5)),
            engine.append(other, _rows(1, 2)),
            engine.append(session_id, _rows(5, 6)),
            engine.pop(other, TailReading(1)),
            engine.append(other, _rows(2, 4)),
        )
        _same(await _read(engine, session_id), _items(3, 6), "items after appends, a clear and appends")
        _same(await engine.read(session_id, _Positions()), [2, 1, 0], "their positions, newest first")
        _same(await _read(engine, other), [*_items(0, 1), *_items(2, 4)], "items after appends, a pop and an append")
        _same(await engine.read(other, _Positions()), [2, 1, 0], "their positions, newest first")


async def a_write_that_fails_fails_alone(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        await engine.append(session_id, _rows(0, 1))
        outcomes = await asyncio.gather(
            engine.append(session_id, _rows(1, 2)),
            engine.pop(session_id, _Failing()),
            engine.append(session_id, _rows(2, 3)),
            engine.read(session_id, _Failing()),
            return_exceptions=True,
        )
        _same([type(outcome) for outcome in outcomes], [type(None), _Failure, type(None), _Failure], "outcomes")
        _same(await _read(engine, session_id), _items(0, 3), "what the other writes stored")


async def a_cancelled_write_is_whole_or_not_there(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        stored = 0
        for steps in range(60):
            task = asyncio.ensure_future(engine.append(session_id, _rows(0, 3)))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait([task])
            _same(len(done), 1, "cancelled tasks that end")
            count = len(await _read(engine, session_id))
            expected = (stored,) if steps == 0 else (stored, stored + 3)
            if count not in expected:
                raise NotConforming(f"cancelled after {steps} steps, a batch of 3 left {count - stored} items")
            if not task.cancelled() and count != stored + 3:
                raise NotConforming(f"cancelled after {steps} steps, append returned, but nothing was stored")
            stored = count
        await engine.append(session_id, _rows(0, 1))
        positions = await engine.read(session_id, _Positions())
        _same(positions, list(range(stored, -1, -1)), "positions after cancelled writes")


async def a_cancelled_read_leaves_the_others_alone(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        await engine.append(session_id, _rows(0, 600))
        for steps in range(30):
            cancelled = asyncio.ensure_future(_read(engine, session_id))
            others = [asyncio.ensure_future(_read(engine, session_id, 5)) for _ in range(3)]
            for _ in range(steps):
                await asyncio.sleep(0)
            cancelled.cancel()
            for items in await asyncio.gather(*others):
                _same(items, _items(595, 600), "what the other reads saw")


async def a_closed_handle_says_so_and_its_data_stays(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        closing = open_engine()
        await closing.append(session_id, _rows(0, 2))
        await closing.close()
        await closing.close()
        calls: list[Awaitable[object]] = [
            closing.append(session_id, _rows(0, 1)),
            closing.read(session_id, TailReading(1)),
            closing.pop(session_id, TailReading(1)),
            closing.clear(session_id),
            closing.sessions(None, 1),
            closing.rows(session_id, 0, 1),
            closing.open(),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        _same([type(outcome) for outcome in outcomes], [SessionClosedError] * len(calls), "calls on a closed handle")
        _same(await _read(engine, session_id), _items(0, 2), "what the closed handle had stored")


async def a_check_finds_nothing_wrong_with_what_was_popped_cleared_and_begun_again(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, prefix):
        rows = [*_rows(0, 1), *encode_items([{"lone": "\ud83d", "big": 10**40}]), *_rows(2, 3)]
        names = [prefix + name for name in ("popped", "cleared", "emptied", "again", "\U0001f600 '\n", " ")]
        popped, cleared, emptied, again, *_ = names
        for name in names:
            await engine.append(name, rows)
        before = await engine.check()
        await engine.pop(popped, TailReading(1))
        await engine.clear(cleared)
        for _ in range(3):
            await engine.pop(emptied, TailReading(1))
        await engine.clear(again)
        await engine.append(again, rows[:1])
        report = await engine.check()
        _same([p for p in report.problems if p.session_id in names], [], "problems of whole sessions")
        _same(report.sessions - before.sessions, -1, "sessions more")
        _same(report.items - before.items, -1 - 3 - 3 - 2, "items more")


async def a_check_names_just_the_rows_that_cannot_be_read(open_engine: Open) -> None:
    async with _fresh(open_engine) as (engine, session_id):
        await engine.append(session_id, _rows(0, 3))
        await engine.pop(session_id, TailReading(1))
        report = await engine.check()
        _same([p for p in report.problems if p.session_id == session_id], [], "problems of a whole session")
        await engine.append(session_id, ["broken", *_rows(3, 5)])
        after = await engine.check()
        _same([p.position for p in after.problems if p.session_id == session_id], [2], "positions of problems")
        _same(after.items - report.items, 3, "items more")


CHECKS: tuple[Callable[[Open], Awaitable[None]], ...] = (
    items_come_back_in_the_order_in_which_they_were_appended,
    positions_are_issued_without_gaps_from_0,
    text_is_stored_as_it_is,
    sessions_know_nothing_of_each_other,
    a_limit_takes_exactly_the_newest_items,
    the_replay_window_is_that_of_the_pure_function,
    batches_of_many_tasks_are_whole_and_in_order,
    a_read_sees_one_state,
    a_write_that_returned_is_seen_by_every_handle,
    pop_removes_the_newest_item,
    many_pops_at_once_remove_each_item_once,
    a_corrupt_row_hides_no_other,
    pop_removes_corrupt_rows_above_the_newest_item_only,
    clear_leaves_nothing_behind,
    sessions_are_listed_in_pages_by_the_bytes_of_their_ids,
    a_listed_length_is_the_position_that_is_issued_next,
    rows_come_in_slices_as_they_were_stored,
    writes_that_wait_together_happen_in_the_order_in_which_they_were_asked_for,
    a_write_that_fails_fails_alone,
    a_cancelled_write_is_whole_or_not_there,
    a_cancelled_read_leaves_the_others_alone,
    a_closed_handle_says_so_and_its_data_stays,
    a_check_finds_nothing_wrong_with_what_was_popped_cleared_and_begun_again,
    a_check_names_just_the_rows_that_cannot_be_read,
)
"""Every check, simplest first; the names are the promises."""


class _Positions(Reading[list[int]]):
    """A reading that takes every row and returns their positions, newest first."""

    def __init__(self) -> None:
        self.first = 100
        self.oldest: int | None = None
        self.restart()

    def restart(self) -> None:
        self._positions: list[int] = []

    def feed(self, rows: Sequence[tuple[int, bytes]], *, at_start: bool) -> int:
        self._positions += [position for position, _ in rows]
        return 0 if at_start else 100

    def result(self) -> list[int]:
        return self._positions


class _Failure(Exception):  # noqa: N818  raised and expected here only
    pass


class _Failing(_Positions):
    def feed(self, rows: Sequence[tuple[int, bytes]], *, at_start: bool) -> int:
        raise _Failure


@asynccontextmanager
async def _fresh(open_engine: Open) -> AsyncIterator[tuple[Engine, str]]:
    """An open engine and a session id that nobody has used."""
    engine = open_engine()
    try:
        yield engine, f"conformance-{uuid.uuid4()}"
    finally:
        await engine.close()


async def _read(engine: Engine, session_id: str, limit: int | None = None) -> list[Item]:
    return await engine.read(session_id, TailReading(limit))


async def _sessions(engine: Engine, prefix: str, most: int = 100) -> list[tuple[str, int]]:
    """The sessions whose ids begin so, asked for in pages."""
    found: list[tuple[str, int]] = []
    after = prefix[:-1]  # which comes before all of them, and before nothing else but by chance
    while page := await engine.sessions(after, most):
        if len(page) > most:
            raise NotConforming(f"{len(page)} sessions in a page of at most {most}")
        after = page[-1][0]
        found += [session for session in page if session[0].startswith(prefix)]
        if not after.startswith(prefix) and after > prefix:
            break
    return found


async def _slices(engine: Engine, session_id: str, start: int, most: int) -> list[tuple[int, bytes]]:
    """The rows from a position on, asked for in slices, which may be shorter where rows are long."""
    found: list[tuple[int, bytes]] = []
    while rows := await engine.rows(session_id, start, most):
        if len(rows) > most:
            raise NotConforming(f"{len(rows)} rows in a slice of at most {most}")
        found += rows
        start = rows[-1][0] + 1
    return found


def _items(start: int, stop: int) -> list[Item]:
    return [{"n": number} for number in range(start, stop)]


def _rows(start: int, stop: int) -> list[str]:
    return [json.dumps(item) for item in _items(start, stop)]


def _long_history() -> list[Item]:
    """200 turns: a question, reasoning, two parallel calls, their outputs late, an answer; some calls unanswered."""
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


def _same(got: object, expected: object, what: str) -> None:
    if got != expected:
        raise NotConforming(f"{what}: expected {_short(expected)}, got {_short(got)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:200]} … {text[-200:]}"
