"""The diffusers layout: which files of a folder or repository a model needs. Names in, names out; reads nothing.

    model_index.json
    unet/ vae/ text_encoder/ safety_checker/    config.json and weights, one file or shards, perhaps in variants:
        diffusion_pytorch_model.safetensors     (transformers' parts: model.safetensors)
        diffusion_pytorch_model.fp16.safetensors
        diffusion_pytorch_model-00001-of-00002.safetensors
        diffusion_pytorch_model.fp16-00001-of-00002.safetensors
    scheduler/scheduler_config.json
    tokenizer/vocab.json merges.txt …           (or tokenizer.json)

A repository may hold one part alone, then without its folder. Pickles (.bin, .ckpt, …) are never read: loading one runs
whatever code is in it. Variants such as non_ema, and single-file checkpoints beside the folders, are not needed.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

from pipelines.errors import CheckpointError, OnlyPicklesError

INDEX = "model_index.json"
EXTRAS = (INDEX, "feature_extractor/preprocessor_config.json")
SCHEDULER = "scheduler/scheduler_config.json"
LORA = "pytorch_lora_weights.safetensors"

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?P<variant>\.fp16)?"
    r"(?:-(?P<number>\d{5})-of-(?P<count>\d{5}))?(?P<late_variant>\.fp16)?\.safetensors"
)
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5", ".onnx")
_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class Part(NamedTuple):
    """One module of a checkpoint: its `config.json` and the safetensors files that together hold its weights."""

    config: str
    weights: tuple[str, ...]


def find_part(names: Collection[str], folder: str, *, half: bool, label: str) -> Part | None:
    """The part in `folder` ("" for the top) among the file names of `label`; None if it is not there at all.

    With `half` the fp16 variant is preferred, else the full one; either is taken where it is alone. Raises
    `CheckpointError` if the part is there but can't be read: shards missing, no config; `OnlyPicklesError`.
    """
    prefix = f"{folder}/" if folder else ""
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    inside = {name for name in inside if "/" not in name}
    where = f"{label}, {folder}" if folder else label
    weights = _choose(inside, half=half, where=where)
    if weights is None:
        if "config.json" in inside and any(name.endswith(_PICKLES) for name in inside):
            raise OnlyPicklesError(
                f"{where}: the weights are there only as pickles, which can run code when they are loaded.",
                "Use a checkpoint in safetensors format, or convert it: `save_pretrained(…, safe_serialization=True)`.",
            )
        return None
    if "config.json" not in inside:
        raise CheckpointError(f"{where}: config.json is missing.", "Fetch the checkpoint again, whole.")
    return Part(f"{prefix}config.json", tuple(f"{prefix}{name}" for name in weights))


def find_tokenizer(names: Collection[str], folder: str = "tokenizer") -> tuple[str, ...]:
    """The tokenizer's files; empty if they are not (all) there."""
    prefix = f"{folder}/" if folder else ""
    found = tuple(f"{prefix}{name}" for name in _TOKENIZER if f"{prefix}{name}" in names)
    have = {name.rpartition("/")[2] for name in found}
    return found if "tokenizer.json" in have or {"vocab.json", "merges.txt"} <= have else ()


def find_lora(names: Collection[str], *, label: str) -> str:
    """The LoRA's file: the one of the usual name, else the only safetensors file at the top."""
    top = [name for name in names if "/" not in name and name.endswith(".safetensors")]
    if LORA in top:
        return LORA
    if len(top) == 1:
        return top[0]
    raise CheckpointError(
        f"{label}: no LoRA found ({len(top)} safetensors files, none of them {LORA}).",
        "Give the .safetensors file itself: --lora FILE.",
    )


def _choose(inside: Collection[str], *, half: bool, where: str) -> tuple[str, ...] | None:
    """The weight files of the preferred variant, whole file before shards."""
    groups: dict[tuple[bool, int], list[str]] = {}
    for name in sorted(inside):
        if match := _WEIGHTS.fullmatch(name):
            fp16 = bool(match["variant"] or match["late_variant"])
            groups.setdefault((fp16, int(match["count"] or 0)), []).append(name)
    if not groups:
        return None
    (_, count), files = min(groups.items(), key=lambda group: (group[0][0] != half, group[0][1]))
    if count and len(files) != count:
        raise CheckpointError(f"{where}: {count - len(files)} of {count} shards are missing.", "Fetch it again, whole.")
    return tuple(files)
