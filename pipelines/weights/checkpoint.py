"""Where weights come from: the hub, a folder, a single file or the built-in demo; and what a loaded model is.

pick      what the configuration means here: names, device, dtype; `auto` is decided
compose   which files that takes (`pipelines.hub.manifest`)
fetch     only for `auto` beside an accelerator; everything else is on disk or an error with its hint
build     modules on the meta device, weights mapped from disk, LoRA merged in float32, each straight to its place
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from pipelines.errors import CheckpointError, NotOnDiskError, UnreachableError
from pipelines.hub import client, download, local_file, manifest, sd15
from pipelines.hub.source import read_json
from pipelines.messages import EngineConfig
from pipelines.weights import demo, lora
from pipelines.weights import tensors as weights

__all__ = ["CheckpointError", "LoadedCheckpoint", "Progress", "load"]

Progress = Callable[[float, str], None]

_TELL_S = 0.2  # between two words of progress


@dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint:
    """A loaded SD1.5-shaped model: modules in eval mode on `device` in `dtype`, gradients off, LoRA merged in.

    `vae` is an `AutoencoderKL` or an `AutoencoderTiny`; `safety_checker` a `StableDiffusionSafetyChecker` or None;
    `scheduler_config` the `scheduler_config.json` of the base; `name` is for logs; `notice` what the operator must
    know of this model ("" for nothing).
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    safety_checker: Any | None
    scheduler_config: dict[str, Any]
    name: str
    notice: str
    device: torch.device
    dtype: torch.dtype


def load(config: EngineConfig, device: torch.device, dtype: torch.dtype, progress: Progress) -> LoadedCheckpoint:
    """Load the model that `config` names; `progress` gets a fraction in 0…1 and what is being done.

    `dtype` is that of real weights: the demo model has its own, unless `config` asks for one.
    Raises `CheckpointError` when the weights can't be had.
    """
    if config.force_safety_checks and config.safety_checker == "none":
        raise CheckpointError("Safety checks are forced, but there is to be no checker.", "Drop --safety-checker none.")
    progress(0.0, "looking for the weights")
    plan, notice = _find(config, device, dtype, progress)
    if demo.NOTICE in notice and config.dtype == "auto":
        dtype = dtype if device.type == "cuda" else torch.float32
    return _build(plan, notice, device, dtype, progress)


def _find(
    config: EngineConfig, device: torch.device, dtype: torch.dtype, progress: Progress
) -> tuple[manifest.Manifest, str]:
    """Find the manifest, all of it on disk, and what to tell the operator."""
    half = dtype.itemsize == 2
    if config.model == "demo":
        return _demo(config)
    try:
        return on_disk(config, half=half), ""
    except NotOnDiskError as missing:
        if config.model != "auto":
            raise
        reason = missing.reason
    if device.type == "cpu":
        return _stand_in(config, f"{reason} Without an accelerator nothing is fetched by itself.")
    try:
        download.fetch(config, half=half, report=download.ProgressReport(progress))
    except UnreachableError as error:
        return _stand_in(config, f"{reason} {error.reason}")
    return on_disk(config, half=half), ""


def on_disk(config: EngineConfig, *, half: bool) -> manifest.Manifest:
    """The manifest for `config`, all of it on disk, whole. Raises `NotOnDiskError` with the command that fetches."""
    hint = f"`{manifest.pull_command(config)}` fetches what is missing."
    plan = manifest.compose(config, half=half, open_repo=functools.partial(client.cached, hint=hint))
    for path in [path for files in plan.files() for path in files.paths if path.suffix == ".safetensors"]:
        local_file.check_whole(path)
    return plan


def is_full_size(config: EngineConfig) -> bool:
    """Return whether `config` means real weights: those it names, or for `auto` those that are on disk."""
    if config.model != "auto":
        return config.model != "demo"
    try:
        on_disk(config, half=False)
    except CheckpointError:
        return False
    return True


def _demo(config: EngineConfig) -> tuple[manifest.Manifest, str]:
    plan = on_disk(msgspec.structs.replace(config, model=str(demo.folder())), half=False)
    return dataclasses.replace(plan, name="demo"), demo.NOTICE


