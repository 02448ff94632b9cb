"""Paint the bundled example picture, `server/static/beach.jpg`: a photo-like beach, 512×512, of noise and gradients.

    python -m training.example_picture OUTPUT.jpg

It replaces, offline, the sample picture of the endpoint's documentation.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

SIZE = 1024
Y, X = np.mgrid[0:SIZE, 0:SIZE] / SIZE


def noise(rng, octaves=7, stretch=(1, 1), roughness=0.5):
    """Return fractal value noise in 0…1, [SIZE, SIZE]; `stretch` > 1 makes features longer along (y, x)."""
    total, weight = np.zeros((SIZE, SIZE)), 0.0
    for octave in range(octaves):
        cells = [max(2, int(2 ** (octave + 1) / s)) for s in stretch]
        grid = Image.fromarray(rng.random(cells).astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        total += np.asarray(grid) * roughness**octave
        weight += roughness**octave
    return np.clip(total / weight, 0, 1)


def mix(a, b, t):
    """Return the linear blend of colours a → b by t, [H, W] → [H, W, 3]."""
    t = np.clip(t, 0, 1)[..., None]
    return np.asarray(a) * (1 - t) + np.asarray(b) * t


def beach(rng):
    """Return the picture as float [SIZE, SIZE, 3] in 0…1."""
    horizon, sun = 0.44, (0.24, 0.70)
    sky = mix((0.13, 0.42, 0.80), (0.72, 0.88, 0.97), (Y / horizon) ** 1.3)
    glow = np.exp(-(((Y - sun[0]) ** 2 + (X - sun[1]) ** 2) / 0.035))
    sky = mix(sky, (1.0, 0.95, 0.80), glow * 0.75)
    sky = mix(sky, (1.0, 0.99, 0.93), 1 / (1 + np.exp((np.hypot(Y - sun[0], X - sun[1]) - 0.035) * 260)))
    clouds = np.clip((noise(rng, 7, (0.5, 2.2)) - 0.52) * 5, 0, 1) * np.clip((horizon - Y) * 6, 0, 1)
    sky = mix(sky, (0.98, 0.98, 0.99), clouds * 0.85)

    depth = np.clip((Y - horizon) / (1 - horizon), 1e-4, 1)
    shore = 0.68 + 0.10 * (X - 0.5) + 0.02 * np.sin(X * 9) + 0.015 * (noise(rng, 5) - 0.5)
    sea = mix((0.05, 0.34, 0.56), (0.16, 0.72, 0.74), np.clip((Y - horizon) / (shore - horizon), 0, 1) ** 1.5)
    swell = np.sin(60 * np.sqrt(depth) + 5 * noise(rng, 4, (0.4, 3)) * 2) * 0.5 + 0.5
    sea = mix(sea, (0.80, 0.96, 0.95), swell**7 * 0.35)
    ripple = noise(rng, 8, (0.25, 4), 0.7) - 0.5
    sea = sea + ripple[..., None] * 0.20
    sparkle = np.exp(-(((X - sun[1]) / (0.05 + 0.12 * depth)) ** 2)) * (ripple > 0.02)
    sea = mix(sea, (1.0, 0.97, 0.86), sparkle * 0.65)

    sand = mix((0.93, 0.84, 0.66), (0.80, 0.66, 0.47), noise(rng, 8, (0.7, 1.6), 0.65) * 0.9)
    sand = sand + (rng.random((SIZE, SIZE, 1)) - 0.5) * 0.10
    wet = np.clip(1 - (Y - shore) / 0.07, 0, 1)
    sand = mix(sand, sand * np.array([0.66, 0.66, 0.68]), wet)
    foam = np.exp(-(((Y - shore + 0.004) / 0.011) ** 2)) * (0.45 + 0.9 * noise(rng, 7, (1, 2), 0.7))

    picture = np.where((horizon > Y)[..., None], sky, np.where((shore > Y)[..., None], sea, sand))
    picture = mix(picture, (0.99, 1.0, 0.99), foam * 0.95)
    island = horizon - 0.075 * np.exp(-(((X - 0.24) / 0.13) ** 2)) - 0.02 * (noise(rng, 6) - 0.4) * (X < 0.5)
    land = (island < Y) & (horizon > Y) & (X < 0.5)
    picture = np.where(land[..., None], mix((0.22, 0.40, 0.36), (0.40, 0.56, 0.50), noise(rng, 7)), picture)
    return palm(picture, rng)


def palm(picture, rng):
    """Draw a palm that leans in from the left: trunk and fronds as strokes."""
    colour = np.zeros((SIZE, SIZE, 3))
    cover = np.zeros((SIZE, SIZE))

    def stroke(points, width, tint):
        for (y, x), w in zip(points, width, strict=True):
            top, left = int((y - w) * SIZE), int((x - w) * SIZE)
            rows, columns = slice(max(top, 0), int((y + w) * SIZE) + 1), slice(max(left, 0), int((x + w) * SIZE) + 1)
            inside = (Y[rows, columns] - y) ** 2 + (X[rows, columns] - x) ** 2 < w * w
            colour[rows, columns][inside] = np.asarray(tint) * rng.uniform(0.75, 1.2)
            cover[rows, columns][inside] = 1

    t = np.linspace(0, 1, 420)
    trunk = list(zip(0.98 - 0.74 * t, 0.045 + 0.21 * t**1.7, strict=True))
    stroke(trunk, 0.021 - 0.010 * t, (0.40, 0.30, 0.21))
    crown_y, crown_x = trunk[-1]
    for angle in np.linspace(-2.9, 0.55, 11):
        reach, droop = rng.uniform(0.17, 0.25), rng.uniform(0.10, 0.20)
        s = np.linspace(0, 1, 70)
        ys, xs = crown_y + np.sin(angle) * reach * s + droop * s**2, crown_x + np.cos(angle) * reach * s
        for y, x, along in zip(ys, xs, s, strict=True):
            leaf = 0.075 * np.sin(np.pi * (0.12 + 0.86 * along))
            u = np.linspace(0, 1, 26)
            for side in (-1, 1):
                hang = list(zip(y + leaf * u * 0.9, x + side * leaf * u * 0.55, strict=True))
                stroke(hang, 0.0034 * (1.05 - u), (0.13, 0.36, 0.14))
    return np.where(cover[..., None] > 0, colour, picture)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a JPEG")
    asked = parser.parse_args()
    pixels = (np.clip(beach(np.random.default_rng(7)), 0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.7)).resize((512, 512), Image.Resampling.LANCZOS)
    image.save(asked.output, "JPEG", quality=88)


if __name__ == "__main__":
    main()
