"""The search for the replay window with caps, from the newest item of a history to older ones.

What the search finds depends only on the items that it has taken when it is settled. So the window is the same however
the history is read, and no more of it is read than the search takes.

Places are counted from the newest item of the history, 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from ..items import Item
from .exchanges import Exchange, Exchanges
from .kinds import is_input_message, kind_of
from .settings import SessionSettings
from .tokens import estimate_tokens

REACH_ITEMS = 512
"""How many items further back than the window needs it is searched, for the other halves of exchanges and beyond
incomplete ones. Reading and searching 512 messages takes less than a millisecond."""

_FAR_ITEMS = 16 * REACH_ITEMS
"""How many items that are left out, or wait for another one, are searched where the caps would let the window take
them all: a program may make thousands of calls, all of which wait for it."""

_MORE_ITEMS = 8
"""How many items more than the caps allow are looked at first: what an exchange at the edge of the window takes,
mostly."""


def first_items(settings: SessionSettings) -> int:
    """Return how many of the newest items to look at first; the window may need more. At most ``REACH_ITEMS``.

    Args:
        settings: the caps.
    """
    guesses = [REACH_ITEMS]
    if settings.limit is not None:
        guesses.append(settings.limit + _MORE_ITEMS if settings.limit else 0)
    if settings.max_turns is not None:
        guesses.append(settings.max_turns * 8)  # items a turn
    if settings.max_tokens is not None:
        guesses.append(settings.max_tokens // 64 + _MORE_ITEMS)  # tokens an item
    return min(guesses)


class WindowSearch:
    """Finds the replay window in items that it takes newest first.

    Args:
        settings: the caps; at least one must be set.

    Attributes:
        is_settled: whether no older item can change the window.
    """

    def __init__(self, settings: SessionSettings) -> None:
        self.is_settled = False
        self._totals = _Totals(settings)  # of the items that are whole so far
        self._first_items = first_items(settings)
        self._exchanges = Exchanges()
        self._items = self._exchanges.items
        self._turn_of: list[int] = []  # the turn of each item, counted from the newest; empty without this cap
        self._tokens_of: list[int] = []  # likewise
        self._turn = 0
        self._newer_is_input = False
        self._seen_tokens = 0
        self._broken = 0  # how many items are of exchanges that will never be whole
        self._end: int | None = None  # the first place that the window cannot reach; None until it is known
        self._waiting: list[int] = []  # places below the end that may wait for an older item, the oldest last
        self._cut = 0  # once there is an end: the window ends before the exchange that is here, because it goes beyond
        self._compaction: int | None = None
        self._window: list[Item] | None = None

    @property
    def wants_only_compaction(self) -> bool:
        """Whether older items can change the window only if a ``compaction`` item is among them."""
        return self._end is not None and not self._waits()

    def take(self, items: Iterable[Item]) -> None:
        """Take the next older items, newest first, up to the one that settles the window.

        Raises:
            TypeError: ``count_tokens`` returned something other than an int.
            ValueError: ``count_tokens`` returned a negative number.
        """
        totals = self._totals
        for item in items:
            if self.is_settled:
                break
            kind = item.get("type", "message" if "role" in item else None)
            if kind == "message" and totals.are_of_items and totals.items < totals.most_items:
                # Most items are messages, and fit. This is what _take() does with them, in short.
                totals.items += 1
                self._exchanges.take_message(item)
            else:
                self._take(item, kind if kind.__class__ is str else kind_of(item))

    def finish(self) -> list[Item]:
        """Return the window, oldest first. No older items are taken: it is settled, or there are none."""
        self.is_settled = True
        if self._window is None:
            self._exchanges.finish()
            self._window = self._find()
        return self._window

    def _take(self, item: Item, kind: str) -> None:
        place = len(self._items)
        if not self._totals.are_of_items:
            self._note(item, kind)
        if kind == "compaction":
            self._exchanges.take_message(item)  # valid by itself, too
            self._compaction = place
            self.is_settled = True
            return
        exchange = self._exchanges.take(item, kind)
        if self._end is None and self._totals.are_full(self._turn):
            self._end_at(place, exchange)
        elif self._end is None:
            self._count(place, exchange)
        elif exchange is not None and not exchange.missing and not exchange.is_broken:
            self._cut = min(self._cut, exchange.newest)
        if self._end is not None:
            self.is_settled = place + 1 >= self._first_items and not self._waits()

    def _note(self, item: Item, kind: str) -> None:
        """Note the item's turn and make room for its tokens, where these are capped."""
        if self._totals.have_turns:
            is_input = kind == "message" and is_input_message(item)
            self._turn += self._newer_is_input and not is_input
            self._newer_is_input = is_input
            self._turn_of.append(self._turn)
        if self._totals.count_tokens is not None:
            self._tokens_of.append(0)

    def _count(self, place: int, exchange: Exchange | None) -> None:
        """Count the item and those that it completes, and set the end where they do not fit."""
        count_tokens = self._totals.count_tokens
        if count_tokens is not None and (exchange is None or not exchange.is_broken):
            self._tokens_of[place] = count_tokens(self._items[place])
            self._seen_tokens += self._tokens_of[place]
        if exchange is None:
            self._add(self._totals, place)
        elif not exchange.missing and not exchange.is_broken:
            # Where some were counted before, the item is reasoning that led to them.
            for member in [place] if exchange.counted else exchange.members:
                self._add(self._totals, member)
            exchange.counted = len(exchange.members)
        else:
            if exchange.is_broken:
                self._broken += len(exchange.members) - exchange.counted
                exchange.counted = len(exchange.members)
            if self._leaves_out_too_many(place + 1):
                self._end_at(place + 1, None)
            return
        if self._totals.are_over():
            self._end_at(place, exchange)

    def _add(self, totals: _Totals, place: int) -> None:
        totals.items += 1
        if self._turn_of:
            totals.turns.add(self._turn_of[place])
        if self._tokens_of:
            totals.tokens += self._tokens_of[place]

    def _leaves_out_too_many(self, seen: int) -> bool:
        kept = self._totals.items
        left_out = seen - kept
        if left_out <= kept + REACH_ITEMS:
            return False
        # What waits for an older item is hopeless too where the caps have no room for all of it.
        is_hopeless = self._totals.would_be_over(seen - self._broken, self._turn + 1, self._seen_tokens)
        return (left_out if is_hopeless else self._broken) > kept + REACH_ITEMS or left_out > kept + _FAR_ITEMS

    def _end_at(self, place: int, exchange: Exchange | None) -> None:
        """Note that the window cannot reach this place.

        Args:
            place: the place.
            exchange: that of the item there.
        """
        self._end = self._cut = place
        self._waiting = sorted(waiting for waiting in self._exchanges.open_places if waiting < place)
        if exchange is not None and exchange.is_whole:
            self._cut = exchange.newest

    def _waits(self) -> bool:
        """Whether it is open if the exchange of an item in the window is whole."""
        exchanges = self._exchanges
        while self._waiting:
            place = self._waiting[-1]
            exchange = exchanges.of[place]
            if place in exchanges.open_places and place < self._cut and exchange is not None and not exchange.is_broken:
                return len(self._items) - 1 - place < REACH_ITEMS  # it was looked for longer for the newer ones
            self._waiting.pop()
        return False

    def _find(self) -> list[Item]:
        end = len(self._items) if self._end is None else self._end
        if self._compaction is None:
            return self._longest(end, self._totals.emptied())
        end = min(end, self._compaction)
        totals = self._totals.emptied()
        compaction = self._items[self._compaction]
        if totals.count_tokens is not None:
            self._tokens_of[self._compaction] = totals.count_tokens(compaction)
        self._add(totals, self._compaction)
        if totals.are_over():
            return self._longest(end, self._totals.emptied())
        return [compaction, *self._longest(end, totals)]

    def _longest(self, end: int, totals: _Totals) -> list[Item]:
        """Return the longest valid part of the items below this place, oldest first.

        Args:
            end: the place.
            totals: what counts beside them.
        """
        if self._exchanges.newest_place >= end and not totals.items:
            return self._items[:end][::-1]  # all of them are valid by themselves, and fit
        exchange_of = self._exchanges.of
        taken: list[int] = []
        valid_count = 0  # how many of them are the longest valid window so far
        missing_members = 0  # members, not taken yet, of exchanges of which a member was taken
        entered: set[Exchange] = set()
        # The more items are taken, the less is left under each cap. So the first item over a cap ends the window.
        for place in range(end):
            exchange = exchange_of[place]
            if exchange is not None and (exchange.missing or exchange.is_broken):
                continue
            self._add(totals, place)
            if totals.are_over():
                break
            taken.append(place)
            if exchange is not None:
                missing_members += -1 if exchange in entered else len(exchange.members) - 1
                entered.add(exchange)
            if not missing_members:
                valid_count = len(taken)
        return [self._items[place] for place in reversed(taken[:valid_count])]


