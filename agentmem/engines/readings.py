"""What the engines do alike when they feed a session's rows to a ``Reading``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import Reading

MAX_INLINE_BYTES = 128 * 1024
"""The largest number of bytes of rows that is decoded on the event loop: a fraction of a millisecond's work."""

SLICE_BYTES = 256 * 1024
"""A slice ends with the row that brings it to so many bytes: this bounds the memory that long rows take."""

Joined = tuple[bytes, int, int]
"""What ``Reading.feed_joined`` takes: the text, how many rows it holds, and the oldest one's position."""


class ReadingFailed(Exception):  # noqa: N818  the error that it holds is raised instead
    """A ``Reading`` raised an error. Whatever its type is, it says nothing about the database."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def feed(reading: Reading[Any], rows: Sequence[tuple[int, bytes]], *, at_start: bool) -> int:
    """Feed rows to a reading; returns how many more it wants.

    Raises:
        ReadingFailed: `reading` raised an error.
    """
    try:
        return reading.feed(rows, at_start=at_start)
    except Exception as error:
        raise ReadingFailed(error) from error
