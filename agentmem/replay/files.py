"""How many tokens a file counts; the rules and their sources are in ``media``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from .base64_data import Base64Data
from .pictures import count_picture_tokens

PAGE_TEXT_TOKENS = 650
BYTES_PER_PAGE = 100_000
MOST_GUESSED_PAGES = 20
UNKNOWN_FILE_PAGES = 4
TABLE_ROWS = 1_000

_TABLES = (".csv", ".tsv", ".iif")
_HEAD_BYTES = 6 * 1024
_TAIL_BYTES = 32 * 1024
_BYTES_PER_TOKEN = 4


def count_file_tokens(fields: Mapping[str, object], count_text: Callable[[bytes], float]) -> float:
    """Return the tokens of a file.

    Args:
        fields: ``file_data`` with its content, or only its id or link; ``filename``; ``detail``.
        count_text: estimates the tokens of a text.
    """
    detail = fields.get("detail")
    content = fields.get("file_data")
    data = Base64Data.from_url(content) if isinstance(content, str) else None
    if data is None:
        return UNKNOWN_FILE_PAGES * _page_tokens(detail)
    head = data.read(0, _HEAD_BYTES)
    if head[:1024].find(b"%PDF-") >= 0:
        return _pages(data, head) * _page_tokens(detail)
    if _is_text(head):
        name = str(fields.get("filename", "")).lower()
        is_table = name.endswith(_TABLES) or data.media_type in ("text/csv", "text/tab-separated-values")
        return _text_tokens(data.size_bytes, head, count_text, is_table=is_table)
    return min(data.size_bytes / _BYTES_PER_TOKEN, UNKNOWN_FILE_PAGES * _page_tokens(detail))


def _page_tokens(detail: object) -> float:
    # "auto" is "high" since GPT-5.6. How large the picture of a page is, is not documented.
    return PAGE_TEXT_TOKENS + count_picture_tokens(None, detail=detail)


def _is_text(head: bytes) -> bool:
    if not head or b"\0" in head:
        return False
    try:
        head[:-3].decode()  # without a character that may be cut
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 6
    return True


def _text_tokens(size_bytes: int, head: bytes, count_text: Callable[[bytes], float], *, is_table: bool) -> float:
    if is_table:
        rows = head.count(b"\n")
        size_bytes = min(size_bytes, TABLE_ROWS * len(head) // rows) if rows else size_bytes
    return count_text(head) * size_bytes / len(head)


def _pages(data: Base64Data, head: bytes) -> int:
    """The number of pages that a PDF names, or a guess from its size.

    It is in the first object of a file that is made for the web, else in the root of the tree of pages, unless that is
    compressed.
    """
    if b"/Linearized" in head[:1024]:
        found = re.search(rb"/N[ \r\n]+(\d{1,5})\b", head[:2048])
        if found:
            return max(1, int(found[1]))
    tail = data.read(max(0, data.size_bytes - _TAIL_BYTES), _TAIL_BYTES)
    counts = [int(count) for count in re.findall(rb"/Count[ \r\n]+(\d{1,5})\b", head + tail)]
    guess = min(MOST_GUESSED_PAGES, data.size_bytes // BYTES_PER_PAGE)
    return max(1, *counts) if counts else max(1, guess)
