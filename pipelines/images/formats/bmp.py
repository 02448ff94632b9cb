"""Reads BMP headers: of OS/2 1 and of Windows 3 to 5. Nothing is left out: there is nothing but the picture."""

import struct

from pipelines.images.formats.header import Damaged, Header

_OS2_SIZE, _SIZES = 12, {40, 52, 56, 64, 108, 124}
_V5_SIZE, _EMBEDDED = 124, b"DEBM"  # MBED, back to front
_DEPTHS = {1, 4, 8, 16, 24, 32}
_RAW, _RLE8, _RLE4, _BITFIELDS = range(4)

# Pixels of a BMP in runs: a second or so of computing.
_MAX_PACKED_PIXELS = 8_000_000


def read(data: bytes, _: int) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    compression = _RAW
    if size == _OS2_SIZE:
        width, height, _, depth = struct.unpack_from("<HHHH", data, 18)
    elif size in _SIZES:
        width, height, _, depth, compression = struct.unpack_from("<iiHHI", data, 18)
    else:
        raise Damaged("a BMP header that no encoder writes")
    if width < 0 or depth not in _DEPTHS or compression > _BITFIELDS:
        raise Damaged("this BMP is coded in a way that browsers do not show either")
    profile = b""
    if size == _V5_SIZE and data[70:74] == _EMBEDDED:
        offset, length = struct.unpack_from("<II", data, 126)
        profile = data[14 + offset : 14 + offset + length]
    packed = compression in {_RLE8, _RLE4}
    if packed and len(data) > 4 * width * abs(height) + (1 << 16):
        raise Damaged("a BMP whose runs are longer than its picture is made to waste time")
    if packed and width * abs(height) > _MAX_PACKED_PIXELS:
        raise Damaged("a BMP in runs may have 8 megapixels; send it as PNG")
    return Header(
        format="bmp",
        width=width,
        height=abs(height),  # negative: from the top down
        orientation=1,
        profile=profile,
        pieces=[memoryview(data)],
        bytes_per_pixel=4 if depth > 8 or packed else 1,
        quick=not packed,  # a decoder in Python
    )
