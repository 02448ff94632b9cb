"""A float picture and its drawing primitives.

Coordinates are fractions of the height, so that a scene can be painted at any size: `y` in 0…1, `x` in 0…aspect ratio.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Colour = tuple[float, float, float] | Array


class Canvas:
    """An RGB picture, float32 [H, W, 3] in 0…1, painted back to front."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.aspect = width / height
        self.pixels: Array = np.zeros((height, width, 3), np.float32)
        self.y: Array = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
        self.x: Array = ((np.arange(width, dtype=np.float32) + 0.5) / height)[None, :]

    @property
    def u(self) -> Array:
        """Horizontal position of each column as a fraction 0…1, [W]."""
        return self.x[0] / self.aspect

    def rows(self, top: float, bottom: float = 1.0) -> slice:
        """Return the rows between two heights."""
        return slice(max(int(top * self.height), 0), max(min(int(np.ceil(bottom * self.height)) + 1, self.height), 0))

    def blend(self, mask: Array, colour: Colour, rows: slice = slice(None), columns: slice = slice(None)) -> None:
        """Blend `colour` over the picture by `mask` [rows, columns], 0…1."""
        region = self.pixels[rows, columns]
        region += mask[..., None] * (np.asarray(colour, np.float32) - region)

    def fill_below(self, ridge: Array, colour: Colour) -> slice:
        """Fill the area below `ridge` (height of each column, [W]); `colour` may be [3], [H, 1, 3] or [H, W, 3]."""
        rows = self.rows(float(ridge.min()) - 1 / self.height)
        colour = np.asarray(colour, np.float32)
        if colour.ndim == 3:
            colour = colour[rows]
        self.blend(self.below(ridge, rows), colour, rows)
        return rows

    def below(self, ridge: Array, rows: slice = slice(None)) -> Array:
        """Return a mask [rows, W]: 1 below `ridge`, 0 above, soft over one pixel."""
        return np.clip((self.y[rows] - ridge[None, :]) * self.height + 0.5, 0, 1)

    def window(self, x: float, y: float, rx: float, ry: float) -> tuple[slice, slice]:
        """Return the rows and columns around a point; empty slices outside the picture."""
        rows = slice(max(int((y - ry) * self.height), 0), max(int((y + ry) * self.height) + 2, 0))
        columns = slice(max(int((x - rx) * self.height), 0), max(int((x + rx) * self.height) + 2, 0))
        return rows, columns

    def disc(
        self, x: float, y: float, radius: float, colour: Colour, *, softness: float = 0.0, alpha: float = 1.0
    ) -> None:
        """Draw a disc; `softness` is the width of its edge in sides (at least one pixel)."""
        edge = max(softness, 1 / self.height)
        rows, columns = self.window(x, y, radius + edge, radius + edge)
        distance = np.hypot(self.x[:, columns] - x, self.y[rows] - y)
        self.blend(alpha * np.clip((radius - distance) / edge + 0.5, 0, 1), colour, rows, columns)

    def band(self, x0: float, x1: float, path, thickness: float, colour: Colour) -> None:
        """Draw a stroke along `path(s)` → y, s from 0 to 1 between x0 and x1, thinner towards its end."""
        left, right = sorted((x0, x1))
        columns = slice(max(int(left * self.height), 0), max(int(right * self.height) + 1, 0))
        s = np.clip((self.x[0, columns] - x0) / (x1 - x0), 0, 1)
        if not s.size:
            return
        middle, half = path(s), thickness * (1 - 0.8 * s) + 0.5 / self.height
        rows = self.rows(float((middle - half).min()) - 0.01, float((middle + half).max()) + 0.01)
        mask = np.clip((half - np.abs(self.y[rows] - middle)) * self.height + 0.5, 0, 1)
        self.blend(mask, colour, rows, columns)

    def column(self, x: float, top: float, bottom: float, half: float, colour: Colour, *, lean: float = 0.0) -> None:
        """Draw an upright or leaning post from `bottom` to `top` of half width `half`."""
        rows = self.rows(top, bottom)
        centre = x + lean * ((bottom - self.y[rows]) / (bottom - top)) ** 2
        mask = np.clip((half - np.abs(self.x - centre)) * self.height + 0.5, 0, 1)
        self.blend(mask, colour, rows)


def noise(rng: np.random.Generator, canvas: Canvas, cells: float, octaves: int = 3, stretch: float = 1.0) -> Array:
    """Return smooth noise [H, W], about −1…1: `cells` bumps over the height, `stretch` times wider than high."""
    total = np.zeros((canvas.height, canvas.width), np.float32)
    for octave in range(octaves):
        n = cells * 2**octave
        rows, columns = _spline(canvas.y[:, 0] * n), _spline(canvas.x[0] * n / stretch)
        grid = rng.standard_normal((rows.shape[1], columns.shape[1]), np.float32)
        total += (rows @ grid @ columns.T) * np.float32(0.9 * 0.5**octave)
    return total


def _spline(at: Array) -> Array:
    """Return quadratic B-spline weights [len(at), knots]."""
    knots = np.arange(int(at.max()) + 3, dtype=np.float32) - 0.5
    d = np.abs(at[:, None] - knots[None, :])
    return np.where(d < 0.5, 0.75 - d**2, np.where(d < 1.5, 0.5 * (1.5 - d) ** 2, 0)).astype(np.float32)


def line(rng: np.random.Generator, u: Array, knots: int, octaves: int = 4, *, sharp: bool = False) -> Array:
    """Return a random profile over columns `u`, about −1…1: straight pieces if `sharp`, else waves."""
    total = np.zeros_like(u)
    for octave in range(octaves):
        n = knots * 2**octave
        if sharp:
            total += np.interp(u * n, np.arange(n + 1), rng.uniform(-1, 1, n + 1)).astype(np.float32) * 0.5**octave
        else:
            phase, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.3)
            total += np.sin(2 * np.pi * u * n * speed * 0.5 + phase) * 0.5**octave
    return (total * 0.6).astype(np.float32)


def mix(a: Colour, b: Colour, amount: float) -> Array:
    """Return the linear blend of two colours."""
    a = np.asarray(a, np.float32)
    return a + np.float32(amount) * (np.asarray(b, np.float32) - a)
