"""The UNet of Stable Diffusion 1.x, split by how often each part must be computed.

    context   a prompt's keys and values in every cross-attention layer      once per prompt
    shifts    what each resnet adds for a timestep                           once per timestep
    forward   the rest: latents → the model's output                         every step

All three are exact; diffusers' `UNet2DConditionModel` computes all of it at every step.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from pipelines.model.blocks import GroupNorm, Resnet, Transformer, adds_bias_with_shift, require
from pipelines.model.kernels import convolution, doubling, products
from pipelines.weights import mapped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


class Unet(nn.Module):
    """A `UNet2DConditionModel`. Raises `CheckpointError` unless it is of the Stable Diffusion 1.x family."""

    def __init__(self, source: Any, *, consumed: Callable[[], object] | None = None) -> None:
        """`consumed`: the source's weights lose their values layer by layer as ours have them; then it is called."""
        super().__init__()
        require(source.class_embedding is None and source.time_embed_act is None, "class or time activations")
        require(source.mid_block is not None, "a UNet without a middle")
        require(not source.config.center_input_sample, "a UNet with centred inputs")
        require(isinstance(source.time_embedding.act, nn.SiLU), "other activations than SiLU")
        self._waves = source.time_proj
        self._time_in, self._time_out = (
            products.linear(part.weight, part.bias)
            for part in (source.time_embedding.linear_1, source.time_embedding.linear_2)
        )
        self._device: torch.device = source.conv_in.weight.device
        self._dtype: torch.dtype = source.conv_in.weight.dtype
        resnets, attentions = _in_order(source)
        self.shift_widths = [resnet.time_emb_proj.out_features for resnet in resnets]
        self._to_shifts = products.linear(
            torch.cat([resnet.time_emb_proj.weight for resnet in resnets]),
            torch.cat([_shift_bias(resnet) for resnet in resnets]),
        )
        self.context_widths = [2 * attention.to_k.out_features for attention in attentions]
        keys_values = [weight for attention in attentions for weight in (attention.to_k.weight, attention.to_v.weight)]
        self._to_context = products.linear(torch.cat(keys_values), None)

        taken = keep if consumed is None else partial(forget, then=consumed)
        self.conv_in = convolution.conv(source.conv_in)
        self.down: Any = nn.ModuleList(Level(block, downsamples(block), taken) for block in source.down_blocks)
        self.middle = Level(source.mid_block, None, taken)
        self.up: Any = nn.ModuleList(Level(block, upsamples(block), taken) for block in source.up_blocks)
        number_layers([*self.down, self.middle, *self.up])
        self.norm_out, self.conv_out = GroupNorm(source.conv_norm_out, silu=True), convolution.conv(source.conv_out)
        taken(source)

    def context(self, embedding: Tensor) -> Tensor:
        """Return an embedding's keys and values in all layers: [length, width] → [length, sum of context_widths]."""
        known: Tensor = self._to_context(embedding)
        return known

    def shifts(self, timestep: int) -> Tensor:
        """Return what all resnets add at a timestep: [sum of shift_widths]."""
        steps = torch.full((1,), timestep, device=self._device)  # a copy of the host's would be waited for
        embedding = self._time_out(F.silu(self._time_in(self._waves(steps).to(self._dtype))))
        shifts: Tensor = self._to_shifts(F.silu(embedding))[0]
        return shifts

    def forward(self, sample: Tensor, shifts: Tensor, context: Tensor) -> Tensor:
        """Return the model's output for one denoising step.

        `sample` [N, 4, h, w], `shifts` [N, …] and `context` [N, length, …], all in the model's dtype → [N, 4, h, w].
        """
        shift = torch.split(shifts, self.shift_widths, dim=1)
        known = torch.split(context, self.context_widths, dim=2)
        x = self.conv_in(sample.contiguous(memory_format=torch.channels_last))
        kept = [x]
        for level in self.down:
            for layer in level.layers:
                x = layer(x, shift, known)
                kept.append(x)
            if level.resize is not None:
                x = level.resize(x)
                kept.append(x)
        for layer in self.middle.layers:
            x = layer(x, shift, known)
        for level in self.up:
            for layer in level.layers:
                x = layer(torch.cat([x, kept.pop()], dim=1), shift, known)
            if level.resize is not None:
                x = level.resize(x, kept[-1].shape[2:])
        out: Tensor = self.conv_out(self.norm_out(x))
        return out


