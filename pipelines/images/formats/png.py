"""Reads PNG headers: IHDR, palette, transparent colour and image data. PNG, third edition, section 5.

An animated PNG counts as its default image: the chunks with its frames are left out.
"""

import struct
import zlib
from collections.abc import Iterator

from pipelines.images.formats import orientation
from pipelines.images.formats.header import MAX_PROFILE_BYTES, Damaged, Header, TooManySegments

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of each colour type
_DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_XMP = b"XML:com.adobe.xmp"
_RAW_EXIF, _RAW_APP1 = b"Raw profile type exif", b"Raw profile type APP1"  # ImageMagick's
_KEYS = {_XMP, _RAW_EXIF, _RAW_APP1}
_IEND = memoryview(b"\0\0\0\0IEND\xaeB`\x82")
_LONGEST_KEY = 80  # with the zero at its end
_MAX_TEXT = 1 << 20  # bytes that a text may inflate to, as in Pillow
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def read(data: bytes, max_segments: int) -> Header:
    view = memoryview(data)
    width, height, depth, colour, compression, filtering, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if data[8:16] != b"\x00\x00\x00\x0dIHDR" or depth not in _DEPTHS.get(colour, ()):
        raise Damaged("a PNG header that no encoder writes")
    if compression or filtering or interlace > 1 or not width or not height:
        raise Damaged("a PNG header that no encoder writes")
    pieces = [view[:8]]
    about: dict[bytes, memoryview] = {}  # the last chunk of each kind
    for name, start, end in _chunks(data, max_segments):
        if name in {b"IHDR", b"PLTE", b"tRNS", b"IDAT"}:
            pieces.append(view[start:end])
        elif name in {b"eXIf", b"iCCP"}:
            about[name] = view[start:end]
        elif name in _TEXTS and (key := data[start + 8 : start + 8 + _LONGEST_KEY].partition(b"\0")[0]) in _KEYS:
            about[key] = view[start:end]
    if colour == 3 and not any(bytes(piece[4:8]) == b"PLTE" for piece in pieces[:4]):
        raise Damaged("a PNG of palette colours without a palette")
    bits = _CHANNELS[colour] * depth
    return Header(
        format="png",
        width=width,
        height=height,
        orientation=_orientation(about),
        profile=_profile(about[b"iCCP"]) if b"iCCP" in about else b"",
        pieces=[*pieces, _IEND],
        bytes_per_pixel=_bytes_per_pixel(colour, depth),
        depth=depth,
        inflated=_adam7_size(width, height, bits) if interlace else height * (1 + -(-width * bits // 8)),
    )


def _orientation(about: dict[bytes, memoryview]) -> int:
    """Return the orientation by the chunks that can say it, each whole."""
    exif = bytes(about.get(b"eXIf", b""))[8:-4]
    for key in (_RAW_EXIF, _RAW_APP1):
        if not exif and key in about:
            exif = _raw_profile(_text(about[key]))
    return orientation.find(exif, _text(about[_XMP]) if _XMP in about else b"")


def _profile(chunk: memoryview) -> bytes:
    """Return the ICC profile in an iCCP chunk: behind its name, and deflated."""
    return _inflated(bytes(chunk[8:-4]).partition(b"\0")[2][1:], MAX_PROFILE_BYTES + 1)


def _text(chunk: memoryview) -> bytes:
    """Return the text in a tEXt, zTXt or iTXt chunk; an empty one if it is broken."""
    name, body = bytes(chunk[4:8]), bytes(chunk[8:-4]).partition(b"\0")[2]
    if name == b"tEXt":
        return body
    packed = name == b"zTXt"
    if name == b"iTXt":
        packed = body[:1] == b"\1"
        body = body[1:2] + body[2:].split(b"\0", 2)[-1]
    return _inflated(body[1:], _MAX_TEXT) if packed else body[1:]


def _inflated(data: bytes, most: int) -> bytes:
    """Return what deflated data holds, no more than `most` bytes; nothing if it is broken."""
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error:
        return b""


def _raw_profile(text: bytes) -> bytes:
    """Return what a "Raw profile" holds: hexadecimal digits after three lines; nothing if it is broken."""
    try:
        return bytes.fromhex(text.split(b"\n", 3)[-1].decode("ascii"))
    except ValueError:
        return b""


def _bytes_per_pixel(colour: int, depth: int) -> int:
    """Return the bytes that Pillow takes: 1 for grey and palette, 2 for 16-bit grey, 4 for colour and alpha."""
    if colour == 3:
        return 1
    if colour == 0:
        return 2 if depth == 16 else 1
    return 4


def _adam7_size(width: int, height: int, bits: int) -> int:
    total = 0
    for x, y, step_x, step_y in _ADAM7:
        across, down = -(-(width - x) // step_x), -(-(height - y) // step_y)
        if across > 0 and down > 0:
            total += down * (1 + -(-across * bits // 8))
    return total


def _chunks(data: bytes, most: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, end) of each chunk, from IHDR to IEND, or to where a file is cut off behind its data."""
    position, complete = 8, False
    for _ in range(most):
        length = int.from_bytes(data[position : position + 4], "big")
        name, start = data[position + 4 : position + 8], position
        position += 12 + length
        if position > len(data):
            if complete and name != b"IDAT":
                return
            raise Damaged("the PNG is cut off")
        yield name, start, position
        if name == b"IEND":
            return
        complete = complete or name == b"IDAT"
    raise TooManySegments(f"a PNG with more than {most} chunks is made to waste time")


def inflates(header: Header) -> bool:
    """Return whether a PNG's image data is complete, by inflating it piece by piece without keeping any."""
    inflater, total = zlib.decompressobj(), 0
    try:
        for piece in header.pieces[1:]:
            if bytes(piece[4:8]) != b"IDAT":
                continue
            rest: bytes | memoryview = piece[8:-4]
            while len(rest):
                total += len(inflater.decompress(rest, 1 << 20))
                rest = inflater.unconsumed_tail
                if total >= header.inflated:
                    return True
    except zlib.error:
        return False
    return False
