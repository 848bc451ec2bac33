"""Processes that write to one file while some of them are killed; and the check of what they must have left.

They are forked from a parent that made their store, as the workers of a server that loads its app before it forks. (One
started anew would mostly be killed while it imports.) What a writer acknowledged before it was killed is in its pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import selectors
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agentmem import AsyncSession, AsyncSessionStore

SHARED = "shared"
TASKS = 4
"""In each process: half of them write to the session that all processes share, half to one of their own."""

PARENT = -1
"""The number of the parent as a writer."""


class Batch(NamedTuple):
    """One call of add_items: the `number`-th of a task of a process."""

    session_id: str
    writer: int
    task: int
    number: int


def write_and_be_killed(path: str, *, writers: int, kills: int, used: bool) -> None:
    """Keep `writers` processes writing to the file, kill `kills` of them one by one and replace each, then end all.

    Prints a line for each acknowledged batch, and "end". A process that fails prints its traceback to stderr.

    Args:
        path: of the file, which need not exist.
        writers: how many write at a time; the first ones begin at the same instant.
        kills: how many are killed.
        used: whether the parent has used the store before it forks, and goes on to use it.
    """
    store = AsyncSessionStore(path, busy_timeout_s=60)
    written = itertools.count()
    start, go = os.pipe()
    goes_on, stop = os.pipe()
    numbers = itertools.count()
    listener = _Listener()

    def fork() -> None:
        number = next(numbers)
        acknowledged, out = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(stop)
                if number < writers:
                    os.close(go)
                    os.read(start, 1)  # the end of the pipe comes to all of them at once
                asyncio.run(_write(store, number, out, goes_on))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        os.close(out)
        listener.add(child, acknowledged)

    def write_in_parent() -> None:
        if used:
            batch = Batch(SHARED, PARENT, 0, next(written))
            asyncio.run(add_batch(store.session(SHARED), batch))
            print(*batch)

    write_in_parent()
    for _ in range(writers):
        fork()
    os.close(go)
    for _ in range(kills):
        write_in_parent()
        # A number of acknowledgements and a moment after that: not the same instruction each time.
        wanted = random.randrange(10, 60)
        while wanted > 0:
            wanted -= listener.listen()
        for _ in range(random.randrange(20_000)):
            pass
        listener.kill(random.choice(list(listener.running)))
        fork()
    os.close(stop)
    listener.listen_to_the_end()
    write_in_parent()
    asyncio.run(store.close())
    print("end")


class _Listener:
    """The parent's side: what the writers acknowledge, and how they end."""

    def __init__(self) -> None:
        self.running: dict[int, int] = {}
        """The pipe of each process, by its id."""
        self._pipes = selectors.DefaultSelector()

    def add(self, child: int, pipe: int) -> None:
        self.running[child] = pipe
        self._pipes.register(pipe, selectors.EVENT_READ)

    def listen(self) -> int:
        """Wait for acknowledgements; returns how many came."""
        assert self._pipes.get_map(), "every writer has ended by itself"
        return sum(self._pass_on(key.fd) for key, _ in self._pipes.select())

    def kill(self, child: int) -> None:
        os.kill(child, signal.SIGKILL)
        pipe = self.running.pop(child)
        while self._pass_on(pipe):
            pass
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it had ended before it was killed"

    def listen_to_the_end(self) -> None:
        while self._pipes.get_map():
            self.listen()
        for child in self.running:
            assert os.waitpid(child, 0)[1] == 0

    def _pass_on(self, pipe: int) -> int:
        data = os.read(pipe, 1 << 20)  # all that a pipe holds, and so whole lines: each was written at once
        if not data:
            self._pipes.unregister(pipe)
            os.close(pipe)
        sys.stdout.write(data.decode())
        return data.count(b"\n")


async def _write(store: AsyncSessionStore, writer: int, out: int, goes_on: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(goes_on, ended.set)

    async def work(session: AsyncSession, task: int) -> None:
        for number in itertools.count():
            if ended.is_set():
                return
            batch = Batch(session.session_id, writer, task, number)
            await add_batch(session, batch)
            os.write(out, (" ".join(map(str, batch)) + "\n").encode())

    async with store:
        sessions = (store.session(SHARED), store.session(f"writer_{writer}"))
        await asyncio.gather(*(work(sessions[task % 2], task) for task in range(TASKS)))
    loop.remove_reader(goes_on)


async def add_batch(session: AsyncSession, batch: Batch) -> None:
    size = 1 + (batch.number + batch.task) % 4
    await session.add_items([{"batch": list(batch[1:]), "size": size, "place": place} for place in range(size)])


def check(path: Path, output: str) -> int:
    """What the killed and the others have left, and what they said was there; returns how many batches that were.

    Raises:
        AssertionError: a batch that was acknowledged is missing, torn, doubled or out of order.
    """
    *acknowledged, end = output.splitlines()
    assert end == "end"
    written = _batches(path)
    assert max(Counter(written).values()) == 1, "a batch is there twice"
    last: dict[tuple[str, int, int], int] = {}
    for session_id, writer, task, number in written:
        key = (session_id, writer, task)
        assert number == last.get(key, -1) + 1, "a batch is missing before one that is there, or came later"
        last[key] = number
    missing = {_parse(line) for line in acknowledged} - set(written)
    assert not missing, f"acknowledged and lost: {missing}"
    assert len(written) - len(acknowledged) <= len(last), "a task wrote a batch that it did not wait for"
    return len(acknowledged)


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from killing import write_and_be_killed
write_and_be_killed(sys.argv[2], writers=int(sys.argv[3]), kills=int(sys.argv[4]), used=sys.argv[5] == "used")
"""


def program_arguments(path: Path, *, writers: int, kills: int, used: bool) -> list[str]:
    """What PROGRAM is started with to call :func:`write_and_be_killed`."""
    return [str(Path(__file__).parent), str(path), str(writers), str(kills), "used" if used else "unused"]


def _parse(line: str) -> Batch:
    session_id, *numbers = line.split()
    return Batch(session_id, *map(int, numbers))


def _batches(path: Path) -> list[Batch]:
    """The batches in the file, session by session and in order."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        sessions = connection.execute("SELECT session_id, session_key, length FROM agentmem_sessions").fetchall()
        (rows,) = connection.execute("SELECT count(*) FROM agentmem_items").fetchone()
        assert rows == sum(end for _, _, end in sessions), "rows of no session"
        found: list[Batch] = []
        for session_id, key, end in sessions:
            history = connection.execute(
                "SELECT position, item FROM agentmem_items WHERE session_key = ? ORDER BY position", (key,)
            ).fetchall()
            assert [position for position, _ in history] == list(range(end)), "a gap"
            found += whole_batches(session_id, [json.loads(item) for _, item in history])
    return found


def whole_batches(session_id: str, items: Sequence[dict[str, Any]], *, popped: bool = False) -> Iterator[Batch]:
    """The batches that a session's items are, in order.

    Args:
        popped: whether others pop items, so that what comes after a part of a batch may be of another.

    Raises:
        AssertionError: one is torn.
    """
    rest = list(items)
    while rest:
        first = rest[0]
        size = first["size"]
        whole = [{"batch": first["batch"], "size": size, "place": place} for place in range(size)]
        if popped:  # its beginning is there
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(whole, rest, strict=False))
            whole = [item for item, _ in same]
            assert whole, "torn"
        assert rest[: len(whole)] == whole, "torn"
        del rest[: len(whole)]
        writer, task, number = first["batch"]
        yield Batch(session_id, writer, task, number)
