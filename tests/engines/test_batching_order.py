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

from agentmem.engines.batching import Batcher, Done, Groups, Job

pytestmark = pytest.mark.anyio

# Calls about the same


class Call(NamedTuple):
    """A call about something; no two are the same."""

    about: str
    number: int


class Lanes:
    """Serves calls when it is told to, and sees to it that what is about the same is never served twice at a time."""

    def __init__(self, *, lanes: int = 2, most: int = 100) -> None:
        self.serving: dict[int, tuple[list[Job[Call]], Done]] = {}
        self.detached: list[Job[Call]] = []
        self.batches: list[list[Call]] = []
        self.starts = 0
        self.batcher: Batcher[Call] = Batcher(self.serve, lanes=lanes, most=most, key=self.key)

    def key(self, call: Call) -> str:
        self.starts += 1
        return call.about

    def serve(self, lane: int, jobs: list[Job[Call]], done: Done) -> None:
        assert lane not in self.serving
        under_way = [job for batch, _ in self.serving.values() for job in batch if not job.detached]
        busy = {job.work.about for job in under_way + self.detached}
        assert not busy & {job.work.about for job in jobs}
        assert not any(job.withdrawn for job in jobs)
        self.serving[lane] = jobs, done
        self.batches.append([job.work for job in jobs])

    def finish(self, lane: int) -> None:
        jobs, done = self.serving.pop(lane)
        for job in jobs:
            if not job.detached:
                job.result = job.work.number
        done(None)

    def detach(self, lane: int, which: Callable[[Call], bool]) -> None:
        """Let go of a part of a lane's batch, which goes on without the lane."""
        jobs = [job for job in self.serving[lane][0] if which(job.work)]
        self.batcher.detach(jobs)
        self.detached += jobs
        self.finish(lane)

    def answer(self, count: int = 1000) -> None:
        jobs, self.detached = self.detached[:count], self.detached[count:]
        for job in jobs:
            job.result = job.work.number
        self.batcher.answer(jobs)

    async def call(self, about: str, number: int) -> object:
        return (await self.batcher.submit(Call(about, number))).result

    def ask(self, *calls: tuple[str, int]) -> list[asyncio.Task[object]]:
        return [asyncio.ensure_future(self.call(*call)) for call in calls]


async def cycles() -> None:
    """Let all happen that needs nobody from outside."""
    for _ in range(6):
        await asyncio.sleep(0)


async def test_what_is_about_the_same_waits_for_its_lane_and_what_is_not_takes_another() -> None:
    lanes = Lanes()
    calls = lanes.ask(("a", 0), ("b", 1))
    await cycles()
    calls += lanes.ask(("a", 2), ("c", 3), ("b", 4), ("a", 5), ("d", 6))
    await cycles()
    assert lanes.batches == [[("a", 0), ("b", 1)], [("c", 3), ("d", 6)]]
    lanes.finish(1)
    await cycles()
    assert len(lanes.batches) == 2
    lanes.finish(0)
    await cycles()
    assert lanes.batches[2:] == [[("a", 2), ("b", 4), ("a", 5)]]
    (lane,) = lanes.serving
    lanes.finish(lane)
    assert await asyncio.gather(*calls) == list(range(7))
    await lanes.batcher.drain()


async def test_calls_that_all_wait_for_a_lane_cost_the_event_loop_nothing() -> None:
    lanes = Lanes()
    calls = lanes.ask(("a", 0))
    await cycles()
    calls += lanes.ask(*(("a", number) for number in range(1, 50)))
    await cycles()
    looked = lanes.starts
    for _ in range(1000):
        await asyncio.sleep(0)
    assert lanes.starts == looked
    lanes.finish(0)
    await cycles()
    assert [len(batch) for batch in lanes.batches] == [1, 49]
    lanes.finish(*lanes.serving)
    await asyncio.gather(*calls)


async def test_a_call_that_waits_for_its_lane_and_is_cancelled_is_never_served() -> None:
    lanes = Lanes()
    first, other, last = lanes.ask(("a", 0), ("b", 9), ("a", 2))
    await cycles()
    held, after = lanes.ask(("a", 3), ("a", 4))
    await cycles()
    held.cancel()
    await asyncio.wait([held])
    assert held.cancelled()
    lanes.finish(0)
    await cycles()
    assert lanes.batches[1:] == [[("a", 4)]]
    lanes.finish(*lanes.serving)
    assert [await call for call in (first, other, last, after)] == [0, 9, 2, 4]
    await lanes.batcher.drain()


async def test_nothing_that_is_left_waits_for_a_call_that_was_cancelled() -> None:
    lanes = Lanes()
    (first,) = lanes.ask(("a", 0))
    await cycles()
    (held,) = lanes.ask(("a", 1))
    await cycles()
    held.cancel()
    draining = asyncio.ensure_future(lanes.batcher.drain())
    await cycles()
    assert not draining.done()
    lanes.finish(0)
    await draining
    assert await first == 0


