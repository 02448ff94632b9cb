"""The number format of an engine: what `--dtype auto` means on a device.

    cuda    float16, if the card computes right in it; else float32 (GTX 16xx, some drivers)
    mps     the same. Tried on no Mac yet
    cpu     bfloat16 where the processor multiplies it, and a product timed here is clearly faster; else float32

The built-in demo model stays in float32 except on cuda: it is small, and what it draws is known in float32. On a
processor torch sums the 16-bit numbers of norms, softmax, products and convolutions in float32.

Whether an accelerator computes right in 16 bits is seen at every start: a convolution and a product of the model's own
sizes must come out nearly as in float32 (`computes`), and a small picture in numbers (`draws`).
"""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from pipelines.device import cuda_support, devices
from pipelines.device.torch_backend import is_out_of_memory
from pipelines.errors import CheckpointError, NoRoomError
from pipelines.messages import EngineConfig, GenerationParams
from pipelines.model.kernels import choices, instructions, products

if TYPE_CHECKING:
    from pipelines.model.lcm import Lcm

logger = logging.getLogger(__name__)

ACCELERATORS = ("cuda", "mps")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

# The first cards with bfloat16, Ampere, by compute capability.
_BFLOAT16 = (8, 0)

# The product that is timed: rows, width and results of a feed-forward layer of Stable Diffusion 1.5.
_ROWS, _WIDTH, _RESULTS = 1024, 640, 2560

# The convolution that shows whether a format works: channels and side of the UNet's first level.
_CHANNELS, _SIDE = 320, 64
# How far results may be from those in float32, of the largest: rounding makes thousandths.
_FAR_OFF = 0.05

# Sides of the picture that must come out in numbers.
_PICTURE = 256

# How many times faster bfloat16 must be: it is less exact, and sums and norms around the products gain nothing.
_GAIN = 1.3


def pick(config: EngineConfig) -> tuple[torch.device, torch.dtype]:
    """Return the first device that `config` names and the dtype to use there.

    Raises `CheckpointError`, and `NoRoomError` if another program has the memory of the device.
    """
    device = devices.first(config)
    if config.model == "demo" and config.dtype == "auto" and device.type != "cuda":
        return device, torch.float32
    try:
        return device, pick_dtype(config.dtype, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise NoRoomError(config.device) from error


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `name` means for full-size weights. Raises `CheckpointError`."""
    if name == "auto":
        return _auto(device)
    if name not in DTYPES:
        raise CheckpointError(f"{name!r} is no dtype.", f"Use auto, {', '.join(DTYPES)}.")
    dtype = DTYPES[name]
    if name == "bfloat16" and device.type == "cuda":
        card = cuda_support.build().cards[device.index or 0]
        if card.capability < _BFLOAT16:
            raise CheckpointError(f"{card.name} does not compute in bfloat16.", "Use --dtype auto or float16.")
    if device.type in ACCELERATORS and dtype.itemsize == 2 and not computes(dtype, device):
        raise wrong_numbers(dtype, device)
    return dtype


def _auto(device: torch.device) -> torch.dtype:
    if device.type in ACCELERATORS:
        return torch.float16 if computes(torch.float16, device) else torch.float32
    return _fastest_on_cpu()


def computes(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a convolution and a product of the model's sizes give in `dtype` nearly what they give in float32.

    Raises what says that memory ran out: it says nothing of the numbers.
    """
    try:
        return all(_is_near(run(dtype), run(torch.float32)) for run in _samples(device))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        logger.info("%s does not compute in %s: %s", device, dtype, error)
        return False


def _samples(device: torch.device) -> Iterator[Callable[[torch.dtype], torch.Tensor]]:
    """Yield a convolution and a product, of the same numbers in any dtype."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(device, torch.float16)

    x, kernel = numbers(1, _CHANNELS, _SIDE, _SIDE), numbers(_CHANNELS, _CHANNELS, 3, 3)
    pictures, kernels = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, kernel))
    yield lambda dtype: F.conv2d(pictures.to(dtype), kernels.to(dtype), padding=1)
    rows, weight = numbers(_ROWS, _WIDTH), numbers(_RESULTS, _WIDTH)
    yield lambda dtype: F.linear(rows.to(dtype), weight.to(dtype))


def _is_near(actual: torch.Tensor, exact: torch.Tensor) -> bool:
    """Return whether results are finite and not far from exact ones."""
    return bool((actual.float() - exact).abs().max() <= _FAR_OFF * exact.abs().max())


def draws(model: "Lcm") -> bool:
    """Return whether a small picture comes out of the model in numbers, and neither infinite nor none."""
    params = GenerationParams(prompt="a photo of a beach", seed=0, num_inference_steps=2)
    pixels = np.random.default_rng(0).integers(0, 256, (_PICTURE, _PICTURE, 3), np.uint8)
    trajectories = model.encode([(params, model.prepare(params), pixels, params.seed)])
    while not trajectories[0].finished:
        model.step(trajectories)
    model.decode(trajectories)
    return bool(model.finite(trajectories).all())


def wrong_numbers(dtype: torch.dtype, device: torch.device) -> CheckpointError:
    """Return the error of a device that does not compute right in the dtype that was asked for."""
    name = str(dtype).removeprefix("torch.")
    return CheckpointError(f"{devices.label(device)} computes wrong numbers in {name}.", "Use --dtype auto or float32.")


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
