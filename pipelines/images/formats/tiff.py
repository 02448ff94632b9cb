"""Reads TIFF headers: the first directory. TIFF 6.0, and BigTIFF.

What a decoder gets is the file behind a directory of our own, which has only what describes pixels and where they lie.
"""

import math
import struct
from typing import NamedTuple

from pipelines.images.formats import orientation
from pipelines.images.formats.header import Damaged, Header, TooManySegments

_BYTE, _SHORT, _LONG, _UNDEFINED, _SSHORT, _SLONG, _LONG8 = 1, 3, 4, 7, 8, 9, 16
_CODES = {_BYTE: "B", _SHORT: "H", _LONG: "I", _UNDEFINED: "B", _SSHORT: "h", _SLONG: "i", _LONG8: "Q"}
_SIGNED = {_SSHORT, _SLONG}  # as some write the orientation

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES, _ROWS, _STRIP_COUNTS, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_COUNTS, _SAMPLE_FORMAT = 322, 323, 324, 325, 339
_FILL_ORDER, _T4, _T6, _PREDICTOR, _COLOURS, _EXTRA, _JPEG_TABLES, _SUBSAMPLING = 266, 292, 293, 317, 320, 338, 347, 530
_ORIENTATION, _XMP, _ICC = 274, 700, 34675

# Kept for the decoder, each with its largest number of values; of strips and tiles, as many as segments may be walked.
_KEPT = dict.fromkeys((_WIDTH, _LENGTH, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _ROWS, _PLANAR), 1)
_KEPT |= dict.fromkeys((_T4, _T6, _PREDICTOR, _TILE_WIDTH, _TILE_LENGTH), 1)
_KEPT |= {_BITS: 6, _EXTRA: 6, _SAMPLE_FORMAT: 6, _SUBSAMPLING: 2, _COLOURS: 3 * 256, _JPEG_TABLES: 1 << 16}
_PLACES = {_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS}

# None; fax (three forms); LZW; JPEG; deflate (two numbers); runs. Others allocate what no header tells.
_COMPRESSIONS = {1, 2, 3, 4, 5, 7, 8, 32773, 32946}
_UNCOMPRESSED = 1
_PHOTOMETRICS = {0, 1, 2, 3, 5, 6}  # grey, RGB, palette, CMYK, YCbCr
_DEPTHS = {1, 2, 4, 8, 16}


class _Entry(NamedTuple):
    """One entry of a directory: the type of its values, their number, and where they begin in the file."""

    kind: int
    number: int
    start: int


def read(data: bytes, max_segments: int) -> Header:
    order = "<" if data.startswith(b"II") else ">"
    entries = _entries(data, order)
    kept = {tag: _values(data, order, entry, _KEPT[tag]) for tag, entry in entries.items() if tag in _KEPT}
    kept |= {tag: _values(data, order, entry, max_segments) for tag, entry in entries.items() if tag in _PLACES}
    width, height, buffer = _checked(kept, len(data))
    turned = _values(data, order, entries[_ORIENTATION], 1)[0] if _ORIENTATION in entries else None
    return Header(
        format="tiff",
        width=width,
        height=height,
        orientation=orientation.either(turned, _bytes(data, entries.get(_XMP))),
        profile=_bytes(data, entries.get(_ICC)),
        pieces=_cleaned(data, order, kept),
        bytes_per_pixel=4,
        fixed_memory=buffer,
    )


def _entries(data: bytes, order: str) -> dict[int, _Entry]:
    """Return the first directory's entries, by tag."""
    if data[2:4] in {b"+\0", b"\0+"}:
        (directory,) = struct.unpack_from(order + "Q", data, 8)
        counting, form, inline = order + "Q", order + "HHQ", 8
    else:
        (directory,) = struct.unpack_from(order + "I", data, 4)
        counting, form, inline = order + "H", order + "HHI", 4
    if directory > len(data):
        raise Damaged("the TIFF is cut off")
    (number,) = struct.unpack_from(counting, data, directory)
    if number > 1 << 16:
        raise TooManySegments("a TIFF with more than 65536 entries is made to waste time")
    found: dict[int, _Entry] = {}
    position = directory + struct.calcsize(counting)
    for _ in range(number):
        tag, kind, count = struct.unpack_from(form, data, position)
        place = position + struct.calcsize(form)
        position = place + inline
        if kind in _CODES and (kind not in _SIGNED or tag == _ORIENTATION) and tag not in found:
            if count * struct.calcsize(order + _CODES[kind]) > inline:
                (place,) = struct.unpack_from(order + ("Q" if inline == 8 else "I"), data, place)
            found[tag] = _Entry(kind, count, place)
    return found


