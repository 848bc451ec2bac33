"""Calls that wait are served together, and a cancelled one is either not served or has a known outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import anyio
import pytest
from clock import Clock
from stepping import AsyncioCycleLoop, CycleLoop, cycle_loops, on_every_loop

from agentmem.cancellation import UncancellableTask, despite_cancellation
from agentmem.engines import deadlines
from agentmem.engines.batching import LOOK_S, Batch, Batcher, Job, Queue, QueueCounts

pytestmark = pytest.mark.anyio


WHOLE_BATCH, REFUSED = 1000, 1001


class Serving:
    """Serves numbers by doubling them, each batch when the gate is opened for it."""

    def __init__(
        self, *, slots: int = 1, max_batch_size: int = 100, second_batch_at: int = 1, is_open: bool = False
    ) -> None:
        self.batches: list[list[int]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.at_once = self.most_at_once = 0
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        if is_open:
            self.gate.set()
        self.batcher: Batcher[int] = Batcher(
            self.send, Queue(slots=slots, max_batch_size=max_batch_size, second_batch_at=second_batch_at)
        )

    def send(self, batch: Batch[int]) -> None:
        if batch.jobs[0].work == REFUSED:
            raise LookupError("the whole batch")
        self.tasks.append(UncancellableTask(self.double(batch), loop=asyncio.get_running_loop()))

    async def double(self, batch: Batch[int]) -> None:
        jobs = batch.jobs
        self.batches.append([job.work for job in jobs])
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.set()
        await self.gate.wait()
        self.at_once -= 1
        for job in jobs:
            if job.work < 0:
                job.error = ValueError(job.work)
            job.result = job.work * 2
        if any(job.work == WHOLE_BATCH for job in jobs):
            self.batcher.fail(batch, LookupError("the whole batch"))
        else:
            self.batcher.settle(jobs)
            self.batcher.finish(batch)

    async def call(self, number: int) -> object:
        job = await self.batcher.submit(number)
        if job.error is not None:
            raise job.error
        return job.result


async def _cancellation_of(work: Coroutine[Any, Any, object]) -> asyncio.CancelledError:
    with pytest.raises(asyncio.CancelledError) as raised:
        await work
    return raised.value


async def test_calls_that_wait_while_one_is_served_are_served_together_and_in_order() -> None:
    serving = Serving()
    first = asyncio.create_task(serving.call(0))
    await serving.begun.wait()
    others = [asyncio.create_task(serving.call(number)) for number in range(1, 65)]
    await asyncio.sleep(0)
    serving.gate.set()
    assert await asyncio.gather(first, *others) == [number * 2 for number in range(65)]
    assert serving.batches == [[0], list(range(1, 65))]


async def test_no_batch_is_larger_than_it_may_be_and_none_is_forgotten() -> None:
    serving = Serving(max_batch_size=10, is_open=True)
    assert await asyncio.gather(*(serving.call(number) for number in range(20, 55))) == list(range(40, 110, 2))
    assert [len(batch) for batch in serving.batches] == [10, 10, 10, 5]


async def test_as_many_batches_are_under_way_at_a_time_as_there_are_slots() -> None:
    serving = Serving(slots=3, max_batch_size=2)
    calls = [asyncio.create_task(serving.call(number)) for number in range(20, 40)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert serving.at_once == 3
    serving.gate.set()
    await asyncio.gather(*calls)
    assert serving.most_at_once == 3
    assert sorted(number for batch in serving.batches for number in batch) == list(range(20, 40))


async def test_a_second_batch_is_formed_only_of_many_and_many_that_find_no_batch_are_formed_into_two_halves() -> None:
    serving = Serving(slots=2, second_batch_at=4)

    async def after(more: range) -> list[int]:
        calls.extend(asyncio.create_task(serving.call(number)) for number in more)
        for _ in range(5):
            await asyncio.sleep(0)
        return [len(batch) for batch in serving.batches]

    calls: list[asyncio.Task[object]] = []
    assert await after(range(7)) == [7]
    assert await after(range(7, 10)) == [7]
    assert await after(range(10, 11)) == [7, 4]
    assert await after(range(11, 30)) == [7, 4]
    serving.gate.set()
    await asyncio.gather(*calls)
    serving.gate.clear()
    serving.batches.clear()
    assert await after(range(30, 39)) == [5, 4]
    serving.gate.set()
    assert await asyncio.gather(*calls) == [number * 2 for number in range(39)]


async def test_a_call_that_fails_alone_leaves_its_batch_alone() -> None:
    serving = Serving(is_open=True)
    outcomes = await asyncio.gather(*(serving.call(number) for number in (1, -2, 3)), return_exceptions=True)
    assert serving.batches == [[1, -2, 3]]
    assert outcomes[0] == 2
    assert isinstance(outcomes[1], ValueError)
    assert outcomes[2] == 6


@pytest.mark.parametrize("whole", [(1, WHOLE_BATCH), (REFUSED, 1)], ids=["served", "not even begun"])
async def test_what_fails_a_whole_batch_fails_each_call_in_it_and_the_next_batch_is_served(
    whole: tuple[int, int],
) -> None:
    serving = Serving(max_batch_size=2, is_open=True)
    outcomes = await asyncio.gather(*(serving.call(number) for number in (*whole, 3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LookupError, LookupError, int]
    await serving.batcher.drain()


async def test_a_call_that_is_cancelled_in_the_queue_is_not_served() -> None:
    serving = Serving()
    first = asyncio.create_task(serving.call(1))
    await serving.begun.wait()
    queued, other = asyncio.create_task(serving.call(2)), asyncio.create_task(serving.call(3))
    await asyncio.sleep(0)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    assert not first.done()
    serving.gate.set()
    assert (await first, await other) == (2, 6)
    assert serving.batches == [[1], [3]]


@pytest.mark.parametrize("number", [1, -1], ids=["which succeeds", "which fails"])
async def test_a_call_that_is_cancelled_while_it_is_served_raises_it_when_the_outcome_is_known(number: int) -> None:
    serving = Serving()
    call = asyncio.create_task(_cancellation_of(serving.call(number)))
    await serving.begun.wait()
    for _ in range(3):
        call.cancel()
        await asyncio.sleep(0)
    assert not call.done()
    serving.gate.set()
    cause = (await call).__cause__
    assert cause is None if number > 0 else isinstance(cause, ValueError)
    assert serving.at_once == 0


async def test_a_task_that_is_cancelled_during_the_cancellation_of_an_anyio_scope_is_cancelled() -> None:
    serving = Serving()

    async def call_in_scope() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await serving.call(1)
        passed.append("the scope")
        await asyncio.sleep(0)

    scopes: list[anyio.CancelScope] = []
    passed: list[str] = []
    task = asyncio.create_task(call_in_scope())
    await serving.begun.wait()
    scopes[0].cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    serving.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert passed == []


@pytest.mark.parametrize("how", ["served", "finished despite it"])
def test_a_cancelled_scope_waits_for_the_outcome_without_spinning(how: str) -> None:
    loop = AsyncioCycleLoop()

    async def main() -> None:
        serving = Serving()
        before = loop.cycles
        with anyio.CancelScope() as scope:

            def cancel() -> None:
                scope.cancel()
                loop.call_later(0.1, serving.gate.set)  # not before, however slow the machine is

            async def cancel_once_begun() -> None:
                await serving.begun.wait()
                cancel()

            if how == "served":
                serving.tasks.append(asyncio.ensure_future(cancel_once_begun()))
                await serving.call(1)
            else:
                loop.call_soon(cancel)
                await despite_cancellation(serving.gate.wait())
                await asyncio.sleep(0)  # the scope's cancellation comes here, where nothing is half done
        assert scope.cancelled_caught
        assert serving.gate.is_set()
        assert loop.cycles - before < 50  # a spinning one makes thousands

    loop.run(main())


@on_every_loop
def test_after_every_task_was_cancelled_the_next_call_is_served_whenever_that_was(kind: str, eager: bool) -> None:
    # What a shutdown handler does, and asyncio.run() at its end, while what they cancelled saves its state.
    for loop in cycle_loops(kind=kind, eager=eager):

        async def main(loop: CycleLoop = loop) -> None:
            serving = Serving(slots=2, max_batch_size=2, is_open=True)
            calls = [asyncio.ensure_future(serving.call(number)) for number in range(20, 29)]
            me = asyncio.current_task()

            def cancel_all() -> bool:
                others = asyncio.all_tasks() - {me}
                for task in others:
                    task.cancel()
                return bool(others)

            loop.arm(cancel_all)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {int, asyncio.CancelledError}
            assert await asyncio.gather(*(serving.call(number) for number in range(5))) == [0, 2, 4, 6, 8]
            assert serving.at_once == 0
            await serving.batcher.drain()
            assert asyncio.all_tasks() == {me}

        loop.run(main())


async def test_drain_waits_for_all_that_is_queued_and_then_nothing_is_left_running() -> None:
    serving, before = Serving(max_batch_size=1), asyncio.all_tasks()
    calls = [asyncio.create_task(serving.call(number)) for number in (1, 2, 3)]
    await serving.begun.wait()
    draining = asyncio.create_task(serving.batcher.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    serving.gate.set()
    await draining
    assert await asyncio.gather(*calls) == [2, 4, 6]
    assert asyncio.all_tasks() == before


async def test_what_runs_despite_cancellation_ends_and_then_the_cancellation_is_raised() -> None:
    async def work(fails: bool) -> int:
        steps.append("begun")
        begun.set()
        await gate.wait()
        steps.append("ended")
        if fails:
            raise LookupError
        return 1

    for fails in (False, True):
        gate, begun, steps, before = asyncio.Event(), asyncio.Event(), list[str](), asyncio.all_tasks()
        task = asyncio.create_task(_cancellation_of(despite_cancellation(work(fails))))
        await begun.wait()
        for other in asyncio.all_tasks() - before:
            other.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        gate.set()
        cause = (await task).__cause__
        assert steps == ["begun", "ended"]
        assert isinstance(cause, LookupError) if fails else cause is None
    gate.set()
    assert await despite_cancellation(work(False)) == 1
    with pytest.raises(LookupError):
        await despite_cancellation(work(True))


def test_a_loop_that_ends_waits_for_what_cannot_be_cancelled() -> None:
    ended = []

    async def work() -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        ended.append(True)

    async def main() -> None:
        tasks.append(UncancellableTask(work(), loop=asyncio.get_running_loop()))

    tasks: list[UncancellableTask[None]] = []
    asyncio.run(main())
    assert ended == [True]
    assert not tasks[0].cancelled()


async def test_batches_are_sent_in_the_order_of_their_numbers_and_the_counts_say_what_is_where() -> None:
    sent: list[Batch[int]] = []
    batcher: Batcher[int] = Batcher(sent.append, Queue(slots=2, max_batch_size=3))
    calls = [asyncio.ensure_future(batcher.submit(number)) for number in range(8)]
    for _ in range(4):
        await asyncio.sleep(0)
    assert [batch.number for batch in sent] == [1, 2]
    assert batcher.counts() == QueueCounts(waiting=2, under_way=6, batches=2)
    batcher.settle(sent[1].jobs)
    batcher.finish(sent[1])
    for _ in range(3):
        await asyncio.sleep(0)
    assert [(batch.number, batch.slot) for batch in sent] == [(1, 0), (2, 1), (3, 1)]
    assert batcher.counts() == QueueCounts(waiting=0, under_way=5, batches=2)
    for batch in (sent[0], sent[2]):
        batcher.settle(batch.jobs)
        batcher.finish(batch)
    assert [job.work for job in await asyncio.gather(*calls)] == list(range(8))
    assert batcher.counts() == QueueCounts(waiting=0, under_way=0, batches=0)


async def test_each_caller_is_woken_when_its_own_job_is_settled_not_when_the_batch_is_finished() -> None:
    sent: list[Batch[int]] = []
    batcher: Batcher[int] = Batcher(sent.append, Queue(slots=1, max_batch_size=10))
    first, second = (asyncio.ensure_future(batcher.submit(number)) for number in range(2))
    for _ in range(3):
        await asyncio.sleep(0)
    ((one, other),) = (batch.jobs for batch in sent)
    batcher.settle([one])
    assert await first is one
    assert not second.done()
    batcher.settle([other])
    batcher.finish(sent[0])
    assert await second is other


class Looked(Job[str]):
    """A job that counts how often a queue looks whether it was withdrawn."""

    looks = 0

    @property
    def is_withdrawn(self) -> bool:
        Looked.looks += 1
        return False

    @is_withdrawn.setter
    def is_withdrawn(self, value: bool) -> None:
        pass


async def test_jobs_that_wait_behind_one_key_are_looked_at_once_however_many_others_pass() -> None:
    queue: Queue[str] = Queue(slots=2, max_batch_size=10, key=lambda work: work)
    loop = asyncio.get_running_loop()
    Looked.looks = 0
    for _ in range(1000):
        queue.add(Looked("held", loop.create_future()))
    for _ in range(100):
        held = queue.next_batch()
        assert held is not None
        queue.release(held)  # its jobs are set aside
        for number in range(5):
            queue.add(Job(f"other {number}", loop.create_future()))
        others = queue.next_batch()
        assert others is not None
        assert len(others.jobs) == 5
        queue.release(others)
        for job in (*held.jobs, *others.jobs):
            queue.settle(job)
    assert queue.is_empty()
    assert Looked.looks == 1000


async def test_what_fails_a_batch_fails_each_call_in_it_with_an_error_of_its_own() -> None:
    class Uncopied(Exception):  # noqa: N818  it stands for any class
        def __init__(self, *, word: str) -> None:
            super().__init__(word)

    for error in (OSError(2, "gone", "x.db"), LookupError("x"), Uncopied(word="x")):
        error.__cause__ = ValueError("why")
        sent: list[Batch[int]] = []
        batcher: Batcher[int] = Batcher(sent.append, Queue(slots=1, max_batch_size=10))
        calls = [asyncio.ensure_future(batcher.submit(number)) for number in range(3)]
        for _ in range(3):
            await asyncio.sleep(0)
        batcher.fail(sent[0], error)
        found = [(await call).error for call in calls]
        assert {(type(one), str(one)) for one in found} == {(type(error), str(error))}
        assert {one and one.__cause__ for one in found} == {error.__cause__}
        assert len({id(one) for one in found}) == (1 if isinstance(error, Uncopied) else 3)


async def test_while_others_hold_what_calls_wait_for_each_fails_at_its_deadline_and_else_none_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    sent: list[Batch[int]] = []
    batcher: Batcher[int] = Batcher(sent.append, Queue(slots=2, max_batch_size=2, key=lambda number: number % 10))

    def call(number: int, timeout_s: float) -> asyncio.Task[Job[int]]:
        return asyncio.ensure_future(batcher.submit(number, deadlines.deadline_after(timeout_s)))

    claimed, unclaimed = [call(1, 1), call(2, 1)], [call(3, 1), call(4, 9)]
    for _ in range(4):
        await asyncio.sleep(0)
    queued = [call(11, 1), call(21, 9), call(5, 1)]
    await asyncio.sleep(0)
    batcher.claim(sent[0])
    clock.step(1)
    await asyncio.sleep(2 * LOOK_S)
    assert not any(one.done() for one in (*claimed, *unclaimed, *queued))
    batcher.block(1, LookupError("1 is held"), is_key=True)
    assert str((await queued[0]).error) == "1 is held"
    assert not any(one.done() for one in (*claimed, *unclaimed, *queued[1:]))
    batcher.block("all", LookupError("all is held"))
    assert [str((await one).error) for one in (unclaimed[0], queued[2])] == ["all is held"] * 2
    assert [job.work for job in sent[1].jobs] == [4]
    clock.step(8)
    assert str((await queued[1]).error) == "all is held"  # without another word
    assert str((await unclaimed[1]).error) == "all is held"
    batcher.unblock("all")
    batcher.unblock(1)
    for batch in sent:
        batcher.settle(batch.jobs)
        batcher.finish(batch)
    assert [(await one).error for one in claimed] == [None, None]
    assert batcher.counts() == QueueCounts(waiting=0, under_way=0, batches=0)
    await batcher.drain()