def forget(source: nn.Module, then: Callable[[], object]) -> None:
    """Drop the values of a module's weights, and their pages where a file is mapped. Who holds a weight keeps it.

    `then` is called at the end.
    """
    for weight in source.parameters():
        mapped.release(weight)
    source.to("meta")
    then()


def keep(source: nn.Module) -> None:
    """Leave a module as it is."""


class Level(nn.Module):
    """A down, middle or up block: its layers, then a change of size (None: none).

    `taken` is called with each part of the source once its weights are in ours.
    """

    def __init__(self, source: Any, resize: nn.Module | None, taken: Callable[[nn.Module], object]) -> None:
        super().__init__()
        attentions = list(getattr(source, "attentions", []))
        # Some levels have none; the middle has one less than resnets, and ends with a resnet.
        attentions += [None] * (len(source.resnets) - len(attentions))
        self.layers: Any = nn.ModuleList()
        for resnet, attention in zip(source.resnets, attentions, strict=True):
            self.layers.append(Layer(resnet, attention))
            for part in filter(None, (resnet, attention)):
                taken(part)
        self.resize: Any = resize


class Layer(nn.Module):
    """A resnet, and after it a transformer where the level has them."""

    def __init__(self, resnet: Any, attention: Any | None) -> None:
        super().__init__()
        self.resnet = Resnet(resnet)
        self.transformer: Any = None if attention is None else Transformer(attention)
        self.number, self.texts = 0, slice(0)  # index in the UNet, set by `number_layers`

    def forward(self, x: Tensor, shift: Sequence[Tensor], known: Sequence[Tensor]) -> Tensor:
        """`shift` and `known`: the shifts and the keys and values of all layers of the UNet, in order."""
        x = self.resnet(x, shift[self.number])
        if self.transformer is None:
            return x
        out: Tensor = self.transformer(x, known[self.texts])
        return out


class Downsample(nn.Module):
    """A `Downsample2D`: a convolution of stride 2, where autoencoders pad right and below only."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        require(source.use_conv and source.norm is None, "downsampling without a convolution")
        self.conv, self.pads = convolution.conv(source.conv), source.padding == 0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)) if self.pads else x)
        return out


class Upsample(nn.Module):
    """An `Upsample2D`: nearest neighbours, then a convolution."""

    def __init__(self, source: Any, *, keep: bool) -> None:
        super().__init__()
        require(source.use_conv and not source.use_conv_transpose and source.norm is None, "another upsampling")
        self.doubling = doubling.upsampling_conv(source.conv, keep=keep)
        self.conv = convolution.conv(source.conv, keep=keep)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        """Return `x` at twice its size, or at `size`: one pixel less where downsampling had rounded up."""
        height, width = x.shape[2:]
        if size is None or size == (2 * height, 2 * width):
            doubled: Tensor = self.doubling(x)
            return doubled
        out: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"))
        return out


def number_layers(levels: Sequence[Level]) -> None:
    """Set each layer's index among all shifts, and its transformer's slice of all contexts."""
    texts = 0
    for number, layer in enumerate(chain.from_iterable(level.layers for level in levels)):
        blocks = 0 if layer.transformer is None else len(layer.transformer.blocks)
        layer.number, layer.texts = number, slice(texts, texts + blocks)
        texts += blocks


def downsamples(block: Any) -> nn.Module | None:
    """Return a down block's change of size, if any."""
    return Downsample(block.downsamplers[0]) if block.downsamplers else None


def upsamples(block: Any, *, keep: bool = True) -> nn.Module | None:
    """Return an up block's change of size, if any. `keep`: as in `convolution.conv`."""
    return Upsample(block.upsamplers[0], keep=keep) if block.upsamplers else None


def _shift_bias(resnet: Any) -> Tensor:
    """Return what a resnet adds at every timestep."""
    bias: Tensor = resnet.time_emb_proj.bias
    return bias + resnet.conv1.bias if adds_bias_with_shift(resnet) else bias


def _in_order(source: Any) -> tuple[list[Any], list[Any]]:
    """Return all resnets and all cross attentions, in the order of `forward`."""
    levels = [*source.down_blocks, source.mid_block, *source.up_blocks]
    transformers = chain.from_iterable(getattr(level, "attentions", []) for level in levels)
    blocks = chain.from_iterable(transformer.transformer_blocks for transformer in transformers)
    return [resnet for level in levels for resnet in level.resnets], [block.attn2 for block in blocks]
