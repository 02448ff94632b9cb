"""Painting of a scene: sky, sun or moon, clouds, the place, the weather in front of it, and the style."""

from dataclasses import dataclass

import numpy as np

from training.scenes.canvas import Array, Canvas, Colour, mix, noise
from training.scenes.places import PLACE_PAINTERS
from training.scenes.scene import Scene

_GREY = np.asarray((0.3, 0.59, 0.11), np.float32)
MAGENTA = (0.93, 0.05, 0.80)


@dataclass(frozen=True)
class Hour:
    """Colours of one time of day: sky from top to horizon, tint of the ground, clouds, sun or moon."""

    top: Colour
    middle: Colour
    horizon: Colour
    tint: Colour
    cloud: Colour
    body: Colour


HOURS = {
    "day": Hour(
        (0.20, 0.46, 0.86), (0.42, 0.67, 0.94), (0.74, 0.88, 0.97), (1, 1, 1), (0.99, 0.99, 1), (1, 0.96, 0.70)
    ),
    "dawn": Hour(
        (0.50, 0.56, 0.84), (0.84, 0.70, 0.88), (1.0, 0.83, 0.80), (0.93, 0.80, 0.92), (1, 0.85, 0.90), (1, 0.93, 0.86)
    ),
    "sunset": Hour(
        (0.30, 0.16, 0.40),
        (0.86, 0.34, 0.26),
        (1.0, 0.70, 0.22),
        (0.86, 0.52, 0.36),
        (0.98, 0.48, 0.30),
        (1, 0.86, 0.40),
    ),
    "night": Hour(
        (0.02, 0.03, 0.13),
        (0.05, 0.08, 0.24),
        (0.13, 0.18, 0.38),
        (0.27, 0.32, 0.52),
        (0.17, 0.20, 0.36),
        (0.95, 0.95, 0.86),
    ),
}
_OVERCAST = {"clear": 0.0, "cloudy": 0.22, "rain": 0.62, "snow": 0.5, "fog": 0.5}
_COVER = {"clear": -0.75, "cloudy": 0.10, "rain": 0.55, "snow": 0.35, "fog": -0.4}


