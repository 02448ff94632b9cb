"""The functions of a model which a device computes: all its networks, as one value.

`Lcm` calls them and knows nothing else of the networks. Each takes and returns tensors [rows, …] in the model's dtype;
`context` and `shifts` are called once per prompt and once per timestep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from pipelines.model.prompts import make_embed
from pipelines.model.safety import SafetyChecker
from pipelines.model.unet import Unet
from pipelines.model.vae import make_vae
from pipelines.weights import mapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipelines.weights.checkpoint import LoadedCheckpoint

Encoded: TypeAlias = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, kw_only=True)
class ModelFunctions:
    """A model's functions. `flags` is None without a safety checker."""

    embed: Callable[..., Tensor]  # token ids and mask [rows, length] → [rows, length, width]
    context: Callable[[Tensor], Tensor]  # an embedding → the keys and values of all its cross attentions
    shifts: Callable[[int], Tensor]  # a timestep → what the resnets add for it
    unet: Callable[..., Tensor]  # latents, shifts and context [rows, …] → its output
    vae_encode: Callable[[Tensor], Encoded]
    vae_decode: Callable[[Tensor], Tensor]
    vae_decode_exactly: Callable[[Tensor], Tensor] | None  # in float32, where `vae_decode` may overflow; never captured
    flags: Callable[[Tensor], Tensor] | None


def make_functions(model: LoadedCheckpoint, *, consumed: Callable[[], object] | None = None) -> ModelFunctions:
    """Return the functions of a checkpoint, as they are. Raises `CheckpointError` for another family's networks.

    `consumed`: each layer's weights in the checkpoint's UNet and autoencoder lose their values as soon as ours have
    them, so that there are never two of all; then this is called.
    """
    vae = make_vae(model.vae)
    if consumed is not None:
        model.vae.to("meta")
    network = Unet(model.unet, consumed=consumed)
    for seldom in filter(None, (model.text_encoder, vae, model.safety_checker)):
        mapped.release_after_use(seldom)
    return ModelFunctions(
        embed=make_embed(model.text_encoder),
        context=network.context,
        shifts=network.shifts,
        unet=network,
        vae_encode=vae.encode,
        vae_decode=vae.decode,
        vae_decode_exactly=vae.decode_exactly if model.dtype == torch.float16 else None,
        flags=None if model.safety_checker is None else SafetyChecker(model.safety_checker),
    )
