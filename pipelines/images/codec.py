"""Decodes and encodes pictures: encoded bytes ⇄ uint8 pixels, within limits.

An input file's header is read first (`sniff.read`). Then a cleaned copy, which holds the picture and nothing else, is
decoded by the Pillow decoder of its format. Output is encoded from bare pixels, so it can have no metadata.

Memory is bounded from the header, before anything is allocated: a decode that would take more than `MEMORY_BUDGET` is
refused; a large JPEG is decoded at a half, a quarter or an eighth of its size; the decoder's output is reduced band by
band, without a copy of the whole. Time is bounded from it too: `decode_quick` leaves what takes long to
`pipelines.images.decoder`.
"""

import dataclasses
import functools
import importlib
import io
import math
import struct
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from pipelines.images import colour, rgb
from pipelines.images.formats import png, sniff
from pipelines.images.formats.header import MAX_SEGMENTS, Format, Header
from pipelines.messages import EngineConfig, FailureKind

# Bytes that decoding one picture may take: 50 megapixels of colour PNG, 16 of WebP, a progressive 50-megapixel JPEG.
MEMORY_BUDGET = 256 * 1024 * 1024

# Bytes above which decodes run one at a time, so that all but one of several take little.
ALONE = 48 * 1024 * 1024

# A quick picture is at most a little larger than those that a model makes: some 20 ms to decode. Encoders write about
# ten scans.
QUICK_PIXELS = 1_200_000
QUICK_PIXELS_SCANNED = 16 * QUICK_PIXELS
QUICK_SEGMENTS = 1024  # `QUICK_BYTES` of PNG in 4 KB chunks, twice

# Formats of which only the first bytes are read among quick pictures: judging one takes long, and decoders are large.
SLOW_FORMATS = {"avif", "tiff"}

# Bytes above which a PNG's data is checked to be complete before memory is spent on it.
PROVE_FIRST = 96 * 1024 * 1024

# A JPEG is never reduced below this many times the size asked for, so that the last step, Lanczos, still has enough to
# choose from; Pillow's own thumbnails do the same.
REDUCING_GAP = 2

# Names of Pillow's decoders. The larger ones are imported where they are used: in decoder processes.
_DECODERS: dict[Format, str] = {
    "jpeg": "Jpeg",
    "png": "Png",
    "webp": "WebP",
    "avif": "Avif",
    "gif": "Gif",
    "bmp": "Bmp",
    "tiff": "Tiff",
}

Image.MAX_IMAGE_PIXELS = None  # the limit is ours, and has been applied when a decoder is opened

# What Pillow raises on a damaged file, while decoding it or when its palette is first used.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    RuntimeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageFault(Exception):
    """The picture can't be used.

    `kind`: one of fal's model error types (`pipelines.messages.INPUT_FAULTS`). `message` is for the picture's owner.
    `ctx`: what fal's documentation promises for the kind.
    """

    def __init__(self, kind: FailureKind, message: str, ctx: Mapping[str, int | float | str | list[str]] = {}) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = message
        self.ctx = dict(ctx)


class LargePicture(Exception):
    """The picture takes long to decode. `alone`: so much memory too that no other such may be decoded meanwhile."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.alone = alone


class _Plan(NamedTuple):
    """How a picture is decoded: to which size, its sides divided by `reduction`, within `memory` bytes."""

    header: Header
    size: tuple[int, int]
    reduction: int
    memory: int


def decode(data: bytes, limits: EngineConfig, memory: int = MEMORY_BUDGET) -> NDArray[np.uint8]:
    """Return the picture as contiguous RGB pixels [height, width, 3], upright, on white, sides multiples of 8.

    The longest side is reduced to `limits.max_side`; a side that is then under `limits.min_side` is a fault.
    Thread-safe. Raises `ImageFault`, and `LargePicture` for one that takes more than `memory` bytes.
    """
    plan = _plan(data, limits)
    if plan.memory > memory:
        raise LargePicture(alone=True)
    return _decode(plan)


def decode_quick(data: bytes, limits: EngineConfig) -> NDArray[np.uint8]:
    """Decode a picture that takes little time, as `decode` does. Raises `ImageFault`, or `LargePicture` for others.

    To read the header takes little time only of a file of up to `QUICK_BYTES`.
    """
    if sniff.format_of(data) in SLOW_FORMATS:
        raise LargePicture(alone=False)  # its process asks to be alone once it knows the memory
    try:
        plan = _plan(data, limits, QUICK_SEGMENTS)
    except sniff.TooManySegments:
        raise LargePicture(alone=True) from None
    pixels = plan.header.width * plan.header.height
    if not plan.header.quick or not colour.is_quick(plan.header.profile):
        raise LargePicture(alone=plan.memory > ALONE)
    if pixels > QUICK_PIXELS or pixels * plan.header.scans > QUICK_PIXELS_SCANNED:
        raise LargePicture(alone=plan.memory > ALONE)
    return _decode(plan)


def encode(pixels: NDArray[np.uint8], quality: int, subsampling: str) -> bytes:
    """Encode RGB pixels [height, width, 3] as a bare baseline JPEG. `subsampling`: 4:4:4, 4:2:2 or 4:2:0."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality, subsampling=subsampling)
    return out.getvalue()


