"""Painted pictures as latents, float16 on disk: what the denoiser learns from."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.demo_model import autoencoder
from benchmarks.demo_model.data import Pictures
from benchmarks.demo_model.recipe import LARGE, SMALL
from benchmarks.demo_model.training import on_all_cores, rank, world

_BATCH = 4


def path_of(pictures: Pictures) -> Path:
    return pictures.path.with_suffix(".f16")


def done(pictures: Pictures) -> Path:
    """The file that says that a set is encoded."""
    return pictures.path.with_suffix(".encoded")


def open_latents(pictures: Pictures, mode: str = "r") -> np.ndarray:
    """[N, 4, side, side], memory mapped."""
    side = pictures.size // 8
    return np.memmap(path_of(pictures), np.float16, mode, shape=(pictures.count, 4, side, side))


def work_small() -> None:
    _encode(SMALL)


def work_large() -> None:
    _encode(LARGE)


def encode(pictures: Pictures) -> None:
    """One set, on all cores."""
    open_latents(pictures, "w+").flush()
    on_all_cores(work_small if pictures is SMALL else work_large)
    done(pictures).touch()


def _encode(pictures: Pictures) -> None:
    model, pixels, out = autoencoder.load(autoencoder.NORMALISED), pictures.open(), open_latents(pictures, "r+")
    for start in range(rank() * _BATCH, pictures.count, world() * _BATCH):
        images = autoencoder.to_model(pixels[start : start + _BATCH])
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            out[start : start + _BATCH] = model.encoder(images).float().numpy()
