"""Pictures stand upright, wherever their file says how."""

import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipelines.images import codec
from tests.support.images import malicious_images
from tests.support.pictures import LIMITS, largest_difference, photo, reference, saved, turned


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    data = saved(photo(320, 200), kind, exif=turned(orientation))

    pixels = codec.decode(data, LIMITS)

    assert largest_difference(pixels, reference(data)) == 0


XMP = "<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description {} </rdf:Description></x:xmpmeta>"
ATTRIBUTE, ELEMENT = 'tiff:Orientation="{}">', "><tiff:Orientation>{}</tiff:Orientation>"


def xmp(form: str, orientation: int) -> bytes:
    """An XMP packet with this orientation."""
    return XMP.format(form.format(orientation)).encode()


def png_with(picture: Image.Image, key: str, text: str, kind: bytes) -> bytes:
    """A PNG with a text chunk of this kind."""
    info = PngImagePlugin.PngInfo()
    if kind == b"iTXt":
        info.add_itxt(key, text, zip=True)
    else:
        info.add_text(key, text, zip=kind == b"zTXt")
    return saved(picture, "PNG", pnginfo=info)


def raw_profile(block: bytes, name: str = "exif") -> str:
    """An Exif block as ImageMagick writes it into a PNG: digits in lines."""
    digits = block.hex()
    lines = [digits[start : start + 72] for start in range(0, len(digits), 72)]
    return "\n".join(["", name, f"{len(block):8}", *lines, ""])


UPRIGHT_BY = {
    "jpeg, xmp attribute": lambda n: saved(photo(320, 200), "JPEG", xmp=xmp(ATTRIBUTE, n)),
    "jpeg, xmp element": lambda n: saved(photo(320, 200), "JPEG", xmp=xmp(ELEMENT, n)),
    "jpeg, exif before xmp": lambda n: saved(photo(320, 200), "JPEG", exif=turned(n), xmp=xmp(ATTRIBUTE, 3)),
    "jpeg, exif without it, and xmp": lambda n: saved(photo(320, 200), "JPEG", exif=nothing(), xmp=xmp(ELEMENT, n)),
    "webp, xmp attribute": lambda n: saved(photo(320, 200), "WEBP", xmp=xmp(ATTRIBUTE, n)),
    "webp, xmp element": lambda n: saved(photo(320, 200), "WEBP", xmp=xmp(ELEMENT, n)),
    "png, xmp packed": lambda n: png_with(photo(320, 200), "XML:com.adobe.xmp", xmp(ATTRIBUTE, n).decode(), b"iTXt"),
    "png, xmp in plain text": lambda n: png_with(
        photo(320, 200), "XML:com.adobe.xmp", xmp(ELEMENT, n).decode(), b"tEXt"
    ),
    "png, raw profile packed": lambda n: png_with(
        photo(320, 200), "Raw profile type exif", raw_profile(turned(n)), b"zTXt"
    ),
    "png, raw profile": lambda n: png_with(photo(320, 200), "Raw profile type exif", raw_profile(turned(n)), b"tEXt"),
    "png, raw profile without Exif's name": lambda n: png_with(
        photo(320, 200), "Raw profile type exif", raw_profile(turned(n)[6:]), b"zTXt"
    ),
}


def nothing() -> bytes:
    """An Exif block with no orientation."""
    exif = Image.Exif()
    exif[0x010F] = "A camera maker"
    return exif.tobytes()


@pytest.mark.parametrize("where", UPRIGHT_BY)
@pytest.mark.parametrize("orientation", [0, 2, 6, 9])
def test_orientation_is_found_wherever_pillow_finds_it(where: str, orientation: int) -> None:
    data = UPRIGHT_BY[where](orientation)

    pixels = codec.decode(data, LIMITS)

    assert largest_difference(pixels, reference(data)) == 0


@pytest.mark.parametrize("kind", [3, 4, 8, 9])
@pytest.mark.parametrize("number", [6, 65535])
def test_orientation_may_be_a_number_of_any_type(kind: int, number: int) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, kind, 1, number) + bytes(4)
    data = saved(photo(320, 200), "JPEG", exif=exif)

    pixels = codec.decode(data, LIMITS)

    assert largest_difference(pixels, reference(data)) == 0


@pytest.mark.parametrize("kind", [3, 4, 8, 9])
def test_a_tiff_s_orientation_may_be_a_number_of_any_type(kind: int) -> None:
    pixels = np.asarray(photo(128, 64).convert("L")).tobytes()
    data = malicious_images.tiff_of(128, 64, (274, kind, 1, 6), data=pixels)

    decoded = codec.decode(data, LIMITS)

    assert largest_difference(decoded, reference(data)) == 0


@pytest.mark.parametrize("key", ["Raw profile type exif", "Raw profile type APP1"])
@pytest.mark.parametrize("text", ["", "\nexif\n", "\nexif\n       8\nnot digits\n", "\nexif\n    3\n abc"])
def test_a_broken_raw_profile_turns_nothing(key: str, text: str) -> None:
    pixels = codec.decode(png_with(photo(320, 200), key, text, b"zTXt"), LIMITS)

    assert largest_difference(pixels, np.asarray(photo(320, 200))) == 0


def test_orientation_by_other_spellings() -> None:
    plain = saved(photo(320, 200), "JPEG", exif=turned(6))
    spellings = [
        saved(photo(320, 200), "JPEG", xmp=b"tiff:Orientation='6'"),
        saved(photo(320, 200), "JPEG", xmp=b'tiff:Orientation = "6"'),
        saved(photo(320, 200), "JPEG", xmp=b"<tiff:Orientation> 6 </tiff:Orientation>"),
    ]

    decoded = [codec.decode(data, LIMITS) for data in spellings]

    assert [largest_difference(pixels, codec.decode(plain, LIMITS)) for pixels in decoded] == [0, 0, 0]
