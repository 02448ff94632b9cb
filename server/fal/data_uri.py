"""`data:` URIs: lenient decoder, plain encoder.

The decoder works in pieces of some milliseconds at most, so that a thread which decodes can let others run between.
"""

import binascii
import re
from collections.abc import Iterator

import msgspec

# Characters in one piece, a multiple of 4: half a millisecond of work.
_PIECE_CHARS = 1 << 18
# The same of text that is not plain base64: at worst, all percent signs and no escape, it takes 2 ms.
_LOOSE_PIECE_CHARS = 1 << 13

_WHITESPACE = b" \t\n\r\v\f"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
# Quoted-printable writes `=41` for `%41`, and Python decodes it in C.
_QUOTED_PRINTABLE = bytes.maketrans(b"%", b"=")
_NO_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class DataUriError(ValueError):
    """It is no data URI that can be decoded."""


class TooLargeError(ValueError):
    """What it holds is larger than allowed."""


def decode(uri: str, max_bytes: int) -> bytes:
    """Return the bytes in a `data:` URI. Raises as `pieces` does."""
    return b"".join(pieces(uri, max_bytes))


def pieces(uri: str, max_bytes: int) -> Iterator[bytes]:
    """Yield the bytes in a `data:` URI, decoded piece by piece.

    Raises `DataUriError`; `TooLargeError`, before anything is decoded where the length tells it.
    """
    comma = uri.find(",", 5, 5 + 1024)
    if comma < 0:
        raise DataUriError("no comma behind its media type")
    start = comma + 1
    is_base64 = uri[:comma].rstrip().lower().endswith(";base64")
    if len(uri) - start > (max_bytes * 4 // 3 + 4 if is_base64 else 3 * max_bytes):
        raise TooLargeError
    size = 0
    for piece in _base64_pieces(uri, start) if is_base64 else _unquoted_pieces(uri, start):
        size += len(piece)
        if size > max_bytes:
            raise TooLargeError
        yield piece


def encode(data: bytes, content_type: str) -> str:
    """Return `data` as a `data:` URI."""
    text: str = msgspec.to_builtins(data)  # base64, in a ninth of binascii's time
    return f"data:{content_type};base64,{text}"


def _base64_pieces(text: str, start: int) -> Iterator[bytes]:
    end = len(text)
    try:
        while start < end and text.find("=", start, min(start + _PIECE_CHARS, end - 2)) < 0:
            yield msgspec.convert(text[start : start + _PIECE_CHARS], bytes)  # five times as fast as binascii, strict
            start += _PIECE_CHARS
    except msgspec.ValidationError:
        pass
    if start < end:
        yield from _loose_base64_pieces(text, start)


def _loose_base64_pieces(text: str, start: int) -> Iterator[bytes]:
    """Decode base64 as some apps write it: percent-encoded, URL-safe, unpadded, with line breaks."""
    pieces = _unquoted_pieces(text, start) if text.find("%", start) >= 0 else _ascii_pieces(text, start)
    rest, padded = b"", False
    for piece in pieces:
        letters, padding, behind = piece.translate(_URL_SAFE, _WHITESPACE).partition(b"=")
        if (padded and letters) or behind.strip(b"="):
            raise DataUriError("bad base64")
        padded = padded or bool(padding)
        letters = rest + letters
        whole = len(letters) - len(letters) % 4
        rest = letters[whole:]
        yield _strict_base64(letters[:whole])
    yield _strict_base64(rest + b"=" * (-len(rest) % 4))


def _strict_base64(letters: bytes) -> bytes:
    try:
        return binascii.a2b_base64(letters, strict_mode=True)
    except ValueError as error:
        raise DataUriError("bad base64") from error


def _unquoted_pieces(text: str, start: int) -> Iterator[bytes]:
    """Yield the percent-decoded text; what is no escape stays as it is written."""
    rest = b""
    for piece in _ascii_pieces(text, start):
        raw = rest + piece
        cut = raw.find(b"%", max(0, len(raw) - 2))  # no escape is cut in two
        cut = len(raw) if cut < 0 else cut
        rest = raw[cut:]
        yield _unquoted(raw[:cut])
    yield _unquoted(rest)


def _unquoted(raw: bytes) -> bytes:
    if b"%" not in raw:
        return raw
    raw = _NO_ESCAPE.sub(b"%25", raw)
    return binascii.a2b_qp(raw.replace(b"=", b"%3D").translate(_QUOTED_PRINTABLE))


def _ascii_pieces(text: str, start: int) -> Iterator[bytes]:
    for at in range(start, len(text), _LOOSE_PIECE_CHARS):
        try:
            yield text[at : at + _LOOSE_PIECE_CHARS].encode("ascii")
        except UnicodeEncodeError as error:
            raise DataUriError("not ASCII") from error
