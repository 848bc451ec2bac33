"""Reasoning of a model in later requests: what stands by itself, and what the provider must still have. Pure.

The API gives a reasoning item with an id. It finds the reasoning by that id only while it keeps the response: for 30
days or so, and with ``"store": false`` never. An item with ``encrypted_content`` stands by itself
(https://developers.openai.com/api/docs/guides/reasoning). So does one with its text in ``content``, as servers of open
models give it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

from ..items import Item
from ..replay import is_input_message, is_output

ENCRYPTED_CONTENT = "reasoning.encrypted_content"
"""The value of ``include`` that asks for the encrypted content."""

ReplayReasoning = Literal["all", "encrypted", "none"]
REPLAY_REASONING: tuple[str, ...] = get_args(ReplayReasoning)

_WITHOUT_REASONING = ("gpt-3.5", "gpt-4", "chatgpt-4o")
"""How the names of OpenAI's models begin that do not reason. They answer 400 to a request for encrypted content."""

_LINKED_KINDS = frozenset({"function_call", "custom_tool_call", "message"})

_NOT_FOUND = re.compile(r"""\bitem\b[^'"`]{0,40}['"`]([^'"`]+)['"`].{0,80}?\bnot found""", re.IGNORECASE)
"""OpenAI: "Item with id 'rs_1' not found. Items are not persisted when `store` is set to false. …"."""


def may_encrypt(model: str) -> bool:
    """Whether the model may give encrypted reasoning, as far as its name tells; an unknown one may."""
    return not model.rpartition("/")[2].removeprefix("ft:").startswith(_WITHOUT_REASONING)


def stands_by_itself(item: Item) -> bool:
    """Whether the provider needs nothing that it may have forgotten to read the item."""
    return item.get("type") != "reasoning" or bool(item.get("encrypted_content") or item.get("content"))


def leave_out_reasoning(items: Sequence[Item], replay: ReplayReasoning) -> list[Item]:
    """Return the items without the reasoning that is not to be replayed.

    The calls and messages that such reasoning led to are sent without their ids: while the API knows the id, it insists
    on the reasoning.

    Args:
        items: the items, oldest first.
        replay: which reasoning stays: "all", what stands by itself ("encrypted"), or "none".
    """
    sent: list[Item] = []
    is_unlinked = False  # whether reasoning was left out that the next items may have come from
    for item in items:
        if item.get("type") == "reasoning":
            is_unlinked = replay == "none" or (replay == "encrypted" and not stands_by_itself(item))
            if is_unlinked:
                continue
        elif is_output(item) or is_input_message(item):
            is_unlinked = False
        sent.append(_without_id(item) if is_unlinked and item.get("type") in _LINKED_KINDS else item)
    return sent


def _without_id(item: Item) -> Item:
    return {name: value for name, value in item.items() if name != "id"}


def refuses_encrypted_content(error: Exception) -> bool:
    """Whether the API refused a request because it asked for encrypted content.

    OpenAI says "Encrypted content is not supported with this model."; other servers complain of the ``include``.
    """
    text = f"{error} {getattr(error, 'body', None)}".lower()
    is_about_it = any(word in text for word in ("encrypted_content", "encrypted content", "include"))
    return getattr(error, "status_code", None) in (400, 422) and is_about_it and not _is_unreadable(text)


def advice_for_refusal(message: str, items: Sequence[Item]) -> str:
    """Return what to do where the API refused an item that was sent; "" if that is not what it said.

    Args:
        message: what the API said.
        items: the items that were sent.
    """
    if _is_unreadable(message.lower()):
        return (
            "; this reasoning is of another model, key or organization; "
            "RunConfig(replay_reasoning='none') leaves out what the session holds of it"
        )
    found = _NOT_FOUND.search(message)
    if found is None:
        return ""
    kinds = {item.get("type") for item in items if item.get("id") == found[1]}
    if "reasoning" in kinds or found[1].startswith("rs_") or "reasoning" in found[0]:
        return (
            "; the provider no longer has this reasoning, and it was sent by its id alone; "
            "RunConfig(replay_reasoning='encrypted') leaves out such reasoning, and keeps what stands by itself"
        )
    return (
        "; the provider no longer has this item; RunConfig(session_input_callback=...) can leave it out of what is sent"
    )


def _is_unreadable(text: str) -> bool:
    """Whether the API could not decrypt the reasoning that it was sent."""
    return "invalid_encrypted_content" in text or ("encrypted content" in text and "could not be verified" in text)
