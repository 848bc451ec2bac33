"""How much of a session a read takes: rows go in newest first, items come out oldest first.

A reading does no I/O. An engine feeds it rows until it wants no more, all from one state of the database:

    rows = fetch(reading.first)
    while wanted := reading.feed(rows, at_start=...): rows = fetch(wanted)

Rules: rows that cannot be decoded are set aside in ``corrupt`` and never counted, so a limit counts valid
items only. Decoding happens here: in the thread that reads, not on the event loop, but for a short reading of few
bytes. Under Python's interpreter lock that would hold up the event loop for as long wherever it is done, and the
items come to life in the cache of the core that uses them: 64 sessions that read their last 10 took 20 µs each
instead of 28.
"""

from __future__ import annotations

from collections.abc import Sequence

from .items import Item, decode_item, decode_joined
from .replay import SessionSettings, settle_window

SLICE_ROWS = 512
"""Most rows that a reading takes at once. Fetching and decoding them holds the interpreter for about a
millisecond at a time, so the event loop and other readers get their turn in a long read."""

SHORT_ROWS = 64
"""Most rows of a short reading, which may be fed on the event loop: decoding as many takes about 30 µs."""

Row = tuple[int, bytes]
"""A stored row: its position in the session, from 0, and the item's JSON text in UTF-8."""


class TailReading:
    """The newest `limit` items, or all of them.

    Attributes:
        first: rows wanted to begin with; 0 for none.
        is_short: whether it begins with few rows, and calls no function of the caller's, so that ``feed_joined``
            may be tried.
        corrupt: positions of the rows that could not be decoded, newest first.
        oldest: position of the oldest item taken, None where there is none.
    """

    corrupt: list[int]
    oldest: int | None
    _newest_first: list[Item]

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self.restart()
        self.first = self._wanted()
        self.is_short = 0 < self.first <= SHORT_ROWS

    def feed(self, rows: Sequence[Row], *, at_start: bool) -> int:
        """Take `rows`, newest first; returns how many more are wanted, 0 when done.

        Args:
            at_start: whether the session has no rows before these.
        """
        self._decode(rows)
        return self._more(len(rows), at_start=at_start)

    def feed_joined(self, joined: bytes, count: int, oldest: int) -> bool:
        """Take the `first` newest rows (fewer: all that there are) as one text; returns whether that is enough.

        Where it is not, what was taken is forgotten. Decoding them together takes 8 µs for 20 messages, one by
        one 15 µs.
        """
        items = decode_joined(joined, count)
        if items is None:
            return False
        self._newest_first = items
        self.oldest = oldest if items else None
        if self._more(count, at_start=count < self.first):
            self.restart()
            return False
        return True

    def result(self) -> list[Item]:
        """The items, oldest first."""
        return self._newest_first[::-1]

    def restart(self) -> None:
        """Forget what was taken: the rows are to be fed again, from the newest on."""
        self._newest_first = []
        self.corrupt = []
        self.oldest = None

    def _more(self, count: int, *, at_start: bool) -> int:
        """How many more rows are wanted after the `count` newest ones."""
        return 0 if at_start else self._wanted()

    def _wanted(self) -> int:
        return SLICE_ROWS if self._limit is None else min(SLICE_ROWS, self._limit - len(self._newest_first))

    def _decode(self, rows: Sequence[Row]) -> None:
        for position, data in rows:
            try:
                self._newest_first.append(decode_item(data))
                self.oldest = position
            except ValueError:
                self.corrupt.append(position)


class WindowReading(TailReading):
    """The replay window of `settings`, which have a cap; reads only as far back as it takes to tell."""

    _window: list[Item]
    _to_come: int

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        super().__init__(None)
        self.is_short = 0 < self.first <= SHORT_ROWS and settings.count_tokens is None

    def result(self) -> list[Item]:
        """The window's items, oldest first."""
        return self._window

    def restart(self) -> None:
        """Forget what was taken: the rows are to be fed again, from the newest on."""
        super().restart()
        self._window = []
        self._to_come = self._guess()  # rows, before the window is looked for (again)

    def _more(self, count: int, *, at_start: bool) -> int:
        self._to_come -= count
        if at_start or self._to_come <= 0:
            window = settle_window(self._newest_first[::-1], self._settings, whole=at_start)
            if window is not None:
                self._window = window
                return 0
            # As much again, so that no row is examined more than twice on average.
            self._to_come = len(self._newest_first) + len(self.corrupt)
        return self._wanted()

    def _wanted(self) -> int:
        return min(SLICE_ROWS, self._to_come)

    def _guess(self) -> int:
        # A little more than the cap, because an exchange or reasoning may straddle it. Eight items a turn and
        # 64 tokens an item are only where the search begins; any number gives the same window.
        guesses = [SLICE_ROWS]
        if self._settings.limit is not None:
            guesses.append(self._settings.limit + 4 if self._settings.limit else 0)
        if self._settings.max_turns is not None:
            guesses.append(self._settings.max_turns * 8)
        if self._settings.max_tokens is not None:
            guesses.append(self._settings.max_tokens // 64 + 8)
        return min(guesses)
