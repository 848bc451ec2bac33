"""The result of a run. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..items import Item, RunItem
from .agent import Agent
from .model import Usage


@dataclass(frozen=True, repr=False)
class RunResult:
    """The result of a finished run.

    Attributes:
        final_output: the text of the last message ("" if there is none), or an instance of the last agent's
            ``output_type``. None if the model asks for something that only the caller can give, or made asynchronous
            calls and said nothing.
        new_items: the items that the run produced, oldest first, without the input.
        usage: the sum over all model calls.
        last_agent: the agent that was active at the end. Pass it to the next run to continue with it.
        input: the input of the run, as items.
        replayed: the items of the session that the first model call was sent before the input, oldest first.
    """

    final_output: Any
    new_items: list[RunItem]
    usage: Usage
    last_agent: Agent
    input: list[Item]
    replayed: list[Item]

    def to_input_list(self) -> list[Item]:
        """Return the input and the new items, oldest first: the input for a next run without a session."""
        return [*self.input, *(item.to_input_item() for item in self.new_items)]

    def __repr__(self) -> str:
        counts = f"{len(self.new_items)} new items, {self.usage.requests} model calls"
        return f"<RunResult of {self.last_agent.name!r}: {counts}>"
