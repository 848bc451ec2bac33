"""Copies the sessions of one database to another, on any engines. A copy can be run again, and verifies what it wrote.

Rules:

- Rows are copied as the text that is stored, byte for byte. So the order of keys, big numbers and corrupt rows stay.
- The copy only appends to the target, and only where the target's session is a beginning of the source's session. So
  each session of the target is such a beginning whenever the copy ends, and the next run continues from there.
- A problem of one session does not end the copy of the others. An error that concerns all of them (a lost database, a
  full disk) ends the copy, and so does what the caller's `progress` raises. Both are raised as they are.
- A row that is corrupt in the source is copied as it is, and named: nobody may take the copy for whole. The row of an
  erased item is copied as it is, too, and is nothing to name.
- Many sessions are copied at once, so that their writes share commits. Each is copied in slices, so that a session of
  any length needs only the memory of a slice.

Between two SQLite files on 2 cores, 10,000 sessions of 20 items (60 MB) took 5 s to copy and 2.4 s to compare again; a
session of 200,000 items took 3 s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import anyio

from .arguments import check_session_id
from .calling_thread import calling_thread
from .checking import MAX_PROBLEMS, Problem, Progress
from .engines.base import Engine
from .errors import StorageCorruptError
from .items import ERASED, decode_item, decode_joined
from .reading import SLICE_ROWS, Row

SESSIONS_AT_ONCE = 64
"""How many sessions are copied at once. Their writes that wait together are committed together."""

PAGE_SESSIONS = 256
"""How many sessions are listed at once."""

_PROGRESS_EVERY_ITEMS = 1024


@dataclass(frozen=True)
class CopyReport:
    """The result of a copy.

    Attributes:
        sessions: the number of sessions in the source. Each is in the target as it is in the source, unless it has a
            problem that says otherwise.
        items: the number of items that were appended to the target.
        already_there: the number of items that the target had before and that are equal.
        problem_count: the number of problems: one for each session that is not whole in the target, and one for each
            item that cannot be read in the source and was copied as it is.
        problems: the first 100 problems that were found, sorted by session id.
    """

    sessions: int
    items: int
    already_there: int
    problem_count: int
    problems: tuple[Problem, ...] = field(repr=False)


async def copy_sessions(source: Engine, target: Engine, *, progress: Progress | None = None) -> CopyReport:
    """Copy every session of one database to another; see :meth:`agentmem.AsyncSessionStore.copy_to`."""
    if source.key == target.key:
        raise ValueError(f"source and target of the copy are the same database, {source.name}")
    # The source first: where it does not exist, the target must not be created.
    first_page = await source.sessions(None, PAGE_SESSIONS)
    await target.open()
    copy = _DatabaseCopy(source, target, progress)
    try:
        if progress is not None:
            await copy.count_source_items(first_page)
        await copy.run(first_page)
        return await copy.report()
    except _ProgressFailed as failed:
        error = failed.error
    raise error


class _ProgressFailed(Exception):  # noqa: N818  never reaches the caller
    """The caller's function raised something. A cancellation or interrupt of its own must not be taken for ours."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class _SessionProblem(Exception):  # noqa: N818  ends the copy of one session, and is not an error for the caller
    def __init__(self, what: str, position: int | None = None) -> None:
        super().__init__(what)
        self.position = position


