"""How many tokens a picture counts; the rules and their sources are in ``media``."""

from __future__ import annotations

import math
import re

from .base64_data import Base64Data

PATCH_PIXELS = 32
TOKENS_PER_PATCH = 1.2
LOW_PIXELS = 512
HIGH_PATCHES = 2_500
MOST_PATCHES = 30_000
UNKNOWN_PATCHES = 1_536

_MOST_SEGMENTS = 64
"""How many segments of a JPEG are looked at before its size. The data of cameras takes one or a few."""

_NO_SIZE_MARKERS = (0xC4, 0xC8, 0xCC)


def count_picture_tokens(data: Base64Data | None, *, detail: object = None, size_hint: object = None) -> float:
    """Return the tokens of a picture.

    Args:
        data: the picture; None if only its id or a link is known.
        detail: "low", "high", "original" or "auto"; anything else counts as "auto".
        size_hint: its size as ``"WIDTHxHEIGHT"``, used where the data does not say it.
    """
    size = (_size_in(data) if data is not None else None) or _size_from(size_hint)
    if size is None:
        patches = (LOW_PIXELS // PATCH_PIXELS) ** 2 if detail == "low" else UNKNOWN_PATCHES
    elif detail == "low":
        shrink = min(1.0, LOW_PIXELS / max(size))
        patches = _patches(size[0] * shrink, size[1] * shrink)
    else:
        patches = patches_within(*size, HIGH_PATCHES if detail == "high" else MOST_PATCHES)
    return math.ceil(patches * TOKENS_PER_PATCH)


def patches_within(width: int, height: int, most: int) -> int:
    """Return how many patches cover a picture, after it was shrunk to at most so many; the formula is the API's."""
    patches = _patches(width, height)
    if patches <= most:
        return patches
    shrink = math.sqrt(PATCH_PIXELS**2 * most / (width * height))
    columns, rows = width * shrink / PATCH_PIXELS, height * shrink / PATCH_PIXELS
    if columns < 1 or rows < 1:  # a strip, which the formula would shrink to nothing
        return most
    shrink *= min(math.floor(columns) / columns, math.floor(rows) / rows)
    return min(most, _patches(width * shrink, height * shrink))


def _patches(width: float, height: float) -> int:
    # Rounded to whole pixels first, as the API does, with some room for the rounding of the factors.
    columns, rows = int(width + 1e-6) / PATCH_PIXELS, int(height + 1e-6) / PATCH_PIXELS
    return max(1, math.ceil(columns)) * max(1, math.ceil(rows))


def _size_from(hint: object) -> tuple[int, int] | None:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", hint) if isinstance(hint, str) else None
    return (int(found[1]), int(found[2])) if found else None


def _size_in(data: Base64Data) -> tuple[int, int] | None:
    """The width and height that the data of a PNG, JPEG, WebP or GIF names; None for anything else."""
    header = data.read(0, 30)
    if header[:8] == b"\x89PNG\r\n\x1a\n":
        size = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
    elif header[:4] in (b"GIF8",):
        size = int.from_bytes(header[6:8], "little"), int.from_bytes(header[8:10], "little")
    elif header[:4] == b"RIFF" and header[8:12] == b"WEBP":
        size = _webp_size(header)
    elif header[:2] == b"\xff\xd8":
        size = _jpeg_size(data)
    else:
        return None
    return size if min(size) > 0 else None


def _webp_size(header: bytes) -> tuple[int, int]:
    """https://developers.google.com/speed/webp/docs/riff_container"""
    chunk = header[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(header[24:27], "little") + 1, int.from_bytes(header[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(header[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(header[26:28], "little") & 0x3FFF, int.from_bytes(header[28:30], "little") & 0x3FFF


def _jpeg_size(data: Base64Data) -> tuple[int, int]:
    """The size in the first start-of-frame segment (ITU-T T.81, B.2.2); (0, 0) if there is none."""
    offset = 2
    for _ in range(_MOST_SEGMENTS):
        segment = data.read(offset, 9)
        if len(segment) < 9 or segment[0] != 0xFF:
            break
        marker = segment[1]
        if 0xC0 <= marker <= 0xCF and marker not in _NO_SIZE_MARKERS:
            return int.from_bytes(segment[7:9], "big"), int.from_bytes(segment[5:7], "big")
        # A byte of filling before the marker, or a segment with its length.
        offset += 1 if marker == 0xFF else 2 + int.from_bytes(segment[2:4], "big")
    return 0, 0
