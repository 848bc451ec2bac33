"""The kinds of item in the Responses API, and which of them are valid only together.

The sources are the input types of openai 3.57 (``ResponseInputItemParam``, and ``BetaResponseInputItemParam`` for what
is in beta) and the guides of the API on function calling, reasoning and compaction
(https://developers.openai.com/api/docs/guides/function-calling, …/reasoning, …/compaction).

All functions here are pure. They accept any JSON object, because a stored item may be anything.
"""

from __future__ import annotations

from ..items import Item

CALL_OF = {
    "function_call_output": "function_call",
    "custom_tool_call_output": "custom_tool_call",
    "computer_call_output": "computer_call",
    "local_shell_call_output": "local_shell_call",
    "shell_call_output": "shell_call",
    "apply_patch_call_output": "apply_patch_call",
    "tool_search_output": "tool_search_call",
    "program_output": "program",
    "mcp_approval_response": "mcp_approval_request",
    "multi_agent_call_output": "multi_agent_call",
}
"""Every kind of exchange in the API: the type of its second half, and that of its first."""

CALLS = frozenset(CALL_OF.values())

INPUT_ROLES = frozenset({"user", "system", "developer"})

_INPUT_KINDS = frozenset(
    {"additional_tools", "compaction", "compaction_trigger", "configuration_update", "item_reference"}
)
"""The kinds that the application puts into the input, beside messages and the outputs of calls."""

_REFERENCES_TO_OTHERS = ("msg_", "rs_", "ws_", "fs_", "ci_", "ig_", "mcp_", "mcpl_", "cmp_")
"""How the ids of items begin that are no calls which need an output: messages, reasoning, hosted calls, compactions."""


def kind_of(item: Item) -> str:
    """Return the item's type. A message may leave it out, and a reference to an item; "" if it is no text."""
    kind = item.get("type")
    if isinstance(kind, str):
        return kind
    if "type" not in item and "role" in item:
        return "message"
    return "item_reference" if kind is None and "role" not in item and isinstance(item.get("id"), str) else ""


def is_output(item: Item) -> bool:
    """Whether the item is the second half of an exchange: the output of a call, or the response to an approval
    request."""
    return kind_of(item) in CALL_OF


def is_call(item: Item) -> bool:
    """Whether the item is the first half of an exchange: a call that needs an output, or an approval request."""
    return kind_of(item) in CALLS


def is_input_message(item: Item) -> bool:
    """Whether the item is a user, system or developer message, as turns begin with."""
    role = item.get("role")
    return isinstance(role, str) and role in INPUT_ROLES and kind_of(item) == "message"


def may_follow_reasoning(item: Item) -> bool:
    """Whether the model may have written the item after reasoning; an unknown type counts as the model's."""
    kind = kind_of(item)
    return kind not in CALL_OF and kind not in _INPUT_KINDS and not is_input_message(item)


def may_stay_pending(item: Item) -> bool:
    """Whether a call is valid without its output, which may come at any later time: an asynchronous call."""
    return item.get("async") is True


def may_refer_to_call(reference: Item) -> bool:
    """Whether an ``item_reference`` may stand for a call that needs an output.

    Its id is the only hint. The API does not document the ids' prefixes, so only the well-known ones of other items are
    excluded.
    """
    item_id = reference.get("id")
    return isinstance(item_id, str) and not item_id.startswith(_REFERENCES_TO_OTHERS)


def shared_id(item: Item, kind: str) -> str:
    """The id that both halves of an exchange have, as the repr of a JSON value, so that 1 and "1" are different ids.

    A hosted tool may have no id, or null.
    """
    if kind == "mcp_approval_request":
        return repr(item.get("id"))
    if kind == "mcp_approval_response":
        return repr(item.get("approval_request_id"))
    call_id = item.get("call_id")
    if call_id is None and kind == "local_shell_call_output":
        call_id = item.get("id")  # documented by the API as the call's id; the Agents SDK writes "call_id"
    return repr(call_id)


def program_of(item: Item) -> str | None:
    """The id of the program that made this call, in the form of :func:`shared_id`; None if no program did.

    Such a call is valid only together with its program and the program's output.
    """
    caller = item.get("caller")
    if isinstance(caller, dict) and caller.get("type") == "program":
        return repr(caller.get("caller_id"))
    return None
