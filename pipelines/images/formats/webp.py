"""Reads WebP headers: the canvas and the first frame. RFC 9649."""

import struct
from collections.abc import Iterator

from pipelines.images.formats import orientation
from pipelines.images.formats.header import Damaged, Header, TooManySegments

_WEBP_ALPHA, _WEBP_ANIMATION = 0x10, 0x02


def read(data: bytes, max_segments: int) -> Header:
    view = memoryview(data)
    body: list[memoryview] = []
    size: tuple[int, int] | None = None
    exif = xmp = profile = b""
    animated = False
    for name, start, end in _chunks(data, max_segments):
        content = data[start + 8 : min(end, start + 40)]
        if size is None:
            size = _size(name, content)
            animated = name == b"VP8X" and bool(content[0] & _WEBP_ANIMATION)
        if name == b"VP8X":
            flags = content[0] & (_WEBP_ALPHA | _WEBP_ANIMATION)
            body.append(memoryview(bytes(view[start : start + 8]) + bytes([flags]) + bytes(view[start + 9 : end])))
        elif name == b"EXIF":
            exif = data[start + 8 : end]
        elif name == b"XMP ":
            xmp = data[start + 8 : end]
        elif name == b"ICCP":
            profile = data[start + 8 : end]
        elif name in {b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF"} and not (name == b"ANMF" and not animated):
            body.append(view[start:end])
            animated = animated and name != b"ANMF"  # the first frame only
    if size is None:
        raise Damaged("the WebP is empty")
    riff = b"RIFF" + struct.pack("<I", 4 + sum(len(piece) for piece in body)) + b"WEBP"
    return Header(
        format="webp",
        width=size[0],
        height=size[1],
        orientation=orientation.find(exif, xmp),
        profile=profile,
        pieces=[memoryview(riff), *body],
        bytes_per_pixel=16,  # two canvases of libwebp's animation decoder, its copy as bytes, Pillow's picture
    )


def _size(name: bytes, content: bytes) -> tuple[int, int]:
    """Return width and height, from the first chunk."""
    if name == b"VP8X":
        return 1 + int.from_bytes(content[4:7], "little"), 1 + int.from_bytes(content[7:10], "little")
    if name == b"VP8L" and content[0] == 0x2F:
        (bits,) = struct.unpack_from("<I", content, 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if name == b"VP8 " and content[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", content, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise Damaged("a WebP header that no encoder writes")


def _chunks(data: bytes, most: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, end) of each chunk, padding included."""
    limit = 8 + struct.unpack_from("<I", data, 4)[0]
    if limit > len(data):
        raise Damaged("the WebP is cut off")
    position = 12
    for _ in range(most):
        if position + 8 > limit:
            return
        (length,) = struct.unpack_from("<I", data, position + 4)
        start = position
        position += 8 + length + (length & 1)
        if position > limit + 1 or start + 8 + length > limit:
            raise Damaged("the WebP is cut off")
        yield data[start : start + 4], start, min(position, len(data))
    raise TooManySegments(f"a WebP with more than {most} chunks is made to waste time")
