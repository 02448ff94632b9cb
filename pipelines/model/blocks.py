"""Layers of the UNets and autoencoders of Stable Diffusion 1.x, with only what the model computes.

Made from diffusers' modules, whose weights they share where the device computes in the same layout. Differences:
activations stay channels-last; query, key and value come from one product; keys and values of the prompt, and what a
resnet adds for its timestep, are given, not computed; no dropout, no division by one, no copies between layouts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from pipelines.errors import CheckpointError
from pipelines.model.kernels import attention, convolution, products
from pipelines.model.kernels.cuda import group_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def require(condition: bool, what: str) -> None:  # noqa: FBT001 – reads as the sentence that it is
    """Raise `CheckpointError` unless a part is built as Stable Diffusion 1.x builds it."""
    if not condition:
        raise CheckpointError(f"The model has {what}.", "Use a checkpoint of the Stable Diffusion 1.x family.")


class Norm(nn.Module):
    """A `GroupNorm` or `LayerNorm` that shares its module's weights."""

    weight: Tensor
    bias: Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.register_buffer("weight", source.weight)
        self.register_buffer("bias", source.bias)
        self.eps: float = source.eps


class GroupNorm(Norm):
    """Normalise groups of channels of [N, C, H, W], then SiLU if `silu`; on CUDA in one pass, by kernels of our own."""

    def __init__(self, source: Any, *, silu: bool = False) -> None:
        super().__init__(source)
        self.groups: int = source.num_groups
        self.silu = silu
        # A copy in another dtype, in which the kernels have not been tried, is computed by torch.
        self.own_in = self.weight.dtype if group_norm.is_used(self.weight, self.groups) else None

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """`shift` [N, C] is added before, perhaps to `x` itself."""
        if x.dtype == self.own_in:
            its: dict[str, Any] = {"weight": self.weight, "bias": self.bias, "groups": self.groups, "eps": self.eps}
            return group_norm.group_norm(x, shift, silu=self.silu, **its)
        if shift is not None:
            x += shift[:, :, None, None]
        out = F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        return F.silu(out, inplace=True) if self.silu else out


class LayerNorm(Norm):
    """Normalise the channels of [N, T, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, list(self.weight.shape), self.weight, self.bias, self.eps)


class Resnet(nn.Module):
    """A `ResnetBlock2D`: norm, SiLU, convolution, twice; between them the timestep's shift is added.

    `keep`: as in `convolution.conv`.
    """

    bias: Tensor | None
    conv_in: Any

    def __init__(self, source: Any, *, keep: bool = True) -> None:
        super().__init__()
        require(source.time_embedding_norm in {"default", "group"}, f"{source.time_embedding_norm} time embeddings")
        require(source.output_scale_factor == 1.0, "scaled resnets")
        require(isinstance(source.nonlinearity, nn.SiLU), "other activations than SiLU")
        require(source.upsample is None and source.downsample is None, "resnets that change the size")
        self.norm_in, self.conv_in = GroupNorm(source.norm1, silu=True), convolution.conv(source.conv1, keep=keep)
        self.norm_out, self.conv_out = GroupNorm(source.norm2, silu=True), convolution.conv(source.conv2, keep=keep)
        # The kernels add it before the norm, where it costs nothing. The UNet has it in the shifts.
        self.register_buffer("bias", None)
        if adds_bias_with_shift(source):
            self.conv_in.register_buffer("bias", None)
            self.bias = None if source.time_emb_proj is not None else source.conv1.bias[None]
        self.shortcut = None if source.conv_shortcut is None else convolution.conv(source.conv_shortcut)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """`x` [N, in, H, W], `shift` [N, out] → [N, out, H, W]."""
        inner = self.conv_in(self.norm_in(x))
        if self.bias is not None:
            shift = self.bias.expand(len(x), -1)
        kept = x if self.shortcut is None else self.shortcut(x)
        inner = self.norm_out(inner, shift)
        out: Tensor = self.conv_out(inner, kept)
        return out


def adds_bias_with_shift(source: Any) -> bool:
    """Return whether the bias of a `ResnetBlock2D`'s first convolution is added with the timestep's shift."""
    return source.conv1.bias is not None and group_norm.is_used(source.norm2.weight, source.norm2.num_groups)


def adds_nothing(attention: Any) -> bool:
    """Return whether an `Attention`'s output is always zero. False for weights without values (meta device)."""
    out = attention.to_out[0]
    return not out.weight.is_meta and not out.weight.any() and (out.bias is None or not out.bias.any())


