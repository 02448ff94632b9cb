"""Convolutions as they are defined: by torch's own operator, by oneDNN with packed weights, or as one product.

With AVX-512 oneDNN gets its weights in the layout that it computes in, once; torch would convert them at every call: a
1280-channel convolution of SD 1.5 takes half to a quarter of the time (`benchmarks/results/cpu-kernels.md`). With AVX2
that layout depends on the picture's size, and at any other size a slow conversion runs at every call; there large
weights stay plain, which suits every size, and are multiplied with the gathered windows. Small ones go through torch's
own operator, which converts them in a few hundredths of a millisecond. The packed operators are those that torch's own
compiler writes into its programs; where a build lacks them, torch's public ones do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from pipelines.model.kernels.cuda import fused_relu
from pipelines.model.kernels.products import has_avx512, linear, packs

if TYPE_CHECKING:
    from torch import Tensor

# Weights of at most this size are small.
_SMALL_BYTES = 2**20
# Bytes of the windows that are gathered at once: what a core's own cache holds.
_WINDOW_BYTES = 2**20
# Results computed at once at least: each product reads all weights.
_LEAST_PIXELS = 512


def direct_conv(source: Any, *, relu: bool = False) -> nn.Module:
    """Return a `Conv2d` in its fastest direct form: `(x, plus=None) → conv(x) + plus`, then a ReLU if `relu`."""
    if not packs(source.weight) or (not has_avx512() and is_small(source)):
        return Conv(source, relu=relu)
    return (PackedConv if has_avx512() else WindowProduct)(source, relu=relu)


def is_small(source: Any) -> bool:
    """Return whether a `Conv2d`'s weights are small: kept in any form, and converted in no time."""
    return bool(source.weight.nbytes <= _SMALL_BYTES)


class Conv(nn.Module):
    """A convolution by torch's own operator."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, source: Any, *, relu: bool = False) -> None:
        super().__init__()
        self.register_buffer("weight", source.weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", source.bias)
        self.stride, self.padding, self.relu = list(source.stride), list(source.padding), relu
        # A copy in another dtype is exact, and computed by torch.
        self.fused_in = self.weight.dtype if relu and fused_relu.is_used(self.weight) else None

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """`x` [N, in, H, W] → [N, out, H', W']; `plus` has the result's shape."""
        if x.dtype == self.fused_in:
            its: dict[str, Any] = {"stride": self.stride, "padding": self.padding}
            return fused_relu.conv_relu(x, plus, weight=self.weight, bias=self.bias, **its)
        out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        if plus is not None:
            out += plus
        return F.relu_(out) if self.relu else out


class PackedConv(nn.Module):
    """`Conv` with oneDNN's layout of the weights; what comes after is done while the result is still in the cache."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, source: Any, *, relu: bool = False) -> None:
        super().__init__()
        self.stride, self.padding, self.relu = list(source.stride), list(source.padding), relu
        packed = torch.ops.mkldnn._reorder_convolution_weight(source.weight, self.padding, self.stride, [1, 1], 1)
        self.register_buffer("weight", packed)
        self.register_buffer("bias", source.bias)

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """`x` [N, in, H, W] → [N, out, H', W']; `plus` has the result's shape."""
        given = (self.weight, self.bias, self.padding, self.stride, [1, 1], 1)
        run = torch.ops.mkldnn._convolution_pointwise
        out: Tensor
        if plus is None:
            out = run(x, *given, "relu" if self.relu else "none", [], "")
        elif plus.shape[2:] == (1, 1):  # torch 2.11 finds no layout for a sum of single pixels
            out = run(x, *given, "none", [], "") + plus
            out = F.relu_(out) if self.relu else out
        else:
            out = run.binary(x, plus, *given, "add", None, "relu" if self.relu else None, [], None)
        return out


class WindowProduct(nn.Module):
    """`Conv` as one product of the pixels under each position of the kernel, for some rows of results at a time.

    `at_once`: bytes of the pixels that are gathered for them.
    """

    def __init__(self, source: Any, *, relu: bool = False, at_once: int = _WINDOW_BYTES) -> None:
        super().__init__()
        self.at_once, self.outputs = at_once, source.out_channels
        self.kernel, self.stride, self.padding = source.kernel_size, source.stride, source.padding
        self.product = linear(source.weight.permute(0, 2, 3, 1).flatten(1).contiguous(), source.bias)
        self.relu = relu

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """`x` [N, in, H, W] → [N, out, H', W']; `plus` has the result's shape."""
        (high, wide), (down, right), (above, left) = self.kernel, self.stride, self.padding
        pixels = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, above, above)).contiguous()
        count, height, width, channels = pixels.shape
        rows, columns = (height - high) // down + 1, (width - wide) // right + 1
        whole, row, column, _ = pixels.stride()
        windows = pixels.as_strided(
            (count, rows, columns, high, wide, channels), (whole, down * row, right * column, row, column, 1)
        )
        fits = self.at_once // (columns * high * wide * channels * x.element_size())
        at_once = max(fits, -(-_LEAST_PIXELS // columns))
        out = x.new_empty(count, rows, columns, self.outputs)
        for picture in range(count):
            for first in range(0, rows, at_once):
                part = windows[picture, first : first + at_once].reshape(-1, high * wide * channels)
                out[picture, first : first + at_once] = self.product(part).unflatten(0, (-1, columns))
        out = out.permute(0, 3, 1, 2)
        if plus is not None:
            out += plus
        return F.relu_(out) if self.relu else out
