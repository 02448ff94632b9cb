"""Result of reading a picture's header, for all formats, and the errors of doing so."""

import dataclasses
from typing import Literal, TypeAlias

# Enough for 50 MiB of PNG written in 4 KB IDAT chunks; walking that many takes some 50 ms.
MAX_SEGMENTS = 1 << 16

# Bytes of a colour profile; those of printers take up to three million. A longer one counts as none.
MAX_PROFILE_BYTES = 4 * 1024 * 1024

Format: TypeAlias = Literal["jpeg", "png", "webp", "avif", "gif", "bmp", "tiff"]


class UnknownFormat(ValueError):
    """The file is no picture of a known format by its first bytes. Its text says what it is, if that is known."""


class Damaged(ValueError):
    """The file is cut off, contradicts itself, or is of a kind that no encoder writes."""


class TooManySegments(Damaged):
    """The file has more segments or chunks than may be walked."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A picture before decoding. `width` and `height` are as stored, before `orientation` (Exif, 1…8) is applied.

    Decoding takes `fixed_memory` bytes, and `bytes_per_pixel` for each decoded pixel. `inflated`: bytes that a PNG's
    image data must inflate to, 0 for other formats. `depth`: bits per sample. `scans`: times that the decoder goes over
    all pixels. `profile`: its ICC profile, unchecked. `quick`: decoding takes little time for few pixels (unless
    the format is slow by itself).
    """

    format: Format
    width: int
    height: int
    orientation: int
    pieces: list[memoryview]
    bytes_per_pixel: int
    fixed_memory: int = 0
    depth: int = 8
    inflated: int = 0
    scans: int = 1
    profile: bytes = b""
    quick: bool = True

    def cleaned(self) -> bytes:
        """Return the file with nothing in it but the picture."""
        return b"".join(self.pieces)
