"""What the systems store: turns of a conversation, about 700 bytes each, the same for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

Item = dict[str, Any]

MAIN = "main"
"""The session with the long history."""

_QUESTION = (
    "I am planning a trip in October and would rather go by train than by plane. We are two adults and a child of six, "
    "we like old towns and quiet places to walk, and we have nine days in all."
)
_ANSWER = (
    "Then nine days are enough for two towns: spend the first four near the river, where the old quarter is closed to "
    "cars, and the rest in the hills, an hour further by the regional train. Children under seven travel free."
)


def item(position: int, *, tools: bool = False) -> Item:
    """The item at this position of every history; with `tools`, a turn also has a call and its output."""
    if tools:
        turn, place = divmod(position, 4)
        if place == 1:
            arguments = '{"from":"home","to":"the river","month":10}'
            return {"type": "function_call", "call_id": f"call_{turn}", "name": "find_trains", "arguments": arguments}
        if place == 2:
            return {"type": "function_call_output", "call_id": f"call_{turn}", "output": f"#{position}: {_ANSWER}"}
        is_question = place == 0
    else:
        is_question = position % 2 == 0
    if is_question:
        return {"role": "user", "content": text(position)}
    return {
        "id": f"msg_{position:032x}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": text(position), "annotations": []}],
    }


def text(position: int) -> str:
    """What is said at this position."""
    return f"#{position}: {_ANSWER if position % 2 else _QUESTION}"


def items(count: int, *, tools: bool = False, start: int = 0) -> Iterator[Item]:
    """The items of a history, oldest first."""
    return (item(position, tools=tools) for position in range(start, start + count))


def turn(number: int) -> list[Item]:
    """A question and its answer."""
    return [item(2 * number), item(2 * number + 1)]


@dataclass(frozen=True)
class History:
    """What a file holds before a workload begins.

    Attributes:
        items: of the session ``MAIN``.
        tools: whether these contain calls and their outputs.
        others: how many other sessions there are, and ``others_items`` in each.
    """

    items: int
    tools: bool = False
    others: int = 0
    others_items: int = 1

    def sessions(self) -> Iterator[tuple[str, int]]:
        """Every session's id and number of items."""
        yield MAIN, self.items
        for number in range(self.others):
            yield other(number), self.others_items

    def longest(self) -> int:
        """The number of items in the longest session."""
        return max(self.items, self.others_items if self.others else 0)

    def rows(self) -> Iterator[tuple[str, int, Item]]:
        """Session id, position and item of everything, session by session, oldest first."""
        for session_id, count in self.sessions():
            for position in range(count):
                yield session_id, position, item(position, tools=self.tools)


def other(number: int) -> str:
    """The id of one of the other sessions."""
    return f"other-{number:07d}"


def in_chunks(iterator: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """The same items, in lists of at most `size`."""
    while chunk := list(islice(iterator, size)):
        yield chunk
