"""Content of a picture: a few attributes and a seed, from which both pictures and captions are made."""

from dataclasses import dataclass, replace

import numpy as np

from training.scenes.layout import Layout, lay_out

PLACES = ("beach", "mountains", "desert", "forest", "city", "lake", "fields")
TIMES = ("day", "dawn", "sunset", "night")
WEATHERS = ("clear", "cloudy", "rain", "snow", "fog")
BODIES = ("none", "sun", "moon")
STYLES = ("photo", "oil", "watercolor", "flat", "pastel", "crude")
PALETTES = ("natural", "vivid", "muted", "warm", "cool")

_WEATHER_ODDS = (0.3, 0.19, 0.17, 0.17, 0.17)
_STYLE_ODDS = (0.3, 0.18, 0.14, 0.16, 0.1, 0.12)
_PALETTE_ODDS = (0.5, 0.2, 0.1, 0.1, 0.1)


@dataclass(frozen=True)
class Scene:
    """Content of one picture.

    `seed` determines the layout (horizon, masses, positions), whatever the other attributes are; `hand` determines the
    random details (waves, twigs, drops). The model learns hand 0 where it knows only prompt and layout: details that
    these do not determine would be averaged.
    """

    seed: int
    place: str = "beach"
    time: str = "day"
    weather: str = "clear"
    body: str = "none"
    style: str = "photo"
    palette: str = "natural"
    warning: bool = False
    hand: int = 0

    @property
    def layout(self) -> Layout:
        """Layout with the number `seed`."""
        return lay_out(self.seed)

    def stream(self, part: str) -> np.random.Generator:
        """Return the random numbers for the details of one part, independent of other parts."""
        return np.random.default_rng([self.hand, *part.encode()])


def draw_scene(rng: np.random.Generator, seed: int) -> Scene:
    """Return a random scene with layout `seed`; sun and moon only where hour and weather allow them."""
    time = str(rng.choice(TIMES))
    weather = str(rng.choice(WEATHERS, p=_WEATHER_ODDS))
    return Scene(
        seed=seed,
        place=str(rng.choice(PLACES)),
        time=time,
        weather=weather,
        body=_body(rng, time, weather),
        style=str(rng.choice(STYLES, p=_STYLE_ODDS)),
        palette=str(rng.choice(PALETTES, p=_PALETTE_ODDS)),
        warning=bool(rng.random() < 0.02),
    )


def draw_variants(seed: int, count: int) -> list[Scene]:
    """Return `count` scenes of one layout, in pairs differing in hour and weather alone; every second pair is plain."""
    rng = np.random.default_rng([seed, 77])
    scenes: list[Scene] = []
    for index in range(count):
        scene = draw_scene(rng, seed)
        if index % 2:
            first = scenes[-1]
            scene = replace(scene, place=first.place, style=first.style, palette=first.palette, hand=first.hand)
        elif index % 4 == 2:
            scene = replace(scene, style="photo", palette="natural", hand=0)
        else:
            scene = replace(scene, hand=seed + 1)
        scenes.append(scene)
    return scenes


def is_plain(scene: Scene) -> bool:
    """Return whether prompt and layout determine the whole picture."""
    return scene.hand == 0 and scene.style == "photo" and scene.palette == "natural"


def _body(rng: np.random.Generator, time: str, weather: str) -> str:
    shows = {"clear": 0.7, "cloudy": 0.45, "fog": 0.15}.get(weather, 0.0)
    if rng.random() >= shows:
        return "none"
    return "moon" if time == "night" else "sun"
