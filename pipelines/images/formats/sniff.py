"""Reads the header of a picture without decoding a pixel, and says what a file is that is none.

`read` walks the file's structure, in time bounded by the number of segments that a real file has. It returns a
`Header`: size, orientation, colour profile, the memory that decoding takes, and the pieces of the file that a decoder
needs. Everything else (comments, thumbnails, further frames, data before, between and after) is left out, so that the
decoder's own parsers of metadata never run.

Sources: ITU-T T.81 Annex B, PNG (third edition) 5, RFC 9649, TIFF 6.0, GIF89a, ISO/IEC 23000-22.
"""

import struct
from collections.abc import Callable

from pipelines.images.formats import avif, bmp, gif, jpeg, png, tiff, webp
from pipelines.images.formats.header import MAX_SEGMENTS, Damaged, Format, Header, TooManySegments, UnknownFormat

__all__ = ["Damaged", "Header", "TooManySegments", "UnknownFormat", "format_of", "read"]

_READERS: dict[Format, Callable[[bytes, int], Header]] = {
    "jpeg": jpeg.read,
    "png": png.read,
    "webp": webp.read,
    "avif": avif.read,
    "gif": gif.read,
    "bmp": bmp.read,
    "tiff": tiff.read,
}

_TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}

_PAGE_TAGS = (b"<!doctype html", b"<html", b"<head", b"<body")
_LFS = b"version https://git-lfs.github.com/spec/"
_LOOKED_AT = 1024  # bytes of a text


def read(data: bytes, max_segments: int = MAX_SEGMENTS) -> Header:
    """Return the header of an encoded picture. Raises `UnknownFormat`, `Damaged` or `TooManySegments`."""
    name = format_of(data)
    if name is None:
        raise UnknownFormat(_what(data))
    try:
        return _READERS[name](data, max_segments)
    except (struct.error, IndexError) as error:
        raise Damaged("the file ends within its header") from error


def format_of(data: bytes) -> Format | None:
    """Return what a file is by its first bytes alone; None if it is no picture of a known format."""
    signs: dict[Format, bool] = {
        "jpeg": data.startswith(b"\xff\xd8\xff"),
        "png": data.startswith(b"\x89PNG\r\n\x1a\n"),
        "webp": data.startswith(b"RIFF") and data[8:12] == b"WEBP",
        "avif": bool(_brands(data) & _AVIF_BRANDS),
        "gif": data.startswith((b"GIF87a", b"GIF89a")),
        "bmp": data.startswith(b"BM"),
        "tiff": data.startswith(_TIFFS),
    }
    return next((name for name, is_it in signs.items() if is_it), None)


def _brands(data: bytes) -> set[bytes]:
    """Return what an ISO base media file says it is: its brand and those it is compatible with."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), _LOOKED_AT)
    return {data[8:12], *(data[place : place + 4] for place in range(16, end, 4))}


def _what(data: bytes) -> str:
    """Return a sentence on what a file is that is no picture of a known format, with what to do about it."""
    start = data[:_LOOKED_AT].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "The file is empty."
    if _brands(data) & _HEIC_BRANDS:
        return (
            "The file is a HEIC picture, as iPhones take them, which can't be read here. Send it as JPEG: on the phone "
            "by Settings, Camera, Formats, Most Compatible; in an app by converting it before it is sent."
        )
    if start.startswith(_LFS):
        return (
            "The file is a Git LFS pointer, which stands for a picture and is none. Send the file itself "
            "(`git lfs pull`), or the address that leads to it."
        )
    if start.startswith(b"<") and any(tag in start for tag in _PAGE_TAGS):
        return (
            "The file is a web page, not a picture: perhaps one that shows the picture, or asks for a login. Send the "
            "picture's own address."
        )
    if start.startswith(b"<") and b"<svg" in start:
        return "The file is an SVG drawing, which can't be read here. Send it as PNG."
    return ""
