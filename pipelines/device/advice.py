"""What the operator may want to know: what makes requests slow on this device, and the setting that helps."""

import torch

from pipelines.device import devices, dtypes
from pipelines.messages import EngineConfig
from pipelines.model.kernels import instructions
from pipelines.weights.checkpoint import LoadedCheckpoint

# Parameters from which an autoencoder takes a good part of a request: Stable Diffusion's has 84 million, TAESD 2.4.
_HEAVY_VAE = 50_000_000

TINY_VAE = (
    "on a processor the full autoencoder takes a third to a half of a request; --vae tiny (TAESD) saves most of"
    " that, and its pictures are softer"
)


def has_heavy_vae(model: LoadedCheckpoint) -> bool:
    """Return whether `--vae tiny` would save a good part of a request."""
    return model.device.type == "cpu" and sum(weight.numel() for weight in model.vae.parameters()) > _HEAVY_VAE


def emulated(device: torch.device, dtype: torch.dtype) -> str:
    """Return a warning if bfloat16 is no format of this processor, else ""."""
    if device.type != "cpu" or dtype != torch.bfloat16 or instructions.has_bfloat16():
        return ""
    return (
        f"--dtype bfloat16: this processor ({instructions.names()}) has no products of bfloat16, and emulated ones take"
        " several times as long. Hint: --dtype float32, or auto"
    )


def wrong_numbers(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Return a warning if `--dtype auto` is float32 on an accelerator, as its 16-bit numbers are wrong; else ""."""
    if config.dtype != "auto" or dtype != torch.float32 or device.type not in dtypes.ACCELERATORS:
        return ""
    if device.type == "mps" and config.model == "demo":
        return ""
    return (
        f"{devices.label(device)} computes wrong numbers in float16, so float32 is used: pictures are right, and take"
        " twice the memory and longer."
    )
