"""Painters of the seven places.

All use the same masses of the layout, so that a city's towers are where the mountains' peaks would be: a picture with
another place in its prompt keeps its composition.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from training.scenes.canvas import Array, Canvas, line, mix, noise
from training.scenes.scene import Scene

if TYPE_CHECKING:
    from training.scenes.painter import Light

PlacePainter = Callable[[Canvas, Scene, "Light", float], None]


def outline(canvas: Canvas, scene: Scene, power: float) -> Array:
    """Return the height of the masses in each column, 0…1: tents at power 1, domes above."""
    u = canvas.u
    tents = [h * np.clip(1 - np.abs((u - x) / w) ** power, 0, 1) for x, w, h in scene.layout.masses]
    return np.max(tents, 0).astype(np.float32)


def mountains(canvas: Canvas, scene: Scene, light: "Light", horizon: float) -> None:
    rng, u = scene.stream("mountains"), canvas.u
    far = horizon - 0.10 - 0.05 * line(rng, u, 7, 4, sharp=True)
    canvas.fill_below(far, light.ground((0.45, 0.50, 0.62), 0.7))
    ridge = horizon + 0.03 - 0.36 * outline(canvas, scene, 1.0) - 0.035 * line(rng, u, 9, 4, sharp=True)
    slope = np.gradient(ridge, u)
    rows = canvas.rows(float(ridge.min()))
    depth = canvas.y[rows] - ridge[None, :]
    fold = np.clip(
        np.arange(canvas.width)[None, :] + (depth * canvas.height * 0.45).astype(np.int32), 0, canvas.width - 1
    )
    lit = np.clip(0.5 + slope[fold] * 0.8, 0, 1)[..., None]
    rock = mix(light.ground((0.30, 0.30, 0.36), 0.15), light.ground((0.58, 0.54, 0.55), 0.15), 1.0) * lit
    rock = rock + light.ground((0.30, 0.30, 0.36), 0.15) * (1 - lit)
    canvas.blend(canvas.below(ridge, rows), rock, rows)
    cap = 0.10 + 0.035 * line(rng, u, 24, 2, sharp=True)
    snow = canvas.below(ridge, rows) * np.clip((cap[None, :] - depth) * 40, 0, 1) * (ridge < horizon - 0.1)[None, :]
    white = light.ground((0.96, 0.97, 1.0), 0.05)
    canvas.blend(snow, white * (0.72 + 0.28 * lit), rows)
    hill = horizon + 0.05 + 0.03 * line(rng, u, 3)
    canvas.fill_below(
        hill, _shade(canvas, light.ground((0.33, 0.45, 0.28), 0.25), light.ground((0.24, 0.38, 0.18)), horizon)
    )
    _conifers(canvas, scene, light.ground((0.10, 0.22, 0.14)), hill + 0.10, height=0.07, count=16)


def desert(canvas: Canvas, scene: Scene, light: "Light", horizon: float) -> None:
    rng, u = scene.stream("desert"), canvas.u
    mesa = (
        horizon
        + 0.02
        - 0.17 * np.clip(outline(canvas, scene, 3.0) * 2.2, 0, 1) * (0.75 + 0.2 * line(rng, u, 4, 2, sharp=True))
    )
    canvas.fill_below(mesa, light.ground((0.72, 0.40, 0.26), 0.4))
    for index, near in enumerate((0.25, 0.6, 1.0)):
        crest = horizon + 0.02 + 0.34 * near**1.5 - 0.06 - (0.05 + 0.05 * near) * line(rng, u, 2 + (index < 1), 2)
        pale, dark = (
            light.ground((0.96, 0.78, 0.48), 0.4 * (1 - near)),
            light.ground((0.74, 0.48, 0.26), 0.4 * (1 - near)),
        )
        rows = canvas.rows(float(crest.min()))
        depth = canvas.y[rows] - crest[None, :]
        slip = np.clip(0.5 + np.gradient(crest, u)[None, :] * 2.5 - depth * 1.5, 0, 1)
        ripple = 0.04 * np.sin(depth * 90 * (1.3 - near) + 14 * line(rng, u, 2, 2)[None, :])
        sand = pale + (slip + ripple)[..., None] * (dark - pale)
        canvas.blend(canvas.below(crest, rows), sand, rows)
    _cactus(canvas, scene, light, scene.layout.side * canvas.aspect, 0.93)


def beach(canvas: Canvas, scene: Scene, light: "Light", horizon: float) -> None:
    rng, u = scene.stream("beach"), canvas.u
    head = horizon + 0.01 - 0.10 * outline(canvas, scene, 2.0) * (u < 0.45 if scene.layout.side > 0.5 else u > 0.55)
    canvas.fill_below(head, light.ground((0.25, 0.40, 0.30), 0.45))
    shore = (
        horizon
        + 0.13
        + float(rng.uniform(0.02, 0.08))
        + 0.10 * (u - 0.5) * float(rng.uniform(-1, 1))
        + 0.015 * line(rng, u, 4, 2)
    )
    deep, shallow = light.ground((0.05, 0.33, 0.58), 0.1), light.ground((0.25, 0.74, 0.74), 0.0)
    sea = _shade(canvas, mix(deep, light.horizon, 0.25), mix(shallow, light.horizon, 0.12), horizon, horizon + 0.22)
    rows = canvas.fill_below(np.full_like(u, horizon), sea)
    glint = noise(rng, canvas, 26, 2, 5.0)[rows] * np.clip((shore - canvas.y[rows]) * 20, 0, 1)
    canvas.blend(np.clip(glint - 0.55, 0, 0.6), mix(light.horizon, (1, 1, 1), 0.3), rows)
    canvas.fill_below(shore - 0.022, light.ground((0.95, 0.97, 0.98), 0.05))
    canvas.fill_below(shore, light.ground((0.70, 0.58, 0.42)))
    canvas.fill_below(
        shore + 0.025, _shade(canvas, light.ground((0.93, 0.83, 0.62)), light.ground((0.84, 0.70, 0.48)), 0.6)
    )
    _palm(canvas, scene, light, scene.layout.side * canvas.aspect, 0.95)


def lake(canvas: Canvas, scene: Scene, light: "Light", horizon: float) -> None:
    rng, u = scene.stream("lake"), canvas.u
    canvas.fill_below(horizon - 0.02 - 0.20 * outline(canvas, scene, 1.6), light.ground((0.36, 0.44, 0.52), 0.55))
    near = horizon - 0.015 - 0.035 * (1 + line(rng, u, 4, 3))
    canvas.fill_below(near, light.ground((0.16, 0.30, 0.18), 0.25))
    start = int(horizon * canvas.height)
    below = np.arange(start, canvas.height)
    source = np.clip(start - 1 - ((below - start) * 0.85).astype(np.int32), 0, start - 1)
    shift = (
        np.sin(below * (220.0 / canvas.height)) * (below - start) * 0.02
        + rng.uniform(-1, 1, below.size) * canvas.height * 0.003
    )
    columns = np.clip(np.arange(canvas.width)[None, :] + shift[:, None], 0, canvas.width - 1).astype(np.int32)
    water = light.ground((0.16, 0.32, 0.42), 0.1)
    canvas.pixels[below] = mix(canvas.pixels[source[:, None], columns], water, 0.38)
    rows = canvas.rows(horizon, horizon + 0.01)
    canvas.blend(np.full((rows.stop - rows.start, canvas.width), 0.5, np.float32), light.horizon, rows)
    shore = 0.93 + 0.035 * line(rng, u, 3, 2)
    canvas.fill_below(shore, light.ground((0.20, 0.30, 0.14)))
    x = scene.layout.side * canvas.aspect
    for reed in rng.uniform(-0.13, 0.13, 12):
        canvas.column(x + reed, 0.80 + abs(reed) * 0.4, 0.97, 0.0035, light.ground((0.18, 0.28, 0.10)), lean=reed * 0.3)


def forest(canvas: Canvas, scene: Scene, light: "Light", horizon: float) -> None:
    u = canvas.u
    rise = 0.10 * outline(canvas, scene, 2.0)
    for index, (near, green) in enumerate(
        ((0.0, (0.30, 0.46, 0.36)), (0.5, (0.18, 0.36, 0.22)), (1.0, (0.08, 0.24, 0.13)))
    ):
        base = horizon + 0.02 + 0.16 * near - rise * (1 - 0.6 * near)
        tone = light.ground(green, 0.55 * (1 - near))
        _conifers(canvas, scene, tone, base, height=0.18 + 0.16 * near, count=26 - 7 * index)
    floor = horizon + 0.25 + 0.02 * line(scene.stream("forest"), u, 4, 3)
    canvas.fill_below(
        floor, _shade(canvas, light.ground((0.22, 0.34, 0.14)), light.ground((0.13, 0.20, 0.08)), horizon + 0.2)
    )
    x = scene.layout.side * canvas.aspect
    for at, half in ((x, 0.032), (x + (0.16 if x < canvas.aspect / 2 else -0.16), 0.020)):
        canvas.column(at, -0.02, 0.97, half, light.ground((0.26, 0.17, 0.11)))
        canvas.column(at - half * 0.5, -0.02, 0.97, half * 0.3, light.ground((0.42, 0.29, 0.19)))


def city(canvas: Canvas, scene: Scene, light: "Light", horizon: float) -> None:
    for index, near in enumerate((0.0, 1.0)):
        rng = scene.stream(f"city{index}")
        n = 15 - 4 * index
        edges = np.sort(rng.uniform(0, 1, n - 1))
        which = np.searchsorted(edges, canvas.u)
        centres = (np.concatenate([[0], edges]) + np.concatenate([edges, [1]])) / 2
        tops = np.interp(centres, canvas.u, outline(canvas, scene, 1.5)) * 0.30 + rng.uniform(0.05, 0.17, n)
        ridge = (horizon + 0.06 + 0.06 * near - tops * (1.05 - 0.25 * near))[which].astype(np.float32)
        tones = rng.uniform(0.8, 1.15, (n, 1)) * np.asarray((0.50, 0.52, 0.58) if index else (0.56, 0.60, 0.68))
        walls = np.stack([light.ground(tone, 0.45 * (1 - near)) for tone in tones])[which]
        canvas.fill_below(ridge, np.broadcast_to(walls[None], (canvas.height, canvas.width, 3)))
        _windows(canvas, rng, light, ridge, near)
    street = horizon + 0.13
    canvas.fill_below(
        np.full_like(canvas.u, street),
        _shade(canvas, light.ground((0.40, 0.41, 0.44)), light.ground((0.26, 0.27, 0.30)), street),
    )
    rows = canvas.rows(street)
    run = (canvas.y[rows] - street) / (1 - street)
    across = np.abs(canvas.x - canvas.aspect / 2)
    dash = (across < 0.004 + 0.02 * run) * ((1 / (run + 0.18) * 2.2) % 1 < 0.5)
    canvas.blend(0.9 * dash.astype(np.float32), light.ground((0.95, 0.88, 0.55)), rows)
    kerb = np.clip((across - 0.10 - 0.42 * run) * canvas.height * 0.3, 0, 1)
    canvas.blend(kerb, light.ground((0.62, 0.61, 0.60)), rows)


def fields(canvas: Canvas, scene: Scene, light: "Light", horizon: float) -> None:
    rng, u = scene.stream("fields"), canvas.u
    canvas.fill_below(horizon - 0.08 * outline(canvas, scene, 2.0), light.ground((0.42, 0.55, 0.45), 0.5))
    crops = rng.permutation(
        np.asarray(((0.90, 0.78, 0.28), (0.42, 0.66, 0.22), (0.62, 0.76, 0.28), (0.82, 0.64, 0.24)))
    )
    for index, near in enumerate((0.0, 0.3, 1.0)):
        hill = horizon + 0.01 + 0.22 * near + (0.02 + 0.025 * near) * line(rng, u, 2, 2)
        rows = canvas.rows(float(hill.min()))
        depth = np.maximum(canvas.y[rows] - hill[None, :], 0)
        fan = (u[None, :] - rng.uniform(0.2, 0.8)) / (depth + 0.10 + 0.25 * near)
        stripe = np.clip(np.sin(fan * (24 - 10 * near)) * 1.5, -1, 1) * 0.5 + 0.5
        crop = light.ground(crops[index], 0.3 * (1 - near))
        canvas.blend(canvas.below(hill, rows), crop * (0.80 + 0.20 * stripe[..., None]), rows)
        if index == 0:
            _barn(canvas, scene, light, horizon)
    x = scene.layout.side * canvas.aspect
    canvas.column(x, horizon + 0.02, horizon + 0.22, 0.012, light.ground((0.30, 0.20, 0.12)))
    for dx, dy, r in scene.stream("tree").uniform((-0.07, -0.09, 0.05), (0.07, 0.05, 0.085), (7, 3)):
        canvas.disc(x + dx, horizon + 0.01 + dy, r, light.ground((0.16 + dy, 0.38 + dy, 0.14)), softness=0.012)


PLACE_PAINTERS: dict[str, PlacePainter] = {
    "beach": beach,
    "mountains": mountains,
    "desert": desert,
    "forest": forest,
    "city": city,
    "lake": lake,
    "fields": fields,
}


def _shade(canvas: Canvas, top: Array, bottom: Array, start: float, end: float = 1.0) -> Array:
    """Return a vertical gradient [H, 1, 3] between two heights."""
    t = np.clip((canvas.y - start) / (end - start), 0, 1)[..., None]
    return (top * (1 - t) + bottom * t).astype(np.float32)


def _conifers(canvas: Canvas, scene: Scene, tone: Array, base: Array, *, height: float, count: int) -> None:
    """Draw a row of firs on `base` as one saw-toothed outline."""
    rng = scene.stream(f"firs{count}")
    x = (np.arange(count) + rng.uniform(-0.4, 0.4, count) + 0.5) / count * canvas.aspect
    tall = height * rng.uniform(0.45, 1.0, count)
    rise = tall[:, None] - np.abs(canvas.x - x[:, None]) * 3.4
    teeth = 0.012 * (np.abs(canvas.x - x[:, None]) / 0.018 % 1)
    ridge = base + 0.02 - np.clip((rise + teeth).max(0), 0, None)
    canvas.fill_below(ridge.astype(np.float32), _shade(canvas, tone, tone * 0.72, float(ridge.min())))


def _windows(canvas: Canvas, rng: np.random.Generator, light: "Light", ridge: Array, near: float) -> None:
    across, down = 0.020 + 0.008 * near, 0.026 + 0.008 * near
    column, row = (canvas.x / across).astype(np.int32), (canvas.y / down).astype(np.int32)
    on = rng.random((row.max() + 1, column.max() + 1)) < (0.5 if light.scene.time in ("night", "sunset") else 0.85)
    pane = on[row, column] * (canvas.x / across % 1 < 0.55) * (canvas.y / down % 1 < 0.55)
    mask = pane * np.clip((canvas.y - ridge[None, :] - 0.012) * 200, 0, 1)
    lit = (1.0, 0.83, 0.42) if light.night else (0.98, 0.72, 0.36)
    glass = lit if light.scene.time in ("night", "sunset") else light.ground((0.30, 0.38, 0.50), 0.3 * (1 - near))
    canvas.blend(mask.astype(np.float32) * 0.9, glass)


def _palm(canvas: Canvas, scene: Scene, light: "Light", x: float, foot: float) -> None:
    rng = scene.stream("palm")
    top, lean = (
        foot - float(rng.uniform(0.52, 0.66)),
        float(rng.uniform(0.03, 0.12)) * (1 if x < canvas.aspect / 2 else -1),
    )
    canvas.column(x, top, foot, 0.011, light.ground((0.40, 0.28, 0.18)), lean=lean)
    for reach, droop in zip(
        rng.uniform(0.12, 0.2, 8) * np.tile((1, -1), 4), np.repeat((-0.05, 0.03, 0.10, 0.16), 2), strict=True
    ):
        green = light.ground((0.12, 0.36, 0.16) if droop > 0 else (0.20, 0.46, 0.18))

        def frond(s: Array, droop: float = droop) -> Array:
            return top + droop * s - 0.16 * s * (1 - s)

        canvas.band(x + lean, x + lean + reach, frond, 0.017, green)


def _cactus(canvas: Canvas, scene: Scene, light: "Light", x: float, foot: float) -> None:
    rng = scene.stream("cactus")
    tall = float(rng.uniform(0.24, 0.36))
    green = light.ground((0.20, 0.40, 0.20))
    canvas.column(x, foot - tall, foot, 0.020, green)
    canvas.disc(x, foot - tall, 0.020, green)
    for sign, at in ((1, 0.5), (-1, 0.38)):
        arm, y = x + sign * 0.065, foot - tall * at
        canvas.column(arm, y - 0.10, y, 0.014, green)
        canvas.disc(arm, y - 0.10, 0.014, green)
        canvas.band(x, arm + sign * 0.01, lambda s, y=y: np.full_like(s, y), 0.016, green)
        canvas.disc(arm, y, 0.014, green)


def _barn(canvas: Canvas, scene: Scene, light: "Light", horizon: float) -> None:
    x = (1 - scene.layout.side) * canvas.aspect
    y = horizon + 0.02
    canvas.column(x, y - 0.055, y + 0.02, 0.05, light.ground((0.66, 0.18, 0.14), 0.15))
    roof = y - 0.105 + np.abs(canvas.x[0] - x) * 0.9
    columns = slice(max(int((x - 0.06) * canvas.height), 0), int((x + 0.06) * canvas.height))
    rows = canvas.rows(y - 0.11, y - 0.045)
    canvas.blend(
        canvas.below(roof, rows)[:, columns] * (canvas.y[rows] < y - 0.05),
        light.ground((0.34, 0.30, 0.30), 0.15),
        rows,
        columns,
    )
    if light.night:
        canvas.column(x, y - 0.035, y - 0.01, 0.012, (1.0, 0.82, 0.4))
