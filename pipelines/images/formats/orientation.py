"""How a stored picture must be turned, as Pillow's `exif_transpose` finds it: by Exif, else by XMP."""

import re
import struct

# TIFF 6.0 section 2
_ORIENTATION_TAG = 0x0112
_CODES = {3: "H", 4: "I", 8: "h", 9: "i"}  # SHORT, LONG, and their signed forms

# An attribute or an element. Searched for as text: XMP is parsed nowhere, whatever it holds.
_XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([0-9])")


def find(exif: bytes, xmp: bytes) -> int:
    """Return the orientation (1…8) by an Exif block and an XMP packet; 1 if they have none, or no valid one."""
    return either(_in_exif(exif), xmp)


def either(number: int | None, xmp: bytes) -> int:
    """Return the orientation by the number that the file itself gives, if it does, else by XMP."""
    if number is None and (match := _XMP.search(xmp)):
        number = int(match[1])
    return number if number is not None and 1 <= number <= 8 else 1


def _in_exif(exif: bytes) -> int | None:
    """Return the number in an Exif block's orientation, valid or not; None if it has none."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == _ORIENTATION_TAG and kind in _CODES:
                (value,) = struct.unpack_from(order + _CODES[kind], tiff, entry + 8)
                return int(value)
    except struct.error:
        return None
    return None
