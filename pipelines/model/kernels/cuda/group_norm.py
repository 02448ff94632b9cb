"""Group norm of channels-last pictures, with a shift of each channel before it and SiLU after it, in two launches.

torch before 2.15 normalises in another layout on CUDA: with the copies there and back, a norm and its SiLU are six to
seven launches. The numbers are those of torch's operators with fewer roundings: nothing between is rounded to 16 bits.

`torch.ops.fourstep.group_norm` is the operator; on a processor torch's own compute it.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from pipelines.model.kernels.cuda import trials
from pipelines.model.kernels.cuda.compiler import CudaKernels

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.model.kernels.cuda.compiler import Kernels

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".cu")
FORMATS = {torch.float16: "HALF", torch.bfloat16: "BFLOAT", torch.float32: "FLOAT"}

# As in the source.
_WIDE, _MOST_THREADS, _MOST_GROUPS, _WARP = 8, 1024, 128, 32

# Threads of a block, unless the channels need more.
_THREADS = {"statistics": 512, "normalise": 256}
# Pixels of a thread at least: their reads are under way at once.
_LEAST_PIXELS = 4
# Parts and blocks of a picture at most: enough for all processors of a card. Each block joins all parts.
_MOST_PARTS, _MOST_BLOCKS = 128, 512

# Channels, side and offset of what is computed at the start; groups of 3, 10, 20 and 40 channels are read in 1, 2, 4
# and 8 at once.
_SAMPLES = ((96, 9, 0.0), (320, 17, 30.0), (640, 9, -3.0), (1280, 5, 0.5))
_SAMPLE_GROUPS, _SAMPLE_EPS = 32, 0.1

_LIBRARY = torch.library.Library("fourstep", "DEF")  # type: ignore[no-untyped-call]  # torch's own
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "group_norm(Tensor x, Tensor? shift, *, Tensor weight, Tensor bias, int groups, float eps, bool silu) -> Tensor"
)


def group_norm(
    x: Tensor, shift: Tensor | None, *, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    """Return the norm of groups of channels of `x + shift`, and SiLU of it if `silu`: channels-last [N, C, H, W].

    `x` [N, C, H, W], `weight` and `bias` [C], `shift` [N, C] or None, all of one dtype.
    """
    out: Tensor = torch.ops.fourstep.group_norm(x, shift, weight=weight, bias=bias, groups=groups, eps=eps, silu=silu)
    return out


def is_used(weight: Tensor, groups: int) -> bool:
    """Return whether the kernels compute a norm with this weight: on CUDA, where they have shown to be right."""
    return (
        weight.device.type == "cuda"
        and torch.version.cuda is not None
        and weight.dtype in FORMATS
        and takes(len(weight), groups)
        and works(weight.device, weight.dtype)
    )


def takes(channels: int, groups: int) -> bool:
    """Return whether there are kernels for this many channels in this many groups."""
    return (
        channels % groups == 0
        and channels % _WIDE == 0
        and channels // _width(channels, groups) <= _MOST_THREADS
        and groups <= _MOST_GROUPS
    )


@functools.cache
def works(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the kernels compile for a card and compute the right numbers. Says so if they don't.

    Raises `torch.AcceleratorError` if they leave the card unusable for this process. The second time that they do, or
    end it, they are not tried again.
    """
    name = f"group norm, {torch.cuda.get_device_name(device)}, {device}, {dtype}, torch {torch.__version__}"
    with trials.current().trial(name) as may_try:
        reason = _fault(device, dtype) if may_try else f"they ended engines; to try again, delete {trials.FILE}"
    if reason:
        sample = torch.zeros(1, 32, 4, 4, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
        kept = F.group_norm(sample, 8).is_contiguous(memory_format=torch.channels_last)
        cost = "" if kept else ", which changes the layout for each norm (torch 2.15 does not)"
        logger.warning("group norm: no kernels of ours (%s); going on with torch's%s", reason, cost)
    return not reason


def _fault(device: torch.device, dtype: torch.dtype) -> str:
    """Return why the kernels can't be used; "" if they can."""
    try:
        worst = error(_on(device, dtype), device, dtype)
    except torch.AcceleratorError:
        raise
    except ImportError as failure:
        major = str(torch.version.cuda).partition(".")[0]
        return f"{failure}. Hint: pip install 'cuda-bindings=={major}.*'"
    except (RuntimeError, TypeError, AttributeError) as failure:  # the last two: cuda-bindings of another release
        torch.cuda.synchronize(device)  # raises if the card is lost
        return " ".join(f"{type(failure).__name__}: {failure}".split())
    return "" if worst <= 1.0 else f"wrong by {worst:.1f} times what is allowed"  # not for what is not a number


def error(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> float:
    """Return the largest error on some samples, in units of what is allowed; NaN if a result is not a number.

    Allowed is one rounding to the dtype, and the part of it that float32 sums may be off.
    """
    generator = torch.Generator().manual_seed(0)
    shares = []
    for channels, side, offset in _SAMPLES:
        sizes = ((2, channels, side, side), (2, 3 * channels), (channels,), (channels,))
        x, shift, weight, bias = (torch.randn(size, generator=generator).to(dtype) for size in sizes)
        x = (x + offset).contiguous(memory_format=torch.channels_last)
        # As the UNet has it: a part of what it adds in all layers.
        for plus, silu in ((shift[:, channels : 2 * channels], True), (None, False)):
            its: dict[str, Any] = {"groups": _SAMPLE_GROUPS, "eps": _SAMPLE_EPS, "silu": silu}
            there = None if plus is None else plus.to(device)
            found = compute(kernels, x.to(device), there, weight=weight.to(device), bias=bias.to(device), **its)
            added = None if plus is None else plus.double()
            exact = group_norm(x.double(), added, weight=weight.double(), bias=bias.double(), **its)
            allowed = max(torch.finfo(dtype).eps, 2e-5) * (exact.abs() + 1)
            shares.append(((found.cpu().double() - exact).abs() / allowed).max())
    return float(torch.stack(shares).max())  # NaN stays


def compute(
    kernels: Kernels,
    x: Tensor,
    shift: Tensor | None,
    *,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    """Return `group_norm` by these kernels."""
    x = _aligned(x.contiguous(memory_format=torch.channels_last))
    if shift is not None and shift.stride(1) != 1:
        shift = shift.contiguous()
    of_shift = 0 if shift is None else shift.stride(0)
    count, channels, height, width = x.shape
    pixels, at_once = height * width, _width(channels, groups)
    out = torch.empty_like(x)
    if not x.numel():
        return out

    columns = channels // at_once
    of_part = _share(pixels, _rows(columns, "statistics"), _MOST_PARTS)
    parts = -(-pixels // of_part)
    found = x.new_empty(count, groups, parts, 2, dtype=torch.float32)
    kernels.launch(
        f"statistics_{at_once}",
        (parts, count),
        _block(columns, "statistics"),
        *(x, shift, found, of_shift, pixels, channels, groups, of_part),
    )

    columns = channels // _WIDE
    of_block = _share(pixels, _rows(columns, "normalise"), _MOST_BLOCKS)
    kernels.launch(
        "normalise_silu" if silu else "normalise_plain",
        (-(-pixels // of_block), count),
        _block(columns, "normalise"),
        *(x, shift, weight, bias, found, out, of_shift),
        *(pixels, channels, groups, parts, of_part, of_block, eps),
    )
    return out


def _width(channels: int, groups: int) -> int:
    """Return how many channels the statistics read at once: of one group, and at most 16 bytes of 16-bit numbers."""
    return next(width for width in (8, 4, 2, 1) if channels // groups % width == 0)


def _rows(columns: int, kernel: str) -> int:
    """Return how many pixels a block takes at once, with a thread for each column of channels."""
    return max(1, _THREADS[kernel] // columns)


def _block(columns: int, kernel: str) -> int:
    """Return the threads of a block: whole warps."""
    return -(-columns * _rows(columns, kernel) // _WARP) * _WARP


def _share(pixels: int, rows: int, most: int) -> int:
    """Return how many pixels a block takes in all. It depends on the picture's size and on nothing else."""
    return max(rows * _LEAST_PIXELS, -(-pixels // most))


def _aligned(x: Tensor) -> Tensor:
    """Return a tensor that begins where 16 bytes can be read at once, as all that torch allocates do."""
    return x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.preserve_format)


@functools.cache
def _on(device: torch.device, dtype: torch.dtype) -> Kernels:
    return CudaKernels(SOURCE.read_text(), [f"FORMAT={FORMATS[dtype]}"], device)


@torch.library.impl(_LIBRARY, "group_norm", "CUDA")
def _by_kernels(x: Tensor, shift: Tensor | None, **its: Any) -> Tensor:
    return compute(_on(x.device, x.dtype), x, shift, **its)


@torch.library.impl(_LIBRARY, "group_norm", "CPU")
def _by_torch(
    x: Tensor, shift: Tensor | None, *, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    if shift is not None:
        x = x + shift[:, :, None, None]
    out = F.group_norm(x, groups, weight, bias, eps)
    return (F.silu(out) if silu else out).contiguous(memory_format=torch.channels_last)


@torch.library.register_fake("fourstep::group_norm", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _shaped(x: Tensor, shift: Tensor | None, **its: Any) -> Tensor:
    del shift, its
    return torch.empty_like(x, memory_format=torch.channels_last)