def _stand_in(config: EngineConfig, why: str) -> tuple[manifest.Manifest, str]:
    """The demo model where `auto` found nothing better; what was asked for the real weights does not apply to it."""
    checker = "none" if config.safety_checker == "none" else "auto"
    plan, notice = _demo(msgspec.structs.replace(config, lora="auto", vae="full", safety_checker=checker))
    return plan, f"{notice} {why}"


def _build(
    plan: manifest.Manifest, notice: str, device: torch.device, dtype: torch.dtype, progress: Progress
) -> LoadedCheckpoint:
    progress(0.02, "importing diffusers")
    from pipelines.weights import architectures  # noqa: PLC0415 (seconds, so after the first word of progress)

    tensors = _read(plan)
    parts = {
        "text_encoder": architectures.make_text_encoder(_config(plan.text_encoder, sd15.TEXT_ENCODER)),
        "unet": architectures.make_unet(_config(plan.unet, sd15.UNET)),
        "vae": architectures.make_vae(_config(plan.vae, sd15.VAE)),
    }
    _check_fit(**parts)
    deltas = lora.load(plan.lora.paths[0], parts) if plan.lora else lora.Lora({})
    if plan.safety_checker:
        parts["safety_checker"] = architectures.make_safety_checker(_config(plan.safety_checker, {}))

    meter = _Meter(progress, sum(tensor.nbytes for part in tensors.values() for tensor in part.values()))
    for part, module in parts.items():
        patch = functools.partial(_patch, meter, deltas, part)
        weights.fill(module, tensors.pop(part), device=device, dtype=dtype, what=f"{plan.name}, {part}", patch=patch)
    progress(1.0, "loaded")
    return LoadedCheckpoint(
        unet=parts["unet"],
        vae=parts["vae"],
        text_encoder=parts["text_encoder"],
        tokenizer=architectures.load_tokenizer(plan.tokenizer.paths[0].parent),
        safety_checker=parts.get("safety_checker"),
        scheduler_config=_config(plan.scheduler, sd15.SCHEDULER),
        name=plan.name,
        notice=notice,
        device=device,
        dtype=dtype,
    )


def _read(plan: manifest.Manifest) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of each part, mapped from disk."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    if plan.single_file:
        from pipelines.weights import single_file  # noqa: PLC0415 (it brings diffusers along)

        whole = weights.read([plan.single_file])
        found = single_file.split(whole, sd15.UNET, sd15.VAE, label=plan.name)
    files = {
        "text_encoder": plan.text_encoder,
        "unet": plan.unet,
        "vae": plan.vae,
        "safety_checker": plan.safety_checker,
    }
    found.update({part: weights.read(some.paths[1:]) for part, some in files.items() if some})
    if not found["vae"]:
        raise CheckpointError(f"{plan.name} has no VAE in it.", "Give one: --vae FOLDER.")
    return found


def _config(files: manifest.Files | None, default: Mapping[str, Any]) -> dict[str, Any]:
    return read_json(files.paths[0]) if files else dict(default)


def _check_fit(text_encoder: Any, unet: Any, vae: Any) -> None:
    """The parts must speak to each other: text width and latent channels."""
    if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
        raise CheckpointError(
            f"The UNet reads text {unet.config.cross_attention_dim} wide, the text encoder writes "
            f"{text_encoder.config.hidden_size}.",
            "Take both from one checkpoint.",
        )
    if unet.config.in_channels != vae.config.latent_channels:
        raise CheckpointError(
            f"The VAE's latents have {vae.config.latent_channels} channels, the UNet's {unet.config.in_channels}.",
            "Use a VAE made for Stable Diffusion 1.x.",
        )


class _Meter:
    """Turns bytes placed into fractions, a few a second."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._placed = 0
        self._told = time.monotonic()

    def add(self, part: str, count: int) -> None:
        self._placed += count
        if time.monotonic() - self._told > _TELL_S:
            self._told = time.monotonic()
            self._progress(0.1 + 0.9 * self._placed / self._total, f"loading the {part.replace('_', ' ')}")


def _patch(meter: _Meter, deltas: lora.Lora, part: str, name: str, weight: torch.Tensor) -> torch.Tensor:
    meter.add(part, weight.nbytes)
    merged = deltas.merge(part, name, weight)
    if merged is weight and deltas.touches(part):
        return weight.clone()  # else the few weights that a LoRA leaves alone would keep the whole file open
    return merged
