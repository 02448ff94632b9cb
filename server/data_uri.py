"""Pictures inside text: `data:` URIs, read leniently and written plainly."""

import binascii
from urllib.parse import unquote_to_bytes

import msgspec

_URL_SAFE = str.maketrans("-_", "+/")


class DataUriError(ValueError):
    """It is no data URI that can be decoded."""


class TooLargeError(ValueError):
    """What it holds is larger than allowed."""


def decode(uri: str, max_bytes: int) -> bytes:
    """The bytes that a `data:` URI holds. Raises `DataUriError`, or `TooLargeError` before anything is decoded."""
    start = uri.find(",", 5, 5 + 1024)
    if start < 0:
        raise DataUriError("no comma behind its media type")
    payload = uri[start + 1 :]
    is_base64 = uri[:start].rstrip().lower().endswith(";base64")
    if len(payload) > (max_bytes * 4 // 3 + 4 if is_base64 else 3 * max_bytes):
        raise TooLargeError
    if not payload.isascii():
        raise DataUriError("not ASCII")
    data = _from_base64(payload) if is_base64 else unquote_to_bytes(payload)
    if len(data) > max_bytes:
        raise TooLargeError
    return data


def encode(data: bytes, content_type: str) -> str:
    """`data` as a `data:` URI."""
    return f"data:{content_type};base64,{binascii.b2a_base64(data, newline=False).decode('ascii')}"


def _from_base64(text: str) -> bytes:
    try:
        return msgspec.convert(text, bytes)  # five times as fast as binascii, and strict
    except msgspec.ValidationError:
        return _from_loose_base64(text)


def _from_loose_base64(text: str) -> bytes:
    """Base64 as some apps write it: percent-encoded, URL-safe, unpadded, with line breaks."""
    raw = unquote_to_bytes(text) if "%" in text else text.encode("ascii")
    letters = b"".join(raw.split()).decode("latin-1").translate(_URL_SAFE).rstrip("=")
    try:
        return binascii.a2b_base64(letters + "=" * (-len(letters) % 4), strict_mode=True)
    except ValueError as error:
        raise DataUriError("bad base64") from error
