"""Power cuts: what was acknowledged is there, whatever became of the writes that had not been flushed.

No power is cut here. What a cut can leave is made from what a real run wrote: any part of what was written to a file
since its last flush may be missing, sector by sector and in any combination (sqlite.org/atomiccommit.html, 2 and 3.7).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tools
from processes import SUPPORT

from agentmem import AsyncSessionStore
from agentmem.items import Item

pytestmark = pytest.mark.anyio

SESSIONS = 3
SECTOR_BYTES = 512


def batch(number: int) -> list[Item]:
    """One to four items of some hundred bytes to some pages."""
    size = 1 + number % 4
    text = "x" * (100 + number * 997 % 9000)
    return [{"batch": number, "size": size, "place": place, "text": text} for place in range(size)]


async def add_batches(store: AsyncSessionStore, count: int, acknowledge: Callable[[int], object]) -> None:
    async def add(number: int) -> None:
        await store.session(f"user_{number % SESSIONS}").add_items(batch(number))
        acknowledge(number)

    for start in range(0, count, 4):  # some alone, some committed together
        if start % 8:
            await asyncio.gather(*(add(number) for number in range(start, min(start + 4, count))))
        else:
            for number in range(start, min(start + 4, count)):
                await add(number)


def what_is_left(path: Path) -> set[int]:
    """The batches that agentmem finds, each whole, in order and at positions without a gap; and it goes on there."""

    async def use() -> list[list[Item]]:
        async with AsyncSessionStore(path) as store:
            histories = [await store.session(f"user_{number}").get_items() for number in range(SESSIONS)]
            for number in range(SESSIONS):
                await store.session(f"user_{number}").add_items([{"after": number}])
                assert await store.session(f"user_{number}").get_items() == [*histories[number], {"after": number}]
        return histories

    found: list[int] = []
    for history in asyncio.run(use()):
        numbers = list(dict.fromkeys(item["batch"] for item in history))
        assert history == [item for number in numbers for item in batch(number)], "torn, doubled or mixed"
        assert numbers == sorted(numbers)
        found += numbers
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for _, positions, end in other.execute(
            """
            SELECT session_id, group_concat(position), max(length)
            FROM (SELECT * FROM agentmem_history ORDER BY position) JOIN agentmem_sessions USING (session_id)
            GROUP BY session_id
            """
        ):
            assert positions == ",".join(map(str, range(end))), "a gap"
    return set(found)


# The WAL, cut off or overwritten at any byte


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, list[tuple[int, int]]]:
    """A database and its WAL in the middle of use; and how long the WAL was when each batch was acknowledged."""
    path = tmp_path_factory.mktemp("written") / "conversations.db"
    wal = path.with_name(path.name + "-wal")
    acknowledged: list[tuple[int, int]] = []

    async def write() -> tuple[bytes, bytes]:
        async with AsyncSessionStore(path) as store:
            await add_batches(store, 64, lambda number: acknowledged.append((number, wal.stat().st_size)))
            return path.read_bytes(), wal.read_bytes()

    database, log = asyncio.run(write())
    assert acknowledged[-1][1] == len(log), "the WAL began anew, and its length says nothing"
    return database, log, acknowledged


def _cut(log: bytes, at: int) -> bytes:
    return log[:at]


def _zeros(log: bytes, at: int) -> bytes:
    """As where the file had grown already, and its content was never written."""
    return log[:at] + bytes(len(log) - at)


def _garbage(log: bytes, at: int) -> bytes:
    return log[:at] + random.randbytes(len(log) - at)


def _flipped(log: bytes, at: int) -> bytes:
    return log[:at] + bytes([log[at] ^ 1 << random.randrange(8)]) + log[at + 1 :]


@pytest.mark.parametrize("damage", [_cut, _zeros, _garbage, _flipped])
def test_a_wal_that_is_damaged_from_any_byte_on_has_every_batch_that_was_flushed_before_it(
    tmp_path: Path, written: tuple[bytes, bytes, list[tuple[int, int]]], damage: Callable[[bytes, int], bytes]
) -> None:
    database, log, acknowledged = written
    (page_size,) = struct.unpack(">I", log[8:12])
    frames = range(32, len(log), 24 + page_size)
    places = [*random.sample(frames, 10), *(random.choice(frames) + 24 for _ in range(5))]
    places += [random.randrange(len(log)) for _ in range(10)]
    for number, at in enumerate(sorted(places)):
        path = tmp_path / f"{number}.db"
        path.write_bytes(database)
        path.with_name(path.name + "-wal").write_bytes(damage(log, at))
        left = what_is_left(path)
        assert left >= {batch for batch, size in acknowledged if size <= at}
        assert left == set(range(len(left))), "a batch is there, and one before it is not"


# Every write that was not flushed, kept or lost

_WRITER = """
import asyncio, os, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
from test_power_loss import add_batches
from agentmem import AsyncSessionStore
from agentmem.engines.sqlite import checkpoint as sqlite_checkpoint

sqlite_checkpoint.LIMIT_BYTES = 1_000_000  # so that the WAL begins anew a few times

async def main():
    store = AsyncSessionStore(sys.argv[2], durability=sys.argv[3])
    await add_batches(store, int(sys.argv[4]), lambda number: os.write(1, b"%d\\n" % number))
    os._exit(0)

