"""Merges a LoRA into the weights it was trained for: W + (alpha / rank) · up · down, in float32, before any cast.

Read are the forms in which LoRAs for Stable Diffusion 1.x are published (`…` is a module's path):

    kohya        lora_unet_….lora_down.weight  .lora_up.weight  .alpha      the path with _ for .  (lora_te_… for CLIP)
    PEFT         unet.….lora_A.weight  .lora_B.weight                       (text_encoder.… for CLIP)
    diffusers    unet.….lora.down.weight  .lora.up.weight  and .lora_linear_layer.down.weight …
    old          [unet.]….processor.to_q_lora.down.weight  .up.weight       diffusers before 0.22, attention only

`alpha` is the tensor of that name, else `lora_alpha` in the file's metadata, else the rank (a scale of 1). Whatever
else is in the file is an error: a key that is skipped is a picture that is subtly wrong.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.errors import CheckpointError
from pipelines.weights import tensors as weights

_KOHYA = re.compile(r"lora_(?P<owner>unet|te1?)_(?P<path>.+)\.(?P<role>lora_(?:down|up)\.weight|alpha)")
_OLD = re.compile(
    r"(?:(?P<owner>unet)\.)?(?P<path>.+)\.processor\.(?P<layer>to_\w+)_lora\.(?P<role>(?:down|up)\.weight)"
)
_DOTTED = re.compile(
    r"(?P<owner>unet|text_encoder)\.(?P<path>.+?)"
    r"\.(?P<role>lora_[AB]\.weight|lora(?:_linear_layer)?\.(?:down|up)\.weight|alpha)"
)
_OWNERS = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder", "text_encoder": "text_encoder", None: "unet"}
_ROLES = {"lora_A": "down", "lora_B": "up", "lora_down": "down", "lora_up": "up", "down": "down", "up": "up"}
_METADATA = "lora_adapter_metadata"  # diffusers ≥ 0.35 stores PEFT's config under this key
_UNSUPPORTED = ("alpha_pattern", "use_rslora", "use_dora", "lora_bias")


@dataclass(frozen=True)
class Delta:
    """What one layer gains. `down` [rank, in…] and `up` [out, rank…]; `alpha` over the rank is the scale."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None = None

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """`weight` (linear [out, in] or convolution [out, in, h, w], any dtype) with the gain, float32, same device."""
        down = self.down.to(weight.device, torch.float32).flatten(1)
        up = self.up.to(weight.device, torch.float32).flatten(1)
        rank = len(down)
        scale = 1.0 if self.alpha is None else self.alpha / rank
        flat = weight.to(torch.float32).flatten(1)
        add = torch.addmm if weight.dtype == torch.float32 else torch.Tensor.addmm_  # into the copy that `to` has made
        return add(flat, up, down, alpha=scale).reshape(weight.shape)

    def fits(self, weight: torch.Tensor) -> bool:
        """Whether the factors multiply to the shape of `weight`; a linear pair fits a 1×1 convolution."""
        rank = len(self.down)
        return self.up.numel() == len(weight) * rank and self.down.numel() * len(weight) == weight.numel() * rank


class Lora:
    """The deltas of one LoRA, by module ("unet" or "text_encoder") and the name of the weight they change."""

    def __init__(self, deltas: Mapping[str, Mapping[str, Delta]]) -> None:
        self._deltas = deltas

    def touches(self, owner: str) -> bool:
        """Whether any weight of that module changes."""
        return bool(self._deltas.get(owner))

    def merge(self, owner: str, name: str, weight: torch.Tensor) -> torch.Tensor:
        """`weight` as it should be: merged in float32, or untouched if the LoRA leaves it alone."""
        delta = self._deltas.get(owner, {}).get(name)
        return weight if delta is None else delta.merged(weight)


def load(path: Path, modules: Mapping[str, torch.nn.Module]) -> Lora:
    """The LoRA in `path` for these modules ("unet", "text_encoder"; the meta device will do).

    Raises `CheckpointError` for keys of unknown form, for layers that the modules lack and for shapes that do not fit.
    """
    tensors = weights.read([path])
    alphas = _default_alphas(weights.read_metadata(path), path)
    return Lora(parse(tensors, modules, alphas, label=path.name))


