"""Items: their JSON text (``encoding``), and the kinds of item that a run produces (``run_items``)."""

from .encoding import (
    ERASED,
    MAX_DEPTH,
    MAX_STORED_DEPTH,
    Item,
    compact_json,
    decode_item,
    decode_joined,
    encode_item,
    encode_items,
    json_size_bytes,
)
from .run_items import (
    HandoffCallItem,
    HandoffOutputItem,
    MessageOutputItem,
    ReasoningItem,
    RunItem,
    ToolCallItem,
    ToolCallOutputItem,
    message_text,
)

__all__ = [
    "ERASED",
    "MAX_DEPTH",
    "MAX_STORED_DEPTH",
    "HandoffCallItem",
    "HandoffOutputItem",
    "Item",
    "MessageOutputItem",
    "ReasoningItem",
    "RunItem",
    "ToolCallItem",
    "ToolCallOutputItem",
    "compact_json",
    "decode_item",
    "decode_joined",
    "encode_item",
    "encode_items",
    "json_size_bytes",
    "message_text",
]
