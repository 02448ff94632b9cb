"""Pictures from a model folder, through the very code that serves them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipelines import checkpoint
from pipelines.lcm import Lcm
from pipelines.types import EngineConfig, GenerationParams


def load(folder: Path) -> Lcm:
    """The engine's algorithm on a folder in diffusers layout, in float32 on the CPU."""
    config = EngineConfig(model=str(folder), lora="none", device="cpu", data_dir=str(folder.parent))
    model = checkpoint.load(config, lambda *_: None)
    for part in (model.unet, model.vae):
        part.to(memory_format=torch.channels_last)
    return Lcm(model)


def generate(lcm: Lcm, jobs: Sequence[tuple[np.ndarray, GenerationParams]], batch: int = 4) -> np.ndarray:
    """One picture per (uint8 [H, W, 3], params), all of one size: uint8 [N, H, W, 3]."""
    made = []
    for start in range(0, len(jobs), batch):
        items = [(params, lcm.prepare(params), pixels, params.seed) for pixels, params in jobs[start : start + batch]]
        trajectories = lcm.encode(items)
        while waiting := [t for t in trajectories if not t.finished]:
            lcm.step(waiting)
        made.append(lcm.decode(trajectories).numpy())
    return np.concatenate(made)
