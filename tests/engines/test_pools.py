"""A pool is shared by all who lease it on one event loop, and closes there with the last of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from waiting import wait_until

from agentmem.engines.pools import Leases, LoopPool, NoMoreLeases, Pools, close_unused

pytestmark = pytest.mark.anyio


class Pool(LoopPool):
    """Writes down what is done with it."""

    def __init__(self, key: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(key, loop)
        self.ended: list[str] = []

    async def close(self) -> None:
        assert asyncio.get_running_loop() is self.loop
        await asyncio.sleep(0)
        self.ended.append("closed")

    def abandon(self) -> None:
        self.ended.append("abandoned")


class Makes:
    """All pools of one kind, and those that were ever made."""

    def __init__(self) -> None:
        self.pools: Pools[Pool] = Pools()
        self.made: list[Pool] = []
        self.dropped: list[Pool] = []

    def engine(self, key: str = "a") -> Leases[Pool]:
        def make(loop: asyncio.AbstractEventLoop) -> Pool:
            self.made.append(Pool(key, loop))
            return self.made[-1]

        return Leases(self.pools, lambda: self.pools.lease(key, make, self.dropped.__contains__))

    async def close(self, *engines: Leases[Pool]) -> None:
        for engine in engines:
            for pool in engine.release_all():
                await close_unused(pool)


@contextmanager
def another_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def take(engine: Leases[Pool]) -> Pool:
    return engine.take()


async def test_engines_on_one_database_share_a_pool_and_the_last_one_closes_it() -> None:
    makes = Makes()
    one, two, other = makes.engine(), makes.engine(), makes.engine("b")
    pool = one.take()
    assert pool is one.take() is two.take() is one.get()
    assert other.take() is not pool
    assert list(makes.pools.all()) == makes.made
    await makes.close(one)
    assert one.get() is None
    assert pool.ended == []
    await makes.close(one)  # closing twice gives nothing back twice
    assert pool.ended == []
    await makes.close(two, other)
    assert [made.ended for made in makes.made] == [["closed"], ["closed"]]
    assert makes.pools.all() == []


async def test_a_pool_that_is_closing_is_leased_by_no_other() -> None:
    makes = Makes()
    one, two = makes.engine(), makes.engine()
    pool = one.take()
    closing = asyncio.ensure_future(makes.close(one))
    await asyncio.sleep(0)
    assert pool.ended == []
    assert two.take() is not pool
    await closing
    assert [made.ended for made in makes.made] == [["closed"], []]
    await makes.close(two)


async def test_a_pool_that_could_not_be_opened_is_given_back_once_and_closes_when_no_other_uses_it() -> None:
    makes = Makes()
    one, two = makes.engine(), makes.engine()
    pool = one.take()
    two.take()
    await one.release(pool)
    await one.release(pool)
    assert (one.get(), two.get(), pool.ended) == (None, pool, [])
    await two.release(pool)
    assert pool.ended == ["closed"]
    again = one.take()
    assert again is not pool
    await one.release(pool)  # late: what is in use now is another
    assert one.get() is again
    await makes.close(one, two)
    assert [made.ended for made in makes.made] == [["closed"], ["closed"]]


async def test_a_pool_that_must_not_be_leased_again_stays_with_its_users_and_closes_with_them() -> None:
    makes = Makes()
    one, two = makes.engine(), makes.engine()
    old = one.take()
    makes.dropped.append(old)
    new = two.take()
    assert new is not old
    assert one.take() is old
    await makes.close(one)
    assert (old.ended, new.ended) == (["closed"], [])
    assert makes.engine().take() is new


async def test_each_event_loop_has_a_pool_of_its_own_which_closes_there() -> None:
    makes = Makes()
    engine = makes.engine()
    with another_loop() as loop:
        theirs = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(take(engine), loop))
        ours = engine.take()
        assert (theirs.loop, ours.loop) == (loop, asyncio.get_running_loop())
        await makes.close(engine)
        assert ours.ended == ["closed"]
        wait_until(lambda: theirs.ended == ["closed"])


async def test_a_pool_whose_event_loop_stands_still_is_left_without_waiting_for_it() -> None:
    makes = Makes()
    engine = makes.engine()
    loop = asyncio.new_event_loop()
    theirs = await asyncio.to_thread(loop.run_until_complete, take(engine))
    await makes.close(engine)
    assert theirs.ended == ["abandoned"]
    loop.close()


async def test_a_pool_whose_event_loop_is_gone_is_left_with_the_next_lease() -> None:
    makes = Makes()
    engine = makes.engine()
    theirs = await asyncio.to_thread(asyncio.run, take(engine))
    assert theirs.ended == []
    ours = engine.take()
    assert theirs.ended == ["abandoned"]
    assert list(makes.pools.all()) == [ours]
    await makes.close(engine)
    assert (theirs.ended, ours.ended) == (["abandoned"], ["closed"])


async def test_loops_in_many_threads_lease_and_release_at_the_same_time() -> None:
    makes = Makes()

    async def use() -> None:
        for _ in range(50):
            engines = [makes.engine() for _ in range(3)]
            pools = {engine.take() for engine in engines}
            assert len(pools) == 1
            await makes.close(*engines)

    await asyncio.gather(*(asyncio.to_thread(asyncio.run, use()) for _ in range(4)))
    assert makes.pools.all() == []
    assert [made.ended for made in makes.made] == [["closed"]] * 200


async def test_an_engine_that_has_given_back_its_pools_leases_none_any_more() -> None:
    makes = Makes()
    engine = makes.engine()
    engine.take()
    await makes.close(engine)
    with pytest.raises(NoMoreLeases):
        engine.take()
    assert makes.pools.all() == []
    assert [made.ended for made in makes.made] == [["closed"]]
