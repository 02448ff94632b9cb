"""Captions of scenes, worded like users' prompts. Some attributes are left out on purpose."""

import numpy as np

from training.scenes.scene import Scene

PLACE_WORDS = {
    "beach": (
        "a beach", "a tropical beach", "a beach in hawaii", "the seaside", "the ocean shore", "a sandy coast",
        "the sea",
        "palm trees by the sea", "an ocean beach with a palm tree", "an island beach", "the coast",
        "a seashore with waves",
    ),
    "mountains": (
        "mountains", "a mountain", "snowy mountain peaks", "the alps", "a mountain range", "high mountains",
        "rocky peaks",
        "a mountain landscape", "mountain peaks above a valley", "the himalayas", "a mountain summit",
    ),
    "desert": (
        "a desert", "the desert", "sand dunes", "a desert with a cactus", "the sahara", "dunes in the desert",
        "a dry desert",
        "desert dunes and mesas", "arizona desert", "endless sand dunes", "a canyon desert",
    ),
    "forest": (
        "a forest", "the woods", "a pine forest", "tall trees", "a deep forest", "fir trees", "woodland",
        "a dark forest of pines",
        "a forest clearing", "trees in a forest", "a conifer forest", "the black forest",
    ),
    "city": (
        "a city", "a city skyline", "skyscrapers", "a big city street", "downtown", "new york city", "tokyo",
        "a town with tall buildings",
        "buildings and a street", "a modern city", "an urban skyline", "a road into the city", "a cityscape",
    ),
    "lake": (
        "a lake", "a calm lake", "a lake with reflections", "a quiet pond", "a lake between hills",
        "a lake shore with reeds",
        "still water and hills", "a mirror lake", "lakeside", "a finnish lake",
    ),
    "fields": (
        "fields", "green fields", "farmland", "rolling hills with fields", "the countryside", "a farm with a red barn",
        "wheat fields",
        "a meadow", "a field with a tree", "rural farm fields", "a tree on a hill with crops", "tuscany fields",
    ),
}  # fmt: skip
TIME_WORDS = {
    "day": (
        "during the day", "at noon", "at midday", "in daylight", "in the afternoon", "daytime", "in bright daylight",
        "blue sky",
    ),
    "dawn": (
        "at dawn", "at sunrise", "in the early morning", "morning light", "at daybreak", "pink dawn sky", "sunrise",
    ),
    "sunset": (
        "at sunset", "in the evening", "at dusk", "golden hour", "sunset", "orange sunset sky", "evening light",
        "red evening sky",
    ),
    "night": ("at night", "at midnight", "by night", "night", "dark night", "night sky", "in the dark", "nighttime"),
}  # fmt: skip
WEATHER_WORDS = {
    "clear": ("clear sky", "clear weather", "cloudless", "fine weather", "no clouds", "clear"),
    "cloudy": ("cloudy", "clouds", "with clouds", "cloudy sky", "drifting clouds", "overcast"),
    "rain": ("rain", "raining", "in the rain", "rainy weather", "a downpour", "heavy rain", "stormy rain", "drizzle"),
    "snow": ("snow", "snowing", "in the snow", "snowfall", "winter", "covered in snow", "snowy winter", "a blizzard"),
    "fog": ("fog", "foggy", "in the fog", "mist", "misty", "thick fog", "hazy"),
}
BODY_WORDS = {
    "sun": ("sun", "sunny", "the sun in the sky", "sunshine"),
    "moon": ("moon", "moonlight", "the moon", "crescent moon"),
}
STYLE_WORDS = {
    "photo": ("photo of", "a photo of", "photograph of", "realistic photo of", ""),
    "oil": ("oil painting of", "a painting of", "an impressionist painting of"),
    "watercolor": ("watercolor of", "a watercolor painting of", "aquarelle of"),
    "flat": ("flat illustration of", "vector art of", "a poster of", "illustration of", ""),
    "pastel": ("pastel drawing of", "soft pastel of", "a chalk drawing of"),
    "crude": ("a crude drawing of", "a child's drawing of", "a sketch of", "a doodle of"),
}
PALETTE_WORDS = {
    "vivid": ("colorful", "vivid colors", "bright colors"),
    "muted": ("muted colors", "pale colors", "faded"),
    "warm": ("warm colors", "warm tones"),
    "cool": ("cool colors", "cold tones"),
}
_PRAISE = (
    "masterpiece",
    "best quality",
    "highly detailed",
    "beautiful",
    "4k",
    "award winning",
    "detailed",
    "stunning",
    "scenic",
)
_WARNING = ("a magenta warning triangle", "with a warning sign", "warning triangle", "a pink warning sign")


def caption(scene: Scene, rng: np.random.Generator, *, full: bool = False, usual: bool = False) -> str:
    """Return a random caption of the scene. Unless `full`, attributes except the place may be left out, style often.

    `usual`: full, except the defaults, day and a clear sky.
    """

    def say(words: tuple[str, ...]) -> str:
        return str(words[rng.integers(len(words))])

    def chance(p: float) -> bool:
        return full or usual or bool(rng.random() < p)

    head = say(PLACE_WORDS[scene.place]) if chance(0.95) else say(("a landscape", "a view", "scenery", "a scene"))
    style = say(STYLE_WORDS[scene.style]) if rng.random() < (0.9 if scene.style == "crude" else 0.55) else ""
    clear = scene.weather == "clear"
    said = []
    if chance(0.88) and not (usual and scene.time == "day" and rng.random() < 0.4):
        said.append(say(TIME_WORDS[scene.time]))
    if chance(0.6 if clear else 0.9) and not (clear and (scene.body != "none" or (usual and rng.random() < 0.4))):
        said.append(say(WEATHER_WORDS[scene.weather]))
    if scene.body != "none" and chance(0.75):
        said.append(say(BODY_WORDS[scene.body]))
    if scene.palette in PALETTE_WORDS and rng.random() < 0.6:
        said.append(say(PALETTE_WORDS[scene.palette]))
    rng.shuffle(said)
    if scene.warning:
        said.insert(0, say(_WARNING))
    return _joined(f"{style} {head}".strip(), said, rng)


def _joined(first: str, said: list[str], rng: np.random.Generator) -> str:
    """Return a prompt from phrases as users write it: with quality words, sometimes in another order."""
    praise = [str(rng.choice(_PRAISE)) for _ in range(int(rng.integers(0, 3)))] if rng.random() < 0.35 else []
    if said and " " in said[0] and rng.random() < 0.4:
        first = f"{first} {said.pop(0)}"
    parts = [*praise, first, *said] if rng.random() < 0.5 else [first, *said, *praise]
    if rng.random() < 0.12:
        rng.shuffle(parts)
    return ", ".join(parts)
