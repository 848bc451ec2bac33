"""The clock of all deadlines, in a test's hand: it stands still until the test steps it."""

from __future__ import annotations

import time

import pytest


class Clock:
    """Stands still.

    Args:
        monkeypatch: puts it in the place of the real clock.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = time.monotonic()
        monkeypatch.setattr("agentmem.engines.deadlines.monotonic", lambda: self._now)

    def step(self, seconds: float) -> None:
        """Let so much time pass at once."""
        self._now += seconds
