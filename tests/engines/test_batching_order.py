"""Calls about the same are served one after the other and hold up no others; writes are tried in groups, and alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepping import AsyncioCycleLoop

from agentmem.engines.batching import Batch, Batcher, Job, Queue
from agentmem.engines.groups import Groups

pytestmark = pytest.mark.anyio

# Calls about the same


class Call(NamedTuple):
    """A call about something; no two are the same."""

    about: str
    number: int


class Slots:
    """Carries out calls when it is told to, and sees to it that no two batches are about the same at a time."""

    def __init__(self, *, slots: int = 2, max_batch_size: int = 100) -> None:
        self.under_way: dict[int, Batch[Call]] = {}
        self.set_aside: list[Job[Call]] = []
        self.batches: list[list[Call]] = []
        self.looks = 0
        self.batcher: Batcher[Call] = Batcher(
            self.send, Queue(slots=slots, max_batch_size=max_batch_size, key=self.key)
        )

    def key(self, call: Call) -> str:
        self.looks += 1
        return call.about

    def send(self, batch: Batch[Call]) -> None:
        assert batch.slot not in self.under_way
        under_way = [job for other in self.under_way.values() for job in other.jobs if not job.is_settled]
        busy = {job.work.about for job in under_way + self.set_aside}
        assert not busy & {job.work.about for job in batch.jobs}
        assert not any(job.is_withdrawn for job in batch.jobs)
        self.under_way[batch.slot] = batch
        self.batches.append([job.work for job in batch.jobs])

    def finish(self, slot: int) -> None:
        batch = self.under_way.pop(slot)
        self.settle([job for job in batch.jobs if job not in self.set_aside])
        self.batcher.finish(batch)

    def set_some_aside(self, slot: int, which: Callable[[Call], bool]) -> None:
        """Finish a batch without a part of its jobs, which are settled later."""
        self.set_aside += [job for job in self.under_way[slot].jobs if which(job.work)]
        self.finish(slot)

    def answer(self, count: int = 1000) -> None:
        jobs, self.set_aside = self.set_aside[:count], self.set_aside[count:]
        self.settle(jobs)

    def settle(self, jobs: list[Job[Call]]) -> None:
        for job in jobs:
            job.result = job.work.number
        self.batcher.settle(jobs)

    async def call(self, about: str, number: int) -> object:
        return (await self.batcher.submit(Call(about, number))).result

    def ask(self, *calls: tuple[str, int]) -> list[asyncio.Task[object]]:
        return [asyncio.ensure_future(self.call(*call)) for call in calls]


async def cycles() -> None:
    """Let all happen that needs nobody from outside."""
    for _ in range(6):
        await asyncio.sleep(0)


async def test_what_is_about_the_same_waits_for_its_batch_and_what_is_not_takes_another() -> None:
    slots = Slots()
    calls = slots.ask(("a", 0), ("b", 1))
    await cycles()
    calls += slots.ask(("a", 2), ("c", 3), ("b", 4), ("a", 5), ("d", 6))
    await cycles()
    assert slots.batches == [[("a", 0), ("b", 1)], [("c", 3), ("d", 6)]]
    slots.finish(1)
    await cycles()
    assert len(slots.batches) == 2
    slots.finish(0)
    await cycles()
    assert slots.batches[2:] == [[("a", 2), ("a", 5), ("b", 4)]]
    (slot,) = slots.under_way
    slots.finish(slot)
    assert await asyncio.gather(*calls) == list(range(7))
    await slots.batcher.drain()


async def test_calls_that_all_wait_for_a_batch_cost_the_event_loop_nothing() -> None:
    slots = Slots()
    calls = slots.ask(("a", 0))
    await cycles()
    calls += slots.ask(*(("a", number) for number in range(1, 50)))
    await cycles()
    looked = slots.looks
    for _ in range(1000):
        await asyncio.sleep(0)
    assert slots.looks == looked
    slots.finish(0)
    await cycles()
    assert [len(batch) for batch in slots.batches] == [1, 49]
    slots.finish(*slots.under_way)
    await asyncio.gather(*calls)


async def test_a_call_that_waits_for_a_batch_and_is_cancelled_is_never_served() -> None:
    slots = Slots()
    first, other, last = slots.ask(("a", 0), ("b", 9), ("a", 2))
    await cycles()
    held, after = slots.ask(("a", 3), ("a", 4))
    await cycles()
    held.cancel()
    await asyncio.wait([held])
    assert held.cancelled()
    slots.finish(0)
    await cycles()
    assert slots.batches[1:] == [[("a", 4)]]
    slots.finish(*slots.under_way)
    assert [await call for call in (first, other, last, after)] == [0, 9, 2, 4]
    await slots.batcher.drain()


async def test_nothing_that_is_left_waits_for_a_call_that_was_cancelled() -> None:
    slots = Slots()
    (first,) = slots.ask(("a", 0))
    await cycles()
    (held,) = slots.ask(("a", 1))
    await cycles()
    held.cancel()
    draining = asyncio.ensure_future(slots.batcher.drain())
    await cycles()
    assert not draining.done()
    slots.finish(0)
    await draining
    assert await first == 0


async def test_a_call_that_is_set_aside_lets_its_slot_go_and_still_goes_before_the_next_about_the_same() -> None:
    slots = Slots(slots=1)
    calls = slots.ask(("a", 0), ("b", 1))
    await cycles()
    calls += slots.ask(("a", 2), ("b", 3))
    slots.set_some_aside(0, lambda call: call.about == "a")
    assert await calls[1] == 1
    await cycles()
    assert slots.batches[1:] == [[("b", 3)]]
    assert not calls[0].done()
    draining = asyncio.ensure_future(slots.batcher.drain())
    slots.finish(0)
    await cycles()
    assert not draining.done()
    slots.answer()
    await cycles()
    assert await calls[0] == 0
    assert slots.batches[2:] == [[("a", 2)]]
    slots.finish(0)
    await draining
    assert await asyncio.gather(*calls) == [0, 1, 2, 3]


async def test_a_call_that_is_set_aside_and_cancelled_raises_it_when_its_outcome_is_known() -> None:
    slots = Slots()
    (call,) = slots.ask(("a", 0))
    await cycles()
    slots.set_some_aside(0, lambda call: True)
    call.cancel()
    draining = asyncio.ensure_future(slots.batcher.drain())
    await cycles()
    assert not call.done()
    assert not draining.done()
    slots.answer()
    await asyncio.wait([call])
    assert call.cancelled()
    await draining


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.lists(st.sampled_from("abcd"), min_size=1, max_size=6)),
        st.tuples(st.just("finish"), st.integers(0, 2)),
        st.tuples(st.just("set aside"), st.tuples(st.integers(0, 2), st.sampled_from("abcd"))),
        st.tuples(st.just("answer"), st.integers(0, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
    ),
    max_size=25,
)


@given(STEPS, st.integers(1, 3), st.integers(1, 5))
def test_whatever_comes_when_calls_about_the_same_are_served_in_order_and_none_is_forgotten(
    steps: list[tuple[str, object]], count: int, max_batch_size: int
) -> None:
    async def main() -> None:
        slots = Slots(slots=count, max_batch_size=max_batch_size)
        calls: list[asyncio.Task[object]] = []
        asked: list[Call] = []
        for step, value in steps:
            if step == "ask":
                assert isinstance(value, list)
                new = [Call(about, len(asked) + place) for place, about in enumerate(value)]
                asked += new
                calls += slots.ask(*new)
            elif step == "finish" and value in slots.under_way:
                assert isinstance(value, int)
                slots.finish(value)
            elif step == "set aside":
                assert isinstance(value, tuple)
                if value[0] in slots.under_way:
                    about = value[1]
                    slots.set_some_aside(value[0], lambda call, about=about: call.about == about)  # type: ignore[misc]  # infers no default
            elif step == "answer":
                assert isinstance(value, int)
                slots.answer(value)
            elif step == "cancel" and calls:
                assert isinstance(value, int)
                calls[value % len(calls)].cancel()
            await cycles()
        draining = asyncio.ensure_future(slots.batcher.drain())
        while slots.under_way or slots.set_aside:
            for slot in list(slots.under_way):
                slots.finish(slot)
            slots.answer()
            await cycles()
        await draining
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        served = [call for batch in slots.batches for call in batch]
        assert max(Counter(served).values(), default=0) <= 1
        for call, outcome in zip(asked, outcomes, strict=True):
            assert outcome == call.number or isinstance(outcome, asyncio.CancelledError)
            assert call in served or isinstance(outcome, asyncio.CancelledError)
        for about in "abcd":
            numbers = [call.number for call in served if call.about == about]
            assert numbers == sorted(numbers)

    loop = AsyncioCycleLoop()
    loop.run(main())
    assert loop.complaints == []


# Groups of writes


class Write(NamedTuple):
    kind: str | None
    size: int
    fails: bool


WRITES = st.lists(
    st.builds(Write, st.sampled_from(["append", "clear", None]), st.integers(0, 5), st.booleans()), max_size=20
)


@given(WRITES, st.integers(1, 8))
def test_every_write_is_tried_in_its_turn_and_only_what_cannot_succeed_fails(writes: list[Write], most: int) -> None:
    jobs = jobs_of(writes)
    groups = Groups(jobs, lambda write: write.kind, size_of=lambda write: write.size, max_size=most)
    done: list[Job[Write]] = []
    for group in groups:
        assert group
        kinds = {job.work.kind for job in group}
        assert len(kinds) == 1
        assert len(group) == 1 or (kinds != {None} and sum(job.work.size for job in group) <= most)
        if any(job.work.fails for job in group):
            groups.failed(group, ValueError())
            if len(group) == 1:
                done += group
        else:
            groups.succeeded(group, [id(job) for job in group])
            done += group
    assert done == jobs
    for job in jobs:
        assert job.result == (None if job.work.fails else id(job))
        assert isinstance(job.error, ValueError) == job.work.fails


@given(WRITES, st.integers(0, 5))
def test_where_others_hold_what_all_wait_for_those_fail_whose_deadline_is_over_and_the_others_keep_their_order(
    writes: list[Write], after: int
) -> None:
    jobs = jobs_of(writes)
    for number, job in enumerate(jobs):
        job.deadline = number % 3
    groups = Groups(jobs, lambda write: write.kind, size_of=lambda write: write.size, max_size=8)
    written: list[Job[Write]] = []
    late: list[Job[Write]] = []
    before = 0
    for place, group in enumerate(groups):
        if place == after:
            before = len(written)
            late = groups.fail_late(group, ValueError(), now=1)
            assert groups.left() == [job for job in jobs[before:] if job.deadline > 1]
        else:
            groups.succeeded(group, [1] * len(group))
            written += group
    assert late == ([job for job in jobs[before:] if job.deadline <= 1] if late else [])
    assert written == [job for job in jobs if job not in late]
    assert [job.error is None for job in jobs] == [job not in late for job in jobs]


def test_neighbours_of_a_kind_go_together_as_far_as_their_size_allows_and_what_is_none_goes_alone() -> None:
    writes = [Write(kind, size, False) for kind, size in (("a", 3), ("a", 2), ("a", 1), ("b", 9), ("a", 1), (None, 1))]
    groups = Groups(
        jobs_of([*writes, writes[-1]]), lambda write: write.kind, size_of=lambda write: write.size, max_size=5
    )
    assert [[job.work.size for job in group] for group in groups] == [[3, 2], [1], [9], [1], [1], [1]]


def test_a_group_that_is_tried_again_is_the_next_one() -> None:
    jobs = jobs_of([Write(kind, 0, False) for kind in "abbc"])
    groups = Groups(jobs, lambda write: write.kind, size_of=lambda write: write.size, max_size=0)
    tried = []
    for group in groups:
        tried.append([jobs.index(job) for job in group])
        if len(tried) == 2:
            groups.again(group)
    assert tried == [[0], [1, 2], [1, 2], [3]]


def jobs_of(writes: list[Write]) -> list[Job[Write]]:
    loop = asyncio.new_event_loop()
    loop.close()  # nobody waits for them
    return [Job(write, loop.create_future()) for write in writes]