class _DatabaseCopy:
    """The copy of a database, and its progress.

    Attributes:
        source, target: the two databases.
        items, already_there: as in the report, so far.
    """

    def __init__(self, source: Engine, target: Engine, progress: Progress | None) -> None:
        self.source, self.target = source, target
        self._progress = progress
        self.items = self.already_there = 0
        self._sessions = self._problem_count = 0
        self._problems: list[Problem] = []
        self._expected_items = self._done_items = 0
        self._error: BaseException | None = None

    async def count_source_items(self, page: list[tuple[str, int]]) -> None:
        """Count the items of the source, for the progress only.

        Args:
            page: the first sessions of the source.
        """
        while page:
            self._expected_items += sum(length for _, length in page)
            page = await self.source.sessions(page[-1][0], PAGE_SESSIONS)
        await self._report_progress()

    async def run(self, page: list[tuple[str, int]]) -> None:
        """Copy all sessions.

        Args:
            page: the first sessions of the source.
        """
        free_places = anyio.Semaphore(SESSIONS_AT_ONCE)
        async with anyio.create_task_group() as group:
            scope = group.cancel_scope
            try:
                while page:
                    for session_id, length in page:
                        await free_places.acquire()
                        group.start_soon(self._copy_session, session_id, length, free_places, scope)
                    page = await self.source.sessions(page[-1][0], PAGE_SESSIONS)
            except Exception as error:
                self._end_with_error(error, scope)
        if self._error is not None:
            raise self._error

    async def report(self) -> CopyReport:
        """Return what was done."""
        self._expected_items = self._done_items
        await self._report_progress()
        problems = sorted(self._problems, key=lambda problem: problem.session_id or "")
        return CopyReport(self._sessions, self.items, self.already_there, self._problem_count, tuple(problems))

    async def advance(self, items: int) -> None:
        """Count items as done, for the progress."""
        before = self._done_items
        self._done_items += items
        if before // _PROGRESS_EVERY_ITEMS != self._done_items // _PROGRESS_EVERY_ITEMS:
            await self._report_progress()

    async def _copy_session(
        self, session_id: str, length: int, free_places: anyio.Semaphore, scope: anyio.CancelScope
    ) -> None:
        session = _SessionCopy(self, session_id, length)
        try:
            try:
                await session.run()
            except _SessionProblem as problem:
                self.add_problem(str(problem), session_id, problem.position)
            self._sessions += 1
            await self.advance(length - session.done)
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            self._end_with_error(error, scope)
        finally:
            free_places.release()

    def add_problem(self, what: str, session_id: str, position: int | None) -> None:
        """Count a problem, and keep it for the report if there are not too many."""
        self._problem_count += 1
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(what, session_id, position))

    def count_more_problems(self, count: int) -> None:
        """Count problems that nobody would read."""
        self._problem_count += count

    def _end_with_error(self, error: BaseException, scope: anyio.CancelScope) -> None:
        # Kept instead of raised, because the task group would wrap it into an exception group.
        if self._error is None:
            self._error = error
        scope.cancel()

    async def _report_progress(self) -> None:
        if self._progress is None:
            return
        report = partial(self._progress, self._done_items, max(self._done_items, self._expected_items))

        def call() -> None:
            try:
                report()
            except BaseException as error:
                raise _ProgressFailed(error) from error

        thread = calling_thread()
        if thread is None:
            call()  # on the caller's own event loop
        else:
            await thread.run(call)


