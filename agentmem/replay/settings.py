"""The caps of the replay window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ..items import Item

_Cap = Annotated[int, Field(strict=True, ge=0)]


class SessionSettings(BaseModel):
    """The caps of the replay window, which ``get_items()`` without a limit returns. ``agentmem.replay`` describes its
    rules.

    A cap of None is no cap. Settings only choose what is read; they never delete anything.

    Args:
        limit: at most this many items; 0 or more.
        max_turns: at most this many turns; 0 or more. A turn begins with a user, system or developer message and goes
            on up to the next one. Consecutive messages of these roles begin one turn together.
        max_tokens: at most this many tokens, as ``count_tokens`` counts them; 0 or more.
        count_tokens: a function that returns the number of tokens of an item, 0 or more. Default:
            ``agentmem.replay.estimate_tokens``. It must be pure, because it is called more than once for an item. A
            sync session calls it in the thread of the call, an async one in other threads; so it may block, and read
            sessions.

    Raises:
        pydantic.ValidationError (a ValueError): a cap is negative or not an int, or a setting is unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: _Cap | None = None
    max_turns: _Cap | None = None
    max_tokens: _Cap | None = None
    count_tokens: Callable[[Item], int] | None = Field(default=None, repr=False)

    @property
    def has_caps(self) -> bool:
        """Whether at least one cap is set."""
        return not (self.limit is None and self.max_turns is None and self.max_tokens is None)
