"""Matrix products, and 1×1 convolutions, which are the same on channels-last pictures.

On an x86 CPU oneDNN may hold the weights of a product in the layout that it computes in. Whether that or the plain
product (MKL's in float32) is faster depends on the processor, so one of each is timed.
"""

from __future__ import annotations

import platform
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from pipelines.model.kernels import choices

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# Rows, inputs and outputs of the product that is timed: a feed-forward layer of SD 1.5's at 16² pixels, as the weights'
# layout counts most with few rows.
_TIMED = (256, 1280, 5120)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return `x → x · weightᵀ + bias` for x [..., in] and weight [out, in]."""
    return (PackedLinear if packs(weight) and _form(weight.dtype) == "packed" else Linear)(weight, bias)


def packs(weight: Tensor) -> bool:
    """Return whether oneDNN can hold this weight: on x86, in float32, and in bfloat16 where there is AVX-512.

    `torch.backends.mkldnn.enabled = False` turns it off, as for torch's own operators.
    """
    return (
        weight.device.type == "cpu"
        and (weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_avx512()))
        and platform.machine() in {"x86_64", "AMD64"}
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_convolution_transpose_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def has_avx512() -> bool:
    """Return whether torch computes with AVX-512 here."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _form(dtype: torch.dtype) -> str:
    rows, width, out = _TIMED

    def run(form: Any) -> Callable[[], Tensor]:
        return partial(form(torch.ones(out, width, dtype=dtype), None), torch.ones(rows, width, dtype=dtype))

    forms = {"packed": partial(run, PackedLinear), "plain": partial(run, Linear)}
    return choices.current().choose(f"product {dtype}".replace("torch.", ""), forms, rule="packed")


class Linear(nn.Module):
    """A matrix product by torch's own operator."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] → [..., out]."""
        return F.linear(x, self.weight, self.bias)


class PackedLinear(nn.Module):
    """`Linear` with oneDNN's layout of the weights."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] → [..., out]."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return product


class PixelProduct(nn.Module):
    """A 1×1 convolution as a product: [N, in, H, W] channels-last → [N, out, H, W]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, relu: bool) -> None:
        super().__init__()
        self.product, self.relu = linear(weight.flatten(1), bias), relu

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """`x` [N, in, H, W] → [N, out, H, W]; `plus` has the result's shape."""
        out: Tensor = self.product(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if plus is not None:
            out += plus
        return F.relu_(out) if self.relu else out