def fit(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Return the size: longest side reduced to `max_side`, both sides to the nearest multiple of 8 (halves up)."""
    longest = max(width, height)
    scale = (max_side, longest) if longest > max_side else (1, 1)
    return _nearest_8(width, *scale), _nearest_8(height, *scale)


def _nearest_8(side: int, numerator: int, denominator: int) -> int:
    return (side * numerator + 4 * denominator) // (8 * denominator) * 8


def _plan(data: bytes, limits: EngineConfig, max_segments: int = MAX_SEGMENTS) -> _Plan:
    """Return how to decode a picture, from its header. Raises `ImageFault`.

    With a lower `max_segments`, also `sniff.TooManySegments`.
    """
    if len(data) > limits.max_image_bytes:
        raise ImageFault(
            "file_too_large",
            f"The image file is larger than {limits.max_image_bytes} bytes.",
            {"max_size": limits.max_image_bytes},
        )
    try:
        header = sniff.read(data, max_segments)
    except sniff.UnknownFormat as error:
        raise _unsupported(str(error)) from error
    except sniff.Damaged as error:
        if isinstance(error, sniff.TooManySegments) and max_segments < MAX_SEGMENTS:
            raise
        raise ImageFault("image_load_error", f"The image could not be read: {error}.") from error
    if header.format not in _supported():
        raise _unsupported(
            f"The file is an {header.format.upper()} picture, which the Pillow installed here can't read. Send another "
            "format, or have the server's operator install Pillow 11.3 or newer."
        )
    if limits.color_management == "off":
        header = dataclasses.replace(header, profile=b"")
    size = _fit(header, limits)
    reduction = _reduction(header, size)
    pixels = header.width * header.height
    memory = header.fixed_memory + header.bytes_per_pixel * pixels // reduction**2
    if memory > MEMORY_BUDGET:
        most = pixels * MEMORY_BUDGET // memory
        if most < QUICK_PIXELS:  # what takes the memory is not the picture, so that a smaller one would not help
            raise ImageFault("image_load_error", "The image could not be read: decoding it takes too much memory.")
        raise _too_large(most)
    return _Plan(header, size, reduction, memory)


@functools.cache
def _supported() -> list[Format]:
    """Return the formats that can be decoded here: Pillow may be built without AVIF."""
    return [name for name in _DECODERS if name != "avif" or features.check("avif")]


def _unsupported(what: str) -> ImageFault:
    """Return the fault of a file that is `what`; "" if that is not known."""
    names = ", ".join(name.upper() for name in _supported())
    message = what or f"The file is no picture that can be read here: send one of {names}."
    return ImageFault("unsupported_image_format", message, {"supported_formats": [*_supported()]})


def _fit(header: Header, limits: EngineConfig) -> tuple[int, int]:
    """Return the size to decode to, as stored (before the picture is turned upright). Raises `ImageFault`."""
    if not header.width or not header.height:
        raise ImageFault("image_load_error", "The image could not be read: it has no size.")
    if header.width * header.height > limits.max_image_pixels:
        raise _too_large(limits.max_image_pixels)
    size = fit(header.width, header.height, limits.max_side)
    if min(size) < limits.min_side:
        raise ImageFault(
            "image_too_small",
            f"The image must have sides of at least {limits.min_side} pixels once its longest side is at most "
            f"{limits.max_side}; it is {header.width}×{header.height}.",
            {"min_height": limits.min_side, "min_width": limits.min_side},
        )
    return size


def _too_large(pixels: int) -> ImageFault:
    """Return the fault of a picture with more than `pixels`. `ctx`: the sides of a square of that number."""
    side = math.isqrt(pixels)
    message = f"The image is too large: at most {pixels / 1e6:.1f} megapixels of this kind can be decoded."
    return ImageFault("image_too_large", message, {"max_height": side, "max_width": side})


def _reduction(header: Header, size: tuple[int, int]) -> int:
    """Return the divisor of a JPEG's sides in decoding: 1, 2, 4 or 8."""
    if header.format != "jpeg":
        return 1
    ratio = min(header.width // (REDUCING_GAP * size[0]), header.height // (REDUCING_GAP * size[1]))
    return next(step for step in (8, 4, 2, 1) if ratio >= step or step == 1)


def _decode(plan: _Plan) -> NDArray[np.uint8]:
    header = plan.header
    try:
        if plan.memory > PROVE_FIRST and header.format == "png" and not png.inflates(header):
            raise ValueError("the PNG's data is damaged or cut off")
        image = _load(header, plan.reduction)
        mode = colour.mode(header.profile, image)
        image = rgb.resized(image, plan.size, mode or "RGB")
    except _DECODE_ERRORS as error:
        what = "it is cut off" if "truncated" in str(error) else "its data is damaged or cut off"
        raise ImageFault("image_load_error", f"The image could not be read: {what}.") from error
    if mode is not None:
        image = colour.to_srgb(image, header.profile)
    if header.orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[header.orientation])
    return np.array(image)


def _load(header: Header, reduction: int) -> Image.Image:
    """Return the decoded picture, its sides divided by `reduction`, in the file's own mode."""
    name = _DECODERS[header.format]
    plugin = importlib.import_module(f"PIL.{name}ImagePlugin")
    if header.format == "avif":
        vars(plugin)["DEFAULT_MAX_THREADS"] = 1  # each thread would take memory of its own
    image: Image.Image = getattr(plugin, f"{name}ImageFile")(io.BytesIO(header.cleaned()))
    if image.size != (header.width, header.height):
        raise ValueError("its header contradicts its data")
    if reduction > 1:
        image.draft("RGB", (header.width // reduction, header.height // reduction))
    image.load()
    if header.depth != 8:
        rgb.widen_transparency(image, header.depth)
    return image