class _Totals:
    """How many items, turns and tokens a part of a history has, and how many it may have.

    Attributes:
        items, turns, tokens: how many items, which turns, how many tokens; turns and tokens only if they are capped.
        most_items, most_turns, most_tokens: the caps; infinite where there is none.
        are_of_items: whether items alone are capped.
        have_turns: whether turns are capped.
        count_tokens: counts the tokens of an item; None if they are not capped.
    """

    def __init__(self, settings: SessionSettings) -> None:
        limit, max_turns, max_tokens = settings.limit, settings.max_turns, settings.max_tokens
        self._settings = settings
        self.items = self.tokens = 0
        self.turns: set[int] = set()
        self.most_items = math.inf if limit is None else limit
        self.most_turns = math.inf if max_turns is None else max_turns
        self.most_tokens = math.inf if max_tokens is None else max_tokens
        self.are_of_items = max_turns is None and max_tokens is None
        self.have_turns = max_turns is not None
        self.count_tokens = None if max_tokens is None else _checked(settings.count_tokens or estimate_tokens)

    def emptied(self) -> _Totals:
        """Return totals of nothing, with the same caps."""
        return _Totals(self._settings)

    def are_full(self, turn: int) -> bool:
        """Whether there is no room for an item of this turn, however few tokens it has."""
        if self.items >= self.most_items:
            return True
        return len(self.turns) >= self.most_turns and turn not in self.turns

    def are_over(self) -> bool:
        """Whether there is more than a cap allows."""
        return self.would_be_over(self.items, len(self.turns), self.tokens)

    def would_be_over(self, items: int, turns: int, tokens: int) -> bool:
        """Whether so much is more than a cap allows."""
        return items > self.most_items or turns > self.most_turns or tokens > self.most_tokens


def _checked(count_tokens: Callable[[Item], int]) -> Callable[[Item], int]:
    """The same function, which refuses a wrong count."""

    def count(item: Item) -> int:
        tokens = count_tokens(item)
        if isinstance(tokens, bool) or not isinstance(tokens, int):
            raise TypeError(
                f"count_tokens returned {tokens!r} for an item of type {kind_of(item)!r}; it must be an int"
            )
        if tokens < 0:
            raise ValueError(
                f"count_tokens returned {tokens} for an item of type {kind_of(item)!r}; it must be 0 or more"
            )
        return tokens

    return count