def _values(data: bytes, order: str, entry: _Entry, most: int) -> tuple[int, ...]:
    if not entry.number:
        raise Damaged("a TIFF with an entry of no values contradicts itself")
    if entry.number > most:
        raise TooManySegments(f"a TIFF with {entry.number} values where {most} may be is made to waste time")
    form = f"{order}{entry.number}{_CODES[entry.kind]}"
    if entry.start + struct.calcsize(form) > len(data):
        raise Damaged("the TIFF is cut off")
    return struct.unpack_from(form, data, entry.start)


def _bytes(data: bytes, entry: _Entry | None) -> bytes:
    """Return an entry's bytes; none if it has other values."""
    return data[entry.start : entry.start + entry.number] if entry and entry.kind in {_BYTE, _UNDEFINED} else b""


def _checked(kept: dict[int, tuple[int, ...]], size: int) -> tuple[int, int, int]:
    """Return width, height, and the bytes of a decoder's buffer: one strip or tile. `size`: of the file."""

    def one(tag: int, default: int) -> int:
        return kept.get(tag, (default,))[0]

    width, height, samples = one(_WIDTH, 0), one(_LENGTH, 0), one(_SAMPLES, 1)
    bits = set(kept.get(_BITS, (1,)))
    if (
        one(_COMPRESSION, 1) not in _COMPRESSIONS
        or one(_PHOTOMETRIC, 0) not in _PHOTOMETRICS
        or not 1 <= samples <= 6
        or not bits <= _DEPTHS
        or set(kept.get(_SAMPLE_FORMAT, (1,))) != {1}
    ):
        raise Damaged("this TIFF is coded in a way that few programs show")
    if _TILE_OFFSETS in kept:
        across, down = one(_TILE_WIDTH, 0), one(_TILE_LENGTH, 0)
        offsets, counts = kept[_TILE_OFFSETS], kept.get(_TILE_COUNTS, ())
    else:
        across, down = width, min(one(_ROWS, height), height)
        offsets, counts = kept.get(_STRIP_OFFSETS, ()), kept.get(_STRIP_COUNTS, ())
    if not width or not height or not across or not down:
        raise Damaged("the TIFF has no size")
    needed = math.ceil(width / across) * math.ceil(height / down) * (samples if one(_PLANAR, 1) == 2 else 1)
    if len(offsets) < needed or (counts and len(counts) < needed):
        raise Damaged("the TIFF lacks a part of its picture")
    if any(offset > size for offset in offsets) or any(map(size.__lt__, map(sum, zip(offsets, counts, strict=False)))):
        raise Damaged("the TIFF is cut off")
    if sum(counts) > size:
        raise Damaged("a TIFF whose parts overlap is made to waste time")
    buffer = 0 if one(_COMPRESSION, 1) == _UNCOMPRESSED else across * down * max(4, samples * max(bits) // 8)
    return width, height, buffer


def _cleaned(data: bytes, order: str, kept: dict[int, tuple[int, ...]]) -> list[memoryview]:
    """Return a TIFF of the same data whose only directory, at its end, has these entries."""
    start = len(data) + len(data) % 2
    values = start + 2 + 12 * len(kept) + 4
    directory, rest = struct.pack(order + "H", len(kept)), b""
    for tag, numbers in sorted(kept.items()):
        kind = _UNDEFINED if tag == _JPEG_TABLES else _SHORT if max(numbers) < 1 << 16 else _LONG
        packed = struct.pack(f"{order}{len(numbers)}{_CODES[kind]}", *numbers)
        if len(packed) <= 4:
            place = packed.ljust(4, b"\0")
        else:
            place = struct.pack(order + "I", values + len(rest))
            rest += packed + bytes(len(packed) % 2)
        directory += struct.pack(order + "HHI", tag, kind, len(numbers)) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    tail = bytes(len(data) % 2) + directory + bytes(4) + rest
    return [memoryview(head), memoryview(data)[8:], memoryview(tail)]