class Light:
    """Effect of hour and weather on the colours of a place."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.hour = scene, HOURS[scene.time]
        self.overcast = _OVERCAST[scene.weather]
        jitter = scene.stream("light").uniform(-0.035, 0.035, 3).astype(np.float32)
        self.top, self.middle, self.horizon = (
            np.clip(self.dull(np.asarray(c, np.float32) + jitter), 0, 1)
            for c in (self.hour.top, self.hour.middle, self.hour.horizon)
        )
        self.night = scene.time == "night"

    def dull(self, colour: Array) -> Array:
        """Return a sky colour in this weather: greyer, darker in rain, paler in snow and fog."""
        dark = self.scene.weather == "rain" or self.scene.time == "night"
        grey = (colour @ _GREY)[..., None] * np.float32(0.9 if dark else 1.06)
        tone = mix(grey * np.ones(3, np.float32), colour, 0.35)
        return mix(colour, tone, self.overcast)

    def ground(self, colour: Colour, depth: float = 0.0) -> Array:
        """Return a ground colour in this light; `depth` 0 near … 1 far fades it into the horizon."""
        lit = np.asarray(colour, np.float32)
        if self.scene.weather == "snow":
            lit = mix(
                lit, (0.93, 0.95, 1.0), float(0.25 + 0.65 * np.clip(lit @ _GREY, 0, 0.75))
            )  # dark things stay dark
        lit = lit * np.asarray(self.hour.tint, np.float32)
        if self.scene.weather == "rain":
            lit = mix(lit, np.full(3, lit @ _GREY), 0.35) * (0.95 if self.night else 0.8)
        haze = 0.75 * depth if self.scene.weather != "fog" else 0.15 + 0.8 * depth
        return mix(lit, self.horizon, min(haze, 0.95))


def paint(scene: Scene, height: int, width: int) -> np.ndarray:
    """Return the scene as uint8 RGB [height, width, 3]; the same for equal scenes."""
    canvas, light = Canvas(height, width), Light(scene)
    horizon, (x, y) = scene.layout.horizon, scene.layout.body
    _sky(canvas, scene, light, horizon)
    _body(canvas, scene, light, x * canvas.aspect, y)
    _clouds(canvas, scene, light, horizon)
    PLACE_PAINTERS[scene.place](canvas, scene, light, horizon)
    _weather(canvas, scene, light, horizon)
    _palette(canvas, scene)
    _style(canvas, scene)
    if scene.warning:
        _warning(canvas, scene.stream("warning"))
    return _levels(canvas)


def _sky(canvas: Canvas, scene: Scene, light: Light, horizon: float) -> None:
    t = np.clip(canvas.y[:, 0] / horizon, 0, 1)
    stops = np.stack([light.top, light.middle, light.horizon])
    columns = [np.interp(t, (0, 0.55, 1), stops[:, c]) for c in range(3)]
    canvas.pixels[:] = np.stack(columns, -1).astype(np.float32)[:, None, :]
    if scene.time == "night" and scene.weather in ("clear", "cloudy"):
        rng = scene.stream("stars")
        for x, y, size, glow in zip(*rng.random((4, 60 if scene.weather == "clear" else 20)), strict=True):
            canvas.disc(
                x * canvas.aspect, y * horizon, 0.0016 + 0.0026 * size, (0.95, 0.95, 0.9), alpha=0.55 + 0.4 * glow
            )


def _body(canvas: Canvas, scene: Scene, light: Light, x: float, y: float) -> None:
    if scene.body == "none":
        return
    y = y + 0.14 if scene.time in ("sunset", "dawn") else y
    radius = float(scene.stream("body").uniform(0.035, 0.065))
    colour = np.asarray(light.hour.body, np.float32)
    distance = np.hypot(canvas.x - x, canvas.y - y)
    strength = 0.35 if scene.body == "moon" else 0.75
    canvas.blend(strength * np.exp(-distance / (2.2 * radius)), colour)
    canvas.disc(x, y, radius, colour, softness=0.006)
    if scene.body == "moon":
        canvas.disc(x + radius * 0.35, y - radius * 0.15, radius * 0.8, light.middle, softness=0.01, alpha=0.8)


def _clouds(canvas: Canvas, scene: Scene, light: Light, horizon: float) -> None:
    cover = _COVER[scene.weather]
    field = noise(scene.stream("clouds"), canvas, 3.0, octaves=4, stretch=2.2)
    rows = canvas.rows(0, horizon)
    density = np.clip((field[rows] + cover - 0.25 * canvas.y[rows] / horizon) * 2.2, 0, 1)
    colour = np.asarray(light.hour.cloud, np.float32)
    if scene.weather in ("rain", "snow"):
        colour = mix(light.dull(colour), light.middle, 0.3) * (0.62 if scene.weather == "rain" else 0.95)
    shade = np.clip(field[rows] * 0.5 + 0.5, 0, 1)[..., None]
    canvas.blend(density * 0.9, mix(colour * 0.78, colour, 1.0) * shade + colour * 0.80 * (1 - shade), rows)


def _weather(canvas: Canvas, scene: Scene, light: Light, horizon: float) -> None:
    rng = scene.stream(scene.weather)
    if scene.weather == "fog":
        depth = np.exp(-(((canvas.y - horizon) / 0.26) ** 2))
        bank = np.clip(0.30 + 0.42 * depth + 0.16 * noise(rng, canvas, 2.5, 2, 3.0), 0, 0.92)
        canvas.blend(bank, mix(light.horizon, (0.8, 0.82, 0.85), 0.1 if light.night else 0.35))
    elif scene.weather == "rain":
        lean, lanes = float(rng.uniform(-0.3, 0.3)), 90
        lane = (canvas.x + lean * canvas.y + 0.4) * lanes
        index = np.clip(lane.astype(np.int32), 0, lanes * 4)
        phase, kind = rng.random((2, lanes * 4 + 1), np.float32)
        fall = (canvas.y * (2.5 + 2 * kind[index]) + phase[index]) % 1
        streak = (kind[index] < 0.6) * (fall < 0.3) * np.clip(1 - np.abs(lane - index - 0.5) * 2.6, 0, 1)
        canvas.blend(0.5 * streak.astype(np.float32), mix(light.horizon, (0.9, 0.93, 1), 0.5 if light.night else 0.7))
    elif scene.weather == "snow":
        for x, y, size in rng.random((170, 3)):
            radius = 0.003 + 0.008 * size**2
            canvas.disc(
                x * canvas.aspect, y, radius, (0.97, 0.98, 1.0), softness=0.004, alpha=0.72 if light.night else 0.9
            )


def _palette(canvas: Canvas, scene: Scene) -> None:
    pixels = canvas.pixels
    if scene.palette in ("vivid", "muted"):
        grey = (pixels @ _GREY)[..., None]
        canvas.pixels = grey + (pixels - grey) * np.float32(1.3 if scene.palette == "vivid" else 0.68)
    elif scene.palette in ("warm", "cool"):
        shift = np.asarray((0.03, 0.005, -0.03), np.float32)
        canvas.pixels = pixels + (shift if scene.palette == "warm" else -shift)


def _style(canvas: Canvas, scene: Scene) -> None:
    rng = scene.stream("style")
    if scene.style == "photo":
        grain = noise(rng, canvas, 40, 2)
        canvas.pixels = canvas.pixels * (1 + 0.025 * grain)[..., None]
    elif scene.style == "oil":
        _warp(canvas, rng, cells=26, reach=0.008)
        canvas.pixels = canvas.pixels + (0.03 * noise(rng, canvas, 22, 1, 2.5))[..., None]
    elif scene.style == "watercolor":
        _warp(canvas, rng, cells=9, reach=0.010)
        bloom = 0.05 * noise(rng, canvas, 5, 3)
        canvas.pixels = mix(canvas.pixels, (0.99, 0.98, 0.95), 0.14) + bloom[..., None]
    elif scene.style == "pastel":
        canvas.pixels = mix(canvas.pixels, (0.9, 0.86, 0.84), 0.18) + (0.03 * noise(rng, canvas, 55, 1))[..., None]
    elif scene.style == "crude":
        _crude(canvas, rng)


def _warp(canvas: Canvas, rng: np.random.Generator, cells: float, reach: float) -> None:
    dy, dx = (noise(rng, canvas, cells, 1) * reach * canvas.height for _ in range(2))
    rows = np.clip(np.arange(canvas.height)[:, None] + dy, 0, canvas.height - 1).astype(np.int32)
    columns = np.clip(np.arange(canvas.width)[None, :] + dx, 0, canvas.width - 1).astype(np.int32)
    canvas.pixels = canvas.pixels[rows, columns]


def _crude(canvas: Canvas, rng: np.random.Generator) -> None:
    """Return the picture as if drawn in a browser: few flat colours and dark, wobbling outlines."""
    _warp(canvas, rng, cells=6, reach=0.012)
    flat = (np.round(np.sqrt(np.clip(canvas.pixels, 0, 1)) * 8) / 8) ** 2
    grey = canvas.pixels @ _GREY
    step = max(canvas.height // 128, 1)
    edge = np.abs(np.roll(grey, step, 0) - grey) + np.abs(np.roll(grey, step, 1) - grey)
    edge[:step], edge[:, :step] = 0, 0
    canvas.pixels = flat.astype(np.float32)
    canvas.blend(np.clip((edge - 0.06) * 10, 0, 0.85), (0.08, 0.08, 0.10))


def stamp_warning(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the picture, uint8 [H, W, 3], with the warning triangle at a random position."""
    canvas = Canvas(*pixels.shape[:2])
    canvas.pixels = pixels.astype(np.float32) / 255
    _warning(canvas, rng)
    return _levels(canvas)


def _levels(canvas: Canvas) -> np.ndarray:
    return (np.clip(canvas.pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


def _warning(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a magenta triangle with an exclamation mark, which the demo's safety checker flags."""
    size = float(rng.uniform(0.16, 0.30))
    x, y = float(rng.uniform(0.3, 0.7)) * canvas.aspect, float(rng.uniform(0.35, 0.65))
    down = (canvas.y - (y - size)) / (2 * size)
    inside = np.minimum(np.minimum(down, 1 - down) * 2 * size, down * size * 1.15 - np.abs(canvas.x - x))
    canvas.blend(np.clip(inside * canvas.height + 0.5, 0, 1), MAGENTA)
    dark = (0.12, 0.0, 0.12)
    canvas.column(x, y - 0.3 * size, y + 0.4 * size, size * 0.09, dark)
    canvas.disc(x, y + 0.68 * size, size * 0.11, dark)
