"""What pictures, files, audio and encrypted content in an item count as, instead of as text.

The rules are those of OpenAI's API for its GPT-5.6 models, as far as they are documented (read in November 2026):

- A picture (an ``input_image``, a screenshot, a generated picture, one of the code interpreter) counts 1.2 tokens for
  each patch of 32 × 32 pixels that it takes to cover it. ``detail: "low"`` shrinks it into 512 × 512 pixels first,
  ``"high"`` to 2,500 patches; ``"auto"``, ``"original"`` and no detail leave it as it is, up to 30,000 patches
  (https://developers.openai.com/api/docs/guides/images-vision). Its size is in the first bytes of its data. Where it
  cannot be read (a file id, a link, another format) it counts as 1,536 patches, as OpenAI's own client does
  (https://github.com/openai/codex, ``RESIZED_IMAGE_BYTES_ESTIMATE``: 1,844 tokens).
- A PDF counts the text and a picture of each page (https://developers.openai.com/api/docs/guides/file-inputs). A page
  is taken to have 650 tokens of text. Where the number of pages cannot be read, it is one for each 100 kB, at most 20.
- A file of text counts its text; a table (CSV, TSV) its first 1,000 rows, which are all that the API takes. Other files
  count a token for four bytes, at most as four pages of a PDF; and as these where only an id or a link is known.
- Audio counts ten tokens a second (https://developers.openai.com/api/docs/guides/realtime-costs). MP3 is taken to have
  64 kbit/s.
- Encrypted content (of reasoning, compactions and messages between agents, and the fingerprint of a program) is base64
  of what counts four bytes a token, and of about 650 bytes around it (https://github.com/openai/codex,
  ``estimate_reasoning_length``).

Other models count in other ways: older ones shrink pictures further, or count tiles of 512 pixels. Base64 in a plain
text, such as the output of a tool, is text to the model and counts as text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..items import Item
from .base64_data import Base64Data
from .files import count_file_tokens
from .pictures import count_picture_tokens

AUDIO_TOKENS_PER_S = 10
_WAV_BYTES_PER_S = 48_000  # 24 kHz, 16 bits, mono; where the file does not say
_MP3_BYTES_PER_S = 8_000

_ENVELOPE_BYTES = 650
_BYTES_PER_TOKEN = 4

CountText = Callable[[bytes], float]

_PICTURES = frozenset({"input_image", "image_url", "computer_screenshot", "image"})


def split_media(item: Item, count_text: CountText) -> tuple[float, Item]:
    """Return the tokens of the media in an item, and the item without them.

    Args:
        item: any JSON object.
        count_text: estimates the tokens of a text.
    """
    tokens, rest = _split_part(item, count_text)
    for name in ("content", "output", "outputs"):
        value = item.get(name)
        parts = value if isinstance(value, list) else [value] if isinstance(value, dict) else []
        split = [_split_part(part, count_text) if isinstance(part, dict) else (0.0, part) for part in parts]
        if any(new is not old for (_, new), old in zip(split, parts, strict=True)):
            tokens += sum(part_tokens for part_tokens, _ in split)
            rest = {**rest, name: [part for _, part in split]}
    return tokens, rest


def _split_part(part: dict[str, Any], count_text: CountText) -> tuple[float, dict[str, Any]]:
    """The same for one part of an item's content, or the item itself. A part without media is returned as it is."""
    kind = part.get("type")
    if not isinstance(kind, str):
        return 0, part
    encrypted = part.get("fingerprint" if kind == "program" else "encrypted_content")
    if isinstance(encrypted, str):
        return _encrypted_tokens(encrypted), _without(part, "encrypted_content", "fingerprint")
    if kind in _PICTURES:
        return _split_picture(part)
    if kind == "image_generation_call" and isinstance(part.get("result"), str):
        tokens = count_picture_tokens(Base64Data(part["result"]), size_hint=part.get("size"))
        return tokens, _without(part, "result")
    if kind in ("input_file", "file"):
        file = part.get("file")
        fields = file if isinstance(file, dict) else part  # the form of chat completions has it inside
        return count_file_tokens(fields, count_text), _without(part, "file_data", "file")
    audio = part.get("input_audio")
    if kind == "input_audio" and isinstance(audio, dict) and isinstance(audio.get("data"), str):
        return _audio_tokens(Base64Data.from_url(audio["data"]), audio.get("format")), _without(part, "input_audio")
    return 0, part


def _split_picture(part: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    source: Any = part.get("image_url", part.get("url"))
    detail = part.get("detail")
    if isinstance(source, dict):  # the form of chat completions
        detail, source = source.get("detail"), source.get("url")
    if not isinstance(source, str) and not isinstance(part.get("file_id"), str):
        return 0, part
    data = Base64Data.from_url(source) if isinstance(source, str) else None
    return count_picture_tokens(data, detail=detail), _without(part, "image_url", "url")


def _encrypted_tokens(content: str) -> float:
    return max(0, len(content) * 3 // 4 - _ENVELOPE_BYTES) / _BYTES_PER_TOKEN


def _audio_tokens(data: Base64Data | None, file_format: object) -> float:
    if data is None:
        return 0
    bytes_per_s = _MP3_BYTES_PER_S
    if file_format == "wav":
        header = data.read(0, 32)
        declared = int.from_bytes(header[28:32], "little") if header[8:16] == b"WAVEfmt " else 0
        bytes_per_s = declared or _WAV_BYTES_PER_S
    return AUDIO_TOKENS_PER_S * data.size_bytes / bytes_per_s


def _without(part: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in names}
