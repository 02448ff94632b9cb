"""Quality figures of a model folder: held-out scenes, the engine's own code, judged by the classifier."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from pipelines.messages import GenerationParams
from training import sampling
from training.config import TEST
from training.networks import autoencoder, classifier
from training.scenes.captions import caption
from training.scenes.painter import paint
from training.scenes.scene import Scene, draw_scene


def report(folder: Path, inputs: int = 96, seeds: int = 2, side: int = 512) -> dict[str, float]:
    """Return all figures of a model folder and print them as one line of JSON.

    `side`: the picture size in pixels for steering and layout.
    """
    judge = classifier.load()
    figures = _reconstruction(folder, judge)
    chosen = [i for i in range(TEST.count) if not TEST.scene(i).warning][:inputs]
    for strength in (1.0, 0.8):
        figures |= _steering(folder, judge, chosen, seeds, strength, side=side)
    figures["layout at 0.5"] = _layout(folder, chosen, seeds, side=side)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}), flush=True)
    return figures


def _reconstruction(folder: Path, judge: classifier.Judge) -> dict[str, float]:
    pixels, scenes, vae = TEST.open(), TEST.scenes(), sampling.load(folder).model.vae
    made = np.concatenate([autoencoder.reconstruct(vae, pixels[i : i + 4]) for i in range(0, len(pixels), 4)])
    figures = {"psnr": autoencoder.psnr(made, pixels)}
    for kind, pictures in (("painted", pixels), ("reconstructed", made)):
        seen = classifier.judge_all(judge, pictures)
        for name in seen:
            figures[f"{name} {kind}"] = _accuracy(seen[name], scenes, name)
    return figures


def _accuracy(seen: np.ndarray, scenes: list[Scene], name: str) -> float:
    values = classifier.JUDGED[name]
    return float(np.mean([values[index] == getattr(scene, name) for index, scene in zip(seen, scenes, strict=True)]))


def _steering(
    folder: Path, judge: classifier.Judge, chosen: list[int], seeds: int, strength: float, *, side: int
) -> dict[str, float]:
    """Return, by attribute, how often the picture shows what the prompt says; prompts are independent of inputs."""
    pixels, jobs, asked = _shrunk(side), [], []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 31])
        for index in chosen:
            wanted = dataclasses.replace(draw_scene(rng, 0), warning=False, style="photo", palette="natural")
            asked.append(wanted)
            jobs.append((pixels[index], _params(caption(wanted, rng, full=True), seed * 1000 + index, strength)))
    seen = classifier.judge_all(judge, sampling.generate(folder, jobs))
    return {f"{name} at {strength}": _accuracy(seen[name], asked, name) for name in seen}


def _shrunk(side: int) -> np.ndarray:
    """Return the held-out pictures, reduced to `side`."""
    by = TEST.size // side
    means = [picture.reshape(side, by, side, by, 3).mean((1, 3)).round().astype(np.uint8) for picture in TEST.open()]
    return np.stack(means)


def _params(prompt: str, seed: int, strength: float) -> GenerationParams:
    return GenerationParams(prompt=prompt, seed=seed, strength=strength)


def _layout(folder: Path, chosen: list[int], seeds: int, *, side: int) -> float:
    """Return how often a picture's outlines match its input's layout better than another input's of the same place.

    The prompt keeps the place; its hour and weather are independent of the input. The picture is compared with the
    painter's pictures of that prompt in either layout, as these differ in the layout alone. The inputs themselves
    differ in rain or fog too, which outweighs the layout: the painter's own pictures would win only 86 % of the time.
    """
    pixels, jobs, rivals = _shrunk(side), [], []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 32])
        for index in chosen:
            scene = TEST.scene(index)
            others = [i for i in chosen if TEST.scene(i).place == scene.place and TEST.scene(i).seed != scene.seed]
            other = TEST.scene(int(rng.choice(others)))
            wanted = dataclasses.replace(
                draw_scene(rng, 0), place=scene.place, warning=False, style="photo", palette="natural"
            )
            rivals.append([dataclasses.replace(wanted, seed=each.seed) for each in (scene, other)])
            jobs.append((pixels[index], _params(caption(wanted, rng, full=True), seed * 1000 + index, 0.5)))
    made = sampling.generate(folder, jobs)
    wins = []
    for picture, pair in zip(made, rivals, strict=True):
        own, other = (_likeness(picture, paint(each, side, side)) for each in pair)
        wins.append(own > other)
    return float(np.mean(wins))


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of the two pictures' outlines, on a grid of 32×32."""
    return float(np.corrcoef(_outlines(a).ravel(), _outlines(b).ravel())[0, 1])


def _outlines(pixels: np.ndarray) -> np.ndarray:
    grey = pixels.astype(np.float32).mean(-1)
    grey = grey.reshape(64, pixels.shape[0] // 64, 64, -1).mean((1, 3))
    down, across = np.gradient(grey)
    return np.sqrt(np.hypot(down, across)).reshape(32, 2, 32, 2).max((1, 3))
