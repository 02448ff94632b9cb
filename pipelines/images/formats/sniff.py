"""Reads the header of a JPEG, PNG or WebP file without decoding a pixel. Pure Python, no Pillow.

`read` walks the file's structure, in time bounded by the number of segments that a real file has. It returns a
`Header`: size, orientation, the memory that decoding takes, and the pieces of the file that a decoder needs. Everything
else (comments, profiles, thumbnails, further frames, data before, between and after) is left out, so that the decoder's
own parsers of metadata never run.

Sources: ITU-T T.81 Annex B, PNG (third edition) 5, RFC 9649, TIFF 6.0 section 2 for the Exif directory.
"""

import struct

from pipelines.images.formats import jpeg, png, webp
from pipelines.images.formats.header import MAX_SEGMENTS, Damaged, Header, TooManySegments, UnknownFormat

__all__ = ["Damaged", "Header", "TooManySegments", "UnknownFormat", "read"]


def read(data: bytes, max_segments: int = MAX_SEGMENTS) -> Header:
    """Return the header of an encoded picture. Raises `UnknownFormat`, `Damaged` or `TooManySegments`."""
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return jpeg.read(data, max_segments)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return png.read(data, max_segments)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return webp.read(data, max_segments)
    except (struct.error, IndexError) as error:
        raise Damaged("the file ends within its header") from error
    raise UnknownFormat("no JPEG, PNG or WebP")
