"""The number format of an engine: what `--dtype auto` means on a device.

    cuda    float16
    mps     float16 once a small convolution and a product have shown it finite; else float32. Tried on no Mac yet
    cpu     bfloat16 where the processor multiplies it, and a product timed here is clearly faster; else float32

The built-in demo model stays in float32 except on cuda: it is small, and what it draws is known in float32. On a
processor torch sums the 16-bit numbers of norms, softmax, products and convolutions in float32.
"""

import functools
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F

from pipelines.device import cuda_support, devices
from pipelines.errors import CheckpointError
from pipelines.messages import EngineConfig
from pipelines.model.kernels import choices, instructions, products
from pipelines.weights import demo

logger = logging.getLogger(__name__)

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

# The first cards with bfloat16, Ampere, by compute capability.
_BFLOAT16 = (8, 0)

# The product that is timed: rows, width and results of a feed-forward layer of Stable Diffusion 1.5.
_ROWS, _WIDTH, _RESULTS = 1024, 640, 2560

# How many times faster bfloat16 must be: it is less exact, and sums and norms around the products gain nothing.
_GAIN = 1.3


def pick(config: EngineConfig) -> tuple[torch.device, torch.dtype]:
    """Return the first device that `config` names and the dtype to use there. Raises `CheckpointError`."""
    device = devices.first(config)
    if config.model == "demo" and config.dtype == "auto":
        return device, demo.auto_dtype(device)
    return device, pick_dtype(config.dtype, device)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `name` means for full-size weights. Raises `CheckpointError`."""
    if name == "auto":
        return _auto(device)
    if name not in DTYPES:
        raise CheckpointError(f"{name!r} is no dtype.", f"Use auto, {', '.join(DTYPES)}.")
    if name == "bfloat16" and device.type == "cuda":
        card = cuda_support.build().cards[device.index or 0]
        if card.capability < _BFLOAT16:
            raise CheckpointError(f"{card.name} does not compute in bfloat16.", "Use --dtype auto or float16.")
    return DTYPES[name]


def _auto(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.float16
    if device.type == "mps":
        return torch.float16 if is_finite(torch.float16, device) else torch.float32
    return _fastest_on_cpu()


def is_finite(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a small convolution and a product of `dtype` work on `device`, and give finite numbers."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(size, generator=generator).to(device, dtype) for size in ((1, 64, 8, 8), (64, 64, 3, 3)))
    try:
        out = F.conv2d(x, weight, padding=1).flatten(2)
        return bool((out.transpose(1, 2) @ out).isfinite().all())
    except RuntimeError as error:
        logger.info("%s does not compute in %s: %s", device, dtype, error)
        return False


def _fastest_on_cpu() -> torch.dtype:
    """Ask `choices`: with AMX bfloat16 is faster by far, with AVX512-BF16 alone it may be slower."""
    if not instructions.has_x86_bfloat16():
        return torch.float32
    forms = {name: functools.partial(_product, DTYPES[name]) for name in ("float32", "bfloat16")}
    rule = "bfloat16" if instructions.has_amx() else "float32"
    return DTYPES[choices.current().choose("dtype", forms, rule=rule, handicaps={"bfloat16": _GAIN})]


def _product(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """Return a call of a product as the model has it."""
    layer = products.linear(torch.ones(_RESULTS, _WIDTH, dtype=dtype), None)
    return functools.partial(layer, torch.ones(_ROWS, _WIDTH, dtype=dtype))
