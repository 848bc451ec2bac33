"""The write operations that every engine carries out, as plain data that waits in a queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .base import Reading


@dataclass(frozen=True, slots=True)
class Append:
    """Append rows to a session; the first append creates it."""

    session_id: str
    rows: Sequence[str]


@dataclass(frozen=True, slots=True)
class Pop:
    """Feed a session's rows to a reading, and remove the rows from the oldest one that it took.

    It needs its own transaction, because a reading that was fed cannot be fed again after a rollback.
    """

    session_id: str
    reading: Reading[Any]


@dataclass(frozen=True, slots=True)
class Clear:
    """Remove a session and its items."""

    session_id: str
