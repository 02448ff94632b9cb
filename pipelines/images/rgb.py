"""Decoded pictures to the size asked for, resized in bands, and to few modes: transparency on white, 8 bits."""

import math

import numpy as np
from PIL import Image

# A picture up to WHOLE_PIXELS is flattened and resized in one go, a larger one in bands of BAND_PIXELS.
WHOLE_PIXELS = 8_000_000
BAND_PIXELS = 2_000_000


def resized(image: Image.Image, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Return the picture in this mode and size: Lanczos, as diffusers' `VaeImageProcessor` does.

    `mode`: RGB; L for a grey picture; CMYK for one that is in CMYK.

    A large picture is resized in bands, each with the rows around it that the filter reaches. The pixels are those of
    one whole resize (to one level, because Pillow's boxes are 32-bit floats), without a second copy of the picture.
    """
    width, height = image.size
    if width * height <= WHOLE_PIXELS:
        image = _flattened(image, mode)
        return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
    scale = height / size[1]
    reach = math.ceil(3 * max(1.0, scale)) + 1  # Lanczos-3
    rows = max(8, int(BAND_PIXELS / width / scale))
    out = Image.new(mode, size)
    for top in range(0, size[1], rows):
        bottom = min(top + rows, size[1])
        first, last = max(0, math.floor(top * scale) - reach), min(height, math.ceil(bottom * scale) + reach)
        band = _flattened(image.crop((0, first, width, last)), mode)
        box = (0, top * scale - first, width, min(bottom * scale, height) - first)
        out.paste(band.resize((size[0], bottom - top), Image.Resampling.LANCZOS, box), (0, top))
    return out


def _flattened(image: Image.Image, mode: str) -> Image.Image:
    """Return the picture in this mode, on white where it is transparent."""
    if mode == "CMYK":
        return image
    if image.mode.startswith("I;16"):
        image = _flattened_grey_16(image)
    elif image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(layer, mask=layer)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    return image if mode == "RGB" else image.convert(mode)  # of equal red, green and blue, which stay what they are


def _flattened_grey_16(image: Image.Image) -> Image.Image:
    """Return 16-bit grey as its high bytes, as for other 16-bit pictures; Pillow would clip it to 255."""
    samples = np.asarray(image)
    grey = (samples >> 8).astype(np.uint8)
    if "transparency" in image.info:
        grey[samples == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


def widen_transparency(image: Image.Image, depth: int) -> None:
    """Bring a PNG's one transparent colour from the file's depth to 8 bits a sample, as the pixels now have."""
    key = image.info.get("transparency")
    if key is None or image.mode in {"1", "I;16", "P"}:
        return
    if isinstance(key, tuple):
        image.info["transparency"] = tuple(sample >> 8 for sample in key)
    else:
        image.info["transparency"] = key * 255 // (2**depth - 1)
