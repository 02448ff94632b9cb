"""The classes that weights are poured into, and the only door to diffusers and transformers.

Importing this takes seconds, so importers do it late. Each class comes from its own module: the packages' tops pull in
several times as much.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers.models.clip.configuration_clip import CLIPConfig, CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from pipelines.errors import CheckpointError
from pipelines.log_lines import adopt

for _library in ("diffusers", "transformers", "accelerate"):
    adopt(_library)

__all__ = [
    "AutoencoderKL",
    "AutoencoderTiny",
    "CLIPConfig",
    "CLIPTextConfig",
    "CLIPTextModel",
    "StableDiffusionSafetyChecker",
    "UNet2DConditionModel",
    "convert_ldm_unet_checkpoint",
    "convert_ldm_vae_checkpoint",
    "load_tokenizer",
    "make_safety_checker",
    "make_text_encoder",
    "make_unet",
    "make_vae",
]


def make_unet(config: Mapping[str, Any]) -> torch.nn.Module:
    """The UNet of `config` with its weights on the meta device."""
    with init_empty_weights(include_buffers=False):
        return UNet2DConditionModel.from_config(_own(UNet2DConditionModel, config))  # type: ignore[no-any-return]  # untyped


def make_vae(config: Mapping[str, Any]) -> torch.nn.Module:
    """The `AutoencoderKL` or `AutoencoderTiny` of `config` with its weights on the meta device."""
    name = config.get("_class_name", "AutoencoderKL")
    classes = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    if name not in classes:
        raise CheckpointError(f"The VAE is a {name}.", f"Use one of {', '.join(classes)}.")
    with init_empty_weights(include_buffers=False):
        return classes[name].from_config(_own(classes[name], config))  # type: ignore[no-any-return]  # untyped


def make_text_encoder(config: Mapping[str, Any]) -> torch.nn.Module:
    """The CLIP text model of `config` with its weights on the meta device."""
    with init_empty_weights(include_buffers=False):
        return CLIPTextModel(CLIPTextConfig.from_dict(dict(config)))  # type: ignore[no-any-return]  # untyped


def make_safety_checker(config: Mapping[str, Any]) -> torch.nn.Module:
    """The safety checker of `config` with its weights on the meta device."""
    with init_empty_weights(include_buffers=False):
        return StableDiffusionSafetyChecker(CLIPConfig.from_dict(dict(config)))  # type: ignore[no-any-return]  # untyped


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The CLIP tokenizer in `folder`, from its own files alone."""
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _own(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `config` that `cls` knows; the rest is other versions' business."""
    known = inspect.signature(cls).parameters
    return {key: value for key, value in config.items() if key in known}
