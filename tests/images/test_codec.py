"""Pictures in and out: what is accepted, what comes of it, what is refused, and what that may cost."""

import io
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.images import codec
from pipelines.images.codec import ImageFault
from pipelines.messages import INPUT_FAULTS, EngineConfig
from tests.support.images import malicious_images
from tests.support.pictures import LIMITS, fading, fault, largest_difference, photo, reference, saved, turned

ROOT = Path(__file__).parents[2]


# --- what comes in -----------------------------------------------------------------------------------------------

ACCEPTED = {
    "jpeg": lambda: saved(photo(), "JPEG"),
    "jpeg progressive": lambda: saved(photo(), "JPEG", progressive=True),
    "jpeg grey": lambda: saved(photo().convert("L"), "JPEG"),
    "jpeg cmyk": lambda: saved(photo().convert("CMYK"), "JPEG"),
    "jpeg with odd sides": lambda: saved(photo(511, 333), "JPEG", subsampling="4:2:0"),
    "png": lambda: saved(photo(), "PNG"),
    "png grey": lambda: saved(photo().convert("L"), "PNG"),
    "png palette": lambda: saved(photo().convert("P"), "PNG"),
    "png palette with a transparent colour": lambda: saved(photo().convert("P"), "PNG", transparency=7),
    "png black and white": lambda: saved(photo().convert("1"), "PNG"),
    "png grey with alpha": lambda: saved(fading().convert("LA"), "PNG"),
    "png with alpha": lambda: saved(fading(), "PNG"),
    "png with alpha, resized": lambda: saved(fading(700, 501), "PNG"),
    "webp": lambda: saved(photo(), "WEBP"),
    "webp lossless with alpha": lambda: saved(fading(), "WEBP", lossless=True),
    "jpeg brought down": lambda: saved(photo(1500, 1100), "JPEG"),
    "png brought down": lambda: saved(photo(1500, 1100), "PNG"),
    "webp brought down": lambda: saved(photo(1500, 1100), "WEBP"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_pixels_are_those_of_pillow_and_diffusers(name: str) -> None:
    data = ACCEPTED[name]()

    pixels = codec.decode(data, LIMITS)

    assert largest_difference(pixels, reference(data)) == 0


def test_pixels_are_contiguous_writable_bytes() -> None:
    pixels = codec.decode(saved(photo(320, 200), "PNG", exif=turned(6)), LIMITS)

    assert (pixels.dtype, pixels.flags.c_contiguous, pixels.flags.writeable) == (np.uint8, True, True)


@pytest.mark.parametrize(
    ("size", "computed"),
    [
        ((512, 512), (512, 512)),
        ((511, 512), (512, 512)),
        ((516, 515), (520, 512)),
        ((1024, 1024), (1024, 1024)),
        ((1025, 1025), (1024, 1024)),
        ((4000, 3000), (1024, 768)),
        ((3000, 4000), (768, 1024)),
        ((1920, 1080), (1024, 576)),
        ((1030, 700), (1024, 696)),
        ((60, 60), (64, 64)),
        ((16000, 1000), (1024, 64)),
    ],
)
def test_computed_size_has_its_longest_side_at_most_1024_and_multiples_of_8(size, computed) -> None:
    assert codec.fit(*size, 1024) == computed


def test_16_bit_grey_keeps_its_range() -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (256, 1))

    pixels = codec.decode(saved(Image.fromarray(ramp), "PNG"), LIMITS)

    assert largest_difference(pixels[:, :, 0], ramp >> 8) == 0


@pytest.mark.parametrize(
    ("depth", "colour", "row", "transparent"),
    [
        (2, 0, b"\x1b" * 16, b"\x00\x01"),
        (4, 0, b"\x01\x23\x45\x67" * 8, b"\x00\x02"),
        (16, 0, b"\x12\x34\xab\xcd" * 32, b"\x12\x34"),
        (16, 2, b"\x12\x34\xab\xcd\x55\x66\x00\x00\x00\x00\x00\x00" * 32, b"\x12\x34\xab\xcd\x55\x66"),
    ],
)
def test_a_transparent_colour_turns_white_at_every_depth(depth, colour, row, transparent) -> None:
    rows = malicious_images.zlib.compress((b"\0" + row) * 64)
    data = malicious_images.png(64, 64, depth, colour, extra=malicious_images.chunk(b"tRNS", transparent), data=rows)

    pixels = codec.decode(data, LIMITS)

    white = (pixels == 255).all(axis=2)
    assert 0 < white.mean() < 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    first, then = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")

    pixels = codec.decode(saved(first, kind, save_all=True, append_images=[then, then], lossless=True), LIMITS)

    assert pixels.mean(axis=(0, 1)).tolist() == [255, 0, 0]


def test_a_large_picture_is_resized_in_bands_as_in_one_piece() -> None:
    data = saved(fading().resize((3600, 2400)), "PNG", compress_level=1)

    pixels = codec.decode(data, LIMITS)

    assert largest_difference(pixels, reference(data)) <= 1


def test_a_large_jpeg_decoded_at_reduced_scale_looks_the_same() -> None:
    data = saved(photo().resize((4600, 3100)), "JPEG", quality=92)

    pixels = codec.decode(data, LIMITS)

    error = np.mean((pixels.astype(float) - reference(data)) ** 2)
    assert 10 * np.log10(255**2 / error) > 40


def test_several_threads_decode_at_once() -> None:
    files = [make() for name, make in ACCEPTED.items() if "brought down" in name] * 4

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda data: codec.decode(data, LIMITS), files))

    assert all(np.array_equal(pixels, codec.decode(data, LIMITS)) for pixels, data in zip(together, files, strict=True))


