"""The replay window: the newest part of a session that is sent to the model.

The window is the longest suffix of the history, without its incomplete exchanges, for which these rules hold:

- It has at most ``limit`` items, ``max_turns`` turns and ``max_tokens`` tokens.
- No exchange is cut: a call stays with its output, an approval request with its response, a program with the calls that
  it made, and reasoning with the item that it led to.
- The order of the items is kept. Settings without a cap leave the history as it is.
- A ``compaction`` item stands for all that is before it: the window begins with it, with or without caps. It counts,
  and the oldest of the others give way to it. Where a cap does not even have room for it, the window is what fits after
  it. Without caps, the messages that the API's compaction puts before it stay (``uncapped_window``).
- A ``compaction_trigger`` is never replayed, because it must be the last item of a request. Asynchronous calls are
  valid without an output, which may come at any later time.

Reading back is bounded, so that only as much of a session is read as its window takes, however it came to be:

- The other half of an exchange is looked for as far back as the window would reach without it, and at least
  ``REACH_ITEMS`` items. A half that is not found there counts as missing.
- The window ends where the items that are left out as incomplete outnumber those that it takes by ``REACH_ITEMS``.
- A ``compaction`` item is looked for as far back as the window reaches, and at least in as many items as are read first
  (``first_items``).

All functions here are pure. ``kinds`` has the kinds of item and ``exchanges`` what belongs together, ``search`` and
``window`` find the window, and ``tokens`` estimates how many tokens an item has.
"""

from .exchanges import begins_earlier, exchange_members, unanswered_calls
from .kinds import CALL_OF, is_call, is_input_message, is_output
from .kinds import may_stay_pending as is_async_call
from .search import REACH_ITEMS, WindowSearch, first_items
from .settings import SessionSettings
from .tokens import estimate_tokens
from .window import find_window, replay_window, uncapped_window, whole_exchanges

__all__ = [
    "CALL_OF",
    "REACH_ITEMS",
    "SessionSettings",
    "WindowSearch",
    "begins_earlier",
    "estimate_tokens",
    "exchange_members",
    "find_window",
    "first_items",
    "is_async_call",
    "is_call",
    "is_input_message",
    "is_output",
    "replay_window",
    "unanswered_calls",
    "uncapped_window",
    "whole_exchanges",
]
