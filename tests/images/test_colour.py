"""Colours are those that the picture's owner saw: by its profile to sRGB, or not at all."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageCms

from pipelines.images import codec, colour
from pipelines.images.formats.header import MAX_PROFILE_BYTES
from tests.support.images import colour_profiles, malicious_images
from tests.support.pictures import LIMITS, largest_difference, photo, reference, saved

ROOT = Path(__file__).parents[2]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
P3, ADOBE = colour_profiles.P3, colour_profiles.ADOBE_RGB


def quadrants(mode: str = "RGB") -> Image.Image:
    """Four strong colours."""
    picture = Image.new("RGB", (128, 128))
    for left, top, paint in ((0, 0, "#c83c32"), (64, 0, "#46aa50"), (0, 64, "#3c50be"), (64, 64, "#dcc85a")):
        picture.paste(paint, (left, top, left + 64, top + 64))
    return picture.convert(mode)


def converted(data: bytes, profile: bytes) -> np.ndarray:
    """What LittleCMS makes of the decoded file."""
    picture = Image.open(io.BytesIO(data))
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return np.asarray(ImageCms.profileToProfile(picture, source, SRGB, outputMode="RGB"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("profile", [P3, ADOBE], ids=["Display P3", "Adobe RGB"])
def test_a_profile_is_applied_in_every_format(kind: str, profile: bytes) -> None:
    data = saved(quadrants(), kind, icc_profile=profile)

    pixels = codec.decode(data, LIMITS)

    assert largest_difference(pixels, converted(data, profile)) <= 1
    assert largest_difference(pixels, reference(data)) > 8


def test_a_profile_is_applied_in_a_bmp() -> None:
    rows = np.asarray(quadrants())[::-1, :, ::-1].tobytes()
    info = struct.pack("<IiiHHIIiiII", 124, 128, 128, 1, 24, 0, len(rows), 0, 0, 0, 0) + bytes(16) + b"DEBM" + bytes(48)
    info += struct.pack("<IIII", 0, 124 + len(rows), len(P3), 0)
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 138) + info + rows + P3

    pixels = codec.decode(data, LIMITS)

    assert largest_difference(pixels, codec.decode(saved(quadrants(), "PNG", icc_profile=P3), LIMITS)) == 0


def test_a_pillow_without_littlecms_ignores_profiles_and_says_so_once() -> None:
    look = (
        "import sys; sys.modules['PIL._imagingcms'] = None;"
        "from pipelines.images import codec; from pipelines.messages import EngineConfig;"
        "data, limits = sys.stdin.buffer.read(), EngineConfig(model='demo', data_dir='');"
        "codec.decode(data, limits); sys.stdout.buffer.write(codec.decode(data, limits).tobytes())"
    )
    data = saved(quadrants(), "PNG", icc_profile=P3)

    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, input=data, capture_output=True, check=True)

    assert done.stdout == reference(data).tobytes()
    assert done.stderr.count(b"without LittleCMS") == 1


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_a_grey_profile_is_applied_to_grey(mode: str) -> None:
    data = saved(photo().convert(mode), "PNG", icc_profile=colour_profiles.GREY_18)

    pixels = codec.decode(data, LIMITS)

    plain = codec.decode(saved(photo().convert(mode), "PNG"), LIMITS)
    assert (pixels[:, :, 0] == pixels[:, :, 2]).all()
    assert (largest_difference(pixels, plain) > 8) == (mode != "1")


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_cmyk_profile_is_applied_to_cmyk(kind: str) -> None:
    data = saved(quadrants("CMYK"), kind, icc_profile=colour_profiles.cmyk())

    pixels = codec.decode(data, LIMITS)

    assert largest_difference(pixels, converted(data, colour_profiles.cmyk())) <= 1


@pytest.mark.parametrize(("mode", "profile"), [("RGB", P3), ("CMYK", colour_profiles.cmyk())], ids=["RGB", "CMYK"])
def test_a_large_picture_is_converted_after_its_reduction(mode: str, profile: bytes) -> None:
    data = saved(quadrants(mode).resize((3200, 3200)), "TIFF", icc_profile=profile)

    pixels = codec.decode(data, LIMITS)

    small = codec.decode(saved(quadrants(mode), "TIFF", icc_profile=profile), LIMITS)
    assert largest_difference(pixels[256::512, 256::512], small[32::64, 32::64]) <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("profile", colour_profiles.SRGB, ids=list(colour_profiles.SRGB))
def test_a_profile_that_says_srgb_changes_no_bit(kind: str, profile: str) -> None:
    data = saved(photo(), kind, icc_profile=colour_profiles.SRGB[profile])

    pixels = codec.decode(data, LIMITS)

    assert largest_difference(pixels, reference(data)) == 0


def test_it_can_be_switched_off() -> None:
    data = saved(quadrants(), "PNG", icc_profile=P3)

    pixels = codec.decode(data, msgspec.structs.replace(LIMITS, color_management="off"))

    assert largest_difference(pixels, np.asarray(quadrants())) == 0


BROKEN = {
    "no profile": b"a profile",
    "cut": P3[: len(P3) // 2],
    "header alone": P3[:132],
    "of noise": P3[:132] + bytes(range(256)) * 4,
    "of tags that lie nowhere": P3[:132] + b"".join(P3[p : p + 4] + b"\x7f" * 8 for p in range(132, 240, 12)),
    "of another class": P3[:12] + b"link" + P3[16:],
    "of Lab colours": P3[:16] + b"Lab " + P3[20:],
    "of ink": colour_profiles.cmyk(),
    "of grey": colour_profiles.GREY_18,
    "of programs": P3[:132] + b"D2B0" + P3[136:],
    "too long": P3 + bytes(MAX_PROFILE_BYTES),
    "of 4 billion tags": P3[:128] + b"\xff" * 4 + P3[132:],
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_a_profile_that_is_none_for_this_picture_is_ignored(kind: str, name: str) -> None:
    data = saved(photo(), kind, icc_profile=BROKEN[name])

    pixels = codec.decode(data, LIMITS)

    assert largest_difference(pixels, codec.decode(saved(photo(), kind), LIMITS)) == 0


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kept", range(0, len(P3), 37))
def test_a_damaged_profile_ends_in_a_picture(mode: str, kept: int) -> None:
    profile = P3[:kept] + b"\xff\x80\x01" + P3[kept + 3 :]

    pixels = codec.decode(saved(quadrants(mode), "TIFF", icc_profile=profile), LIMITS)

    assert pixels.shape == (128, 128, 3)


def test_a_jpeg_s_profile_in_several_segments_is_joined_in_their_order() -> None:
    plain = saved(quadrants(), "JPEG")
    parts = [
        malicious_images.segment(0xE2, b"ICC_PROFILE\0" + bytes([number, 3]) + P3[(number - 1) * 200 : number * 200])
        for number in (2, 1)
    ]
    last = malicious_images.segment(0xE2, b"ICC_PROFILE\0\x03\x03" + P3[400:])

    whole, without = (plain[:2] + b"".join(some) + plain[2:] for some in ([*parts, last], parts))

    expected = codec.decode(saved(quadrants(), "JPEG", icc_profile=P3), LIMITS)
    assert largest_difference(codec.decode(whole, LIMITS), expected) == 0
    assert largest_difference(codec.decode(without, LIMITS), reference(plain)) == 0


def test_a_profile_with_tables_is_applied_in_a_process_of_its_own() -> None:
    quick, tables = (saved(quadrants("CMYK"), "JPEG", icc_profile=profile) for profile in (P3, colour_profiles.cmyk()))

    codec.decode_quick(quick, LIMITS)
    with pytest.raises(codec.LargePicture):
        codec.decode_quick(tables, LIMITS)


def test_only_whole_profiles_without_tables_are_quick() -> None:
    profiles = {"matrix": P3, "broken": b"a profile", "long": P3 + bytes(colour.QUICK_PROFILE_BYTES)}

    quick = {name: colour.is_quick(profile) for name, profile in profiles.items()}

    assert quick == {"matrix": True, "broken": True, "long": False}
