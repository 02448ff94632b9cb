"""Reads AVIF headers: the primary item, its properties, and the sizes in the AV1 streams themselves.

Of an animation, the picture that stands for it is taken. What a decoder gets is the file with all that is no picture
(tracks, Exif, XMP) marked as free space: offsets keep their meaning.
Sources: ISO/IEC 23000-22 (MIAF), AV1 Image File Format, AV1 5.5 (sequence header).
"""

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pipelines.images.formats import boxes
from pipelines.images.formats.header import Damaged, Header, TooManySegments

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6
_REFERENCES = 8  # frames that an AV1 decoder keeps
_PICTURE_BOXES = {b"meta", b"mdat"}

# By `irot` (quarter turns against the clock) and `imir` (none, top and bottom swapped, left and right swapped).
_ORIENTATIONS = {
    (0, None): 1, (0, 0): 4, (0, 1): 2, (1, None): 8, (1, 0): 5, (1, 1): 7,
    (2, None): 3, (2, 0): 2, (2, 1): 4, (3, None): 6, (3, 0): 7, (3, 1): 5,
}  # fmt: skip

# Bytes that Pillow takes for each pixel shown: libavif's RGBA, its copy as bytes, Pillow's picture.
_SHOWN_BYTES = 12


class _Stream(NamedTuple):
    """An AV1 stream: pixels of its largest frame, bytes that the decoder takes for each, and its number of frames."""

    pixels: int
    pixel_bytes: int
    frames: int


def read(data: bytes, max_segments: int) -> Header:
    top = list(boxes.walk(data, 0, len(data), max_segments))
    meta = next((box for box in top if box.name == b"meta"), None)
    if meta is None:
        raise Damaged("the AVIF has no picture in it")
    primary, items = boxes.items(data, meta, max_segments)
    if primary not in items:
        raise Damaged("the AVIF has no picture in it")
    own = {box.name: data[box.inside : box.inside + 12] for box in items[primary].properties}
    profile = next((box for box in items[primary].properties if _is_profile(data, box)), None)
    _, width, height = struct.unpack_from(">III", own.get(b"ispe", b""))
    if sum(length for item in items.values() for _, length in item.parts) > len(data):
        raise Damaged("an AVIF whose parts overlap is made to waste memory")
    streams = _streams(data, [item for item in items.values() if item.kind == b"av01"], max_segments)
    free = [box.start + 4 for box in top[1:] if box.name not in _PICTURE_BOXES]
    free += [item.kind_at for item in items.values() if item.kind in {b"Exif", b"mime"}]
    return Header(
        format="avif",
        width=width,
        height=height,
        orientation=_ORIENTATIONS[own.get(b"irot", b"\0")[0] & 3, own[b"imir"][0] & 1 if b"imir" in own else None],
        profile=data[profile.inside + 4 : profile.end] if profile else b"",
        pieces=_cleaned(data, top[0], free),
        bytes_per_pixel=_SHOWN_BYTES,
        fixed_memory=sum(each.pixels * each.pixel_bytes * min(each.frames, _REFERENCES) for each in streams),
        scans=max((each.frames for each in streams), default=1),
    )


def _is_profile(data: bytes, box: boxes.Box) -> bool:
    return box.name == b"colr" and data[box.inside : box.inside + 4] in {b"prof", b"rICC"}


def _streams(data: bytes, items: list[boxes.Item], most: int) -> list[_Stream]:
    """Return what decoding each item's AV1 stream takes. `most`: units in all streams and setups together."""
    if any(start + length > len(data) for item in items for start, length in item.parts):
        raise Damaged("the AVIF is cut off")
    left = iter(range(most))
    shared = {box for item in items for box in item.properties if box.name == b"av1C"}
    setups = {box: _measured(data[box.inside + 4 : box.end], left) for box in shared}
    found = []
    for item in items:
        stream = b"".join(data[start : start + length] for start, length in item.parts)
        parts = [_measured(stream, left), *(setups[box] for box in item.properties if box in setups)]
        pixels, pixel_bytes, frames = (max(values) for values in zip(*parts, strict=True))
        if not pixels:
            raise Damaged("the AVIF's picture comes before its size")
        found.append(_Stream(pixels, pixel_bytes, max(1, frames)))
    return found


def _measured(stream: bytes, left: Iterator[int]) -> _Stream:
    """Return what a stream takes as far as it says so: all zero if it says nothing."""
    pixels, pixel_bytes, frames = 0, 0, 0
    for kind, content in _units(stream, left):
        if kind == _SEQUENCE_HEADER:
            profile, largest = _sequence(content)
            pixels, pixel_bytes = max(pixels, largest), max(pixel_bytes, 6 if profile else 3)
        frames += kind in {_FRAME, _FRAME_HEADER}
    return _Stream(pixels, pixel_bytes, frames)


def _units(stream: bytes, left: Iterator[int]) -> Iterator[tuple[int, bytes]]:
    """Yield (type, content) of each open bitstream unit; content no longer than a sequence header is.

    Each takes one of what is `left` for the file.
    """
    position = 0
    while position < len(stream):
        if next(left, None) is None:
            raise TooManySegments("an AVIF of more units than any encoder writes is made to waste time")
        head = stream[position]
        position += 2 if head & 4 else 1
        length = len(stream) - position
        if head & 2:
            length, shift = 0, 0
            while True:
                byte = stream[position]
                position, length, shift = position + 1, length | (byte & 0x7F) << shift, shift + 7
                if byte < 0x80 or shift > 28:
                    break
        yield head >> 3 & 15, stream[position : min(position + length, position + 256)]
        position += length


def _sequence(content: bytes) -> tuple[int, int]:
    """Return the profile and the pixels of the largest frame, from a sequence header."""
    value, left = int.from_bytes(content, "big"), 8 * len(content)

    def bits(count: int) -> int:
        nonlocal left
        left -= count
        if left < 0:
            raise Damaged("the AVIF is cut off")
        return value >> left & (1 << count) - 1

    profile, _, reduced = bits(3), bits(1), bits(1)
    if reduced:
        bits(5)
    else:
        buffer_delay = _times(bits) if bits(1) else 0
        delays = bits(1)
        for _ in range(bits(5) + 1):
            bits(12)
            if bits(5) > 7:
                bits(1)
            if buffer_delay and bits(1):
                bits(2 * buffer_delay + 1)
            if delays and bits(1):
                bits(4)
    across, down = bits(4) + 1, bits(4) + 1
    return profile, (bits(across) + 1) * (bits(down) + 1)


def _times(bits: Callable[[int], int]) -> int:
    """Pass the times of display, which hardware encoders write into pictures too.

    Return the bits of a delay of the decoder's buffer, 0 if there are none.
    """
    bits(64)
    if bits(1):
        zeros = 0
        while not bits(1):
            zeros += 1
        bits(zeros)
    if not bits(1):
        return 0
    length = bits(5) + 1
    bits(42)
    return length


def _cleaned(data: bytes, kind: boxes.Box, free: list[int]) -> list[memoryview]:
    """Return the file as a still picture, whose names at the places `free` are those of free space."""
    view = memoryview(data)
    size = kind.end - kind.inside
    brands = b"avif\0\0\0\0mif1".ljust(size, b"\0")[:size]
    pieces = [view[: kind.inside], memoryview(brands)]
    position = kind.end
    for place in sorted(free):
        pieces += [view[position:place], memoryview(b"free")]
        position = place + 4
    return [*pieces, view[position:]]
