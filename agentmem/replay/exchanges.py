"""Which items of a history are valid only together. The items are taken newest first.

So a reader can stop as soon as it knows enough, and what it knows of the newest items does not depend on how much
further it reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..items import Item
from .kinds import (
    CALL_OF,
    CALLS,
    kind_of,
    may_follow_reasoning,
    may_refer_to_call,
    may_stay_pending,
    program_of,
    shared_id,
)


class Exchange:
    """Items that are valid only together.

    Attributes:
        members: the places of the items, counted from the newest item of the history, 0.
        newest: the place of the newest of them.
        missing: how many other items, which must be older, are still to be found.
        is_broken: whether an item is missing that is not to be found any more.
        counted: how many of the members were counted by whoever takes the items, as valid or as broken.
    """

    __slots__ = ("counted", "is_broken", "members", "missing", "newest")

    def __init__(self, place: int) -> None:
        self.members = [place]
        self.newest = place
        self.missing = 0
        self.is_broken = False
        self.counted = 0

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing and not self.is_broken


class Exchanges:
    """The exchanges of a history, as far as it was taken.

    Args:
        turn_length: how many of the newest items are the turn that the model is asked to go on with. A program that
            runs in it is whole without an output if each of its calls has one: the API resumes it, and needs all of it
            (https://developers.openai.com/api/docs/guides/tools-programmatic-tool-calling). 0: no program runs.

    Attributes:
        items: the items that were taken, newest first.
        of: the exchange of each item; None for an item that is valid by itself, as most are.
        newest_place: the place of the newest item that has an exchange; infinite if none has.
        open_places: the places of the items that wait for an older one: outputs for their call, calls for the program
            that made them.
    """

    __slots__ = ("_calls_of", "_outputs", "_references", "_turn_length", "items", "newest_place", "of", "open_places")

    def __init__(self, turn_length: int = 0) -> None:
        self._turn_length = turn_length
        self.items: list[Item] = []
        self.of: list[Exchange | None] = []
        self.newest_place = math.inf
        self.open_places: set[int] = set()
        self._outputs: dict[tuple[str, str], list[int]] = {}  # by the kind of their call and their id
        self._calls_of: dict[str, list[int]] = {}  # calls that wait for their program, by the program's id
        self._references: list[int] = []

    def take_message(self, item: Item) -> None:
        """Take the next older item, which is valid by itself, unless older reasoning led to it."""
        self.items.append(item)
        self.of.append(None)

    def take(self, item: Item, kind: str) -> Exchange | None:
        """Take the next older item and return its exchange, as far as it is known now.

        Args:
            item: the item.
            kind: its kind.
        """
        place = len(self.items)
        self.take_message(item)
        if kind == "message":
            return None
        if kind == "reasoning":
            self._lead_to_next(place)
        elif kind in CALL_OF:
            self._outputs.setdefault((CALL_OF[kind], shared_id(item, kind)), []).append(place)
            self._wait(place)
        elif kind == "item_reference":
            if may_refer_to_call(item):
                self._references.append(place)
        elif kind == "compaction_trigger":
            self._at(place).is_broken = True  # valid only as the last item of a request
        else:
            if kind in CALLS:
                self._find_output(place, item, kind)
            program = program_of(item)
            if program is not None:
                # Only after the search above, because a program does not call itself.
                self._calls_of.setdefault(program, []).append(place)
                self._wait(place)
        return self.of[place]

    def finish(self) -> None:
        """No older items are taken: what was not found is missing, or is there as an ``item_reference``."""
        # The oldest output first, each with the nearest reference before it, which is where its call would stand.
        outputs = sorted((place for places in self._outputs.values() for place in places), reverse=True)
        older, unused = list(self._references), []
        for place in outputs:
            while older and older[-1] > place:
                unused.append(older.pop())
            if unused:
                self._join(self._found(place), self._at(unused.pop()))
        for place in self.open_places:
            self._at(place).is_broken = True

    def _lead_to_next(self, place: int) -> None:
        """Join reasoning with the item that it led to."""
        if not place or not may_follow_reasoning(self.items[place - 1]):
            self._at(place).is_broken = True
            return
        exchange = self.of[place - 1]
        if exchange is None:
            exchange = self._at(place - 1)
            exchange.counted = 1  # it was valid by itself until now
        self._add(exchange, place)

    def _find_output(self, place: int, item: Item, kind: str) -> None:
        """Join a call with its output: the oldest one with its id that has no call yet."""
        call_id = shared_id(item, kind)
        outputs = self._outputs.get((kind, call_id))
        output = outputs.pop() if outputs else None
        if output is not None:
            self._add(self._found(output), place)
        is_running = self._join_calls(place, call_id, output) if kind == "program" else False
        if output is None and not is_running and not may_stay_pending(item):
            self._at(place).is_broken = True

    def _join_calls(self, place: int, call_id: str, output: int | None) -> bool:
        """Join a program with the calls that it made; return whether it would still be running without an output."""
        # They stand before its output. One that stands after it is of an older program.
        waiting = self._calls_of.get(call_id, [])
        has_calls = False
        while waiting and (output is None or waiting[-1] > output):
            self._join(self._found(waiting.pop()), self._at(place))
            has_calls = True
        return has_calls and self._at(place).newest < self._turn_length

    def _wait(self, place: int) -> None:
        """Note that an item waits for an older one."""
        self._at(place).missing += 1
        self.open_places.add(place)

    def _found(self, place: int) -> Exchange:
        """Note that what the item waited for was found, and return its exchange."""
        exchange = self._at(place)
        exchange.missing -= 1
        self.open_places.discard(place)
        return exchange

    def _at(self, place: int) -> Exchange:
        """The exchange of an item; created if there is none."""
        exchange = self.of[place]
        if exchange is None:
            exchange = self.of[place] = Exchange(place)
            if place < self.newest_place:
                self.newest_place = place
        return exchange

    def _add(self, exchange: Exchange, place: int) -> None:
        """Add an item that has no exchange yet."""
        exchange.members.append(place)
        self.of[place] = exchange

    def _join(self, kept: Exchange, merged: Exchange) -> None:
        if kept is merged:
            return
        if len(kept.members) < len(merged.members):
            kept, merged = merged, kept
        kept.members += merged.members
        kept.newest = min(kept.newest, merged.newest)
        kept.missing += merged.missing
        kept.is_broken |= merged.is_broken
        kept.counted += merged.counted
        for place in merged.members:
            self.of[place] = kept


def exchange_members(items: Sequence[Item], *, running_from: int | None = None) -> list[Sequence[int]]:
    """Return for each item the indexes of its exchange, its own among them; none if the exchange is incomplete.

    Args:
        items: the history, oldest first. A half of an exchange that is not among them counts as missing.
        running_from: the index where the turn begins that the model is asked to go on with, in which a program may
            still run (see :class:`Exchanges`). None: no program runs.
    """
    last = len(items) - 1
    exchanges = _exchanges_of(items, 0 if running_from is None else len(items) - running_from)
    return [
        (index,) if exchange is None else [last - place for place in exchange.members] if exchange.is_whole else ()
        for index, exchange in enumerate(reversed(exchanges.of))
    ]


def begins_earlier(items: Sequence[Item], start: int) -> bool:
    """Whether an item from the index `start` on needs one that is older than all of these, such as the call of an
    output."""
    return any(place < len(items) - start for place in _exchanges_of(items).open_places)


def unanswered_calls(items: Sequence[Item]) -> list[Item]:
    """Return the calls, programs and approval requests whose output or response is not among the items after them."""
    unanswered: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(items):
        kind = kind_of(item)
        if kind in CALLS:
            unanswered.setdefault((kind, shared_id(item, kind)), []).append(index)
        elif kind in CALL_OF:
            calls = unanswered.get((CALL_OF[kind], shared_id(item, kind)))
            if calls:
                calls.pop()
    return [items[index] for index in sorted(index for calls in unanswered.values() for index in calls)]


def _exchanges_of(items: Sequence[Item], turn_length: int = 0) -> Exchanges:
    exchanges = Exchanges(turn_length)
    for item in reversed(items):
        exchanges.take(item, kind_of(item))
    exchanges.finish()
    return exchanges
