"""The original layout of Stable Diffusion 1.x: everything in one file, in the names of the CompVis code base (ldm).

    model.diffusion_model.…                     the UNet        (model_ema.…, if there: a copy for training, not used)
    first_stage_model.…                         the VAE
    cond_stage_model.transformer.[text_model.]… CLIP's text model
    alphas_cumprod, betas, …                    tables that follow from the scheduler's config

Configs and tokenizer are not in it.
"""

from collections.abc import Mapping
from typing import Any

import torch

from pipelines.errors import CheckpointError
from pipelines.weights.architectures import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

_Tensors = dict[str, torch.Tensor]

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_TEXT = "cond_stage_model.transformer."

_HINT = "Use a whole Stable Diffusion 1.x checkpoint, or a folder in diffusers layout."


def split(
    tensors: Mapping[str, torch.Tensor], unet: Mapping[str, Any], vae: Mapping[str, Any], *, label: str
) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of "unet", "vae" and "text_encoder", each by the names of diffusers and transformers.

    `unet` and `vae` are their configs. A file without a VAE gives an empty one. Raises `CheckpointError` for weights
    that have no place in this family; `pipelines.hub.local_file` has refused what is of others.
    """
    if not any(name.startswith(_UNET) for name in tensors):
        raise CheckpointError(f"{label} has no UNet in it ({_UNET}…): perhaps a VAE alone.", _HINT)
    return {
        "unet": _converted(_part(tensors, _UNET), convert_ldm_unet_checkpoint, unet, label),
        "vae": _converted(_part(tensors, _VAE), convert_ldm_vae_checkpoint, vae, label),
        "text_encoder": {name.removeprefix(_TEXT): tensor for name, tensor in _part(tensors, _TEXT).items()},
    }


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _converted(
    part: dict[str, torch.Tensor], convert: Any, config: Mapping[str, Any], label: str
) -> dict[str, torch.Tensor]:
    """`part` in diffusers' names. diffusers' converters pass over what they do not know: that must be nothing."""
    converted: dict[str, torch.Tensor] = convert(part, config) if part else {}
    if len(converted) != len(part):
        raise CheckpointError(f"{label}: {abs(len(part) - len(converted))} weights have no place in the model.", _HINT)
    return converted
