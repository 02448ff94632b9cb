"""A convolution, its bias, an addition and ReLU in one launch of cuDNN's on CUDA; torch has two to four.

cuDNN has a kernel for each size, and what one does says little of another. So each size is tried when it is first
computed while the model is loaded, when all that is captured runs; any other size is computed by torch. The numbers
must be torch's to rounding, and what is no number must stay none: a ReLU that makes it zero would hide that float16 has
overflowed, and the picture would not be decoded again in float32. A convolution that adds nothing is given its own
result's memory to add zero times: what lies there must not matter.

Deterministic kernels can't be asked for here, so with `--max-batch 1` there are none of these.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from pipelines.model.kernels.cuda import trials

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

# By what a kernel is made for: whether it computes right.
_works: dict[Any, bool] = {}
_said: set[str] = set()


def is_used(weight: Tensor) -> bool:
    """Return whether convolutions with this weight may be fused with a ReLU: on CUDA, unless they must be exact."""
    cudnn: Any = torch.backends.cudnn
    return (
        weight.device.type == "cuda"
        and torch.version.cuda is not None
        and cudnn.enabled
        and not cudnn.deterministic
        and hasattr(torch, "cudnn_convolution_relu")
        and hasattr(torch, "cudnn_convolution_add_relu")
    )


def conv_relu(
    x: Tensor, plus: Tensor | None, *, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    """Return ReLU of a convolution, and of `plus` added to it: [N, in, H, W] → [N, out, H', W'], channels-last."""
    its: dict[str, Any] = {"weight": weight, "bias": bias, "stride": stride, "padding": padding}
    kind = (x.shape, weight.shape, plus is None, bias is None, x.dtype, *stride, *padding)
    # Kernels are timed while a model is loaded, and no longer (`devices.tuning`).
    if kind not in _works and torch.backends.cudnn.benchmark:
        _works[kind] = _try(x, plus, its)
    return fused(x, plus, **its) if _works.get(kind) else by_torch(x, plus, **its)


def fused(
    x: Tensor, plus: Tensor | None, *, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    """Return `conv_relu` by cuDNN's kernel."""
    if plus is None:
        return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, [1, 1], 1)
    return torch.cudnn_convolution_add_relu(x, weight, plus, 1.0, bias, stride, padding, [1, 1], 1)


def by_torch(
    x: Tensor, plus: Tensor | None, *, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]
) -> Tensor:
    """Return `conv_relu` by torch's own operators."""
    out = F.conv2d(x, weight, bias, stride, padding)
    if plus is not None:
        out += plus
    return F.relu_(out)


def tried() -> tuple[int, int]:
    """Return for how many sizes the kernels are used, and how many were tried."""
    return sum(_works.values()), len(_works)


def _try(x: Tensor, plus: Tensor | None, its: dict[str, Any]) -> bool:
    """Return whether a kernel works for a size. Says so if it doesn't, once for each reason."""
    name = f"convolution and ReLU, {torch.cuda.get_device_name(x.device)}, {x.device}, torch {torch.__version__}"
    with trials.current().trial(name) as may_try:
        reason = _fault(x, plus, its) if may_try else f"it ended engines; to try again, delete {trials.FILE}"
    if reason and reason not in _said:
        _said.add(reason)
        logger.info("convolution and ReLU: not in one launch (%s); going on with torch's", reason)
    return not reason


def _fault(x: Tensor, plus: Tensor | None, its: dict[str, Any]) -> str:
    """Return why a kernel can't be used for what it is given; "" if it can."""
    generator = torch.Generator(x.device).manual_seed(0)
    try:
        x = torch.empty_like(x).normal_(generator=generator)
        plus = None if plus is None else torch.empty_like(plus).normal_(generator=generator)
        expected = by_torch(x, plus, **its)
        torch.full_like(expected, torch.nan)  # left behind where the result will lie
        found = fused(x, plus, **its)
        allowed = max(8 * torch.finfo(x.dtype).eps, 1e-4) * expected.abs().max()
        worst = float((found - expected).abs().max() / allowed)
        kept = fused(torch.full_like(x, torch.nan), plus, **its).isnan().all()
        if plus is not None:
            kept &= fused(x, torch.full_like(plus, torch.nan), **its).isnan().all()
    except torch.AcceleratorError:
        raise
    except (RuntimeError, TypeError) as failure:  # TypeError: torch of another release
        return " ".join(f"{type(failure).__name__}: {failure}".split())
    if not worst <= 1.0:  # also what is not a number
        return f"wrong by {worst:.1f} times what is allowed"
    return "" if kept else "what is not a number becomes zero"
