"""What pictures, files, audio and encrypted content count as; the rules and their sources are in the module."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import JsonObject, json_values
from token_samples import TEXTS

from agentmem.replay import SessionSettings, estimate_tokens, replay_window
from agentmem.replay.base64_data import Base64Data
from agentmem.replay.pictures import count_picture_tokens, patches_within

NOISE = zlib.compress(bytes(range(256))) * 8_000  # 2 MB


def png(width: int, height: int, size: int = 1_000) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + NOISE[:size]


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + NOISE[:1_000]


def jpeg(width: int, height: int, *, before: int = 70_000) -> bytes:
    """With segments before the size, as cameras write them: an APP1 of 64 kB, and filling."""
    segments, left = b"", before
    while left > 0:
        length = min(left, 65_000)
        segments += b"\xff\xe1" + struct.pack(">H", length + 2) + NOISE[:length]
        left -= length
    size = b"\xff\xff\xc2" + struct.pack(">HBHH", 17, 8, height, width)
    return b"\xff\xd8" + segments + size + NOISE[:1_000]


def webp(width: int, height: int, kind: str) -> bytes:
    if kind == "VP8X":
        chunk = b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == "VP8L":
        chunk = b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + NOISE[:20]
    else:
        chunk = b"\x30\x01\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + NOISE[:20]
    return b"RIFF" + struct.pack("<I", 1_000) + b"WEBP" + kind.encode() + struct.pack("<I", len(chunk)) + chunk


def url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def picture(source: str, **fields: object) -> JsonObject:
    return {"role": "user", "content": [{"type": "input_image", "image_url": source, **fields}]}


def tokens_beside_text(item: JsonObject, name: str, part: JsonObject | None = None) -> int:
    """What the medium under this name adds to the estimate of the item."""
    holder = item if part is None else part
    value = holder.pop(name)
    without = estimate_tokens(item)
    holder[name] = value
    return estimate_tokens(item) - without


# Pictures


@pytest.mark.parametrize(
    ("width", "height", "most", "patches"),
    [(1024, 1024, 1536, 1024), (1800, 2400, 1536, 1452), (32, 32, 1536, 1), (33, 32, 1536, 2), (1, 1, 1536, 1)],
)
def test_the_patches_of_a_picture_are_those_of_the_guides_examples(
    width: int, height: int, most: int, patches: int
) -> None:
    """https://developers.openai.com/api/docs/guides/images-vision#calculating-costs"""
    assert patches_within(width, height, most) == patches


@given(st.integers(1, 100_000), st.integers(1, 100_000), st.integers(1, 30_000))
def test_a_picture_is_never_more_patches_than_it_may_be(width: int, height: int, most: int) -> None:
    assert 1 <= patches_within(width, height, most) <= most


@pytest.mark.parametrize(
    ("detail", "tokens"),
    [
        ("low", 308),  # 512 × 512 pixels
        ("high", 3_000),  # 50 × 50 patches
        ("auto", 4_916),  # 64 × 64 patches
        ("original", 4_916),
        (None, 4_916),
    ],
)
def test_a_picture_counts_its_patches_at_the_detail_that_is_asked_for(detail: str | None, tokens: int) -> None:
    item = picture(url(png(2048, 2048)), **({} if detail is None else {"detail": detail}))
    assert count_picture_tokens(Base64Data.from_url(url(png(2048, 2048))), detail=detail) == tokens
    assert tokens <= estimate_tokens(item) <= tokens + 30


@pytest.mark.parametrize(
    "data",
    [
        png(640, 480),
        gif(640, 480),
        jpeg(640, 480),
        jpeg(640, 480, before=0),
        webp(640, 480, "VP8 "),
        webp(640, 480, "VP8L"),
        webp(640, 480, "VP8X"),
    ],
    ids=["png", "gif", "jpeg of a camera", "jpeg", "webp", "webp lossless", "webp extended"],
)
def test_the_size_of_a_picture_is_in_its_data(data: bytes) -> None:
    assert count_picture_tokens(Base64Data.from_url(url(data))) == 360  # 20 × 15 patches
    assert count_picture_tokens(Base64Data(base64.b64encode(data).decode())) == 360


