"""Parts of data in base64, read without decoding the rest."""

from __future__ import annotations

import binascii


class Base64Data:
    """Data in base64.

    Args:
        text: holds the base64, without line breaks.
        start: where in the text it begins.
        media_type: what the data is said to be, such as ``application/pdf``; "" if that is not said.
    """

    def __init__(self, text: str, start: int = 0, media_type: str = "") -> None:
        self._text = text
        self._start = start
        self.media_type = media_type
        self.size_bytes = (len(text) - start) * 3 // 4

    @classmethod
    def from_url(cls, url: str) -> Base64Data | None:
        """The data of a ``data:`` URL, or of base64 without a URL around it; None for a link.

        Args:
            url: any text.
        """
        if not url.startswith("data:"):
            return None if "://" in url[:64] else cls(url)
        header, comma, _ = url[:512].partition(",")
        if not comma or not header.endswith(";base64"):
            return None
        return cls(url, len(header) + 1, header[len("data:") :].split(";")[0].lower())

    def read(self, offset: int, count: int) -> bytes:
        """Return so many bytes from the offset on; fewer at the end, none where the text is not base64."""
        begin = self._start + offset // 3 * 4
        end = self._start + -(-(offset + count) // 3) * 4
        skipped = offset % 3
        try:
            return binascii.a2b_base64(self._text[begin:end])[skipped : skipped + count]
        except ValueError:  # not base64 (binascii.Error), or not ASCII
            return b""