def parse(
    tensors: Mapping[str, torch.Tensor],
    modules: Mapping[str, torch.nn.Module],
    alphas: Mapping[str, float] | None = None,
    *,
    label: str = "the LoRA",
) -> dict[str, dict[str, Delta]]:
    """The deltas in `tensors`, by module and weight name; `alphas`: per module, for layers without their own."""
    layers = {owner: _layers(module) for owner, module in modules.items()}
    found: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        place = _place(key, layers)
        if place is None or place[1] in found.setdefault(place[0], {}):
            unknown.append(key)
        else:
            found[place[0]][place[1]] = tensor
    unknown += [
        f"{owner}.{path} (half a pair)" for (owner, path), pair in found.items() if not {"down", "up"} <= set(pair)
    ]
    if unknown or not found:
        raise _misfit(label, unknown or ["no LoRA keys at all"])

    deltas: dict[str, dict[str, Delta]] = {}
    for (owner, path), pair in found.items():
        alpha = float(pair["alpha"]) if "alpha" in pair else (alphas or {}).get(owner)
        delta = Delta(pair["down"], pair["up"], alpha)
        if not delta.fits(modules[owner].get_submodule(path).weight):  # type: ignore[arg-type]  # a Linear's or Conv2d's
            unknown.append(f"{owner}.{path} (its shape)")
        deltas.setdefault(owner, {})[f"{path}.weight"] = delta
    if unknown:
        raise _misfit(label, unknown)
    return deltas


def _layers(module: torch.nn.Module) -> dict[str, str]:
    """Path of each layer that a LoRA can change, by that path and by its kohya spelling."""
    paths = [name for name, part in module.named_modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)]
    spellings = {path: path for path in paths}
    spellings.update({path.replace(".", "_"): path for path in paths})
    return spellings


def _place(key: str, layers: Mapping[str, Mapping[str, str]]) -> tuple[tuple[str, str], str] | None:
    """((module, layer's path), "down" | "up" | "alpha") for a key of a LoRA file; None if nothing is there."""
    if match := _KOHYA.fullmatch(key):
        path, old_prefix = match["path"], "text_model_"
    elif match := _OLD.fullmatch(key):
        layer = "to_out.0" if match["layer"] == "to_out" else match["layer"]
        path, old_prefix = f"{match['path']}.{layer}", ""
    elif match := _DOTTED.fullmatch(key):
        path, old_prefix = match["path"], "text_model."
    else:
        return None
    owner = _OWNERS[match["owner"]]
    known = layers.get(owner, {})
    found = known.get(path) or known.get(path.removeprefix(old_prefix))
    return ((owner, found), _role(match["role"])) if found else None


def _role(suffix: str) -> str:
    """ "down", "up" or "alpha" for the end of a key: `lora_A.weight`, `lora.down.weight`, `alpha`, …"""
    return "alpha" if suffix == "alpha" else _ROLES[suffix.split(".")[-2]]


def _default_alphas(metadata: Mapping[str, str], path: Path) -> dict[str, float]:
    """`lora_alpha` per module from diffusers' metadata; refuses variants that change the formula."""
    config = json.loads(metadata.get(_METADATA, "{}"))
    variants = [key for key, value in config.items() if value and key.endswith(_UNSUPPORTED)]
    if variants:
        raise CheckpointError(
            f"{path.name} is of a LoRA variant that can't be merged as one: {', '.join(variants)}.",
            "Use a plain LoRA, or merge this one into the checkpoint with the tool that made it.",
        )
    return {
        owner: float(config[f"{owner}.lora_alpha"])
        for owner in ("unet", "text_encoder")
        if config.get(f"{owner}.lora_alpha") is not None
    }


def _misfit(label: str, keys: Iterable[str]) -> CheckpointError:
    keys = sorted(keys)
    few = ", ".join(keys[:4]) + (", …" if len(keys) > 4 else "")
    return CheckpointError(
        f"{label} does not fit this model: {len(keys)} keys have no place in it ({few}).",
        "Use a LoRA made for Stable Diffusion 1.x, or `--lora none`.",
    )
