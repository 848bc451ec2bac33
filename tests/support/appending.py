"""Appends of numbers to one session, some of them begun at a cycle of the event loop."""

from __future__ import annotations

import asyncio
import itertools

from agentmem import AsyncSession
from agentmem.items import Item


class Appending:
    """Appends 0, 1, 2, … to a session, one item a call."""

    def __init__(self, session: AsyncSession) -> None:
        self.calls: list[asyncio.Future[None]] = []
        self._session = session
        self._numbers = itertools.count()

    def begin(self, count: int) -> None:
        """Begin so many appends at once."""
        numbers = itertools.islice(self._numbers, count)
        self.calls += [asyncio.ensure_future(self._session.add_items([{"number": number}])) for number in numbers]

    def begin_unless_done(self, count: int) -> bool:
        """The same, unless all that were begun are over: then it is too late to meet anything."""
        if all(call.done() for call in self.calls):
            return False
        self.begin(count)
        return True

    def in_order(self) -> list[Item]:
        """What is stored when every append was carried out in its turn."""
        return [{"number": number} for number in range(len(self.calls))]
