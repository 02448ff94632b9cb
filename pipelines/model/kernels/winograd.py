"""Winograd's F(4×4, 3×3): sixteen results of a 3×3 convolution from 36 products instead of 144, float32 on a CPU.

For each tile of 4×4 results, its 6×6 pixels d, and the kernel g, with the matrices of Lavin and Gray, "Fast Algorithms
for Convolutional Neural Networks" (2015):

    results = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A        ⊙ summed over the input channels: 36 matrix products

Where each pixel of the picture is doubled first, d has 4×4 different pixels, and 25 products are left.

The largest error on outputs of unit variance is 1e-4, its root mean square 4e-6. In bfloat16 the transforms' rounding
would be seen, and the direct form is as fast. A few rows of tiles are computed at a time, so that what lies between
the three steps stays in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from pipelines.model.kernels.products import PackedLinear

if TYPE_CHECKING:
    from torch import Tensor

_B = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
_G = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64) / 24
_A = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
)


@dataclass(frozen=True, eq=False)
class Tiles:
    """How a tile of 4×4 results comes from a window of `window` × `window` pixels, one for each `step` pixels.

    Both dimensions are transformed at once: `pixels` [P, window²] and `kernel` [P, 9] are the two sides of the P
    products, `results` [16, P] adds them. A bias that is added to product number `all` is added to each result.
    """

    window: int
    step: int
    pixels: Tensor
    kernel: Tensor
    results: Tensor
    all: int


def _tiles(doubling: Tensor, step: int) -> Tiles:
    """Return the tiles of a picture whose pixels are `doubling` [6, window] of the window's."""
    pixels = _B @ doubling
    used = pixels.any(dim=1)
    pixels, kernel, results = (torch.kron(each, each).float() for each in (pixels[used], _G[used], _A[:, used]))
    (whole,) = (results == 1).all(dim=0).nonzero().flatten().tolist()
    return Tiles(doubling.shape[1], step, pixels, kernel, results, whole)


PLAIN = _tiles(torch.eye(6, dtype=torch.float64), step=4)
# Each pixel twice: of the six combinations of a window's rows one is always zero, which leaves 25 of the 36 products.
_TWICE = torch.eye(4, dtype=torch.float64)[[0, 1, 1, 2, 2, 3]]
DOUBLED = _tiles(_TWICE, step=2)

# Results of a tile in each dimension.
TILE = 4


class WinogradConv(nn.Module):
    """A 3×3 convolution of stride 1 and padding 1; with `DOUBLED`, of the picture with both sides doubled.

    `keep`: the transformed kernel is kept. Otherwise it is made at every call, and nothing is held but the weights.
    `at_once`: tiles that are computed together. `packed`: whether oneDNN makes the products, of kernels that are kept.
    """

    kernel: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        source: Any,
        tiles: Tiles = PLAIN,
        *,
        relu: bool = False,
        keep: bool = True,
        at_once: int = 64,
        packed: bool = False,
    ) -> None:
        super().__init__()
        self.outputs, self.tiles, self.relu, self.at_once = source.out_channels, tiles, relu, at_once
        kernel = transformed(source.weight, tiles) if keep else None
        self.packed: Any = None
        if kernel is not None and packed:
            self.packed, kernel = nn.ModuleList(PackedLinear(each.T, None) for each in kernel), None
        self.register_buffer("kernel", kernel)
        self.register_buffer("weight", None if keep else source.weight)
        self.register_buffer("bias", source.bias)

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """`x` [N, in, H, W] → [N, out, H', W']; `plus` has the result's shape."""
        count, channels, height, width = x.shape
        step, margin = self.tiles.step, self.tiles.window - self.tiles.step
        down, across = -(-height // step), -(-width // step)
        kernel = self.kernel if self.weight is None else transformed(self.weight, self.tiles)
        at_once = min(down, max(1, self.at_once // across))
        strip = x.new_zeros(step * at_once + margin, step * across + margin, channels)
        out = x.new_empty(count, down, TILE, across, TILE, self.outputs)
        for pixels, results in zip(x.permute(0, 2, 3, 1), out, strict=True):
            for first in range(0, down, at_once):
                rows = min(at_once, down - first)
                part = strip[: step * rows + margin]
                fill_strip(part, pixels, step * first - 1)
                results[first : first + rows] = self._results(part, rows, across, kernel)
        scale = TILE // step
        whole = out.view(count, TILE * down, TILE * across, -1)[:, : scale * height, : scale * width].permute(
            0, 3, 1, 2
        )
        if plus is not None:
            whole += plus
        return F.relu_(whole) if self.relu else whole

    def _results(self, strip: Tensor, rows: int, across: int, kernel: Tensor | None) -> Tensor:
        """Return the results of a strip's tiles: [rows, 4, across, 4, out]."""
        (row, column, _), step, side = strip.stride(), self.tiles.step, self.tiles.window
        channels = strip.shape[2]
        windows = strip.as_strided((side, side, rows, across, channels), (row, column, step * row, step * column, 1))
        pixels = (self.tiles.pixels @ windows.reshape(side * side, -1)).view(-1, rows * across, channels)
        if kernel is None:
            products = torch.stack([product(each) for product, each in zip(self.packed, pixels, strict=True)])
        else:
            products = torch.bmm(pixels, kernel)
        if self.bias is not None:
            products[self.tiles.all] += self.bias
        results = self.tiles.results @ products.view(len(products), -1)
        return results.view(TILE, TILE, rows, across, -1).permute(2, 0, 3, 1, 4)


def transformed(weight: Tensor, tiles: Tiles = PLAIN) -> Tensor:
    """Return a kernel [out, in, 3, 3] as the products take it: [P, in, out]."""
    out, channels = weight.shape[:2]
    return (tiles.kernel @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(-1, channels, out)


def fill_strip(strip: Tensor, pixels: Tensor, top: int) -> None:
    """Copy rows `top` and following of `pixels` [H, W, C] into a strip, with zeros beyond the picture's edge."""
    height, width, _ = pixels.shape
    first, end = max(top, 0), min(top + len(strip), height)
    strip[: first - top] = 0
    strip[first - top : end - top, 1 : width + 1] = pixels[first:end]
    strip[end - top :] = 0
