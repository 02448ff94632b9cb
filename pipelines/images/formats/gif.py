"""Reads GIF headers: the screen and the first frame. GIF89a."""

import struct

from pipelines.images.formats.header import Damaged, Header, TooManySegments

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_GRAPHIC_CONTROL = 0xF9


def read(data: bytes, max_segments: int) -> Header:
    view = memoryview(data)
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    screen, control = view[:position], view[:0]
    steps = iter(range(max_segments))  # of both loops together
    for _ in steps:
        start = position
        if data[start] == _IMAGE:
            left, top, across, down = struct.unpack_from("<HHHH", data, start + 1)
            return Header(
                format="gif",
                width=max(width, left + across),
                height=max(height, top + down),
                orientation=1,
                pieces=[screen, control, view[start:]],  # the decoder stops at the end of its first frame
                bytes_per_pixel=3,
            )
        if data[start] == _TRAILER:
            raise Damaged("the GIF has no picture in it")
        position = start + 1
        if data[start] != _EXTENSION:
            continue  # a stray byte, which decoders pass over
        position += 1
        for _ in steps:
            length = data[position]
            position += 1 + length
            if not length:
                break
        if data[start + 1] == _GRAPHIC_CONTROL:
            control = view[start:position]
    raise TooManySegments(f"a GIF with more than {max_segments} blocks before its picture is made to waste time")