def test_decoders_of_other_formats_are_not_even_loaded() -> None:
    look = (
        "import sys; from pipelines.images import codec; from pipelines.messages import EngineConfig;"
        "from tests.support.images import malicious_images as bombs;"
        "limits = EngineConfig(model='demo', data_dir='');"
        "codec.encode(codec.decode(bombs.png(64, 64), limits), 95, '4:4:4');"
        "print({'PIL.TiffImagePlugin', 'PIL.EpsImagePlugin', 'PIL.PdfParser', 'PIL.FpxImagePlugin'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "png", "png with alpha", "webp"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9, 0.999])
def test_a_file_cut_off_is_a_load_error(name: str, kept: float) -> None:
    data = ACCEPTED[name]()

    error = fault(data[: int(len(data) * kept)])

    assert error.kind == "image_load_error"


def test_other_formats_are_named_with_those_supported() -> None:
    error = fault(saved(photo(64, 64), "PPM"))

    supported = ["jpeg", "png", "webp", "avif", "gif", "bmp", "tiff"]
    assert (error.kind, error.ctx) == ("unsupported_image_format", {"supported_formats": supported})


def test_too_many_bytes_are_told_with_the_limit() -> None:
    error = fault(saved(photo(64, 64), "PNG"), EngineConfig(model="demo", data_dir="", max_image_bytes=100))

    assert (error.kind, error.ctx) == ("file_too_large", {"max_size": 100})


def test_too_many_pixels_are_told_with_a_size_that_fits() -> None:
    error = fault(malicious_images.png(7072, 7072, 1, 0))

    assert (error.kind, error.ctx) == ("image_too_large", {"max_height": 7071, "max_width": 7071})


@pytest.mark.parametrize("name", ["jpeg progressive 4:4:4:4, 49 megapixels", "webp 49 megapixels"])
def test_what_would_take_more_memory_than_budgeted_is_too_large(name: str) -> None:
    error = fault(malicious_images.REFUSED[name]())

    assert error.kind == "image_too_large"
    assert error.ctx["max_width"] ** 2 < 49_000_000


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (malicious_images.REFUSED["webp 49 megapixels"], "16.8"),
        (lambda: malicious_images.avif(7000, 7000), "17.9"),
        (malicious_images.REFUSED["tiff 49 megapixels in one strip of deflate"], "33.6"),
    ],
    ids=["webp", "avif", "tiff in one strip"],
)
def test_how_large_a_picture_may_be_is_told_by_its_format(make, most: str) -> None:
    assert f"at most {most} megapixels" in fault(make()).message


def test_a_small_picture_that_takes_much_memory_is_not_called_too_large() -> None:
    error = fault(malicious_images.REFUSED["avif that claims 64 squared and is 16384 squared"]())

    assert (error.kind, "too much memory" in error.message) == ("image_load_error", True)


def test_a_side_that_comes_out_under_64_is_told_with_the_least() -> None:
    error = fault(saved(photo(4000, 200), "JPEG"))

    assert (error.kind, error.ctx) == ("image_too_small", {"min_height": 64, "min_width": 64})


def test_the_limit_on_pixels_is_a_setting() -> None:
    error = fault(saved(photo(512, 512), "PNG"), EngineConfig(model="demo", data_dir="", max_image_pixels=200_000))

    assert error.kind == "image_too_large"


@pytest.mark.parametrize(
    "name", ["jpeg", "jpeg progressive", "jpeg cmyk", "png", "png palette", "png with alpha", "webp"]
)
def test_damaged_files_end_in_a_fault_or_a_picture(name: str) -> None:
    data, dice = saved_small(name), random.Random(name)

    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(dice.choice([1, 3, 10])):
            damaged[dice.randrange(min(len(damaged), dice.choice([64, len(damaged)])))] = dice.randrange(256)
        try:
            outcome = codec.decode(bytes(damaged), LIMITS).ndim
        except ImageFault as error:
            outcome = error.kind
        assert outcome in {3, *INPUT_FAULTS}


