"""Checks of the lists of sessions and of rows."""

from __future__ import annotations

import json

from ..engines.base import Engine
from ..reading import TailReading
from .fixtures import Check, NotConforming, OpenEngine, expect_equal, make_rows, scratch_session


async def sessions_are_listed_in_pages_by_the_bytes_of_their_ids(open_engine: OpenEngine) -> None:
    # Upper and lower case, digits, punctuation, and characters that UTF-16 or a language's rules sort in another order.
    endings = ["a", "A", "B", "b", "ab", "aB", "a b", "9", "10", "_", "-", "%", " "]
    endings += ["é", "e\u0301", "z", "\uffee", "😀"]
    async with scratch_session(open_engine) as (engine, prefix):
        for length, ending in enumerate(endings, 1):
            await engine.append(prefix + ending, make_rows(0, length))
        expected = [(prefix + ending, length) for length, ending in enumerate(endings, 1)]
        expected.sort(key=lambda session: session[0].encode())
        for most in (1, 2, 5, len(endings), 1000):
            expect_equal(await _list_sessions(engine, prefix, most), expected, f"sessions in pages of {most}")
        after = await engine.sessions(expected[3][0], 2)
        expect_equal(after, expected[4:6], "the page after a session")
        await engine.clear(expected[3][0])
        expect_equal(await engine.sessions(expected[3][0], 2), after, "the page after a session that is gone")
        del expected[3]
        listed: list[tuple[str, int]] = []
        while page := await engine.sessions(listed[-1][0] if listed else None, 100):
            listed += page
        listed_ids = [listed_id for listed_id, _ in listed]
        expect_equal(listed_ids, sorted(listed_ids, key=str.encode), "all ids, in order")
        expect_equal([session for session in listed if session[0].startswith(prefix)], expected, "sessions among all")


async def a_listed_length_is_the_position_that_is_issued_next(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        other = open_engine()
        try:
            expect_equal(await _list_sessions(other, session_id), [], "sessions before the first append")
            await engine.append(session_id, [*make_rows(0, 3), "not JSON"])
            expect_equal(await _list_sessions(other, session_id), [(session_id, 4)], "after an append")
            await engine.pop(session_id, TailReading(1))  # removes the corrupt row above it, too
            expect_equal(await _list_sessions(other, session_id), [(session_id, 2)], "after a pop")
            await engine.pop(session_id, TailReading(2))
            expect_equal(await _list_sessions(other, session_id), [(session_id, 0)], "after pops of everything")
            await engine.clear(session_id)
            expect_equal(await _list_sessions(other, session_id), [], "after clear")
        finally:
            await other.close()


async def rows_come_in_slices_as_they_were_stored(open_engine: OpenEngine) -> None:
    odd = ['{"b": 1,  "a": 1e2}', "not JSON", "", "[]", '{"é": "\\ud83d 😀"}', f'{{"n": {10**40}}}', "\u007f\n"]
    texts = [*odd, *make_rows(0, 600), *(json.dumps({"x": "é" * 200_000}) for _ in range(10)), *odd]
    stored = [(position, text.encode()) for position, text in enumerate(texts)]
    async with scratch_session(open_engine) as (engine, session_id):
        expect_equal(await engine.rows(session_id, 0, 10), [], "rows of a session that does not exist")
        for neighbour in ("", "+"):  # a second session, whose rows may be stored next to those of the first
            await engine.append(session_id + neighbour, texts)
        await engine.append(session_id, make_rows(0, 1))
        stored.append((len(stored), make_rows(0, 1)[0].encode()))
        for start, most in ((0, 1), (0, 7), (0, 10_000), (5, 512), (600, 3), (len(stored) - 1, 1), (len(stored), 1)):
            found = await _read_in_slices(engine, session_id, start, most)
            expect_equal(found, stored[start:], f"rows from {start} in slices of {most}")
        await engine.pop(session_id, TailReading(1))
        expect_equal(await engine.rows(session_id, len(stored) - 1, 1), [], "rows at the position of a popped item")


async def _list_sessions(engine: Engine, prefix: str, most: int = 100) -> list[tuple[str, int]]:
    """List the sessions whose ids begin with `prefix`, in pages of at most `most`."""
    found: list[tuple[str, int]] = []
    after = prefix[:-1]  # sorts before all of them
    while page := await engine.sessions(after, most):
        if len(page) > most:
            raise NotConforming(f"{len(page)} sessions in a page of at most {most}")
        after = page[-1][0]
        found += [session for session in page if session[0].startswith(prefix)]
        if not after.startswith(prefix) and after > prefix:
            break
    return found


async def _read_in_slices(engine: Engine, session_id: str, start: int, most: int) -> list[tuple[int, bytes]]:
    """Read the rows from position `start` on, in slices of at most `most` (fewer where rows are long)."""
    found: list[tuple[int, bytes]] = []
    while rows := await engine.rows(session_id, start, most):
        if len(rows) > most:
            raise NotConforming(f"{len(rows)} rows in a slice of at most {most}")
        found += rows
        start = rows[-1][0] + 1
    return found


CHECKS: tuple[Check, ...] = (
    sessions_are_listed_in_pages_by_the_bytes_of_their_ids,
    a_listed_length_is_the_position_that_is_issued_next,
    rows_come_in_slices_as_they_were_stored,
)