asyncio.run(main())
"""

_FOLDERS = os.pathsep.join(map(str, (Path(__file__).parent, SUPPORT)))
_STRACE = ["strace", "-f", "-qq", "-y", "-xx", "-s", "10000000", "-e", "signal=none"]
_CALL = re.compile(r"(?P<pid>\d+) +(?:(?P<name>\w+)\((?P<args>.*)|<\.\.\. (?P<resumed>\w+) resumed>(?P<rest>.*))")


@dataclass
class Disk:
    """One file as it is on the disk for certain, and what was written to it since."""

    flushed: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes] | int] = field(default_factory=list)
    """Writes, as offset and data; and lengths to which the file was cut."""

    def flush(self) -> None:
        self.flushed = self.after_a_cut(1)
        self.pending.clear()

    def after_a_cut(self, share: float) -> bytearray:
        """What is there after a cut that this share of the unflushed sectors, at random, has survived."""
        content = bytearray(self.flushed)
        for change in self.pending:
            if isinstance(change, int):
                if random.random() < share:
                    del content[change:]
                continue
            offset, data = change
            first = offset % SECTOR_BYTES
            edges = [0, *range(SECTOR_BYTES - first, len(data), SECTOR_BYTES), len(data)]
            for start, end in itertools.pairwise(edges):
                if random.random() < share:
                    content.extend(bytes(max(0, offset + end - len(content))))
                    content[offset + start : offset + end] = data[start:end]
        return content


@dataclass
class Machine:
    """What a traced process did to the disk, call by call."""

    disks: dict[str, Disk] = field(default_factory=dict)
    acknowledged: set[int] = field(default_factory=set)
    folder_is_flushed: bool = False
    wals_begun: int = 0

    def disk(self, name: str) -> Disk:
        return self.disks.setdefault(name, Disk())

    def begin(self, name: str, args: str, folder: Path) -> None:
        """What counts from the moment at which it is asked for."""
        path = Path(_described(args))
        if name == "write" and args.startswith("1<"):
            self.acknowledged.add(int(_data(args)))
        elif path.parent != folder:
            return
        elif name == "pwrite64":
            change = (_last_number(args), _data(args))
            self.disk(path.name).pending.append(change)
            self.wals_begun += path.name.endswith("-wal") and change[0] == 0
        elif name == "ftruncate":
            self.disk(path.name).pending.append(_last_number(args))

    def end(self, name: str, args: str, folder: Path) -> None:
        """What counts from the moment at which it is done."""
        path = Path(_described(args))
        if name in ("fsync", "fdatasync") and path == folder:
            self.folder_is_flushed = True
        elif name in ("fsync", "fdatasync") and path.parent == folder:
            self.disk(path.name).flush()
        elif name == "unlink":
            self.folder_is_flushed = False


def _described(args: str) -> str:
    """The path of a call's descriptor, which strace writes behind it; empty where it has none."""
    found = re.match(r"\d+<([^>]*)>", args)
    return bytes.fromhex(found[1].replace("\\x", "")).decode() if found else ""


def _data(args: str) -> bytes:
    return bytes.fromhex(args.partition('"')[2].partition('"')[0].replace("\\x", ""))


def _last_number(args: str) -> int:
    return int(args.rpartition(", ")[2].partition(")")[0].partition(" ")[0])


def _calls(trace: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    """Each call as ("begin", name, arguments) and ("end", name, arguments), in the order in which that happened."""
    unfinished: dict[str, tuple[str, str]] = {}
    for line in trace:
        found = _CALL.match(line)
        if found is None:
            continue
        pid, name, args = found["pid"], found["name"], found["args"]
        if name is None:
            name, args = unfinished.pop(pid)
            assert name == found["resumed"]
        else:
            yield "begin", name, args
            if args.endswith("<unfinished ...>"):
                unfinished[pid] = (name, args)
                continue
        yield "end", name, args


def _trace(path: Path, durability: str, batches: int) -> list[str]:
    """What the writer asked of the system, in order."""
    log = path.with_suffix(".strace")
    calls = "pwrite64,write,fsync,fdatasync,ftruncate,unlink"
    tools.program("strace")
    try:
        subprocess.run([*_STRACE, "-e", f"trace={calls}", "-o", str(log), "true"], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        tools.is_missing("strace", f"strace may not trace a process: {error.stderr.decode().strip()}")
    command = [sys.executable, "-c", _WRITER, _FOLDERS, str(path), durability, str(batches)]
    subprocess.run([*_STRACE, "-e", f"trace={calls}", "-o", str(log), *command], check=True, capture_output=True)
    return log.read_text().splitlines()


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="strace is Linux's")
def test_a_power_cut_at_any_moment_that_loses_any_unflushed_sectors_loses_nothing_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "traced"
    folder.mkdir()
    calls = list(_calls(_trace(folder / "conversations.db", "full", 420)))
    machine = Machine()
    cuts = set(random.sample(range(len(calls)), 150))
    checked = losses = 0
    for place, (moment, name, args) in enumerate(calls):
        (machine.begin if moment == "begin" else machine.end)(name, args, folder.resolve())
        if machine.acknowledged:
            assert machine.folder_is_flushed, "the file's name itself could be lost"
        if place not in cuts or not machine.acknowledged:
            continue
        # Each of none, all, half and most of what was not flushed.
        share = random.choice([0, 1, 0.5, 0.9])
        after = tmp_path / f"{place}.db"
        for suffix in ("", "-wal"):
            disk = machine.disk("conversations.db" + suffix)
            after.with_name(after.name + suffix).write_bytes(disk.after_a_cut(share))
            losses += bool(disk.pending) and share < 1
        left = what_is_left(after)
        assert left >= machine.acknowledged, f"lost: {machine.acknowledged - left}"
        checked += 1
        for name_left in after.parent.glob(after.name + "*"):
            name_left.unlink()
    assert machine.acknowledged == set(range(420))
    assert checked > 50
    assert losses > 10
    assert machine.wals_begun > 1, "the WAL never began anew: write more"
