"""The replay window of a history, or of its newest items."""

from __future__ import annotations

from collections.abc import Sequence

from ..items import Item
from .exchanges import exchange_members
from .kinds import is_input_message
from .search import WindowSearch
from .settings import SessionSettings


def replay_window(items: Sequence[Item], settings: SessionSettings) -> list[Item]:
    """Return the replay window of a whole history.

    Args:
        items: all items of the session, oldest first.
        settings: the caps.

    Returns:
        The items of the window, oldest first.

    Raises:
        TypeError: ``count_tokens`` returned something other than an int.
        ValueError: ``count_tokens`` returned a negative number.
    """
    if not settings.has_caps:
        return uncapped_window(items)
    search = WindowSearch(settings)
    search.take(reversed(items))
    return search.finish()


def find_window(items: Sequence[Item], settings: SessionSettings, *, at_start: bool) -> list[Item] | None:
    """Find the replay window from the newest items of a history.

    Args:
        items: the newest items of the history, oldest first: all, or at least :func:`first_items` of them, among which
            a ``compaction`` item is looked for.
        settings: the caps; at least one must be set.
        at_start: whether the history has no items before these.

    Returns:
        The items of the window, oldest first. None if the window depends on older items.

    Raises:
        TypeError, ValueError: as in :func:`replay_window`.
    """
    search = WindowSearch(settings)
    search.take(reversed(items))
    return search.finish() if at_start or search.is_settled or search.wants_only_compaction else None


def uncapped_window(items: Sequence[Item]) -> list[Item]:
    """Return the replay window without caps: the history as it is, or its newest ``compaction`` item and what follows.

    Messages of the caller's that stand before that item are kept where the history has nothing else before it. The
    API's compaction gives them so, and its answer is to be sent whole
    (https://developers.openai.com/api/docs/guides/compaction).

    Args:
        items: the history, oldest first: all of it, or its newest items, from one on that is older than the newest
            ``compaction`` item and no message of the caller's.
    """
    for place in range(len(items) - 1, -1, -1):
        if items[place].get("type") == "compaction":
            kept = items[:place] if all(map(is_input_message, items[:place])) else []
            return [*kept, items[place], *whole_exchanges(items[place + 1 :])]
    return [item for item in items if item.get("type") != "compaction_trigger"]


def whole_exchanges(items: Sequence[Item]) -> list[Item]:
    """Return the items without those of incomplete exchanges, in the same order.

    Args:
        items: the history, oldest first. A half of an exchange that is not among them counts as missing.
    """
    return [item for item, members in zip(items, exchange_members(items), strict=True) if members]
