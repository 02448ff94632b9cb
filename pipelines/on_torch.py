"""The engine loop's model in earnest: `Lcm` on a device, with what the loop must know of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pipelines import checkpoint
from pipelines.devices import keep_freed_memory
from pipelines.lcm import Lcm
from pipelines.stages import Diagnosis, ImageCodec, Outfit

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.stages import Pixels
    from pipelines.types import EngineConfig

# The size that most requests have. On a CPU full-size weights take half a minute for that; a small picture brings the
# weights in and tells the pace just as well.
WARM_UP_SIDE = 512
WARM_UP_SIDE_CPU = 128

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

    def fetch(self, pixels: torch.Tensor) -> Pixels:
        """Pixels on the host. Waits for the device."""
        host: Pixels = pixels.cpu().numpy()
        return host

    def diagnose(self, error: Exception) -> Diagnosis:
        """Out of memory is torch's own error or an allocator's; any other error of the device outlives its call."""
        words = str(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in words for sign in _OUT_OF_MEMORY):
            return Diagnosis.OUT_OF_MEMORY
        if isinstance(error, torch.AcceleratorError) or "CUDA error" in words:
            return Diagnosis.DEVICE_LOST
        return Diagnosis.OTHER
