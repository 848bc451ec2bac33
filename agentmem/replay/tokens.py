"""How many tokens an item has, estimated without a tokenizer and without a request.

The text of an item is its compact JSON, without the media in it (``media``). Its tokens are estimated from how often
some kinds of characters, and some pairs of kinds, are in it. The weights are a least-squares fit to ``o200k_base``, the
vocabulary of OpenAI's models since GPT-4o, on 1,300 items: prose in 24 languages, code, JSON in nine shapes, logs, CSV,
links, random ids, base64. What is left of error, in sum over the items of a sort:

- up to 5 %: English, German, Spanish, Chinese, Japanese, Hindi, Python, JSON, CSV, numbers, ids, base64;
- up to 12 %: French, Russian, Korean, Portuguese, Vietnamese, Polish, Italian, HTML, shell scripts, logs, links;
- more: Finnish (17 % too few), Thai (12 % too few), words that do not exist (36 % too few).

A single item was off by 6 % on average. On the samples of ``tests/support/token_samples.py``, which are others, the sum
is off by less than 5 %, and no text by more than 20 %. Four bytes a token were 63 % too few for base64, 34 % for JSON.

An item of 1 kB takes about 60 µs and one of 20 kB 140 µs (CPU time on a busy machine). Of a text longer than 2 kB only
parts are looked at, the same ones each time.
"""

from __future__ import annotations

from collections.abc import Callable

from ..items import Item, compact_json
from .media import split_media

SAMPLE_BYTES = 2048
"""The longest text that is looked at as a whole. Of a longer one, ``_SLICES`` slices of this size in all are."""

_SLICES = 8


def estimate_tokens(item: Item) -> int:
    """Estimate the tokens of an item; at least 1.

    Text counts by its characters, as the module describes: within 10 % for most texts. The JSON around it is counted
    too, though models see another form of it that is a little shorter. Pictures, files, audio and encrypted content
    count as OpenAI's default model charges for them; ``agentmem.replay.media`` has the rules and their sources. Set
    ``count_tokens`` where a cap must be exact, or for a model that counts in another way.
    """
    media_tokens, rest = split_media(item, count_text_tokens)
    return max(1, round(media_tokens + count_text_tokens(compact_json(rest))))


def count_text_tokens(text: bytes) -> float:
    """Estimate the tokens of a text.

    Args:
        text: as in JSON, in UTF-8. Escaped quotes, newlines and backslashes count as what they stand for.
    """
    size = len(text)
    if size <= SAMPLE_BYTES:
        return _FIXED_TOKENS + _count(text)
    step, width = size / _SLICES, SAMPLE_BYTES // _SLICES
    starts = [int(step * index) for index in range(_SLICES)]
    sample = b"".join(text[start : start + width] for start in starts)
    return _FIXED_TOKENS + _count(sample) * size / len(sample)


def _count(text: bytes) -> float:
    if b"\\" in text:
        text = text.replace(b"\\n", b"\n").replace(b'\\"', b'"').replace(b"\\\\", b"\\")
    kinds = text.translate(_KINDS, _CONTINUATION_BYTES)
    words = text.translate(_WORDS, _CONTINUATION_BYTES)
    tokens = 0.0
    for pattern, weight in _KIND_WEIGHTS:
        tokens += weight * kinds.count(pattern)
    for pattern, weight in _WORD_WEIGHTS:
        tokens += weight * words.count(pattern)
    return tokens


def _kind(byte: int) -> str:
    """The kind of character that this byte of UTF-8 begins."""
    if byte < 0x80:
        character = chr(byte)
        if character.islower():
            return "a"
        if character.isupper():
            return "A"
        if character.isdigit():
            return "0"
        return " " if character == " " else "n" if character in "\n\r\t" else "."
    ranges = (
        (0xC2, "."),  # signs of Latin 1
        (0xCD, "l"),  # Latin letters with accents
        (0xCF, "g"),  # Greek
        (0xD3, "c"),  # Cyrillic
        (0xE1, "g"),  # Hebrew, Arabic, the scripts of India and Thailand
        (0xE2, "s"),  # signs
        (0xE3, "k"),  # kana
        (0xE9, "z"),  # Chinese characters
        (0xED, "k"),  # Hangul
        (0xEF, "."),  # full-width signs
    )
    return next((kind for last, kind in ranges if byte <= last), "s")  # emoji, and rare characters


_CONTINUATION_BYTES = bytes(range(0x80, 0xC0))


def _table(kind_of: Callable[[int], str]) -> bytes:
    return "".join(map(kind_of, range(256))).encode()


_KINDS = _table(_kind)
_WORDS = _table(lambda byte: {"0": "0", ".": " ", "s": " ", "n": " ", " ": " "}.get(_kind(byte), "a"))
"""Letters of any script, digits, and a space for all else."""

_FIXED_TOKENS = 1.17

_KIND_WEIGHTS = (
    (b"a", 0.147),
    (b"A", 0.580),
    (b"AA", -0.327),
    (b"aA", 0.824),
    (b"0", 0.316),
    (b" 0", 1.036),
    (b".", 0.105),
    (b"a.", 0.659),
    (b". ", 0.637),
    (b"  ", 0.162),
    (b"n", 1.264),
    (b"l", 1.256),
    (b"c", 0.262),
    (b"g", 0.352),
    (b"k", 0.700),
    (b"z", 0.930),
    (b"s", 1.856),
)

_WORD_WEIGHTS = ((b" a", 0.249), (b"0a", 0.091), (b"a0", 1.370), (b" 0", 1.165))
