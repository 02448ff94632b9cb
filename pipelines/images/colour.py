"""Colours as their owner saw them: by the picture's ICC profile to sRGB, with LittleCMS through Pillow.

A profile that is broken, too long or of another kind of colours than the picture counts as none. One that says nothing
but sRGB too: then no bit changes. Source: ICC.1:2022, 7.2 (header) and 7.3 (tags).
"""

import functools
import io
import logging
import struct

import numpy as np
from PIL import Image, ImageCms, features

from pipelines.images.formats.header import MAX_PROFILE_BYTES

logger = logging.getLogger(__name__)

# Up to here a profile without tables is read and applied within a few milliseconds.
QUICK_PROFILE_BYTES = 64 * 1024

_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
_CLASSES = {b"scnr", b"mntr", b"prtr", b"spac"}
_MAX_TAGS = 128
_TABLES = {b"A2B0", b"A2B1", b"A2B2"}
_PROGRAMS = {b"D2B0", b"D2B1", b"D2B2", b"D2B3"}  # steps without end, and no camera writes them
_GREYS = {"1", "L", "LA", "I;16", "I;16B"}

# Levels by which a profile of sRGB, tabulated or rounded, differs from sRGB at most.
_SAME = 2


def mode(profile: bytes, image: Image.Image) -> str | None:
    """Return the mode to convert from (RGB, L or CMYK); None if the profile is none for this picture."""
    found = _MODES.get(profile[16:20]) if _is_sound(profile) and _can_convert() else None
    if found == "L":
        return found if image.mode in _GREYS else None
    return found if (found == "CMYK") == (image.mode == "CMYK") else None


def is_quick(profile: bytes) -> bool:
    """Return whether a profile is applied, or ignored, in no time."""
    return not _is_sound(profile) or (len(profile) <= QUICK_PROFILE_BYTES and not _tags(profile) & _TABLES)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Return the picture (of the mode that `mode` said) in sRGB."""
    transform = _transform(profile, image.mode)
    if transform is None:
        return image.convert("RGB")
    return transform.apply(image)


@functools.cache
def _can_convert() -> bool:
    """Return whether Pillow has LittleCMS. If it has not, say so once."""
    found = features.check("littlecms2")
    if not found:
        logger.warning("pictures keep their colours as stored: Pillow is built without LittleCMS; install one with it")
    return bool(found)


def _is_sound(profile: bytes) -> bool:
    return (
        132 <= len(profile) <= MAX_PROFILE_BYTES
        and profile[36:40] == b"acsp"
        and profile[12:16] in _CLASSES
        and not _tags(profile) & _PROGRAMS
    )


def _tags(profile: bytes) -> set[bytes]:
    (count,) = struct.unpack_from(">I", profile, 128)
    return {profile[place : place + 4] for place in range(132, 132 + 12 * min(count, _MAX_TAGS), 12)}


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what converts to sRGB; None if nothing can or need."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.buildTransform(source, target, mode, "RGB")
        probe = _probe(mode)
        changed = np.asarray(transform.apply(probe)).astype(int) - np.asarray(probe.convert("RGB"))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return None if np.abs(changed).max() <= _SAME and mode != "CMYK" else transform


def _probe(mode: str) -> Image.Image:
    """Return a picture of every grey, and of colours all over the cube (or of some inks)."""
    greys = np.stack([np.arange(256)] * len(mode), axis=-1)
    colours = np.stack(np.meshgrid(*[np.linspace(0, 255, 9)] * len(mode)), axis=-1).reshape(-1, len(mode))
    samples = np.concatenate([greys, colours]).astype(np.uint8)
    return Image.frombytes(mode, (len(samples), 1), samples.tobytes())
