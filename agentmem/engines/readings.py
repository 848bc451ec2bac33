"""What the engines do alike when they feed a session's rows to a ``Reading``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import Reading
from .callbacks import guarded

MAX_INLINE_BYTES = 128 * 1024
"""The largest number of bytes of rows that is decoded on the event loop: a fraction of a millisecond's work."""

SLICE_BYTES = 256 * 1024
"""A slice ends with the row that brings it to so many bytes: this bounds the memory that long rows take."""

Joined = tuple[bytes, int, int]
"""What ``Reading.feed_joined`` takes: the text, how many rows it holds, and the oldest one's position."""


def feed(reading: Reading[Any], rows: Sequence[tuple[int, bytes]], *, at_start: bool) -> int:
    """Feed rows to a reading, which may count tokens with the caller's function; returns how many more it wants.

    Raises:
        CallbackFailed: `reading` raised an error.
    """
    return guarded(reading.feed)(rows, at_start=at_start)


def feed_joined(reading: Reading[Any], joined: Joined) -> bool:
    """Feed rows as one text to a reading; returns whether that is enough.

    Raises:
        CallbackFailed: `reading` raised an error.
    """
    return guarded(reading.feed_joined)(*joined)
