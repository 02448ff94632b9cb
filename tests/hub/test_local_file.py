"""Files given as --model or --lora are refused by what they are, before anything is fetched for them."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import CheckpointError
from pipelines.hub import local_file, manifest
from pipelines.hub.source import FileSource
from pipelines.messages import EngineConfig
from tests.support import checkpoint_layouts

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4265146304\n"
PAGE = b"<!doctype html>\n<html><head><title>Log in</title>"
UNET = {"model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3], "first_stage_model.x": [1]}
LORA = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": [4, 1280], "x.lora_up.weight": [1280, 4]}


def safetensors(shapes: dict[str, list[int]], metadata: dict[str, str] | None = None) -> bytes:
    """A file that has these tensors, of no bytes each."""
    header = {name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps(header | ({"__metadata__": metadata} if metadata else {})).encode()
    return struct.pack("<Q", len(text)) + text


def first_layer(channels: int) -> dict[str, list[int]]:
    return {"model.diffusion_model.input_blocks.0.0.weight": [320, channels, 3, 3]}


def text_layer(name: str, width: int) -> dict[str, list[int]]:
    return {name: [8, width], name.replace("down", "up").replace("lora_A", "lora_B"): [640, 8]}


EITHER = {
    "is a Git LFS pointer": POINTER,
    "is a web page": PAGE,
    "is a web page: ": b"\xef\xbb\xbf\r\n<HTML>",
    "is an embedding": safetensors({"emb_params": [4, 768]}),
    "is an embedding .textual": safetensors({"clip_l": [4, 768], "clip_g": [4, 1280]}),
    "is an embedding .textual inversion": safetensors({"<my-cat>": [768]}),
    "no safetensors header": b"PK\x03\x04" + bytes(1000),
    "it has no safetensors header": b"",
    "has no safetensors header.": struct.pack("<Q", 10) + b"[1, 2, 3] ",
    "cut off": struct.pack("<Q", 60) + b'{"x":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}'.ljust(60) + bytes(7),
}
NO_MODEL = EITHER | {
    "a checkpoint of Stable Diffusion XL": safetensors({"conditioner.embedders.0.x": [1]} | UNET),
    "a checkpoint of Stable Diffusion 2": safetensors({"cond_stage_model.model.x": [1]} | UNET),
    "a checkpoint of Flux": safetensors({"double_blocks.0.img_attn.qkv.weight": [1]}),
    "for inpainting": safetensors(first_layer(9)),
    "InstructPix2Pix": safetensors(first_layer(8)),
    "v-prediction": safetensors(UNET, {"modelspec.prediction_type": "v"}),
    "is a v-prediction": safetensors(UNET | {"v_pred": [0]}),
    "is a v-prediction model": safetensors(UNET, {"ss_v_parameterization": "True"}),
    "is a checkpoint of Stable Diffusion XL": safetensors(
        {"model.diffusion_model.label_emb.0.0.weight": [1280, 2816]} | first_layer(4)
    ),
    "is a checkpoint of Stable Diffusion XL.": safetensors(
        {"model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": [640, 2048]} | first_layer(4)
    ),
    "checkpoint of Stable Diffusion XL": safetensors(
        {"add_embedding.linear_1.weight": [1280, 2816], "conv_in.weight": [320, 4, 3, 3]}
    ),
    "of Stable Diffusion XL": safetensors(
        {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.weight": [640, 2048]}
    ),
    "is a model for inpainting": safetensors({"conv_in.weight": [320, 9, 3, 3]}),
    "is a ControlNet": safetensors({"controlnet_cond_embedding.conv_in.weight": [16, 3, 3, 3]}),
    "is a LoRA": safetensors(LORA),
}
NO_LORA = EITHER | {
    "LoRA for Stable Diffusion XL": safetensors({"lora_te2_text_model_x.lora_down.weight": [8, 1280]} | LORA),
    "LoRA for Stable Diffusion XL.": safetensors(
        text_layer("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight", 2048)
    ),
    "is a LoRA for Stable Diffusion XL": safetensors(
        text_layer("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight", 2048)
    ),
    "LoRA for Stable Diffusion 2": safetensors(
        text_layer("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v.lora_down.weight", 1024)
    ),
    "a LoRA for Stable Diffusion XL": safetensors(LORA, {"ss_base_model_version": "sdxl_base_v1-0"}),
    "is a whole checkpoint": safetensors(UNET),
    "is a LyCORIS network": safetensors({"lora_unet_input_blocks_4_1_proj_in.hada_w1_b": [16, 2048]}),
    "is a LyCORIS network .LoHa or LoKr": safetensors({"lora_unet_input_blocks_4_1_proj_in.lokr_w1": [16, 16]}),
    "is a LoRA for Flux": safetensors({"diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight": [16, 3072]}),
    "is a ControlNet": safetensors({"control_model.input_blocks.0.0.weight": [320, 4, 3, 3]}),
    "is a ControlNet, which": safetensors({"controlnet_cond_embedding.conv_in.weight": [16, 3, 3, 3]}),
    "is a LoRA for v-prediction": safetensors(LORA, {"ss_v_parameterization": "True"}),
}

ODD_HEADERS = {
    "a list": b"[1, 2, 3] ",
    "deep": b"[" * 200_000,
    "deep inside": b'{"x":' + b"[" * 200_000,
    "no shape": b'{"x":{"shape":null,"data_offsets":[0,0]}}',
    "words as shape": b'{"x":{"shape":["4"],"data_offsets":[0,0]}}',
    "one offset": b'{"x":{"shape":[4],"data_offsets":[0]}}',
    "metadata of no text": b'{"__metadata__":{"modelspec.prediction_type":null}}',
    "metadata as text": b'{"__metadata__":"v"}',
    "no UTF-8": b'{"\xff":{"shape":[4],"data_offsets":[0,0]}}',
}


def nowhere(repo: str) -> FileSource:
    raise AssertionError(f"{repo} was asked for")


@pytest.mark.parametrize("what", NO_MODEL)
def test_a_model_that_is_none_is_refused_by_what_it_is(what: str, tmp_path: Path) -> None:
    (tmp_path / "it.safetensors").write_bytes(NO_MODEL[what])
    config = EngineConfig(model=str(tmp_path / "it.safetensors"), data_dir="")

    with pytest.raises(CheckpointError, match=what):
        manifest.compose(config, half=False, open_repo=nowhere)


@pytest.mark.parametrize("what", NO_LORA)
def test_a_lora_that_is_none_is_refused_by_what_it_is(what: str, tmp_path: Path) -> None:
    (tmp_path / "it.safetensors").write_bytes(NO_LORA[what])
    config = EngineConfig(model="sd15", lora=str(tmp_path / "it.safetensors"), data_dir="")

    with pytest.raises(CheckpointError, match=what):
        manifest.compose(config, half=False, open_repo=nowhere)


@pytest.mark.parametrize("check", [local_file.check_model, local_file.check_lora])
@pytest.mark.parametrize("what", ODD_HEADERS)
def test_a_header_that_is_none_is_called_so(what: str, check: Callable[[Path], None], tmp_path: Path) -> None:
    file = tmp_path / "it.safetensors"
    file.write_bytes(struct.pack("<Q", len(ODD_HEADERS[what])) + ODD_HEADERS[what])

    with pytest.raises(CheckpointError, match="has no safetensors header"):
        check(file)


def test_a_header_of_more_than_100_mb_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "it.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)  # of which none takes a place on the disk

    with pytest.raises(CheckpointError, match="its header has 100000001 bytes"):
        local_file.check_model(tmp_path / "it.safetensors")


def test_null_as_metadata_is_none(tmp_path: Path) -> None:
    header = b'{"__metadata__":null,"model.diffusion_model.x":{"shape":[1],"data_offsets":[0,0]}}'
    (tmp_path / "it.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)

    local_file.check_model(tmp_path / "it.safetensors")


def test_a_lora_layer_without_sides_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "it.safetensors").write_bytes(safetensors({"unet.x.attn2.to_k.lora_A.weight": []}))

    local_file.check_lora(tmp_path / "it.safetensors")


@pytest.mark.parametrize("options", [{"model": "~nosuch/x.safetensors"}, {"model": "sd15", "lora": "~nosuch/x"}])
def test_a_home_folder_of_no_user_is_called_so(options: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match="begins with the name of no user"):
        manifest.compose(EngineConfig(data_dir="", **options), half=False, open_repo=nowhere)


@pytest.mark.parametrize("shapes", [LORA, text_layer("unet.x.attn2.to_k.lora_A.weight", 768)])
def test_a_lora_for_this_family_passes(shapes: dict[str, list[int]], tmp_path: Path) -> None:
    (tmp_path / "it.safetensors").write_bytes(safetensors(shapes, {"ss_base_model_version": "sd_1.5"}))

    local_file.check_lora(tmp_path / "it.safetensors")


def test_a_model_of_this_family_passes(tmp_path: Path) -> None:
    (tmp_path / "it.safetensors").write_bytes(safetensors(UNET, {"modelspec.prediction_type": "epsilon"}))

    local_file.check_model(tmp_path / "it.safetensors")


@pytest.mark.parametrize(("content", "what"), [(POINTER, "Git LFS pointer"), (PAGE, "web page")])
def test_a_folder_with_something_else_in_a_file_s_place_is_refused(content: bytes, what: str, tmp_path: Path) -> None:
    checkpoint_layouts.write_folder(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    config = EngineConfig(model=str(tmp_path), data_dir="")

    with pytest.raises(CheckpointError, match=what):
        manifest.compose(config, half=False, open_repo=nowhere)


def test_a_folder_with_a_lora_for_another_family_is_refused(tmp_path: Path) -> None:
    checkpoint_layouts.write_folder(tmp_path / "model")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "it.safetensors").write_bytes(NO_LORA["LoRA for Stable Diffusion 2"])
    config = EngineConfig(model=str(tmp_path / "model"), lora=str(tmp_path / "lora"), data_dir="")

    with pytest.raises(CheckpointError, match="LoRA for Stable Diffusion 2"):
        manifest.compose(config, half=False, open_repo=nowhere)


@pytest.mark.parametrize(("kind", "refused"), [("DDIMScheduler", True), ("LCMScheduler", False)])
def test_a_folder_whose_scheduler_says_v_prediction_is_refused_unless_it_is_an_lcm(
    kind: str,
    refused: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    checkpoint_layouts.write_folder(tmp_path)
    scheduler = {"_class_name": kind, "prediction_type": "v_prediction"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    config = EngineConfig(model=str(tmp_path), data_dir="")

    try:
        manifest.compose(config, half=False, open_repo=nowhere)
        said = ""
    except CheckpointError as error:
        said = error.reason

    assert ("v-prediction" in said) == refused
