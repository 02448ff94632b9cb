"""A LoRA merged at load is W + (alpha / rank) · up · down, in whichever form it was published."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import CheckpointError
from pipelines.weights import architectures, lora
from tests.support import checkpoint_layouts
from tests.support.published_configs import TINY

RANK = 3


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return architectures.make_unet(TINY["unet"])


@pytest.fixture(scope="module")
def text_encoder() -> torch.nn.Module:
    return architectures.make_text_encoder(TINY["text_encoder"])


@pytest.fixture(scope="module")
def factors(unet: torch.nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return checkpoint_layouts.lora_factors(unet.state_dict(), rank=RANK, dtype=torch.float32, scale=0.5)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_linear_gains_scaled_product() -> None:
    weight, down, up = draw(5, 4), draw(RANK, 4), draw(5, RANK)

    merged = lora.Delta(down, up, alpha=8.0).merged(weight)

    torch.testing.assert_close(merged, weight + 8.0 / RANK * (up @ down))


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_with_merged_weight_equals_convolution_plus_low_rank_branch(kernel: int) -> None:
    weight, down, up = draw(6, 4, kernel, kernel), draw(RANK, 4, kernel, kernel), draw(6, RANK, 1, 1)
    picture = draw(2, 4, 8, 8)

    merged = lora.Delta(down, up, alpha=2.0).merged(weight)

    branch = torch.conv2d(torch.conv2d(picture, down, padding="same"), up)
    expected = torch.conv2d(picture, weight, padding="same") + 2.0 / RANK * branch
    torch.testing.assert_close(torch.conv2d(picture, merged, padding="same"), expected, rtol=1e-5, atol=1e-5)


def test_without_alpha_the_scale_is_one() -> None:
    weight, down, up = draw(5, 4), draw(RANK, 4), draw(5, RANK)

    merged = lora.Delta(down, up).merged(weight)

    torch.testing.assert_close(merged, weight + up @ down)


def test_merge_is_in_float32_whatever_the_files_hold() -> None:
    weight, down, up = draw(5, 4).half(), draw(RANK, 4).half(), draw(5, RANK).half()

    merged = lora.Delta(down, up).merged(weight)

    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged, weight.float() + up.float() @ down.float())


def test_linear_pair_fits_one_by_one_convolution() -> None:
    weight, down, up = draw(5, 4, 1, 1), draw(RANK, 4), draw(5, RANK)

    merged = lora.Delta(down, up).merged(weight)

    torch.testing.assert_close(merged, weight + (up @ down)[:, :, None, None])


def forms(factors: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    """The same deltas (scale 1) in each published form; the oldest knew attention only."""
    dotted = {
        "peft": ("lora_A.weight", "lora_B.weight"),
        "diffusers": ("lora.down.weight", "lora.up.weight"),
        "linear layer": ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    }
    written = {"kohya": checkpoint_layouts.kohya(factors, alpha=RANK)}
    for form, ends in dotted.items():
        written[form] = {
            f"unet.{path}.{end}": factor
            for path, pair in factors.items()
            for end, factor in zip(ends, pair, strict=True)
        }
    return written


@pytest.mark.parametrize("form", ["kohya", "peft", "diffusers", "linear layer"])
def test_every_form_gives_the_same_deltas(form: str, unet, factors) -> None:
    deltas = lora.parse(forms(factors)[form], {"unet": unet})

    assert deltas["unet"].keys() == {f"{path}.weight" for path in factors}
    weight = draw(*unet.state_dict()["mid_block.resnets.0.conv1.weight"].shape)
    down, up = factors["mid_block.resnets.0.conv1"]
    expected = weight + torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
    torch.testing.assert_close(deltas["unet"]["mid_block.resnets.0.conv1.weight"].merged(weight), expected)


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_attention_processor_keys_of_2023_are_read(prefix: str, unet) -> None:
    stem = f"{prefix}mid_block.attentions.0.transformer_blocks.0.attn1.processor"
    down, up = draw(RANK, 16), draw(16, RANK)
    tensors = {}
    for layer in ("to_q", "to_k", "to_v", "to_out"):
        tensors |= {f"{stem}.{layer}_lora.down.weight": down, f"{stem}.{layer}_lora.up.weight": up}

    deltas = lora.parse(tensors, {"unet": unet})

    block = "mid_block.attentions.0.transformer_blocks.0.attn1"
    assert set(deltas["unet"]) == {f"{block}.{layer}.weight" for layer in ("to_q", "to_k", "to_v", "to_out.0")}


@pytest.mark.parametrize(
    "keys",
    [
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", "….lora_up.weight"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", "….lora_up.weight"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", "….lora_B.weight"),
        ("text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight", "….lora_B.weight"),
    ],
)
def test_text_encoder_keys_are_read(keys: tuple[str, str], text_encoder) -> None:
    down_key, up_end = keys
    stem = down_key.rsplit(".", 2)[0]
    tensors = {down_key: draw(RANK, 16), up_end.replace("…", stem): draw(16, RANK)}

    deltas = lora.parse(tensors, {"text_encoder": text_encoder})

    assert set(deltas["text_encoder"]) == {"encoder.layers.0.self_attn.q_proj.weight"}


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_mid_block_attentions_9_proj_in.lora_down.weight",  # no such layer
        "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a",  # LoHa
        "lora_unet_mid_block_attentions_0_proj_in.dora_scale",
        "lora_unet_mid_block_resnets_0_conv1.lora_mid.weight",  # a three-part convolution
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",  # SDXL's second text encoder
        "unet.mid_block.resnets.0.conv1.diff",
        "base_model.model.mid_block.resnets.0.conv1.lora_A.weight",  # PEFT's own folder keeps alpha in another file
        "something.else",
    ],
)
def test_key_without_a_place_is_an_error_that_names_it(key: str, unet, factors) -> None:
    tensors = checkpoint_layouts.kohya(factors, alpha=8.0) | {key: draw(RANK, 4)}

    with pytest.raises(CheckpointError) as caught:
        lora.parse(tensors, {"unet": unet})

    assert key in caught.value.reason


def test_half_a_pair_is_an_error(unet, factors) -> None:
    tensors = checkpoint_layouts.kohya(factors, alpha=8.0)
    del tensors["lora_unet_mid_block_resnets_0_conv1.lora_up.weight"]

    with pytest.raises(CheckpointError, match=r"mid_block\.resnets\.0\.conv1 \(half a pair\)"):
        lora.parse(tensors, {"unet": unet})


def test_factors_of_another_width_are_an_error(unet, factors) -> None:
    tensors = checkpoint_layouts.kohya(factors, alpha=8.0)
    tensors["lora_unet_mid_block_resnets_0_conv1.lora_down.weight"] = draw(RANK, 32, 3, 3)

    with pytest.raises(CheckpointError, match=r"mid_block\.resnets\.0\.conv1 \(its shape\)"):
        lora.parse(tensors, {"unet": unet})


def test_file_with_no_lora_in_it_is_an_error(unet) -> None:
    with pytest.raises(CheckpointError, match="no LoRA keys at all"):
        lora.parse({}, {"unet": unet})


def test_alpha_in_diffusers_metadata_counts(tmp_path: Path, unet, factors) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": RANK, "unet.lora_alpha": 2 * RANK})}
    save_file(forms(factors)["peft"], tmp_path / "lora.safetensors", metadata=metadata)
    down, up = factors["mid_block.resnets.0.time_emb_proj"]
    weight = draw(16, 16)

    loaded = lora.load(tmp_path / "lora.safetensors", {"unet": unet})

    merged = loaded.merge("unet", "mid_block.resnets.0.time_emb_proj.weight", weight)
    torch.testing.assert_close(merged, weight + 2.0 * (up @ down))


@pytest.mark.parametrize("variant", ["unet.use_dora", "unet.use_rslora", "unet.alpha_pattern"])
def test_variant_with_another_formula_is_refused(variant: str, tmp_path: Path, unet, factors) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({variant: {"x": 1} if "pattern" in variant else True})}
    save_file(forms(factors)["peft"], tmp_path / "lora.safetensors", metadata=metadata)

    with pytest.raises(CheckpointError, match=variant.partition(".")[2]):
        lora.load(tmp_path / "lora.safetensors", {"unet": unet})


def test_weight_that_the_lora_leaves_alone_is_the_same_tensor() -> None:
    weight = draw(2, 2)

    assert lora.Lora({}).merge("unet", "conv_in.weight", weight) is weight
