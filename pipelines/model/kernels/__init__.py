"""Convolutions and matrix products in a device's fastest form: weights in, modules out.

On CUDA they are torch's own, weights channels-last. On an x86 CPU in float32 oneDNN gets its weights in the layout that
it computes in, once; torch would convert them at every call: a 1280-channel convolution of SD1.5 takes half to a
quarter of the time, and a matrix product half of MKL's on an AMD core (`benchmarks/results/cpu-kernels.md`). The
operators for that are those that torch's own compiler writes into its programs; where a build lacks them, torch's
public ones do.

Activations are channels-last everywhere: [N, C, H, W] with C innermost, so that [N, H·W, C] is a view of them.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


def linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return `x → x · weightᵀ + bias` for x [..., in] and weight [out, in]."""
    return PackedLinear(weight, bias) if packs(weight) else Linear(weight, bias)


def conv(source: Any, *, relu: bool = False) -> nn.Module:
    """Return the convolution of a `Conv2d`: `(x, plus=None) → conv(x) + plus`, then a ReLU if `relu`."""
    if source.groups != 1 or source.padding_mode != "zeros" or tuple(source.dilation) != (1, 1):
        raise ValueError(f"not a plain convolution: {source}")
    return (PackedConv if packs(source.weight) else Conv)(source, relu=relu)


def upsampling_conv(source: Any) -> nn.Module:
    """Return nearest-neighbour doubling of both sides, then a 3×3 `Conv2d`, as one operation at 4/9 of the cost."""
    return _transposed(doubling_kernel(source.weight), source.bias, padding=1)


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


class Conv(nn.Module):
    """A convolution by torch's own operator."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, source: Any, *, relu: bool) -> None:
        super().__init__()
        self.register_buffer("weight", source.weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", source.bias)
        self.stride, self.padding, self.relu = list(source.stride), list(source.padding), relu

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """`x` [N, in, H, W] → [N, out, H', W']; `plus` has the result's shape."""
        out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        if plus is not None:
            out = out + plus
        return F.relu(out) if self.relu else out


class PackedConv(nn.Module):
    """`Conv` with oneDNN's layout of the weights; what comes after is done while the result is still in the cache."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, source: Any, *, relu: bool) -> None:
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
            out = F.relu(out) if self.relu else out
        else:
            out = run.binary(x, plus, *given, "add", None, "relu" if self.relu else None, [], None)
        return out


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
    return (PackedTransposedConv if packs(weight) else TransposedConv)(weight, bias, padding)


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


def packs(weight: Tensor) -> bool:
    """Return whether oneDNN is to hold this weight: where that is faster, and where this torch can do it.

    `torch.backends.mkldnn.enabled = False` turns it off, as for torch's own operators.
    """
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and platform.machine() in {"x86_64", "AMD64"}
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's own
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_convolution_transpose_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )
