"""Tiny checkpoints for tests: the published classes at toy width, random weights from a fixed seed, built in memory.

The weights are scaled so that every part matters: pictures span the whole range of levels, and noise, prompt, guidance
and timestep each change them visibly. A test that allows one level of difference would prove nothing on a grey picture.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipelines.model.lcm import Lcm
from pipelines.weights.checkpoint import LoadedCheckpoint

WIDTH = 32  # of the text embeddings

# Models as small as these spend their time waking threads up, above all on a machine that is busy.
torch.set_num_threads(1)

# stable-diffusion-v1-5/scheduler/scheduler_config.json, as published.
SD15_SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def make(**parts: Any) -> LoadedCheckpoint:
    """A tiny model on the CPU in float32; any part may be given."""
    values = {
        "unet": None,
        "vae": None,
        "text_encoder": None,
        "tokenizer": None,
        "safety_checker": None,
        "scheduler_config": SD15_SCHEDULER,
        "name": "tiny",
        "notice": "",
        "device": torch.device("cpu"),
        "dtype": torch.float32,
    } | parts
    makers = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}
    for name, maker in makers.items():
        if values[name] is None:
            values[name] = maker()
    return LoadedCheckpoint(**values)


def float16(**parts: Any) -> Lcm:
    """A tiny model in float16 on the CPU; any part may be given, in float32."""
    parts = {"unet": unet(), "vae": vae(), "text_encoder": text_encoder()} | parts
    return Lcm(make(dtype=torch.float16, **{name: part.half() for name, part in parts.items()}))


def unet() -> UNet2DConditionModel:
    """SD1.5's blocks at widths 32 and 64: 4 latent channels, cross attention, one down- and one upsampling."""
    with _seeded(1):
        module = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    for name, parameter in module.named_parameters():
        if "attn2.to_out" in name or "time_emb_proj" in name:
            parameter.data *= 6  # prompt and timestep speak up
    module.conv_out.weight.data *= 3
    return _ready(module)


def vae(**config: Any) -> AutoencoderKL:
    """An AutoencoderKL with SD1.5's factor 8 and scaling, whose posterior has a deviation that shows."""
    with _seeded(2):
        module = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            sample_size=64,
            scaling_factor=0.18215,
            **config,
        )
    module.encoder.conv_out.weight.data *= 8
    module.decoder.conv_out.weight.data *= 2
    return _ready(module)


def overflowing_vae() -> AutoencoderKL:
    """A `vae()` whose decoder has numbers too large for float16. In float32 its norms make a picture of them."""
    module = vae()
    module.decoder.conv_in.weight.data *= 1e5
    return module


def tiny_vae() -> AutoencoderTiny:
    """An AutoencoderTiny with TAESD's four stages."""
    with _seeded(3):
        module = AutoencoderTiny(
            encoder_block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4,
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        )
    module.encoder.layers[-1].weight.data *= 40
    module.decoder.layers[-1].weight.data *= 8
    module.decoder.layers[-1].bias.data.fill_(0.5)  # mid grey
    return _ready(module)


def text_encoder(**config: Any) -> CLIPTextModel:
    """A CLIPTextModel of two layers with 77 positions."""
    vocabulary = len(_vocabulary()[0])
    with _seeded(4):
        module = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=77,
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
                pad_token_id=vocabulary - 1,
                **config,
            )
        )
    for parameter in module.embeddings.parameters():
        parameter.data *= 20
    return _ready(module)


def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer with a handful of merges, read from disk like any other."""
    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return CLIPTokenizer.from_pretrained(folder)


def write_tokenizer(folder: Path) -> None:
    """The files of `tokenizer()`, in the published layout."""
    vocabulary, merges = _vocabulary()
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def safety_checker(*, threshold: float = 0.0) -> StableDiffusionSafetyChecker:
    """A checker on 32-pixel pictures. Every concept's threshold is `threshold`: cosines lie in −1…1."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    with _seeded(5):
        module = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
        module.concept_embeds.data.normal_()
        module.special_care_embeds.data.normal_()
    module.concept_embeds_weights.data.fill_(threshold)
    module.special_care_embeds_weights.data.fill_(threshold)
    return _ready(module)


def _vocabulary() -> tuple[list[str], list[str]]:
    """Tokens in order of their ids, and merges: every byte alone and at a word's end, a few words, the two marks."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(byte) for byte in visible] + [chr(0x100 + number) for number in range(256 - len(visible))]
    merges = ["t h", "th e</w>", "o f</w>", "i n", "a n", "an d</w>", "e r", "b e", "be a", "c h</w>", "bea ch</w>"]
    merged = [merge.replace(" ", "") for merge in merges]
    return [
        *letters,
        *(letter + "</w>" for letter in letters),
        *merged,
        "<|startoftext|>",
        "<|endoftext|>",
    ], merges


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _ready(module: Any) -> Any:
    return module.eval().requires_grad_(requires_grad=False)
