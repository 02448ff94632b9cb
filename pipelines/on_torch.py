"""The engine loop's model in earnest: `Lcm` on a device, with what the loop must know of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pipelines import checkpoint
from pipelines.devices import keep_freed_memory
from pipelines.graphs import ROWS, Cuda, Graphs
from pipelines.lcm import Lcm
from pipelines.stages import Diagnosis, ImageCodec, Outfit
from pipelines.types import GenerationParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.stages import Pixels
    from pipelines.types import EngineConfig

# The size that most requests have. On a CPU full-size weights take half a minute for that; a small picture brings the
# weights in and tells the pace just as well.
WARM_UP_SIDE = 512
WARM_UP_SIDE_CPU = 128

# The sizes and batches that most requests have, and the share of the memory beside the weights that they may take.
CAPTURED_SIZES = ((512, 512), (512, 768), (768, 512), (768, 768))
_GRAPHS_SHARE = 0.5

# What a bare RuntimeError says when memory is out: the CPU allocators (c10/core/impl/alloc_cpu.cpp), and libraries that
# allocate beside torch.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED", "MPS backend out of memory")


def load(config: EngineConfig, progress: Callable[[float, str], None]) -> Outfit:
    """The model that `config` names, on its device. Raises `CheckpointError`."""
    if config.threads:
        torch.set_num_threads(config.threads)
    model = checkpoint.load(config, progress)
    device_model = DeviceModel(model)
    device_model.release()
    if model.device.type == "cpu":
        keep_freed_memory()
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        device_model.capture(Graphs(Cuda(), int(free * _GRAPHS_SHARE)), config.max_batch, progress)
    return Outfit(
        model=device_model,
        codec=ImageCodec(config),
        name=model.name,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        notice=model.notice,
        warm_up_side=WARM_UP_SIDE_CPU if model.device.type == "cpu" else WARM_UP_SIDE,
    )


class DeviceModel(Lcm):
    """A `stages.Model`."""

    graphs: Graphs | None = None

    @torch.inference_mode()
    def capture(self, graphs: Graphs, max_batch: int, progress: Callable[[float, str], None]) -> None:
        """Run black pictures of the usual sizes and batches through every stage, and keep what that captures."""
        self.graphs = graphs
        self.unet = graphs.wrap("unet", self.unet, _latent_size)
        self.vae_encode = graphs.wrap("encode", self.vae_encode, lambda images: (images.shape[2], images.shape[3]))
        self.vae_decode = graphs.wrap("decode", self.vae_decode, _latent_size)
        if self.checker is not None:
            self.checker.flags = graphs.wrap(
                "safety", self.checker.flags, lambda pixels: (pixels.shape[1], pixels.shape[2])
            )
        # The largest batch first: the pool has grown to what the others need.
        shapes = [(size, rows) for size in CAPTURED_SIZES for rows in sorted(ROWS, reverse=True) if rows <= max_batch]
        with graphs.learning():
            for number, ((height, width), rows) in enumerate(shapes):
                progress(number / len(shapes), f"preparing for {rows} pictures of {height}×{width}")
                self._rehearse(height, width, rows)

    def _rehearse(self, height: int, width: int, rows: int) -> None:
        params = GenerationParams(prompt="", seed=0, num_inference_steps=1)
        conditioning = self.prepare(params)
        black = [np.zeros((height, width, 3), np.uint8) for _ in range(rows)]
        trajectories = self.encode([(params, conditioning, pixels, 0) for pixels in black])
        self.step(trajectories)
        self.check(self.decode(trajectories))

    def fetch(self, pixels: torch.Tensor) -> Pixels:
        """Pixels on the host. Waits for the device."""
        host: Pixels = pixels.cpu().numpy()
        return host

    def diagnose(self, error: Exception) -> Diagnosis:
        """Out of memory is torch's own error or an allocator's; any other error of the device outlives its call."""
        words = str(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in words for sign in _OUT_OF_MEMORY):
            if self.graphs is not None:
                self.graphs.evict()  # for those whose turn it is
            return Diagnosis.OUT_OF_MEMORY
        if isinstance(error, torch.AcceleratorError) or "CUDA error" in words:
            return Diagnosis.DEVICE_LOST
        return Diagnosis.OTHER


def _latent_size(latents: torch.Tensor) -> tuple[int, int]:
    """Height and width of the pictures of [N, channels, h, w]."""
    _, _, height, width = latents.shape
    return 8 * height, 8 * width
