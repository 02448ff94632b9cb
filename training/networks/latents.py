"""Painted pictures encoded as latents, float16 on disk: the training data of the denoiser."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from training.config import LARGE, SMALL
from training.networks import autoencoder
from training.scenes.dataset import Pictures
from training.trainer import on_all_cores, rank, world

_BATCH = 4


@dataclass(frozen=True)
class Latents:
    """Latents of a picture set, each picture first reduced by an integer factor."""

    pictures: Pictures
    shrink: int = 1

    @property
    def side(self) -> int:
        return self.pictures.size // self.shrink // 8

    @property
    def path(self) -> Path:
        return self.pictures.path.with_name(f"{self.pictures.path.stem}-by-{self.shrink}.f16")

    @property
    def done(self) -> Path:
        """File whose presence marks the set as encoded."""
        return self.path.with_suffix(".done")

    def open(self, mode: str = "r") -> np.ndarray:
        """Return the latents, memory mapped: [N, 4, side, side]."""
        return np.memmap(self.path, np.float16, mode, shape=(self.pictures.count, 4, self.side, self.side))

    def encode(self) -> None:
        """Encode all pictures, on all cores."""
        self.open("w+").flush()
        on_all_cores(self.work)
        self.done.touch()

    def work(self) -> None:
        """Encode this process's share."""
        model, pixels, out = autoencoder.load(), self.pictures.open(), self.open("r+")
        for start in range(rank() * _BATCH, self.pictures.count, world() * _BATCH):
            images = F.avg_pool2d(autoencoder.to_model(pixels[start : start + _BATCH]), self.shrink)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                out[start : start + _BATCH] = model.encoder(images).float().numpy()


TINY_LATENTS, SMALL_LATENTS, LARGE_LATENTS = Latents(SMALL, shrink=2), Latents(SMALL), Latents(LARGE)