class SelfAttention(nn.Module):
    """An `Attention` of [N, T, C] to itself: one product for query, key and value."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        require(source.norm_q is None and source.norm_k is None, "normalised queries and keys")
        self.heads: int = source.heads
        parts = (source.to_q, source.to_k, source.to_v)
        bias = None if source.to_q.bias is None else torch.cat([part.bias for part in parts])
        self.into = products.linear(torch.cat([part.weight for part in parts]), bias)
        self.out = products.linear(source.to_out[0].weight, source.to_out[0].bias)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.into(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        mixed = attention.attend(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class CrossAttention(nn.Module):
    """An `Attention` of [N, T, C] to a text, given its keys and values."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        require(source.norm_q is None and source.norm_k is None, "normalised queries and keys")
        require(not source.norm_cross, "a normalised text")
        require(source.to_k.bias is None and source.to_v.bias is None, "biased keys and values")
        self.heads: int = source.heads
        self.into = products.linear(source.to_q.weight, source.to_q.bias)
        self.out = products.linear(source.to_out[0].weight, source.to_out[0].bias)

    def forward(self, x: Tensor, keys_values: Tensor) -> Tensor:
        """`keys_values` [N, length, 2C]: for each token its key, then its value."""
        query = self.into(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
        key, value = keys_values.view(*keys_values.shape[:2], 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        mixed = attention.attend(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class TransformerBlock(nn.Module):
    """A `BasicTransformerBlock`: attention to itself, to the text, and a gated feed-forward layer."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        require(source.norm_type == "layer_norm" and not source.only_cross_attention, "other transformers")
        # Attention that adds zero is left out; in the demo model that is the largest one.
        self.to_itself = None if adds_nothing(source.attn1) else SelfAttention(source.attn1)
        self.norm_self = LayerNorm(source.norm1)
        self.norm_text, self.to_text = LayerNorm(source.norm2), CrossAttention(source.attn2)
        self.norm_forward = LayerNorm(source.norm3)
        gate, _, out = source.ff.net
        require(type(gate).__name__ == "GEGLU", "other feed-forward layers than GEGLU")
        self.gate = products.linear(gate.proj.weight, gate.proj.bias)
        self.out = products.linear(out.weight, out.bias)

    def forward(self, x: Tensor, keys_values: Tensor) -> Tensor:
        if self.to_itself is not None:
            x = x + self.to_itself(self.norm_self(x))
        x = x + self.to_text(self.norm_text(x), keys_values)
        inner, gate = self.gate(self.norm_forward(x)).chunk(2, dim=-1)
        forward: Tensor = self.out(inner * F.gelu(gate))
        return x + forward


class Transformer(nn.Module):
    """A `Transformer2DModel` over the pixels of [N, C, H, W]; its 1×1 convolutions are matrix products."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.norm = GroupNorm(source.norm)
        self.into = products.linear(source.proj_in.weight.flatten(1), source.proj_in.bias)
        self.blocks = nn.ModuleList(TransformerBlock(block) for block in source.transformer_blocks)
        self.out = products.linear(source.proj_out.weight.flatten(1), source.proj_out.bias)

    def forward(self, x: Tensor, keys_values: Sequence[Tensor]) -> Tensor:
        """`keys_values`: one for each block."""
        inner = self.into(to_tokens(self.norm(x)))
        for block, known in zip(self.blocks, keys_values, strict=True):
            inner = block(inner, known)
        return x + to_picture(self.out(inner), x)


class PixelAttention(nn.Module):
    """The `Attention` in the middle of an autoencoder: every latent pixel of [N, C, H, W] to every other."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        require(source.residual_connection and source.rescale_output_factor == 1.0, "other autoencoder attention")
        self.norm, self.attention = GroupNorm(source.group_norm), SelfAttention(source)

    def forward(self, x: Tensor) -> Tensor:
        return x + to_picture(self.attention(to_tokens(self.norm(x))), x)


def to_tokens(x: Tensor) -> Tensor:
    """Return [N, C, H, W] as [N, H·W, C]: a view if channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def to_picture(tokens: Tensor, like: Tensor) -> Tensor:
    """Return [N, H·W, C] as [N, C, H, W] with the height and width of `like`."""
    height, width = like.shape[2:]
    return tokens.view(len(tokens), height, width, -1).permute(0, 3, 1, 2)