def saved_small(name: str) -> bytes:
    """A small file of one of the accepted kinds."""
    picture = Image.open(io.BytesIO(ACCEPTED[name]()))
    return saved(picture.resize((96, 80)), str(picture.format), progressive="progressive" in name)


# --- bombs -------------------------------------------------------------------------------------------------------

_MEASURE = """
import json
from pipelines.images import codec
from pipelines.messages import EngineConfig
from tests.support import peak_memory
from tests.support.images import malicious_images

limits = EngineConfig(model="demo", data_dir="")
for name, make in {**malicious_images.REFUSED, **malicious_images.HARMLESS}.items():
    data = make()
    peak_memory.restart()
    before = peak_memory.megabytes()
    try:
        codec.decode(data, limits)
        kind = "picture"
    except codec.ImageFault as error:
        kind = error.kind
    print(json.dumps([name, kind, peak_memory.megabytes() - before]))
"""


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[str, float]]:
    """What became of each bomb in a process of their own: the outcome, and the growth of its peak memory in MB."""
    command = [sys.executable, "-W", "error", "-c", _MEASURE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr == ""
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (kind, grown) for name, kind, grown in rows}


@pytest.mark.parametrize("name", malicious_images.REFUSED)
def test_a_bomb_is_refused_within_150_mb(measured, name: str) -> None:
    kind, grown = measured[name]

    assert kind in INPUT_FAULTS
    assert grown < 150


@pytest.mark.parametrize("name", malicious_images.HARMLESS)
def test_what_rides_on_a_picture_costs_nothing(measured, name: str) -> None:
    kind, grown = measured[name]

    assert kind == "picture"
    assert grown < 150


def test_the_measurement_sees_a_decoder_without_our_limits() -> None:
    naive = (
        "import io; from PIL import Image; Image.MAX_IMAGE_PIXELS = None;"
        "from tests.support import peak_memory as peak; from tests.support.images import malicious_images as bombs;"
        "Image.open(io.BytesIO(bombs.png(13000, 13000, 1, 0))).convert('RGB');"
        "print(peak.megabytes())"
    )

    done = subprocess.run([sys.executable, "-c", naive], cwd=ROOT, capture_output=True, text=True, check=True)

    assert float(done.stdout) > 600


@pytest.mark.parametrize("progressive", [False, True])
def test_a_48_megapixel_phone_jpeg_takes_less_than_300_mb(progressive: bool) -> None:  # noqa: FBT001
    measure = (
        "import sys; from pipelines.images import codec; from pipelines.messages import EngineConfig;"
        "from tests.support import peak_memory as peak;"
        "data = sys.stdin.buffer.read(); before = peak.megabytes();"
        "print(codec.decode(data, EngineConfig(model='demo', data_dir='')).shape, peak.megabytes() - before)"
    )
    data = saved(photo(200, 150).resize((8000, 6000)), "JPEG", quality=60, progressive=progressive)

    done = subprocess.run([sys.executable, "-c", measure], cwd=ROOT, input=data, capture_output=True, check=True)

    shape, grown = done.stdout.decode().rsplit(" ", 1)
    assert (shape, float(grown) < 300) == ("(768, 1024, 3)", True)


# --- what goes out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("subsampling", "factors"), [("4:4:4", (1, 1)), ("4:2:2", (2, 1)), ("4:2:0", (2, 2))])
def test_a_jpeg_is_written_with_the_subsampling_asked_for(subsampling: str, factors: tuple[int, int]) -> None:
    data = codec.encode(np.asarray(photo(64, 64)), 95, subsampling)

    with Image.open(io.BytesIO(data)) as written:
        _, horizontal, vertical, _ = written.layer[0]
    assert (horizontal, vertical) == factors


def test_a_jpeg_at_quality_95_is_faithful() -> None:
    pixels = np.asarray(photo())

    again = codec.decode(codec.encode(pixels, 95, "4:4:4"), LIMITS)

    assert 10 * np.log10(255**2 / np.mean((again.astype(float) - pixels) ** 2)) > 35


@pytest.mark.parametrize("name", [name for name in malicious_images.HARMLESS if "html" in name or "zip" in name])
def test_nothing_but_the_picture_comes_through(name: str) -> None:
    data = codec.encode(codec.decode(malicious_images.HARMLESS[name](), LIMITS), 95, "4:4:4")

    assert malicious_images.PAYLOAD not in data


def test_metadata_of_the_input_is_not_in_the_output() -> None:
    exif = Image.Exif()
    exif[0x010F] = "A camera maker"
    data = saved(photo(64, 64), "JPEG", exif=exif, comment=b"a comment", icc_profile=b"a profile")

    out = codec.encode(codec.decode(data, LIMITS), 95, "4:4:4")

    with Image.open(io.BytesIO(out)) as written:
        assert set(written.info) == {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
