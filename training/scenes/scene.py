"""What a picture shows: a handful of words and a seed. Painting and captions both start from here."""

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
    """One picture. `seed` fixes the layout (horizon, masses, positions), whatever the other words are; `hand` all that
    is drawn freely (waves, twigs, drops). Hand 0 is the one that the model learns to draw with by itself: what it can't
    know from words and layout would come out as an average."""

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
        """Where things stand."""
        return lay_out(self.seed)

    def stream(self, part: str) -> np.random.Generator:
        """The free hand's random numbers for one part: what another part draws does not disturb them."""
        return np.random.default_rng([self.hand, *part.encode()])


def draw_scene(rng: np.random.Generator, seed: int) -> Scene:
    """A random scene with layout `seed`. Sun and moon show only where the hour and the weather let them."""
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
    """`count` scenes of one layout, in pairs that differ in hour and weather alone; every second pair is plain."""
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
    """Whether words and layout say all that there is to see."""
    return scene.hand == 0 and scene.style == "photo" and scene.palette == "natural"


def _body(rng: np.random.Generator, time: str, weather: str) -> str:
    shows = {"clear": 0.7, "cloudy": 0.45, "fog": 0.15}.get(weather, 0.0)
    if rng.random() >= shows:
        return "none"
    return "moon" if time == "night" else "sun"
