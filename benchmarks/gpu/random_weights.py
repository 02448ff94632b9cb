"""Models of random weights, made on the device: full-size, or tiny for a dry run."""

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.harness.trace import TINY_VAE
from pipelines.weights import architectures
from pipelines.weights.checkpoint import LoadedCheckpoint
from tests.support import checkpoint_layouts
from tests.support.published_configs import SCHEDULER

# The same layers at toy width, for a dry run.
_NARROW = {f"{way}_block_out_channels": [8] * 4 for way in ("encoder", "decoder")}


def random_part(make, config, device, dtype):
    """Return a module with random weights, made on its device, small enough that activations stay finite."""
    module = make(config).to_empty(device=device).to(dtype)
    for name, tensor in module.state_dict().items():
        if tensor.dim() > 1 and tensor.is_floating_point():
            tensor.normal_(0, max(tensor[0].numel(), 1) ** -0.5)
        elif tensor.is_floating_point():
            tensor.zero_() if name.endswith("bias") else tensor.uniform_(0.9, 1.1)
    for owner in module.modules():
        if hasattr(owner, "position_ids"):
            owner.position_ids = torch.arange(owner.position_ids.shape[-1], device=device)[None]
    return module.eval().requires_grad_(requires_grad=False)


def random_model(configs, device, dtype, *, tiny_vae=False, dry=False):
    """Return a checkpoint; `tiny_vae`: with TAESD."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint_layouts.write_tokenizer(Path(folder))
        tokenizer = architectures.load_tokenizer(Path(folder))
    unet = random_part(architectures.make_unet, configs["unet"], device, dtype)
    checker = random_part(architectures.make_safety_checker, configs["safety_checker"], device, dtype)
    for thresholds in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        thresholds.fill_(2)  # unreachable: random weights must not blacken pictures
    text = random_part(architectures.make_text_encoder, configs["text_encoder"], device, dtype)
    vae = make_tiny_vae(device, dtype, dry=dry) if tiny_vae else None
    return LoadedCheckpoint(
        unet=unet,
        vae=vae or random_part(architectures.make_vae, configs["vae"], device, dtype),
        text_encoder=text,
        tokenizer=tokenizer,
        safety_checker=checker,
        scheduler_config=SCHEDULER,
        name="random",
        notice="",
        device=device,
        dtype=dtype,
    )


def make_tiny_vae(device, dtype, *, dry):
    return random_part(architectures.make_vae, TINY_VAE | (_NARROW if dry else {}), device, dtype)


def in_float32(model):
    """Return a copy of the model in float32."""
    parts = {
        name: copy.deepcopy(getattr(model, name)).float() for name in ("unet", "vae", "text_encoder", "safety_checker")
    }
    return replace(model, **parts, dtype=torch.float32)
