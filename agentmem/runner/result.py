"""What a run gives back. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..items import Item, RunItem
from .agent import Agent
from .model import Usage


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        final_output: text of the last message ("" where the model sent none), or an object of the last
            agent's ``output_type``. None where the model asks for what only the caller can give.
        new_items: what the run produced, oldest first, typed; the input is not among them.
        usage: the sum over all model calls.
        last_agent: the agent that gave the final output; give it to the next run to go on with it.
        input: the input of the run, as items.
        replayed: the items from the session that the first model call was sent, before the input.
    """

    final_output: Any
    new_items: list[RunItem]
    usage: Usage
    last_agent: Agent
    input: list[Item]
    replayed: list[Item]

    def to_input_list(self) -> list[Item]:
        """Input and new items together: the input of a next run that has no session."""
        return [*self.input, *(item.to_input_item() for item in self.new_items)]