async def test_a_call_that_is_detached_lets_its_lane_go_on_and_still_goes_before_the_next_about_the_same() -> None:
    lanes = Lanes(lanes=1)
    calls = lanes.ask(("a", 0), ("b", 1))
    await cycles()
    calls += lanes.ask(("a", 2), ("b", 3))
    lanes.detach(0, lambda call: call.about == "a")
    assert await calls[1] == 1
    await cycles()
    assert lanes.batches[1:] == [[("b", 3)]]
    assert not calls[0].done()
    draining = asyncio.ensure_future(lanes.batcher.drain())
    lanes.finish(0)
    await cycles()
    assert not draining.done()
    lanes.answer()
    await cycles()
    assert await calls[0] == 0
    assert lanes.batches[2:] == [[("a", 2)]]
    lanes.finish(0)
    await draining
    assert await asyncio.gather(*calls) == [0, 1, 2, 3]


async def test_a_detached_call_that_is_cancelled_raises_it_when_its_outcome_is_known() -> None:
    lanes = Lanes()
    (call,) = lanes.ask(("a", 0))
    await cycles()
    lanes.detach(0, lambda call: True)
    call.cancel()
    draining = asyncio.ensure_future(lanes.batcher.drain())
    await cycles()
    assert not call.done()
    assert not draining.done()
    lanes.answer()
    await asyncio.wait([call])
    assert call.cancelled()
    await draining


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.lists(st.sampled_from("abcd"), min_size=1, max_size=6)),
        st.tuples(st.just("finish"), st.integers(0, 2)),
        st.tuples(st.just("detach"), st.tuples(st.integers(0, 2), st.sampled_from("abcd"))),
        st.tuples(st.just("answer"), st.integers(0, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
    ),
    max_size=25,
)


@given(STEPS, st.integers(1, 3), st.integers(1, 5))
def test_whatever_comes_when_calls_about_the_same_are_served_in_order_and_none_is_forgotten(
    steps: list[tuple[str, object]], count: int, most: int
) -> None:
    async def main() -> None:
        lanes = Lanes(lanes=count, most=most)
        calls: list[asyncio.Task[object]] = []
        asked: list[Call] = []
        for step, value in steps:
            if step == "ask":
                assert isinstance(value, list)
                new = [Call(about, len(asked) + place) for place, about in enumerate(value)]
                asked += new
                calls += lanes.ask(*new)
            elif step == "finish" and value in lanes.serving:
                assert isinstance(value, int)
                lanes.finish(value)
            elif step == "detach":
                assert isinstance(value, tuple)
                if value[0] in lanes.serving:
                    about = value[1]
                    lanes.detach(value[0], lambda call, about=about: call.about == about)  # type: ignore[misc]  # infers no default
            elif step == "answer":
                assert isinstance(value, int)
                lanes.answer(value)
            elif step == "cancel" and calls:
                assert isinstance(value, int)
                calls[value % len(calls)].cancel()
            await cycles()
        draining = asyncio.ensure_future(lanes.batcher.drain())
        while lanes.serving or lanes.detached:
            for lane in list(lanes.serving):
                lanes.finish(lane)
            lanes.answer()
            await cycles()
        await draining
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        served = [call for batch in lanes.batches for call in batch]
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
    groups = Groups(jobs, lambda write: write.kind, size=lambda write: write.size, most=most)
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
def test_where_nothing_more_can_be_written_all_that_is_left_fails(writes: list[Write], after: int) -> None:
    jobs = jobs_of(writes)
    groups = Groups(jobs, lambda write: write.kind, size=lambda write: write.size, most=8)
    written = 0
    for place, group in enumerate(groups):
        if place == after:
            groups.failed_for_all(group, ValueError())
        else:
            groups.succeeded(group, [1] * len(group))
            written += len(group)
    assert [job.result for job in jobs] == [1] * written + [None] * (len(jobs) - written)
    assert [job.error is None for job in jobs] == [True] * written + [False] * (len(jobs) - written)


def test_neighbours_of_a_kind_go_together_as_far_as_their_size_allows_and_what_is_none_goes_alone() -> None:
    writes = [Write(kind, size, False) for kind, size in (("a", 3), ("a", 2), ("a", 1), ("b", 9), ("a", 1), (None, 1))]
    groups = Groups(jobs_of([*writes, writes[-1]]), lambda write: write.kind, size=lambda write: write.size, most=5)
    assert [[job.work.size for job in group] for group in groups] == [[3, 2], [1], [9], [1], [1], [1]]


def test_a_group_that_is_tried_again_is_the_next_one() -> None:
    jobs = jobs_of([Write(kind, 0, False) for kind in "abbc"])
    groups = Groups(jobs, lambda write: write.kind)
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
