"""What a .safetensors file on this machine is, by its first bytes, names and shapes. Reads no weights; no torch.

A file that is no Stable Diffusion 1.x model, or no LoRA for one, is refused here: before anything is fetched for it.
Source: the safetensors format (8 bytes of length, a JSON header, the data).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipelines.errors import CheckpointError, NotOnDiskError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")
_MODEL_HINT = "Use a whole Stable Diffusion 1.x checkpoint, or a folder in diffusers layout."
_LORA_HINT = "Use a LoRA made for Stable Diffusion 1.x, or `--lora none`."

# Names that only other families have.
_FAMILIES = {
    "conditioner.": "Stable Diffusion XL",
    "cond_stage_model.model.": "Stable Diffusion 2",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "model.diffusion_model.label_emb.": "Stable Diffusion XL",
    "label_emb.": "Stable Diffusion XL",
    "add_embedding.": "Stable Diffusion XL",
}
_CONTROLNETS = ("control_model.", "controlnet_cond_embedding.")
_LORA_FAMILIES = {
    "lora_te2_": "Stable Diffusion XL",
    "text_encoder_2.": "Stable Diffusion XL",
    "lora_unet_double_blocks_": "Flux",
    "diffusion_model.double_blocks.": "Flux",
    "diffusion_model.single_blocks.": "Flux",
    "transformer.": "Flux or Stable Diffusion 3",
}
_WIDTHS = {1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}  # of the text that a UNet reads
_CHANNELS = {9: "for inpainting", 8: "for editing (InstructPix2Pix)", 5: "with depth"}  # that a UNet takes

_FIRST_LAYERS = ("model.diffusion_model.input_blocks.0.0.weight", "input_blocks.0.0.weight", "conv_in.weight")
_TEXT_LAYER = re.compile(r".*attn2\.to_[kv]\.weight")
_LORA_TEXT_LAYER = re.compile(r".*attn2[._]to_[kv].*(?:lora_down|lora_A|lora\.down|lora_linear_layer\.down)\.weight")
_LORA_NAME = re.compile(r"lora_(?:unet|te1?|te2)_|.*[._]lora[._]|.*\.lora_[AB]\.")
_LYCORIS_NAME = re.compile(r".*\.(?:hada|lokr)_")
_EMBEDDING_WIDTHS = {768, 1024, 1280}


# Bytes of a header that the safetensors library reads at most.
_MAX_HEADER = 100_000_000


class _Tensor(msgspec.Struct):
    """One tensor in a header: its sides, and where its data begins and ends."""

    shape: list[int]
    data_offsets: tuple[int, int]


class _Header(NamedTuple):
    """A file's header: the shape of each tensor, and its free-form strings."""

    shapes: Mapping[str, list[int]]
    metadata: Mapping[str, str]


def check_model(path: Path) -> None:
    """Raise `CheckpointError` if a file is no checkpoint of Stable Diffusion 1.x."""
    header = _read(path)
    _refuse_controlnet(path, header, _MODEL_HINT)
    families = [*_named(header, _FAMILIES), *_by_width(header, _TEXT_LAYER)]
    if families:
        raise CheckpointError(f"{path.name} is a checkpoint of {families[0]}.", _MODEL_HINT)
    if _has_lora(header):
        raise CheckpointError(f"{path.name} is a LoRA, not a checkpoint.", "Give it as --lora.")
    _refuse_embedding(path, header, _MODEL_HINT)
    for channels in [side for name in _FIRST_LAYERS for side in header.shapes.get(name, [])[1:2]]:
        if channels in _CHANNELS:
            what = f"{path.name} is a model {_CHANNELS[channels]}: its UNet takes {channels} channels, not 4."
            raise CheckpointError(what, _MODEL_HINT)
    if "v_pred" in header.shapes or _predicts_velocity(header):
        raise CheckpointError(*v_prediction(path.name))


