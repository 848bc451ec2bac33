"""Checks of ``Engine.check``, which reports the problems of a database."""

from __future__ import annotations

from ..items import ERASED, encode_items
from ..reading import TailReading
from .fixtures import Check, OpenEngine, expect_equal, make_rows, scratch_session


async def a_check_finds_no_problem_after_pops_and_clears(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, prefix):
        rows = [*make_rows(0, 1), *encode_items([{"lone": "\ud83d", "big": 10**40}]), *make_rows(2, 3)]
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
        expect_equal([p for p in report.problems if p.session_id in names], [], "problems of whole sessions")
        expect_equal(report.sessions - before.sessions, -1, "change in the number of sessions")
        expect_equal(report.items - before.items, -1 - 3 - 3 - 2, "change in the number of items")


async def a_check_reports_exactly_the_rows_that_cannot_be_read(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        await engine.append(session_id, make_rows(0, 3))
        await engine.pop(session_id, TailReading(1))
        report = await engine.check()
        expect_equal([p for p in report.problems if p.session_id == session_id], [], "problems of a whole session")
        await engine.append(session_id, ["broken", *make_rows(3, 5)])
        after = await engine.check()
        expect_equal([p.position for p in after.problems if p.session_id == session_id], [2], "positions of problems")
        expect_equal(after.items - report.items, 3, "change in the number of items")


async def a_check_finds_no_problem_in_erased_rows_and_counts_none(open_engine: OpenEngine) -> None:
    async with scratch_session(open_engine) as (engine, session_id):
        await engine.append(session_id, make_rows(0, 1))
        before = await engine.check()
        await engine.append(session_id, [ERASED, *make_rows(1, 3), ERASED])
        report = await engine.check()
        expect_equal([p for p in report.problems if p.session_id == session_id], [], "problems of erased rows")
        expect_equal(report.items - before.items, 2, "change in the number of items")


CHECKS: tuple[Check, ...] = (
    a_check_finds_no_problem_after_pops_and_clears,
    a_check_reports_exactly_the_rows_that_cannot_be_read,
    a_check_finds_no_problem_in_erased_rows_and_counts_none,
)
