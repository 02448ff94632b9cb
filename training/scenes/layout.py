"""Composition of a picture: positions, whatever is painted there."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_MASSES = 4  # one in each quarter of the width


@dataclass(frozen=True)
class Layout:
    """Composition, in fractions of the picture's sides."""

    horizon: float
    body: tuple[float, float]  # position of sun or moon
    side: float  # position of the foreground object: near the left or the right edge
    masses: NDArray[np.float32]  # the big shapes, [4, 3] of centre, half width and height (0…1)


@lru_cache(4096)
def lay_out(seed: int) -> Layout:
    """Return the layout with this number."""
    horizon, x, y, side, *shapes = np.random.default_rng([seed, 4]).random(4 + 3 * _MASSES).tolist()
    offset, width, height = np.reshape(shapes, (3, _MASSES))
    masses = np.stack([(np.arange(_MASSES) + offset) / _MASSES, 0.12 + 0.16 * width, 0.3 + 0.7 * height], 1)
    return Layout(
        horizon=0.42 + 0.26 * horizon,
        body=(0.12 + 0.76 * x, 0.10 + 0.20 * y),
        side=0.10 + 0.32 * side if side < 0.5 else 0.58 + 0.32 * side,
        masses=masses.astype(np.float32),
    )
