"""GIF, BMP, TIFF and AVIF are taken as Pillow takes them; what is no picture is called what it is."""

import itertools
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.images import codec
from pipelines.images.formats import sniff
from pipelines.messages import INPUT_FAULTS
from tests.support.images import malicious_images
from tests.support.pictures import LIMITS, fading, fault, largest_difference, photo, reference, saved, turned

ROOT = Path(__file__).parents[2]


def grey_16(order: str) -> Image.Image:
    """A ramp of 16-bit grey, in this byte order."""
    return Image.fromarray(np.tile(np.linspace(0, 65535, 256).astype(f"{order}u2"), (256, 1)))


def in_palette() -> Image.Image:
    return photo().convert("P", palette=Image.Palette.ADAPTIVE)


def runs() -> bytes:
    """A BMP of 64×64 in runs: each row 32 pixels of one colour, 32 of another."""
    palette = b"\0\0\xff\0\xff\0\0\0" + bytes(4 * 254)
    data = palette + b"\x20\x00\x20\x01\0\0" * 64 + b"\0\1"
    file = malicious_images.bmp(64, 64, 8, 1, data)
    return file[:10] + struct.pack("<I", 54 + 1024) + file[14:]


def upside_down() -> bytes:
    """A BMP whose rows go from the top down."""
    rows = np.asarray(photo(64, 64))[:, :, ::-1].tobytes()
    return malicious_images.bmp(64, -64, 24, 0, rows)


def os2() -> bytes:
    """A BMP with OS/2's header."""
    rows = np.asarray(photo(64, 64))[::-1, :, ::-1].tobytes()
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 26) + struct.pack("<IHHHH", 12, 64, 64, 1, 24) + rows