class _SessionCopy:
    """The copy of one session, up to the length that it had when the source listed it.

    Attributes:
        done: how many items were compared or copied.
    """

    def __init__(self, copy: _DatabaseCopy, session_id: str, length: int) -> None:
        self._copy = copy
        self._source, self._target = copy.source, copy.target
        self._id, self._length = session_id, length
        self._cached_rows: list[Row] = []  # all rows of the source, where they are one slice
        self._corrupt: list[tuple[int, str]] = []  # the first positions of rows that cannot be read, and why
        self._corrupt_count = 0
        self.done = 0

    async def run(self) -> None:
        """Copy the items that the target does not have, then compare both sides.

        Raises:
            _SessionProblem: the session is not whole in the target.
        """
        try:
            check_session_id(self._id)
        except ValueError as error:
            raise _SessionProblem(f"not copied: {error}") from None
        source_digest = await self._read_source()
        await self._compare_with_target()
        self._copy.already_there += self.done
        if self.done < self._length:
            await self._append_rest()
            await self._verify(source_digest)
        for position, why in self._corrupt:
            self._copy.add_problem(f"copied as it is, but cannot be read: {why}", self._id, position)
        self._copy.count_more_problems(self._corrupt_count - len(self._corrupt))

    async def _read_source(self) -> _RowsDigest:
        """Read the rows of the source before anything is written, and check that each can be copied."""
        digest = _RowsDigest()
        while rows := await self._source_rows(digest.count, self._length):
            texts = _decode_texts(rows)
            corrupt = _find_corrupt(rows, texts)
            self._corrupt_count += len(corrupt)
            self._corrupt = (self._corrupt + corrupt)[:MAX_PROBLEMS]
            digest.add(rows)
            self._cached_rows = rows if len(rows) == self._length else []
        if digest.count < self._length:
            raise _SessionProblem(
                f"not copied: it had {self._length} items, and ends here. If it changed meanwhile, run the copy again; "
                "otherwise it is damaged, and a check says more",
                digest.count,
            )
        return digest

    async def _compare_with_target(self) -> None:
        """Check that the items of the target are a beginning of those of the source."""
        # One row more than the source has, to find out whether the target has more.
        while target_rows := await self._target_rows(self.done, self._length + 1):
            if self.done == self._length:
                raise _SessionProblem(
                    f"not copied: the target has more items, from here on. {_CLEAR_IT_TO_COPY}", self._length
                )
            source_rows = await self._source_rows(self.done, min(self.done + len(target_rows), self._length))
            for (position, source_text), (_, target_text) in zip(source_rows, target_rows, strict=False):
                # Not strict, because either slice may be shorter.
                if source_text != target_text:
                    raise _SessionProblem(
                        f"not copied: the target has another item here. {_CLEAR_IT_TO_COPY}", position
                    )
            await self._advance(min(len(_require_rows(source_rows)), len(target_rows)))

    async def _append_rest(self) -> None:
        while self.done < self._length:
            rows = _require_rows(await self._source_rows(self.done, self._length))
            await self._target.append(self._id, _decode_texts(rows))
            self._copy.items += len(rows)
            await self._advance(len(rows))

    async def _verify(self, source_digest: _RowsDigest) -> None:
        """Read both sides again, and compare them with what was read of the source before."""
        target_digest, source_again = _RowsDigest(), _RowsDigest()
        while rows := await self._target_rows(target_digest.count, self._length + 1):
            target_digest.add(rows)
        self._cached_rows = []
        while rows := await self._source_rows(source_again.count, self._length):
            source_again.add(rows)
        if source_again.value() != source_digest.value():
            raise _SessionProblem(_CHANGED_MEANWHILE)
        if target_digest.value() != source_digest.value():
            raise _SessionProblem(
                f"the target holds {target_digest.count} items, which are not the source's {source_digest.count}: "
                "another program wrote to the session in the target meanwhile, or it changed in the source; run the "
                "copy again"
            )

    async def _advance(self, items: int) -> None:
        self.done += items
        await self._copy.advance(items)

    async def _source_rows(self, start: int, end: int) -> list[Row]:
        if self._cached_rows:
            return self._cached_rows[start:end]
        try:
            return await _read_slice(self._source, self._id, start, end, "source")
        except StorageCorruptError as error:
            raise _SessionProblem(f"cannot be read to its end: {error}", start) from error

    async def _target_rows(self, start: int, end: int) -> list[Row]:
        return await _read_slice(self._target, self._id, start, end, "target")


_CHANGED_MEANWHILE = "it changed in the source during the copy, other than by new items; run the copy again"

_CLEAR_IT_TO_COPY = "The target's session was not changed; to copy this one, clear it there"


class _RowsDigest:
    """The number of some rows, and a digest of their positions and texts."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.blake2b()

    def add(self, rows: Sequence[Row]) -> None:
        for position, data in rows:
            self._hash.update(b"%d %d " % (position, len(data)))
            self._hash.update(data)
        self.count += len(rows)

    def value(self) -> tuple[int, bytes]:
        return self.count, self._hash.digest()


async def _read_slice(engine: Engine, session_id: str, start: int, end: int, where: str) -> list[Row]:
    """Read the session's next rows below the position `end`; none only if there is none or `start` is `end`."""
    rows = await engine.rows(session_id, start, min(SLICE_ROWS, end - start)) if start < end else []
    for expected, (position, _) in enumerate(rows, start):
        if position != expected:
            raise _SessionProblem(f"missing in the {where}, which is damaged; a check says more", expected)
    return rows


def _require_rows(rows: list[Row]) -> list[Row]:
    if not rows:  # the source had them when it was read first
        raise _SessionProblem(_CHANGED_MEANWHILE)
    return rows


def _decode_texts(rows: Sequence[Row]) -> list[str]:
    """Decode the rows' texts; refuse those that not every database can store."""
    texts = []
    for position, data in rows:
        if b"\0" in data:
            raise _SessionProblem("not copied: the item's text has NUL, which not every database can store", position)
        try:
            texts.append(data.decode())
        except UnicodeDecodeError:
            raise _SessionProblem("not copied: the item's text is not UTF-8", position) from None
    return texts


def _find_corrupt(rows: Sequence[Row], texts: Sequence[str]) -> list[tuple[int, str]]:
    """Return the position of each row that is not an item's JSON, and why."""
    whole = [data for _, data in rows if data]
    if decode_joined(b",".join(whole), len(whole)) is not None:
        return []
    corrupt = []
    for (position, _), text in zip(rows, texts, strict=True):
        if text == ERASED:
            continue
        try:
            decode_item(text)
        except ValueError as error:
            corrupt.append((position, str(error)))
    return corrupt
