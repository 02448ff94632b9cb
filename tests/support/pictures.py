"""Pictures for tests of what reads them, and what Pillow and diffusers make of their files."""

import functools
import io

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps

from pipelines.images import codec
from pipelines.images.codec import ImageFault
from pipelines.messages import EngineConfig

LIMITS = EngineConfig(model="demo", data_dir="")


@functools.cache
def photo(width: int = 512, height: int = 512) -> Image.Image:
    """Smooth and grainy at once, every corner different."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([128 + 100 * np.sin(x / 37), 128 + 100 * np.cos(y / 53), (x + 2 * y) * 255 / (width + 2 * height)])
    grain = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return Image.fromarray((waves.transpose(1, 2, 0) + grain).clip(0, 255).astype(np.uint8))


def fading(width: int = 512, height: int = 512) -> Image.Image:
    """The same, from invisible at the top to solid at the bottom."""
    picture = photo(width, height).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize((width, height)))
    return picture


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    """The picture as a file."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def turned(orientation: int) -> bytes:
    """An Exif block with this orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def reference(data: bytes) -> np.ndarray:
    """What Pillow's own way and diffusers' own processor make of a file, at the size that we compute."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.new("RGB", picture.size, "white")
        picture.paste(layer, mask=layer)
    width, height = codec.fit(*picture.size, LIMITS.max_side)
    return np.asarray(VaeImageProcessor(resample="lanczos").resize(picture.convert("RGB"), height, width))


def fault(data: bytes, limits: EngineConfig = LIMITS) -> ImageFault:
    """The fault that this file ends in."""
    with pytest.raises(ImageFault) as caught:
        codec.decode(data, limits)
    return caught.value


def largest_difference(left: np.ndarray, right: np.ndarray) -> int:
    """In levels; the shapes must agree."""
    assert left.shape == right.shape
    return int(np.abs(left.astype(int) - right).max())
