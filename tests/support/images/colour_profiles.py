"""ICC profiles, made here from their published numbers: ICC.1:2022, 7.2 (header), 7.3 (tags) and 10 (tag types)."""

import struct

from PIL import ImageCms

_D50 = (0.9642, 1.0, 0.8249)


def _fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def profile(colours: bytes, tags: dict[bytes, bytes], *, kind: bytes = b"mntr", space: bytes = b"XYZ ") -> bytes:
    """A profile with these tags."""
    place, table, data = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += name + struct.pack(">II", place + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    head = struct.pack(">I4sI4s4s4s", place + len(data), bytes(4), 0x02400000, kind, colours, space)
    head += bytes(12) + b"acsp" + bytes(28) + _fixed(*_D50) + bytes(48)
    return head + table + data


def _text() -> dict[bytes, bytes]:
    return {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + _fixed(*_D50),
    }


def gamma(number: float) -> bytes:
    """A curve that is a power."""
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(number * 256))


def srgb_curve() -> bytes:
    """sRGB's curve, as a formula."""
    return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def srgb_table(count: int) -> bytes:
    """sRGB's curve, as a table."""
    levels = [each / (count - 1) for each in range(count)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in levels]
    return b"curv" + bytes(4) + struct.pack(f">I{count}H", count, *(round(each * 65535) for each in linear))


def matrix(primaries: tuple[tuple[float, float, float], ...], curve: bytes) -> bytes:
    """A profile of three primaries, adapted to D50, and one curve."""
    tags = _text()
    for letter, numbers in zip((b"r", b"g", b"b"), primaries, strict=True):
        tags |= {letter + b"XYZ": b"XYZ " + bytes(4) + _fixed(*numbers), letter + b"TRC": curve}
    return profile(b"RGB ", tags)


_SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
_ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))

P3 = matrix(_P3, srgb_curve())
ADOBE_RGB = matrix(_ADOBE, gamma(2.19921875))
GREY_18 = profile(b"GRAY", {**_text(), b"kTRC": gamma(1.8)})
SRGB = {
    "LittleCMS's": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    "formula": matrix(_SRGB, srgb_curve()),
    "table of 1024": matrix(_SRGB, srgb_table(1024)),
    "table of 4096": matrix(_SRGB, srgb_table(4096)),
}


def cmyk() -> bytes:
    """A printer's profile: a table of 3⁴ points of Lab, from the simplest model of four inks."""
    grid, points = 3, b""
    for number in range(grid**4):
        cyan, magenta, yellow, black = (number // grid**power % grid / (grid - 1) for power in (3, 2, 1, 0))
        light = (1 - 0.3 * cyan - 0.4 * magenta - 0.1 * yellow) * (1 - 0.9 * black)
        a, b = (0.5 * magenta - 0.4 * cyan) * (1 - black), (0.6 * yellow - 0.4 * cyan - 0.1 * magenta) * (1 - black)
        lab = (max(0, light) * 65280, 32768 + a * 25000, 32768 + b * 25000)
        points += struct.pack(">3H", *(round(min(65535, max(0, each))) for each in lab))
    identity = struct.pack(">2H", 0, 65535)
    table = b"mft2" + bytes(4) + bytes([4, 3, grid, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += struct.pack(">HH", 2, 2) + identity * 4 + points + identity * 3
    return profile(b"CMYK", {**_text(), b"A2B0": table}, kind=b"prtr", space=b"Lab ")