TAKEN = {
    "gif": lambda: saved(photo(), "GIF"),
    "gif grey": lambda: saved(photo().convert("L"), "GIF"),
    "gif interlaced": lambda: saved(in_palette(), "GIF", interlace=1),
    "gif with a transparent colour": lambda: saved(in_palette(), "GIF", transparency=7),
    "gif, resized": lambda: saved(photo(1500, 1100), "GIF"),
    "bmp": lambda: saved(photo(), "BMP"),
    "bmp with odd sides": lambda: saved(photo(511, 333), "BMP"),
    "bmp palette": lambda: saved(in_palette(), "BMP"),
    "bmp black and white": lambda: saved(photo().convert("1"), "BMP"),
    "bmp with alpha": lambda: saved(fading(), "BMP"),
    "bmp in runs": runs,
    "bmp upside down": upside_down,
    "bmp of OS/2": os2,
    "tiff": lambda: saved(photo(), "TIFF"),
    "tiff grey": lambda: saved(photo().convert("L"), "TIFF"),
    "tiff palette": lambda: saved(in_palette(), "TIFF"),
    "tiff black and white": lambda: saved(photo().convert("1"), "TIFF"),
    "tiff with alpha": lambda: saved(fading(), "TIFF"),
    "tiff cmyk": lambda: saved(photo().convert("CMYK"), "TIFF"),
    "tiff lzw": lambda: saved(photo(), "TIFF", compression="tiff_lzw"),
    "tiff deflate": lambda: saved(photo(), "TIFF", compression="tiff_adobe_deflate"),
    "tiff deflate with predictor": lambda: saved(photo(), "TIFF", compression="tiff_lzw", tiffinfo={317: 2}),
    "tiff packbits": lambda: saved(photo(), "TIFF", compression="packbits"),
    "tiff jpeg": lambda: saved(photo(), "TIFF", compression="jpeg"),
    "tiff fax": lambda: saved(photo().convert("1"), "TIFF", compression="group4"),
    "tiff in strips": lambda: saved(photo(), "TIFF", compression="tiff_lzw", strip_size=8192),
    "tiff big": lambda: saved(photo(), "TIFF", big_tiff=True),
    "tiff big, deflate": lambda: saved(photo(), "TIFF", big_tiff=True, compression="tiff_adobe_deflate"),
    "tiff resized": lambda: saved(photo(1500, 1100), "TIFF"),
    "avif": lambda: saved(photo(), "AVIF"),
    "avif grey": lambda: saved(photo().convert("L"), "AVIF"),
    "avif 4:4:4": lambda: saved(photo(), "AVIF", subsampling="4:4:4"),
    "avif with alpha": lambda: saved(fading(), "AVIF"),
    "avif with odd sides": lambda: saved(photo(511, 333), "AVIF"),
    "avif with Exif and XMP": lambda: saved(photo(), "AVIF", exif=turned(1), xmp=b"<x:xmpmeta/>"),
    "avif resized": lambda: saved(photo(1500, 1100), "AVIF"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_pixels_are_those_of_pillow(name: str) -> None:
    data = TAKEN[name]()

    pixels = codec.decode(data, LIMITS)

    assert largest_difference(pixels, reference(data)) == 0


@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_of_a_tiff_keeps_its_range(order: str, compression: str | None) -> None:
    ramp = grey_16(order)

    pixels = codec.decode(saved(ramp, "TIFF", compression=compression), LIMITS)

    assert largest_difference(pixels[:, :, 0], np.asarray(ramp) >> 8) == 0


@pytest.mark.parametrize("kind", ["AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_they_stand_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(photo(320, 200), kind, exif=exif)

    pixels = codec.decode(data, LIMITS)

    assert largest_difference(pixels, reference(data)) == 0


def test_a_tiff_stands_upright_by_xmp() -> None:
    data = saved(photo(320, 200), "TIFF", tiffinfo={700: b'tiff:Orientation="6"'})

    pixels = codec.decode(data, LIMITS)

    assert largest_difference(pixels, reference(data)) == 0


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    first, then = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")

    pixels = codec.decode(saved(first, kind, save_all=True, append_images=[then, then]), LIMITS)

    assert pixels.mean(axis=(0, 1)) == pytest.approx([255, 0, 0], abs=3)


@pytest.mark.parametrize("name", ["gif", "bmp"])
def test_small_ones_of_simple_formats_are_quick(name: str) -> None:
    data = TAKEN[name]()

    pixels = codec.decode_quick(data, LIMITS)

    assert largest_difference(pixels, reference(data)) == 0


@pytest.mark.parametrize("name", ["tiff", "avif", "bmp in runs"])
def test_those_with_a_risky_decoder_go_to_a_process_of_their_own(name: str) -> None:
    with pytest.raises(codec.LargePicture) as given_back:
        codec.decode_quick(TAKEN[name](), LIMITS)

    assert given_back.value.alone is False


@pytest.mark.parametrize("name", [name for name in malicious_images.REFUSED if name.startswith(("avif", "tiff"))])
def test_none_of_their_bytes_is_read_among_quick_pictures(name: str) -> None:
    with pytest.raises(codec.LargePicture):  # and no fault, which only reading tells
        codec.decode_quick(malicious_images.REFUSED[name](), LIMITS)


def test_what_items_of_an_avif_share_is_read_once() -> None:
    data = malicious_images.shared_avif(malicious_images.av1(64, 64) * 400, items=10, uses=20)

    assert sniff.read(data, max_segments=1000).width == 64


def test_the_bound_on_units_is_for_the_whole_avif() -> None:
    data = malicious_images.shared_avif(b"", items=10, stream=malicious_images.av1(64, 64) * 100)

    with pytest.raises(sniff.TooManySegments):
        sniff.read(data, max_segments=1000)


@pytest.mark.parametrize("interval", ["0", "11", "100101"], ids=["none", "of one", "longer"])
@pytest.mark.parametrize("model", [False, True], ids=["no decoder model", "with a decoder model"])
def test_an_avif_may_say_when_it_is_shown(interval: str, model: bool) -> None:  # noqa: FBT001
    time = f"1{1:032b}{30:032b}{interval}" + (f"1{9:05b}{1:032b}{9:05b}{9:05b}" if model else "0")
    point = f"{0:012b}{8:05b}0" + (f"1{5:010b}{5:010b}0" if model else "")
    bits = f"00010{time}0{0:05b}{point}{15:04b}{15:04b}{319:016b}{199:016b}".ljust(36 * 8, "0")
    stream = b"\x0a\x24" + int(bits, 2).to_bytes(36, "big") + b"\x32\x08" + bytes(8)

    header = sniff.read(malicious_images.avif(320, 200, stream=stream))

    assert header.fixed_memory == 3 * 320 * 200


# --- what is refused, and as what --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gif", "bmp", "tiff", "tiff lzw", "tiff deflate", "tiff jpeg", "avif", "bmp in runs"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_a_file_cut_off_is_called_so(name: str, kept: float) -> None:
    data = TAKEN[name]()

    error = fault(data[: int(len(data) * kept)])

    assert error.kind == "image_load_error"
    assert any(word in error.message for word in ("cut off", "ends within"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiff of a thousand strips in one", "parts overlap"),
        ("bmp of 49 megapixels in runs", "may have 8 megapixels; send it as PNG"),
    ],
)
def test_what_is_made_to_waste_time_is_refused_by_its_header(name: str, said: str) -> None:
    assert said in fault(malicious_images.REFUSED[name]()).message


@pytest.mark.parametrize("name", ["gif", "bmp", "tiff", "tiff palette", "tiff deflate", "tiff jpeg", "avif"])
def test_damaged_files_end_in_a_fault_or_a_picture(name: str) -> None:
    data, dice = saved_small(name), np.random.default_rng(len(name))

    for _ in range(100):
        damaged = bytearray(data)
        for _ in range(dice.choice([1, 3, 10])):
            damaged[dice.integers(min(len(damaged), dice.choice([64, 512, len(damaged)])))] = dice.integers(256)
        try:
            outcome = codec.decode(bytes(damaged), LIMITS).ndim
        except codec.ImageFault as error:
            outcome = error.kind
        assert outcome in {3, *INPUT_FAULTS}


@pytest.mark.parametrize("name", ["tiff", "tiff palette", "tiff deflate", "tiff jpeg"])
def test_a_tiff_with_damaged_entries_ends_in_a_fault_or_a_picture(name: str) -> None:
    data, dice = saved_small(name), np.random.default_rng(len(name))
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)

    for entry, (form, place) in itertools.product(range(count), [("<H", 2), ("<I", 4), ("<I", 8)]):
        for value in (0, 1, 3, 4, int(dice.integers(len(data))), 65535):
            damaged = bytearray(data)
            struct.pack_into(form, damaged, directory + 2 + 12 * entry + place, value)
            try:
                outcome = codec.decode(bytes(damaged), LIMITS).ndim
            except codec.ImageFault as error:
                outcome = error.kind
            assert outcome in {3, *INPUT_FAULTS}


def saved_small(name: str) -> bytes:
    """A small file of one of the kinds."""
    kind, _, compression = name.partition(" ")
    picture = photo(96, 80)
    if compression == "palette":
        picture = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    options = {"deflate": {"compression": "tiff_adobe_deflate"}, "jpeg": {"compression": "jpeg"}}
    return saved(picture, kind.upper(), **options.get(compression, {}))


NO_PICTURES = {
    "HEIC": [
        malicious_images.box(b"ftyp", brand, bytes(4), b"mif1", b"heic") + bytes(64)
        for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
    ],
    "web page": [
        b"<!DOCTYPE html><html>",
        b"\xef\xbb\xbf\n <html lang='en'>",
        b"<?xml version='1.0'?>\n<!DOCTYPE html PUBLIC>",
        b"<!-- saved -->\n<head>",
    ],
    "Git LFS pointer": [b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"],
    "SVG": [b"<svg xmlns='http://www.w3.org/2000/svg'>", b"<?xml version='1.0'?>\n<svg>"],
    "empty": [b""],
}


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, files in NO_PICTURES.items() for data in files])
def test_a_file_that_is_no_picture_is_called_what_it_is(name: str, data: bytes) -> None:
    error = fault(data)

    assert (error.kind, name in error.message) == ("unsupported_image_format", True)


def test_a_pillow_without_avif_says_so() -> None:
    look = (
        "import sys; sys.modules['PIL._avif'] = None;"
        "from pipelines.images import codec; from pipelines.messages import EngineConfig;"
        "data = sys.stdin.buffer.read()\n"
        "try:\n    codec.decode(data, EngineConfig(model='demo', data_dir=''))\n"
        "except codec.ImageFault as fault:\n    print(fault.kind, fault.message, fault.ctx['supported_formats'])"
    )

    done = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, input=TAKEN["avif"](), capture_output=True, check=True
    )

    said = done.stdout.decode()
    assert said.startswith("unsupported_image_format The file is an AVIF picture, which the Pillow installed here")
    assert "avif" not in said.rpartition("[")[2]


@pytest.mark.parametrize("missing", [1, 4, 8, 11, 12])
def test_a_png_without_its_end_is_a_picture(missing: int) -> None:
    data = saved(photo(), "PNG")

    pixels = codec.decode(data[:-missing], LIMITS)

    assert largest_difference(pixels, np.asarray(photo())) == 0


def test_a_png_cut_in_what_follows_its_picture_is_a_picture() -> None:
    data = saved(photo(), "PNG")
    comment = malicious_images.chunk(b"tEXt", b"Comment\0" + bytes(1000))

    pixels = codec.decode(data[:-12] + comment[:-500], LIMITS)

    assert largest_difference(pixels, np.asarray(photo())) == 0


def test_a_gif_without_its_end_is_a_picture() -> None:
    data = saved(photo(), "GIF")

    pixels = codec.decode(data.removesuffix(b";"), LIMITS)

    assert largest_difference(pixels, reference(data)) == 0


@pytest.mark.parametrize(
    "jpeg",
    [saved(photo(1000, 1000).convert("L"), "JPEG"), malicious_images.jpeg_of_scans(64, 64, 2000)],
    ids=["larger than it says", "drawn 2000 times"],
)
def test_a_tiff_round_a_jpeg_that_lies_is_refused(jpeg: bytes) -> None:
    error = fault(malicious_images.tiff_of(64, 64, compression=7, data=jpeg))

    assert error.kind == "image_load_error"


@pytest.mark.parametrize(("kind", "options"), [("AVIF", {"speed": 10}), ("TIFF", {"compression": "tiff_lzw"})])
def test_12_megapixels_take_no_more_memory_than_was_foreseen(kind: str, options: dict) -> None:
    measure = (
        "import sys; from pipelines.images import codec; from pipelines.messages import EngineConfig;"
        "from tests.support import peak_memory as peak; from tests.support.images import malicious_images;"
        "import PIL.TiffImagePlugin, PIL.AvifImagePlugin, PIL.features; PIL.features.check('avif');"
        "limits = EngineConfig(model='demo', data_dir=''); data = sys.stdin.buffer.read();"
        "plan = codec._plan(data, limits);"
        "before = peak.megabytes(); codec.decode(data, limits); print(peak.megabytes() - before, plan.memory / 1e6)"
    )
    data = saved(photo(400, 300).resize((4000, 3000)), kind, **options)

    done = subprocess.run([sys.executable, "-c", measure], cwd=ROOT, input=data, capture_output=True, check=True)

    grown, foreseen = map(float, done.stdout.split())
    assert grown < foreseen + 40 + 2 * len(data) / 1e6  # the last step's bands, and copies of the file
