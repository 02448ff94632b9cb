"""What a measured request is: the picture, the prompt, an engine's configuration, and the five stages in a row.

Imports neither torch nor diffusers, so that what loading costs can be measured in a process that has this.
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.images import codec as images
from pipelines.messages import EngineConfig, GenerationParams

PICTURE = Path(__file__).parents[2] / "server" / "static" / "beach.jpg"
PROMPT = "masterpiece, colorful, photo of a beach in hawaii, sun"


def config(model="demo", **options):
    """Return an engine's configuration; the demo model's files go to a folder of this machine."""
    data_dir = Path(tempfile.gettempdir()) / "fourstep-benchmarks"
    return EngineConfig(model=str(model), data_dir=str(data_dir), **options)


def request(seed=42, **fields):
    return GenerationParams(**({"prompt": PROMPT, "seed": seed} | fields))


def picture(width=512, height=512):
    """Return the example picture at a size, as JPEG bytes."""
    with Image.open(PICTURE) as opened:
        pixels = np.asarray(opened.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))
    return images.encode(pixels, 95, "4:4:4")


def generate(model, params, pixels):
    """Run one request through our five stages, without the engine loop: uint8 [images, H, W, 3]."""
    conditioning = model.prepare(params)
    items = [(params, conditioning, pixels, params.seed + number) for number in range(params.num_images)]
    trajectories = model.encode(items)
    while not trajectories[0].finished:
        model.step(trajectories)
    drawn = model.decode(trajectories)
    pixels, *_ = model.fetch(drawn, model.finite(trajectories), model.check(drawn))()
    return pixels