@pytest.mark.parametrize(
    "source",
    [
        "https://example.com/cat.png",
        "file-abc",
        "data:image/png,%89PNG",
        "data:image/png;base64,",
        "data:image/png;base64,!!!!",
        "data:image/png;base64," + "A" * 100_000,
        url(jpeg(1, 1)[:80]),
        url(png(0, 0)),
        url(b"\xff\xd8" + b"\xff" * 10_000),
    ],
    ids=lambda source: source[:40],
)
def test_a_picture_of_unknown_size_counts_as_one_of_1536_patches(source: str) -> None:
    assert 1_844 <= estimate_tokens(picture(source)) <= 1_874
    assert 308 <= estimate_tokens(picture(source, detail="low")) <= 338


def test_a_picture_in_a_file_counts_as_one_of_unknown_size() -> None:
    item = {"role": "user", "content": [{"type": "input_image", "file_id": "file-abc", "detail": "auto"}]}
    assert 1_844 <= estimate_tokens(item) <= 1_880


SCREENSHOT = url(png(1280, 720, 2_000_000))  # 920 patches


@pytest.mark.parametrize(
    "item",
    [
        picture(SCREENSHOT),
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": SCREENSHOT}}]},
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_image", "image_url": SCREENSHOT}]},
        {
            "type": "custom_tool_call_output",
            "call_id": "a",
            "output": [{"type": "input_image", "image_url": SCREENSHOT}],
        },
        {
            "type": "computer_call_output",
            "call_id": "a",
            "output": {"type": "computer_screenshot", "image_url": SCREENSHOT},
        },
        {"type": "code_interpreter_call", "id": "ci", "code": "", "outputs": [{"type": "image", "url": SCREENSHOT}]},
        {"type": "image_generation_call", "id": "ig", "result": SCREENSHOT.partition(",")[2]},
        {"type": "image_generation_call", "id": "ig", "result": "AAAA" * 500_000, "size": "1280x720"},
    ],
    ids=lambda item: str(item.get("type", "message")),
)
def test_a_picture_of_two_megabytes_counts_by_its_size_wherever_it_is(item: JsonObject) -> None:
    assert 1_104 <= estimate_tokens(item) <= 1_150


def test_after_pictures_the_window_holds_as_much_as_it_should() -> None:
    chat = [{"role": "user", "content": "And this?"}, {"role": "assistant", "content": "A cat."}]
    history = [*chat * 50, picture(SCREENSHOT), *chat * 50, picture(SCREENSHOT), *chat]
    assert replay_window(history, SessionSettings(max_tokens=128_000)) == history


def test_a_generated_picture_that_is_not_there_counts_nothing() -> None:
    assert estimate_tokens({"type": "image_generation_call", "id": "ig", "result": None}) < 40


def test_base64_that_a_tool_gave_as_text_counts_as_text() -> None:
    item = {"type": "function_call_output", "call_id": "a", "output": SCREENSHOT[:30_000]}
    assert estimate_tokens(item) > 10_000


# Files and audio


def file_tokens(data: bytes | None, media_type: str = "application/pdf", **fields: object) -> int:
    part: JsonObject = {"type": "input_file", "filename": "a.bin", **fields}
    if data is not None:
        part["file_data"] = url(data, media_type)
    return estimate_tokens({"role": "user", "content": [part]})


PAGE_TOKENS = 650 + 1_844


@pytest.mark.parametrize(
    ("data", "pages"),
    [
        (b"%PDF-1.4\n<< /Type /Pages /Kids [3 0 R] /Count 3 >>" + NOISE[:1_000], 3),
        (b"%PDF-1.4\n" + NOISE[:400_000] + b"<< /Type /Pages /Count 12 >>\n%%EOF", 12),
        (b"%PDF-1.7\n1 0 obj << /Linearized 1 /L 400000 /O 5 /N 40 >>" + NOISE[:400_000], 40),
        (b"%PDF-1.7\n" + NOISE[:350_000], 3),
        (b"%PDF-1.7\n" + NOISE[:1_000], 1),
        (b"%PDF-1.7\n" + NOISE + NOISE, 20),
    ],
    ids=["first", "last", "linearized", "guessed", "small", "large"],
)
def test_a_pdf_counts_text_and_a_picture_for_each_page(data: bytes, pages: int) -> None:
    assert file_tokens(data) == pytest.approx(pages * PAGE_TOKENS, abs=40)
    assert file_tokens(data, detail="low") == pytest.approx(pages * (650 + 308), abs=40)


