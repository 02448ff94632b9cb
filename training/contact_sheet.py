"""Contact sheets: generated pictures in rows, to judge by eye what figures do not show."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipelines.messages import GenerationParams
from training import sampling
from training.config import ROOT, TEST

PROMPTS = (
    "photo of a beach in hawaii, sun",
    "snowy mountain peaks at dawn",
    "a city skyline at night",
    "a forest in the fog",
    "sand dunes at sunset",
    "a lake in the rain",
    "fields, winter, snow, daytime",
)


def sketch(side: int = 512) -> np.ndarray:
    """Return a crude drawing of hills, a sun and a horizon, as made with a mouse: uint8 [side, side, 3]."""
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    at = [(x * side // 100, y * side // 100) for x, y in ((0, 62), (22, 30), (38, 55), (60, 22), (85, 58), (100, 48))]
    draw.polygon([*at, (side, side * 62 // 100), (0, side * 64 // 100)], fill=(150, 150, 155))
    draw.line(at, fill="black", width=5, joint="curve")
    draw.rectangle((0, side * 63 // 100, side, side), fill=(120, 190, 90))
    draw.line([(0, side * 63 // 100), (side, side * 62 // 100)], fill="black", width=5)
    draw.ellipse([side * f // 100 for f in (74, 8, 88, 22)], fill=(255, 220, 60), outline="black", width=4)
    return np.asarray(image)


def inputs(side: int = 512) -> list[np.ndarray]:
    """Return the input pictures: a held-out painted scene, the bundled photo-like picture, a crude sketch."""
    photo = (
        Image.open(ROOT / "server" / "static" / "beach.jpg")
        .convert("RGB")
        .resize((side, side), Image.Resampling.LANCZOS)
    )
    painted = Image.fromarray(TEST.open()[40]).resize((side, side), Image.Resampling.LANCZOS)
    return [np.asarray(painted), np.asarray(photo), sketch(side)]


def contact_sheet(
    folder: Path,
    target: Path,
    *,
    strengths: tuple[float, ...] = (0.5, 0.8, 1.0),
    side: int = 512,
    cell: int = 160,
    prompts: tuple[str, ...] = PROMPTS,
) -> None:
    """Write a sheet with one row per input and strength: the input, then the picture for each prompt."""
    pairs = [(given, strength) for given in inputs(side) for strength in strengths]
    jobs = [(given, GenerationParams(prompt=p, seed=7, strength=s)) for given, s in pairs for p in prompts]
    made = sampling.generate(folder, jobs).reshape(len(pairs), len(prompts), side, side, 3)
    rows = [[given, *pictures] for (given, _), pictures in zip(pairs, made, strict=True)]
    write(target, rows, cell)


def write(target: Path, rows: list[list[np.ndarray]], cell: int) -> None:
    """Write rows of pictures as one PNG of 256 colours, each picture `cell` pixels wide."""
    sheet = Image.new("RGB", (len(rows[0]) * cell, len(rows) * cell))
    for y, row in enumerate(rows):
        for x, pixels in enumerate(row):
            sheet.paste(Image.fromarray(pixels).resize((cell, cell), Image.Resampling.LANCZOS), (x * cell, y * cell))
    sheet.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3).save(target, optimize=True)
