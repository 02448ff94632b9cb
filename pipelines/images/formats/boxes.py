"""Boxes of ISO base media files (ISO/IEC 14496-12), of which AVIF and HEIC are made, and the tables of a `meta` box."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pipelines.images.formats.header import Damaged, TooManySegments


class Box(NamedTuple):
    """One box: its name, and where it, what is in it and its end lie in the file."""

    name: bytes
    start: int
    inside: int
    end: int


class Item(NamedTuple):
    """One item: its type, where its type is written, its parts (start, length) and its properties."""

    kind: bytes
    kind_at: int
    parts: list[tuple[int, int]]
    properties: list[Box]


def walk(data: bytes, start: int, end: int, most: int) -> Iterator[Box]:
    """Yield each box between two places."""
    for _ in range(most):
        if start + 8 > end:
            return
        length, name, inside = *struct.unpack_from(">I4s", data, start), start + 8
        if length == 1:
            length, inside = struct.unpack_from(">Q", data, inside)[0], inside + 8
        box = Box(name, start, inside, start + length if length else end)
        if box.end > end or box.end < inside:
            raise Damaged("the file is cut off")
        yield box
        start = box.end
    raise TooManySegments(f"a file with more than {most} boxes is made to waste time")


class Reader:
    """Reads numbers one after the other. `version` and `flags`: of the full box that it reads."""

    def __init__(self, data: bytes, box: Box) -> None:
        self._data, self.place, self._end = data, box.inside, box.end
        word = self.number(4)
        self.version, self.flags = word >> 24, word & 0xFFFFFF

    def number(self, size: int) -> int:
        """Return the next number, of 0 to 8 bytes."""
        self.place += size
        if self.place > self._end:
            raise Damaged("the file contradicts itself")
        return int.from_bytes(self._data[self.place - size : self.place], "big")


def items(data: bytes, meta: Box, most: int) -> tuple[int, dict[int, Item]]:
    """Return the primary item's number, and all items by theirs, with no more than `most` parts and properties."""
    inside = {box.name: box for box in walk(data, meta.inside + 4, meta.end, most)}
    if not {b"pitm", b"iinf", b"iloc", b"iprp"} <= inside.keys():
        raise Damaged("the file has no picture in it")
    primary = Reader(data, inside[b"pitm"])
    places = _places(Reader(data, inside[b"iloc"]), inside.get(b"idat"), most)
    properties = _properties(data, inside[b"iprp"], most)
    found: dict[int, Item] = {}
    infos = Reader(data, inside[b"iinf"])
    infos.number(2 if infos.version == 0 else 4)
    for box in walk(data, infos.place, inside[b"iinf"].end, most):
        info = Reader(data, box)
        number = info.number(2 if info.version < 3 else 4)
        info.number(2)
        at = info.place
        kind = info.number(4).to_bytes(4, "big")
        found[number] = Item(kind, at, places.get(number, []), properties.get(number, []))
    return primary.number(2 if primary.version == 0 else 4), found


def _places(table: Reader, idat: Box | None, most: int) -> dict[int, list[tuple[int, int]]]:
    """Return the parts of each item, from its `iloc` table."""
    sizes = table.number(2)
    offset_size, length_size, base_size, index_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15, sizes & 15
    wide = 2 if table.version < 2 else 4
    found: dict[int, list[tuple[int, int]]] = {}
    left = most
    for _ in range(table.number(wide)):
        number = table.number(wide)
        inside_idat = bool(table.version) and table.number(2) & 15 == 1
        if inside_idat and idat is None:
            raise Damaged("the file contradicts itself")
        table.number(2)
        base = table.number(base_size) + (idat.inside if inside_idat and idat else 0)
        parts = found.setdefault(number, [])
        for _ in range(table.number(2)):
            table.number(index_size if table.version else 0)
            parts.append((base + table.number(offset_size), table.number(length_size)))
        left -= 1 + len(parts)
        if left < 0:
            raise TooManySegments(f"a file with more than {most} parts is made to waste time")
    return found


def _properties(data: bytes, iprp: Box, most: int) -> dict[int, list[Box]]:
    """Return the properties of each item, in order."""
    boxes = list(walk(data, iprp.inside, iprp.end, most))
    if not boxes or boxes[0].name != b"ipco":
        raise Damaged("the file contradicts itself")
    known = list(walk(data, boxes[0].inside, boxes[0].end, most))
    found: dict[int, list[Box]] = {}
    left = most
    for box in boxes:
        if box.name != b"ipma":
            continue
        table = Reader(data, box)
        for _ in range(table.number(4)):
            own = found.setdefault(table.number(2 if table.version == 0 else 4), [])
            for _ in range(table.number(1)):
                index = table.number(2) & 0x7FFF if table.flags & 1 else table.number(1) & 0x7F
                if 1 <= index <= len(known):
                    own.append(known[index - 1])
            left -= 1 + len(own)
            if left < 0:
                raise TooManySegments(f"a file with more than {most} properties is made to waste time")
    return found
