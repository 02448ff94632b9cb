"""Pictures from a model folder, through the very code that serves them."""

import functools
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from pipelines.device import devices
from pipelines.messages import EngineConfig, GenerationParams
from pipelines.model.lcm import Lcm
from pipelines.weights import checkpoint
from training.config import CORES

Job: TypeAlias = tuple[np.ndarray, GenerationParams]  # uint8 [H, W, 3] and what to make of it


@functools.cache
def load(folder: Path) -> Lcm:
    """The engine's algorithm on a folder in diffusers layout, in float32 on the CPU."""
    config = EngineConfig(model=str(folder), lora="none", device="cpu", data_dir=str(folder.parent))
    model = checkpoint.load(config, *devices.pick(config), lambda *_: None)
    for part in (model.unet, model.vae):
        part.to(memory_format=torch.channels_last)
    return Lcm(model)


def generate(folder: Path, jobs: Sequence[Job], processes: int = CORES) -> np.ndarray:
    """One picture per job, all of one size: uint8 [N, H, W, 3]. Each process has one thread."""
    shares = [jobs[start::processes] for start in range(processes)]
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        made = pool.starmap(_generate, [(folder, share) for share in shares])
    out = np.empty((len(jobs), *made[0].shape[1:]), np.uint8)
    for start, each in enumerate(made):
        out[start::processes] = each
    return out


def _generate(folder: Path, jobs: Sequence[Job], batch: int = 2) -> np.ndarray:
    lcm = load(folder)
    return np.concatenate([_generate_batch(lcm, jobs[start : start + batch]) for start in range(0, len(jobs), batch)])


def _generate_batch(lcm: Lcm, jobs: Sequence[Job]) -> np.ndarray:
    trajectories = lcm.encode([(params, lcm.prepare(params), pixels, params.seed) for pixels, params in jobs])
    while waiting := [each for each in trajectories if not each.finished]:
        lcm.step(waiting)
    return lcm.decode(trajectories).numpy()
