"""The kinds of item that a run produces, as in ``RunResult.new_items``. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .encoding import Item


@dataclass(frozen=True, repr=False)
class RunItem:
    """An item that a run added, with the agent that it comes from.

    Attributes:
        raw_item: the item as it is stored and replayed.
        agent_name: the name of the agent that was active.
    """

    type: ClassVar[str] = "run_item"

    raw_item: Item
    agent_name: str

    def to_input_item(self) -> Item:
        """Return the item as it is sent to the model."""
        return self.raw_item

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.agent_name!r}>"  # without what was said, which may be long and private


@dataclass(frozen=True, repr=False)
class MessageOutputItem(RunItem):
    """A message from the model."""

    type: ClassVar[str] = "message_output_item"

    @property
    def text(self) -> str:
        """The text of the message; a refusal counts as text."""
        return message_text(self.raw_item)


@dataclass(frozen=True, repr=False)
class ToolCallItem(RunItem):
    """The model calls a tool. A hosted tool (such as web search) has no separate output item."""

    type: ClassVar[str] = "tool_call_item"


@dataclass(frozen=True, repr=False)
class ToolCallOutputItem(RunItem):
    """The output of a tool call.

    Attributes:
        output: the value that the tool returned, before it was converted to text.
    """

    type: ClassVar[str] = "tool_call_output_item"

    output: Any = None


@dataclass(frozen=True, repr=False)
class HandoffCallItem(RunItem):
    """The model hands the conversation over to another agent."""

    type: ClassVar[str] = "handoff_call_item"


@dataclass(frozen=True, repr=False)
class HandoffOutputItem(RunItem):
    """The output of a handoff: another agent continues the conversation.

    Attributes:
        target_agent_name: the name of that agent.
    """

    type: ClassVar[str] = "handoff_output_item"

    target_agent_name: str = ""


@dataclass(frozen=True, repr=False)
class ReasoningItem(RunItem):
    """The model's reasoning, mostly opaque. It is replayed only together with the item that it led to."""

    type: ClassVar[str] = "reasoning_item"


def message_text(item: Item) -> str:
    """Return the text of a message; "" if there is none.

    Messages come in two forms. ``content`` is a string where it was written by hand, and a list of parts where a model
    answered. A refusal counts as text. Items of other kinds, such as calls and outputs, have no role and no such text.

    Args:
        item: an item, as ``get_items()`` returns it.
    """
    content = item.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part for part in content if isinstance(part, dict))
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in parts)
