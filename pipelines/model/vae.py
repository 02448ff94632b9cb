"""Autoencoders, pictures ⇄ latents: Stable Diffusion's own (`AutoencoderKL`) and the tiny one (`AutoencoderTiny`).

Both, made by `make_vae`, have three methods:

    encode    [N, 3, H, W] in −1…1 → mean and deviation [N, channels, H/8, W/8] (no deviation: nothing is sampled)
    decode    [N, channels, h, w] → [N, 3, 8h, 8w], about −1…1

in the weights' dtype, as diffusers' modules have them; and `decode_exactly`, which is `decode` in float32.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipelines.model.blocks import GroupNorm, PixelAttention, Resnet, require
from pipelines.model.kernels import convolution, doubling
from pipelines.model.unet import downsamples, upsamples

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

# diffusers' bounds on the logarithm of the posterior's variance.
LOG_VARIANCE = (-30.0, 20.0)


def make_vae(source: Any) -> KlVae | TinyVae:
    """Return the autoencoder of diffusers' module."""
    return KlVae(source) if samples(source) else TinyVae(source)


def samples(source: Any) -> bool:
    """Return whether the latents of diffusers' module are sampled: Stable Diffusion's own are, the tiny one's not."""
    return hasattr(source, "quant_conv")


class KlVae(nn.Module):
    """Stable Diffusion's autoencoder.

    Each half is one sequence of layers, so that only the layer that reads activations holds them.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        encoder, decoder = source.encoder, source.decoder
        self.encoder = nn.Sequential(
            convolution.conv(encoder.conv_in),
            *(layer for block in encoder.down_blocks for layer in _level(block, downsamples(block))),
            *_middle(encoder.mid_block),
            *_out(encoder),
        )
        if source.quant_conv is not None:
            self.encoder.append(convolution.conv(source.quant_conv))
        self.decoder = nn.Sequential(
            convolution.conv(decoder.conv_in),
            *_middle(decoder.mid_block),
            *(layer for block in decoder.up_blocks for layer in _level(block, upsamples(block, keep=False))),
            *_out(decoder),
        )
        if source.post_quant_conv is not None:
            self.decoder.insert(0, convolution.conv(source.post_quant_conv))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mean and deviation of the latents of [N, 3, H, W]; the tiny one has no deviation."""
        moments: Tensor = self.encoder(images.contiguous(memory_format=torch.channels_last))
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, (0.5 * log_variance.clamp(*LOG_VARIANCE)).exp()

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pictures of [N, channels, h, w]: [N, 3, 8h, 8w]."""
        images: Tensor = self.decoder(latents.contiguous(memory_format=torch.channels_last))
        return images

    def decode_exactly(self, latents: Tensor) -> Tensor:
        """As `decode`, in float32 whatever the weights' dtype."""
        return exactly(self.decoder, latents)


def _level(source: Any, resize: nn.Module | None) -> Iterator[nn.Module]:
    """Yield the resnets of a level of an autoencoder, then its change of size."""
    yield from (Resnet(resnet, keep=False) for resnet in source.resnets)
    if resize is not None:
        yield resize


def _middle(source: Any) -> Iterator[nn.Module]:
    """Yield the layers of an autoencoder's `UNetMidBlock2D`: a resnet, then pairs of attention and resnet."""
    first, *others = source.resnets
    yield Resnet(first, keep=False)
    for attention, resnet in zip(source.attentions, others, strict=True):
        if attention is not None:
            yield PixelAttention(attention)
        yield Resnet(resnet, keep=False)


def _out(source: Any) -> Iterator[nn.Module]:
    """Yield the end of an encoder or decoder: norm, SiLU, convolution."""
    yield GroupNorm(source.conv_norm_out, silu=True)
    yield convolution.conv(source.conv_out)


class TinyVae(nn.Module):
    """The tiny autoencoder (TAESD), whose latents are not sampled."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*_tiny_layers(source.encoder.layers))
        self.decoder = nn.Sequential(*_tiny_layers(source.decoder.layers))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return mean and deviation of the latents of [N, 3, H, W]; the tiny one has no deviation."""
        latents: Tensor = self.encoder(((images + 1) / 2).contiguous(memory_format=torch.channels_last))
        return latents, None

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pictures of [N, channels, h, w]: [N, 3, 8h, 8w]."""
        tamed = torch.tanh(latents / 3) * 3
        images: Tensor = self.decoder(tamed.contiguous(memory_format=torch.channels_last))
        return images * 2 - 1

    def decode_exactly(self, latents: Tensor) -> Tensor:
        """As `decode`, in float32 whatever the weights' dtype."""
        return exactly(self.decoder, torch.tanh(latents / 3) * 3) * 2 - 1


class TinyBlock(nn.Module):
    """An `AutoencoderTinyBlock`: three convolutions with ReLUs, and the input added before the last."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        first, activation, second, _, third = source.conv
        require(isinstance(activation, nn.ReLU), "a tiny autoencoder with other activations than ReLU")
        require(isinstance(source.skip, nn.Identity), "a tiny autoencoder whose width changes")
        self.first, self.second = convolution.conv(first, relu=True), convolution.conv(second, relu=True)
        self.third = convolution.conv(third, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.third(self.second(self.first(x)), x)
        return out


def exactly(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Return what layers make of `x`, one after the other, in float32. Each has weights in it only while it runs."""
    x = x.float().contiguous(memory_format=torch.channels_last)
    for layer in layers:
        x = copy.deepcopy(layer).float()(x)
    return x


def _tiny_layers(source: Any) -> Iterator[nn.Module]:
    """Yield the layers of a tiny encoder or decoder, each convolution fused with its neighbours where possible."""
    before: Any = None
    for layer, after in pairwise([*source, None]):
        if isinstance(layer, nn.Conv2d):
            doubles = isinstance(before, nn.Upsample)
            if isinstance(after, nn.Conv2d):
                yield doubling.conv_pair(layer, after, doubles=doubles)
            elif not isinstance(before, nn.Conv2d):  # else it is fused with that already
                yield (
                    doubling.upsampling_conv(layer)
                    if doubles
                    else convolution.conv(layer, relu=isinstance(after, nn.ReLU))
                )
        elif hasattr(layer, "fuse"):
            yield TinyBlock(layer)
        else:
            require(isinstance(layer, nn.ReLU | nn.Upsample), "a tiny autoencoder with unknown layers")
        before = layer