def check_lora(path: Path) -> None:
    """Raise `CheckpointError` if a file is no LoRA for Stable Diffusion 1.x."""
    header = _read(path)
    if any(name.startswith("model.diffusion_model.") for name in header.shapes):
        raise CheckpointError(f"{path.name} is a whole checkpoint, not a LoRA.", "Give it as --model.")
    _refuse_controlnet(path, header, _LORA_HINT)
    _refuse_embedding(path, header, _LORA_HINT)
    if any(_LYCORIS_NAME.match(name) for name in header.shapes):
        raise CheckpointError(f"{path.name} is a LyCORIS network (LoHa or LoKr), not a LoRA.", _LORA_HINT)
    families = [*_named(header, _LORA_FAMILIES), *_by_width(header, _LORA_TEXT_LAYER)]
    if header.metadata.get("ss_base_model_version", "").startswith("sdxl"):
        families.append("Stable Diffusion XL")
    if _predicts_velocity(header):
        families.append("v-prediction models")
    if families:
        raise CheckpointError(f"{path.name} is a LoRA for {families[0]}.", _LORA_HINT)


def check_whole(path: Path) -> None:
    """Raise `NotOnDiskError` if a .safetensors file is cut off, as one is that is being copied."""
    _read(path)


def check_kind(path: Path) -> None:
    """Raise `CheckpointError` if a file named .safetensors is something else, which stands in its place."""
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_LFS_POINTER):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, which stands for the file and is not the file itself.",
            "Fetch it: `git lfs pull` in its repository, or download it from its page.",
        )
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        raise CheckpointError(
            f"{path} is a web page: what was saved is the page that offers the file, or asks for a login.",
            "Download the file itself, by its download link.",
        )


def v_prediction(label: str) -> tuple[str, str]:
    """Return the reason and the hint for a model that predicts velocity."""
    return (
        f"{label} is a v-prediction model; the LCM-LoRA was made for models which predict noise.",
        "Use a Stable Diffusion 1.x checkpoint that predicts noise (epsilon), as nearly all do.",
    )


def _has_lora(header: _Header) -> bool:
    return any(_LORA_NAME.match(name) for name in header.shapes)


def _named(header: _Header, families: Mapping[str, str]) -> list[str]:
    """Return the families that the beginnings of the tensors' names tell."""
    return [family for prefix, family in families.items() if any(name.startswith(prefix) for name in header.shapes)]


def _by_width(header: _Header, layer: re.Pattern[str]) -> list[str]:
    """Return the families that the width of such layers tells."""
    widths = {width for name, shape in header.shapes.items() if layer.fullmatch(name) for width in shape[-1:]}
    return [family for width, family in _WIDTHS.items() if width in widths]


def _predicts_velocity(header: _Header) -> bool:
    said = header.metadata.get("modelspec.prediction_type", "").startswith("v")
    return said or header.metadata.get("ss_v_parameterization") == "True"


def _refuse_controlnet(path: Path, header: _Header, hint: str) -> None:
    if any(name.startswith(_CONTROLNETS) for name in header.shapes):
        raise CheckpointError(f"{path.name} is a ControlNet, which fourstep does not use.", hint)


def _refuse_embedding(path: Path, header: _Header, hint: str) -> None:
    """Textual inversions are a few vectors, under the name of a token, `emb_params`, `clip_l` or `clip_g`."""
    if (
        0 < len(header.shapes) <= 2
        and not _has_lora(header)
        and all(len(shape) in {1, 2} and shape[-1] in _EMBEDDING_WIDTHS for shape in header.shapes.values())
    ):
        what = f"{path.name} is an embedding (textual inversion): words for a prompt, no model and no LoRA."
        raise CheckpointError(what, hint)


def _read(path: Path) -> _Header:
    """Return the header. Raises `CheckpointError` for a file that is something else, `NotOnDiskError` if cut off."""
    check_kind(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if _MAX_HEADER < length <= size - 8:
            what = f"{path} can't be read: its header has {length} bytes, and at most {_MAX_HEADER} are read."
            raise CheckpointError(what, "Save it again with another program, or use another file.")
        text = file.read(length) if length <= size - 8 else b""
    try:
        raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(raw.pop("__metadata__", b"null"), type=dict[str, str] | None) or {}
        tensors = {name: msgspec.json.decode(entry, type=_Tensor) for name, entry in raw.items()}
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        hint = "Fetch it again; it may be incomplete."
        raise CheckpointError(f"{path} can't be read: it has no safetensors header.", hint) from error
    end = 8 + length + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if end > size:
        what = f"{path} can't be read: it is cut off, {size} of {end} bytes are there."
        raise NotOnDiskError(what, "Fetch it again, whole.")
    return _Header({name: tensor.shape for name, tensor in tensors.items()}, metadata)
