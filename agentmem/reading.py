"""How many rows of a session a read needs: rows go in newest first, items come out oldest first.

A reading does no I/O. An engine feeds it rows, all from one state of the database, until it wants no more::

    rows = fetch(reading.first)
    while wanted := reading.feed(rows, at_start=...):
        rows = fetch(wanted)

Rules:

- A row that cannot be decoded is noted in ``corrupt`` and not counted, so a limit counts valid items only.
- A row whose item was erased is passed over as if it were not there.
- ``feed`` decodes, so an engine calls it in the thread that reads. An engine may feed a short reading of few bytes on
  the event loop: the interpreter lock would hold up the loop for as long if another thread decoded, and the items are
  then in the cache of the core that uses them. 64 sessions that read their last 10 items took 20 µs each, against 28.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .items import ERASED, Item, decode_item, decode_joined
from .replay import SessionSettings, WindowSearch, first_items, is_input_message, uncapped_window

SLICE_ROWS = 512
"""The most rows that a reading asks for at once. Fetching and decoding them holds the interpreter lock for about a
millisecond, so the event loop and other readers can run in the course of a long read."""

SHORT_ROWS = 64
"""The most rows of a short reading, which may be fed on the event loop: decoding them takes about 30 µs."""

_ERASED = ERASED.encode()

Row = tuple[int, bytes]
"""A stored row: its position in the session, from 0, and the item's JSON text in UTF-8; no text where the item was
erased."""


class TailReading:
    """Reads the newest items of a session.

    Args:
        limit: how many items; None for all of them.

    Attributes:
        limit: as given.
        first: how many rows to feed first; 0 for none.
        is_short: whether the engine may try ``feed_joined`` first, because few rows are wanted and no function of the
            caller's is called.
        corrupt: the positions of the rows that could not be decoded, newest first.
        oldest: the position of the oldest decoded item; None if there is none.
    """

    corrupt: list[int]
    oldest: int | None
    _erased: int
    _newest_first: list[Item]

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.restart()
        self.first = self._next_slice_rows()
        self.is_short = 0 < self.first <= SHORT_ROWS

    def feed(self, rows: Sequence[Row], *, at_start: bool) -> int:
        """Decode the next older rows.

        Args:
            rows: newest first.
            at_start: whether the session has no rows before these.

        Returns:
            How many more rows to feed; 0 when the reading is complete.
        """
        self._decode(rows)
        return self._rows_still_wanted(len(rows), at_start=at_start)

    def feed_joined(self, joined: bytes, count: int, oldest: int) -> bool:
        """Decode the ``first`` newest rows at once: 8 µs for 20 messages, against 15 µs one by one.

        Args:
            joined: the rows' texts, newest first, joined by commas.
            count: how many rows there are; fewer than ``first`` are the whole session.
            oldest: the position of the oldest of them.

        Returns:
            True if the reading is complete. False if the rows must be fed with ``feed``, beginning with the newest.
        """
        items = decode_joined(joined, count)
        if items is None:
            return False
        self._newest_first = items
        self.oldest = oldest if items else None
        if self._rows_still_wanted(count, at_start=count < self.first):
            self.restart()
            return False
        return True

    def result(self) -> list[Item]:
        """The items, oldest first."""
        return self._newest_first[::-1]

    def restart(self) -> None:
        """Forget all rows: they are fed again, beginning with the newest."""
        self._newest_first = []
        self.corrupt = []
        self.oldest = None
        self._erased = 0

    def _rows_still_wanted(self, count: int, *, at_start: bool) -> int:
        """How many more rows to feed, now that `count` more were decoded."""
        return 0 if at_start else self._next_slice_rows()

    def _next_slice_rows(self) -> int:
        return SLICE_ROWS if self.limit is None else min(SLICE_ROWS, self.limit - len(self._newest_first))

    def _decode(self, rows: Sequence[Row]) -> None:
        for position, data in rows:
            if data == _ERASED:
                self._erased += 1
                continue
            try:
                self._newest_first.append(decode_item(data))
                self.oldest = position
            except ValueError:
                self.corrupt.append(position)


class RowsToWarnOf(Exception):  # noqa: N818  the session that reads catches it
    """A reading met rows that cannot be read, before anything was removed.

    Attributes:
        positions: of the rows, newest first.
    """

    def __init__(self, positions: Sequence[int]) -> None:
        super().__init__(positions)
        self.positions = positions


class PopReading(TailReading):
    """Reads the newest item of a session, which is then removed with the rows above it: corrupt and erased ones.

    Nothing may be raised once they are removed, or the item would be lost. A warning may be raised: programs turn them
    into errors. So the reading fails, and nothing is removed, until its user has warned of these rows.

    Args:
        warned_of: positions of rows that cannot be read, of which was warned.
    """

    def __init__(self, warned_of: Collection[int]) -> None:
        super().__init__(1)
        self._warned_of = warned_of

    def feed(self, rows: Sequence[Row], *, at_start: bool) -> int:
        """Decode the next older rows; see :meth:`TailReading.feed`.

        Raises:
            RowsToWarnOf: the reading is complete, and met rows that cannot be read and are not in `warned_of`.
        """
        wanted = super().feed(rows, at_start=at_start)
        unknown = [position for position in self.corrupt if position not in self._warned_of]
        if unknown and not wanted:
            raise RowsToWarnOf(unknown)
        return wanted


class HistoryReading(TailReading):
    """Reads the replay window of a session without caps: all items, or those from its newest ``compaction`` item on.

    See ``replay.uncapped_window`` for which older ones belong to it.
    """

    _searched: int
    _has_compaction: bool

    def __init__(self) -> None:
        super().__init__(None)

    def result(self) -> list[Item]:
        """The items of the window, oldest first."""
        return uncapped_window(super().result())

    def restart(self) -> None:
        """Forget all rows: they are fed again, beginning with the newest."""
        super().restart()
        self._searched = 0
        self._has_compaction = False

    def _rows_still_wanted(self, count: int, *, at_start: bool) -> int:
        new = self._newest_first[self._searched :]
        self._searched = len(self._newest_first)
        for item in new:
            if self._has_compaction and not is_input_message(item):
                return 0
            self._has_compaction = self._has_compaction or item.get("type") == "compaction"
        return super()._rows_still_wanted(count, at_start=at_start)


class WindowReading(TailReading):
    """Reads the replay window of a session, and only as many rows as it depends on.

    Args:
        settings: the caps; at least one must be set.
    """

    _search: WindowSearch
    _searched: int

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        super().__init__(None)
        self.is_short = 0 < self.first <= SHORT_ROWS and settings.count_tokens is None

    def feed_items(self, newest_first: Sequence[Item], *, at_start: bool) -> int:
        """Take the next older items, which were decoded already; else as :meth:`feed`."""
        self._newest_first += newest_first
        return self._rows_still_wanted(len(newest_first), at_start=at_start)

    def result(self) -> list[Item]:
        """The items of the window, oldest first."""
        return self._search.finish()

    def restart(self) -> None:
        """Forget all rows: they are fed again, beginning with the newest."""
        super().restart()
        self._search = WindowSearch(self._settings)
        self._searched = 0

    def _rows_still_wanted(self, count: int, *, at_start: bool) -> int:
        self._search.take(self._newest_first[self._searched :])
        self._searched = len(self._newest_first)
        # With corrupt rows, the first slice has fewer items than a compaction is looked for in; that is enough.
        is_complete = at_start or self._search.is_settled or self._search.wants_only_compaction
        return 0 if is_complete else self._next_slice_rows()

    def _next_slice_rows(self) -> int:
        # As many again as were read: so at most twice as many rows are read as the window takes, in few slices.
        read = len(self._newest_first) + len(self.corrupt) + self._erased
        return min(SLICE_ROWS, read or first_items(self._settings))