def test_a_file_of_text_counts_its_text() -> None:
    text = TEXTS["English"] * 50
    as_text = estimate_tokens({"role": "user", "content": text})
    assert file_tokens(text.encode(), "text/plain") == pytest.approx(as_text, rel=0.1)
    assert file_tokens(TEXTS["Chinese"].encode() * 50, "text/markdown") > 50 * 90


@pytest.mark.parametrize("fields", [{"filename": "sales.CSV"}, {"media_type": "text/csv"}], ids=str)
def test_a_table_counts_its_first_thousand_rows(fields: dict[str, Any]) -> None:
    rows = TEXTS["CSV"].splitlines(keepends=True)[1:] * 5_000
    expected = file_tokens("".join(rows[:1_000]).encode(), **{"media_type": "text/csv", **fields})
    assert file_tokens("".join(rows).encode(), **{"media_type": "text/plain", **fields}) == pytest.approx(
        expected, rel=0.05
    )


def test_other_files_count_at_most_as_four_pages() -> None:
    assert file_tokens(b"PK\x03\x04" + NOISE, "application/zip") == pytest.approx(4 * PAGE_TOKENS, abs=40)
    assert file_tokens(b"PK\x03\x04" + NOISE[:8_000], "application/zip") == pytest.approx(2_000, abs=60)
    for known in ({"file_id": "file-abc"}, {"file_url": "https://example.com/a.pdf"}):
        assert file_tokens(None, **known) == pytest.approx(4 * PAGE_TOKENS, abs=60)


def audio_tokens(data: bytes, file_format: str) -> int:
    audio = {"data": base64.b64encode(data).decode(), "format": file_format}
    return estimate_tokens({"role": "user", "content": [{"type": "input_audio", "input_audio": audio}]})


def test_audio_counts_ten_tokens_a_second() -> None:
    wav = b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<IHHII", 16, 1, 1, 16_000, 32_000) + NOISE[: 32_000 * 60]
    assert audio_tokens(wav, "wav") == pytest.approx(600, abs=30)
    assert audio_tokens(NOISE[: 48_000 * 30], "wav") == pytest.approx(300, abs=30)
    assert audio_tokens(NOISE[: 8_000 * 60], "mp3") == pytest.approx(600, abs=30)


# Encrypted content


@pytest.mark.parametrize(
    "item",
    [
        {"type": "reasoning", "id": "rs", "summary": []},
        {"type": "compaction", "id": "cmp"},
        {"type": "agent_message", "content": [{"type": "encrypted_content"}]},
    ],
    ids=lambda item: str(item["type"]),
)
def test_encrypted_content_counts_as_what_is_inside(item: Any) -> None:
    holder = item["content"][0] if "content" in item else item
    holder["encrypted_content"] = "gAAA" * 10_000
    assert tokens_beside_text(item, "encrypted_content", holder) == pytest.approx((30_000 - 650) / 4, abs=10)
    holder["encrypted_content"] = "gAAA"
    assert tokens_beside_text(item, "encrypted_content", holder) <= 0


def test_the_fingerprint_of_a_program_is_not_its_text() -> None:
    program = {"type": "program", "call_id": "p", "code": "return 1", "fingerprint": "gAAA" * 1_000}
    assert estimate_tokens(program) < 800


@given(
    st.sampled_from(["input_image", "input_file", "input_audio", "computer_screenshot", "image", "image_url", "file"]),
    st.dictionaries(
        st.sampled_from(
            ["image_url", "url", "file_id", "file_data", "filename", "detail", "input_audio", "file", "size"]
        ),
        json_values(max_leaves=3)
        | st.sampled_from(["data:", "data:;base64,", "data:image/png;base64,iVBO", "https://x"]),
    ),
    st.sampled_from(["content", "output", "outputs"]),
)
def test_media_with_anything_in_their_fields_have_an_estimate(kind: str, fields: JsonObject, name: str) -> None:
    for value in ([{"type": kind, **fields}], {"type": kind, **fields}):
        assert 1 <= estimate_tokens({"type": "x", name: value}) < 20_000
    assert estimate_tokens({**fields, "type": kind}) >= 1
