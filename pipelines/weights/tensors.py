"""Builds a module and fills it with weights from safetensors: nothing is initialised first, nothing is kept twice.

The module's weights are made on torch's meta device (no memory), the files are mapped, and each tensor goes from the
map straight to its device and dtype, and its pages go back; on the CPU in the file's own dtype the map itself is the
weight. Names and shapes must match exactly: a weight left over, missing or of another shape is an error, never a silent
default.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pipelines.errors import CheckpointError
from pipelines.weights import mapped

Patch = Callable[[str, torch.Tensor], torch.Tensor]

# Names that checkpoints carry and today's classes do not, tried in turn on a name that the module lacks.
# Published with diffusers 0.6 (2022): the VAE's attention, as in the SD 1.5 repository.
# Published with transformers < 5: one more `text_model.` / `vision_model.` around CLIP.
_OLD_NAMES = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
    ("text_model.", ""),
    ("vision_model.vision_model.", "vision_model."),
)


def read(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors `files`, mapped: pages are read from disk when first used.

    Raises `CheckpointError` if a file is not safetensors or is cut short.
    """
    return {name: tensor for path in files for name, tensor in mapped.tensors(path)}


def read_metadata(path: Path) -> dict[str, str]:
    """The free-form strings in a safetensors file's header."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def fill(
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    *,
    device: torch.device,
    dtype: torch.dtype,
    what: str,
    patch: Patch | None = None,
) -> torch.nn.Module:
    """Give `module`, made on the meta device, `tensors` as weights on `device` in `dtype`; eval mode, no gradients.

    `patch` gets each weight by its name in the module, on its device in the file's dtype, and returns the one to use.
    `what` names the module in errors. Raises `CheckpointError` unless names and shapes match exactly.
    """
    wanted = dict(module.state_dict())
    named = {_today(name, wanted): tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    _check(wanted, named, what)
    weights = {}
    for name, tensor in named.items():
        placed = tensor.to(device)
        weights[name] = (patch(name, placed) if patch else placed).to(dtype)
        if weights[name].data_ptr() != tensor.data_ptr():
            mapped.release(tensor)
    module.load_state_dict(weights, strict=True, assign=True)
    module.to(device)  # the buffers that no checkpoint holds; the weights are there
    return module.requires_grad_(False).eval()  # noqa: FBT003 (torch's own signature)


def _today(name: str, wanted: Mapping[str, Any]) -> str:
    """The name that `name` of a checkpoint has in today's class, or `name` itself."""
    if name in wanted:
        return name
    for old, new in _OLD_NAMES:
        renamed = name.replace(old, new, 1)
        if renamed in wanted:
            return renamed
    return name


def _check(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], what: str) -> None:
    missing = sorted(wanted.keys() - given.keys())
    unknown = sorted(given.keys() - wanted.keys())
    misshapen = sorted(name for name in wanted.keys() & given.keys() if wanted[name].shape != given[name].shape)
    faults = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{what}: the weights do not fit the config: {'; '.join(faults)}.",
            "Use a checkpoint of the Stable Diffusion 1.x family, whole and unaltered.",
        )
