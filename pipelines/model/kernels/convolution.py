"""Which form a convolution takes, here and at its picture's size."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipelines.model.kernels import choices
from pipelines.model.kernels.direct import direct_conv, is_small
from pipelines.model.kernels.products import PixelProduct, packs
from pipelines.model.kernels.winograd import PLAIN, TILE, WinogradConv

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from pipelines.model.kernels.winograd import Tiles

# With fewer channels the transforms cost more than they save.
_LEAST_CHANNELS = 32
# Of kernels that are kept, those with at most this many outputs. SD 1.5's UNet has more only where it computes 16² or
# fewer pixels at 512×512: there a transformed kernel, four times as large, takes 236 MB and saves 14 of 52 ms on a
# processor with AVX-512.
_MOST_KEPT_OUTPUTS = 640
# Sides of the pictures for which the forms are timed, and channels of the layer for which blocks and products are.
_SIDES = (8, 16, 32, 64)
_BLOCKS = (32, 64, 128)
_SAMPLE_CHANNELS = 320


def conv(source: Any, *, relu: bool = False, keep: bool = True) -> nn.Module:
    """Return the convolution of a `Conv2d`: `(x, plus=None) → conv(x) + plus`, then a ReLU if `relu`.

    `keep`: spend memory, four times the weights', rather than a hundredth of a large picture's time. Small weights are
    kept in any case.
    """
    if source.groups != 1 or source.padding_mode != "zeros" or tuple(source.dilation) != (1, 1):
        raise ValueError(f"not a plain convolution: {source}")
    shape = (tuple(source.kernel_size), tuple(source.stride), tuple(source.padding))
    if shape == ((1, 1), (1, 1), (0, 0)) and source.weight.device.type == "cpu":
        return PixelProduct(source.weight, source.bias, relu=relu)
    if not in_tiles(source, keep=keep) or (least := least_tiles(channels_of(source))) is None:
        return direct_conv(source, relu=relu)
    if not keep and not is_small(source):
        return winograd(source, relu=relu, keep=False)
    return BySize(direct_conv(source, relu=relu), winograd(source, relu=relu), least)


def in_tiles(source: Any, *, keep: bool) -> bool:
    """Return whether a `Conv2d` can be computed in tiles, and may be: in float32, with memory for it."""
    return bool(
        source.weight.dtype == torch.float32
        and packs(source.weight)
        and (tuple(source.kernel_size), tuple(source.stride), tuple(source.padding)) == ((3, 3), (1, 1), (1, 1))
        and min(source.in_channels, source.out_channels) >= _LEAST_CHANNELS
        and (not keep or is_small(source) or source.out_channels <= _MOST_KEPT_OUTPUTS)
    )


def channels_of(source: Any) -> int:
    """Return the power of two that is nearest to a convolution's numbers of channels."""
    return int(2 ** round(math.log2(source.in_channels * source.out_channels) / 2))


def winograd(source: Any, tiles: Tiles = PLAIN, *, relu: bool = False, keep: bool = True) -> WinogradConv:
    """Return a `Conv2d` in tiles, in the blocks and by the products that are fastest here."""
    timed = partial(timed_conv, channels=_SAMPLE_CHANNELS, side=64)
    blocks = {str(block): partial(timed, partial(WinogradConv, at_once=block)) for block in _BLOCKS}
    at_once = int(choices.current().choose("winograd, tiles at once", blocks, rule="64"))
    products = {
        "batched": partial(timed, WinogradConv),
        "packed": partial(timed, partial(WinogradConv, packed=True)),
    }
    packed = keep and choices.current().choose("winograd, products", products, rule="batched") == "packed"
    return WinogradConv(source, tiles, relu=relu, keep=keep, at_once=at_once, packed=packed)


def least_tiles(channels: int) -> int | None:
    """Return the number of tiles from which tiles are faster than the direct form; None if they never are."""
    for side in _SIDES:
        timed = partial(timed_conv, channels=channels, side=side)
        forms = {"direct": partial(timed, direct_conv), "winograd": partial(timed, WinogradConv)}
        rule = "winograd" if side >= 32 and channels >= 128 else "direct"
        if choices.current().choose(f"convolution, {channels} channels, {side}²", forms, rule=rule) == "winograd":
            return (side // TILE) ** 2
    return None


def timed_conv(form: Callable[[Any], nn.Module], channels: int, side: int) -> Callable[[], Tensor]:
    """Return a run of a 3×3 convolution in a form: [1, channels, side, side] → the same or twice the sides."""
    source = nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False)  # noqa: FBT003 (torch's own signature)
    return partial(form(source), torch.ones(1, channels, side, side).contiguous(memory_format=torch.channels_last))


class BySize(nn.Module):
    """A convolution that is direct for fewer than `least` tiles of 4×4 results."""

    def __init__(self, direct: nn.Module, tiled: nn.Module, least: int) -> None:
        super().__init__()
        self.direct, self.tiled, self.least = direct, tiled, least

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """`x` [N, in, H, W] → [N, out, H, W]; `plus` has the result's shape."""
        tiles = len(x) * -(-x.shape[2] // TILE) * -(-x.shape[3] // TILE)
        form: Callable[..., Tensor] = self.direct if tiles < self.least else self.tiled
        return form(x, plus)
