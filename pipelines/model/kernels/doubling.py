"""Nearest-neighbour doubling before a convolution, and two convolutions after each other, as one operation each."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from pipelines.model.kernels import choices
from pipelines.model.kernels.convolution import channels_of, conv, in_tiles, timed_conv, winograd
from pipelines.model.kernels.direct import WindowProduct, is_small
from pipelines.model.kernels.products import has_avx512, packs
from pipelines.model.kernels.winograd import DOUBLED, WinogradConv

if TYPE_CHECKING:
    from torch import Tensor


def upsampling_conv(source: Any, *, keep: bool = True) -> nn.Module:
    """Return nearest-neighbour doubling of both sides, then a 3×3 `Conv2d`, as one: at most 4/9 of the products.

    `keep`: as in `conv`.
    """
    if in_tiles(source, keep=keep) and doubles_in_tiles(channels_of(source)):
        return winograd(source, DOUBLED, keep=keep or is_small(source))
    if packs(source.weight) and not has_avx512() and not is_small(source):
        return DoublingProduct(source)
    return doubling_transposed(source)


def doubling_transposed(source: Any) -> nn.Module:
    """Return doubling and a 3×3 `Conv2d` as one transposed convolution."""
    return _transposed(doubling_kernel(source.weight), source.bias, padding=1)


def doubles_in_tiles(channels: int) -> bool:
    """Return whether doubling is faster in tiles than as a transposed convolution."""
    timed = partial(timed_conv, channels=channels, side=32)
    forms = {
        "transposed": partial(timed, doubling_transposed),
        "winograd": partial(timed, partial(WinogradConv, tiles=DOUBLED)),
    }
    rule = "winograd" if channels >= 128 else "transposed"
    return choices.current().choose(f"doubling, {channels} channels", forms, rule=rule) == "winograd"


def conv_pair(first: Any, second: Any, *, doubles: bool) -> nn.Module:
    """Return two 3×3 convolutions with nothing between them as one; `doubles`: nearest-neighbour doubling before both.

    The fused one sees the first's results beyond the picture's edge, where the second must see zeros. So the outermost
    pixels are computed again, by both in turn, from a strip of the picture.
    """
    inner, outer = _exact(first.weight), _exact(second.weight)
    bias = outer.sum(dim=(2, 3)) @ (inner.new_zeros(len(inner)) if first.bias is None else _exact(first.bias))
    if second.bias is not None:
        bias = bias + _exact(second.bias)
    bias = bias.to(second.weight)
    if doubles:
        kernel = F.conv2d(doubling_kernel(inner), outer, padding=2).to(second.weight)
        return FusedPair(
            _transposed(kernel, bias, padding=2), nn.Sequential(upsampling_conv(first), conv(second)), depth=2
        )
    weight = F.conv2d(inner.transpose(0, 1), outer.flip(2, 3), padding=2).transpose(0, 1).to(second.weight)
    together = nn.Conv2d(weight.shape[1], len(weight), 5, stride=second.stride, padding=2, device="meta")
    together.weight, together.bias = (nn.Parameter(each, requires_grad=False) for each in (weight, bias))
    return FusedPair(conv(together), nn.Sequential(conv(first), conv(second)), depth=3)


def doubling_kernel(weight: Tensor) -> Tensor:
    """Return the transposed convolution (stride 2, padding 1) of doubling and a 3×3 convolution: [in, out, 4, 4].

    Each pixel of the doubled picture is one of four copies, so of the nine products that a 3×3 kernel makes there,
    those with copies of one pixel share a factor, and their weights can be added beforehand. That is the 3×3 kernel
    correlated with a 2×2 box; summed in float64, so that nothing is lost but the last rounding.
    """
    padded = F.pad(_exact(weight), (1, 1, 1, 1))
    across = padded[..., 1:] + padded[..., :-1]
    summed = across[..., 1:, :] + across[..., :-1, :]
    return summed.flip(2, 3).transpose(0, 1).to(weight)


def _exact(weight: Tensor) -> Tensor:
    """Return the weight in float64, on the host: mps has none."""
    return weight.cpu().double()


class DoublingProduct(nn.Module):
    """Doubling and a 3×3 `Conv2d` as one product of 2×2 windows: plain weights, which suit every size with AVX2.

    A window of x[p − 1] and x[p] gives, in each dimension, the even result 2p and the odd result 2p − 1.
    """

    # Which of the transposed convolution's four weights the two pixels of a window have, for even and odd results.
    _TAPS = ((3, 1), (2, 0))

    def __init__(self, source: Any) -> None:
        super().__init__()
        kernel = doubling_kernel(source.weight)
        parts = [kernel[:, :, down][..., right] for down in self._TAPS for right in self._TAPS]
        windows = nn.Conv2d(source.in_channels, 4 * source.out_channels, 2, padding=1, device="meta")
        windows.weight = nn.Parameter(torch.cat(parts, dim=1).transpose(0, 1), requires_grad=False)
        windows.bias = None if source.bias is None else nn.Parameter(source.bias.repeat(4), requires_grad=False)
        self.windows = WindowProduct(windows)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [N, in, H, W] → [N, out, 2H, 2W]."""
        count, _, height, width = x.shape
        parts = self.windows(x).permute(0, 2, 3, 1).unflatten(3, (2, 2, -1))
        out = x.new_empty(count, height, 2, width, 2, parts.shape[-1])
        for down in range(2):
            for right in range(2):
                out[:, :, down, :, right] = parts[:, down : down + height, right : right + width, down, right]
        return out.view(count, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


class FusedPair(nn.Module):
    """Two convolutions as one. `depth`: number of input rows on which the outermost row of results depends."""

    def __init__(self, together: nn.Module, apart: nn.Module, depth: int) -> None:
        super().__init__()
        self.together, self.apart, self.depth = together, apart, depth

    def forward(self, x: Tensor) -> Tensor:
        """`x` [N, in, H, W] with even sides → [N, out, H', W']."""
        out: Tensor = self.together(x)
        depth = self.depth
        out[:, :, :1] = self.apart(x[:, :, :depth])[:, :, :1]
        out[:, :, :, :1] = self.apart(x[:, :, :, :depth])[:, :, :, :1]
        if out.shape[2] >= x.shape[2]:  # with a stride, the last result does not reach beyond the edge
            out[:, :, -1:] = self.apart(x[:, :, -depth:])[:, :, -1:]
            out[:, :, :, -1:] = self.apart(x[:, :, :, -depth:])[:, :, :, -1:]
        return out


def _transposed(weight: Tensor, bias: Tensor | None, padding: int) -> nn.Module:
    # With AVX2 the packed layout depends on the picture's size, and a slow conversion may run at every call.
    return (PackedTransposedConv if packs(weight) and has_avx512() else TransposedConv)(weight, bias, padding)


class TransposedConv(nn.Module):
    """A transposed convolution of stride 2: [N, in, H, W] → [N, out, 2H, 2W]; weight [in, out, k, k]."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [N, in, H, W] → [N, out, 2H, 2W]."""
        return F.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=self.padding)


class PackedTransposedConv(nn.Module):
    """`TransposedConv` with oneDNN's layout of the weights."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int) -> None:
        super().__init__()
        self.padding = [padding, padding]
        reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
        self.register_buffer("weight", reorder(weight.contiguous(), self.padding, [0, 0], [2, 2], [1, 1], 1))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [N, in, H, W] → [N, out, 2H, 2W]."""
        run = torch.ops.mkldnn._convolution_transpose_pointwise
        out: Tensor = run(x, self.weight, self.bias, self.padding, [0, 0], [2, 2], [1, 1], 1, "none", [], "")
        return out
