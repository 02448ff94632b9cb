"""Reads JPEG headers: segments up to the first scan, or up to the last if there are several. ITU-T T.81 Annex B."""

import dataclasses
import re
import struct
from collections.abc import Iterator

from pipelines.images.formats import orientation
from pipelines.images.formats.header import Damaged, Header, TooManySegments

# A decoder draws a progressive JPEG once for each scan, however little the scan holds. Encoders write about ten scans;
# this is twenty of 50 megapixels.
MAX_PIXELS_SCANNED = 1_000_000_000

_MARKER = re.compile(rb"\xff([^\x00\xff])")
_MARKER_AFTER_SCAN = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
_SOI, _EOI, _SOS, _DHT, _DQT, _DRI, _APP0, _APP1, _APP2, _APP14 = (
    0xD8,
    0xD9,
    0xDA,
    0xC4,
    0xDB,
    0xDD,
    0xE0,
    0xE1,
    0xE2,
    0xEE,
)
_SEQUENTIAL, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {_DHT, 0xC8, 0xCC}  # lossless, hierarchical, arithmetic
_NO_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_JFIF = memoryview(b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00")


@dataclasses.dataclass(frozen=True, slots=True)
class _Frame:
    """A JPEG's SOF segment. `sampling`: (horizontal, vertical) factors of each component."""

    progressive: bool
    width: int
    height: int
    sampling: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, marker: int, body: bytes) -> "_Frame":
        precision, height, width, count = struct.unpack_from(">BHHB", body)
        sampling = tuple((body[i] >> 4, body[i] & 15) for i in range(7, 7 + 3 * count, 3))
        if precision != 8 or count not in {1, 3, 4} or not all(1 <= f <= 4 for pair in sampling for f in pair):
            raise Damaged("a JPEG with such components is none that can be shown")
        return cls(marker == _PROGRESSIVE, width, height, sampling)

    def coefficients(self) -> int:
        """Return the bytes of libjpeg's buffer for all coefficients, which a picture in several scans needs."""
        across = -(-self.width // (8 * max(h for h, _ in self.sampling)))
        down = -(-self.height // (8 * max(v for _, v in self.sampling)))
        return across * down * sum(h * v for h, v in self.sampling) * 64 * 2


def read(data: bytes, max_segments: int) -> Header:
    view = memoryview(data)
    pieces = [view[:2]]
    frame: _Frame | None = None
    about: list[bytes] = []
    for marker, start, end in _segments(data, 2, _MARKER, max_segments):
        body = data[start + 4 : end]
        if marker in {_SEQUENTIAL, _EXTENDED, _PROGRESSIVE}:
            if frame is not None:
                raise Damaged("two frames in one JPEG")
            frame = _Frame.parse(marker, body)
            pieces.append(view[start:end])
        elif marker in {_DHT, _DQT, _DRI}:
            pieces.append(view[start:end])
        elif marker == _APP0 and body.startswith(b"JFIF\0"):
            pieces.append(_JFIF)
        elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            pieces.append(memoryview(b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + body[11:12]))
        elif marker in {_APP1, _APP2}:
            about.append(body)
        elif marker in _OTHER_FRAMES:
            raise Damaged("this JPEG is coded in a way that browsers do not show either")
        elif marker == _SOS:
            pieces.append(view[start:])
            frame = _complete(frame)
            scans = _scans(data, frame, start, max_segments)
            return Header(
                format="jpeg",
                width=frame.width,
                height=frame.height,
                orientation=_orientation(about),
                profile=_profile(about),
                pieces=pieces,
                bytes_per_pixel=4,
                fixed_memory=frame.coefficients() if scans else 0,
                scans=max(1, scans),
            )
    raise Damaged("the JPEG ends before its picture begins")


def _orientation(about: list[bytes]) -> int:
    """Return the orientation by the APP1 segments. Several with Exif are one block in parts; of XMP the last counts."""
    exif = b"".join(body.removeprefix(_EXIF) for body in about if body.startswith(_EXIF))
    xmp = next((body for body in reversed(about) if body.startswith(_XMP)), b"")
    return orientation.find(exif, xmp)


def _profile(about: list[bytes]) -> bytes:
    """Return the ICC profile in the APP2 segments, each with its number and their count; none if one is missing."""
    parts = sorted(body.removeprefix(_ICC) for body in about if body.startswith(_ICC))
    if [[*part[:2]] for part in parts] != [[number, len(parts)] for number in range(1, len(parts) + 1)]:
        return b""
    return b"".join(part[2:] for part in parts)


def _complete(frame: _Frame | None) -> _Frame:
    if frame is None:
        raise Damaged("the JPEG's picture comes before its size")
    return frame


def _scans(data: bytes, frame: _Frame, first: int, max_segments: int) -> int:
    """Return the number of scans that a decoder collects before it draws; 0 if it draws the first as it comes."""
    if not frame.progressive and data[first + 4] >= len(frame.sampling):
        return 0
    scans = sum(marker == _SOS for marker, _, _ in _segments(data, first, _MARKER_AFTER_SCAN, max_segments))
    if scans * frame.width * frame.height > MAX_PIXELS_SCANNED:
        raise Damaged(f"a JPEG of this size in {scans} scans is made to waste time")
    return scans


def _segments(data: bytes, position: int, pattern: re.Pattern[bytes], most: int) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of each segment from `position` to the end of the image; skip junk between them."""
    for _ in range(most):
        match = pattern.search(data, position)
        if match is None:
            raise Damaged("the JPEG is cut off")
        marker, start = match[1][0], match.end() - 2
        if marker == _EOI:
            return
        if marker in _NO_LENGTH:
            position = start + 2
            continue
        (length,) = struct.unpack_from(">H", data, start + 2)
        position = start + 2 + length
        if length < 2 or position > len(data):
            raise Damaged("the JPEG is cut off")
        yield marker, start, position
    raise TooManySegments(f"a JPEG with more than {most} segments is made to waste time")
