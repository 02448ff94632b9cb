"""The built-in demo model: the classes and the layout of Stable Diffusion 1.5, small enough for any laptop.

The trained one ships in the package (`pipelines/demo_model`). Where that folder is missing, an untrained stand-in with
fixed random weights is made in the data directory: it shows that everything works and paints nothing worth looking at.
"""

import itertools
import json
import shutil
import tempfile
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipelines.hub import layout, sd15
from pipelines.weights.architectures import (
    AutoencoderTiny,
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    StableDiffusionSafetyChecker,
    UNet2DConditionModel,
)

PACKAGED = Path(str(resources.files("pipelines"))) / "demo_model"
TRAINED_NOTICE = (
    "DEMO MODEL: a small model that ships with fourstep. It draws seven kinds of landscape, simply, and nothing else; "
    "`fourstep pull` and `--model sd15` give the real ones."
)
UNTRAINED_NOTICE = (
    "DEMO MODEL, UNTRAINED: random weights, so pictures are noise. `fourstep pull` and `--model sd15` give real ones."
)

_VERSION = "1"  # of what `make` writes; a new number leaves older folders behind unused
_SEED = 42
_WIDTH = 64  # of the text embeddings
_MERGES = 256
_SCHEDULER = {key: value for key, value in sd15.SCHEDULER.items() if key != "skip_prk_steps"}  # PNDM's alone
_WORDS = """a an the of in on at by with and sun sky sea sand beach hawaii island palm tree forest mountain river lake
snow city street house bridge night day morning evening light shadow cloud rain water fire stone flower grass bird cat
dog horse portrait photo photograph picture painting drawing sketch watercolor oil colorful bright dark warm cold
green blue yellow orange purple black white beautiful masterpiece detailed high quality soft sharp style art landscape
woman man girl boy face hand old new big small""".split()  # noqa: SIM905 (a list of words, as words)


def folder(data_dir: Path) -> tuple[Path, str]:
    """The demo model in diffusers layout, made first if need be, and what to tell the operator about it."""
    if (PACKAGED / layout.INDEX).exists():
        return PACKAGED, TRAINED_NOTICE
    made = data_dir / "demo" / _VERSION
    if not (made / layout.INDEX).exists():
        _make_at(made)
    return made, UNTRAINED_NOTICE


def make(target: Path) -> None:
    """Write the untrained stand-in to `target`, about 4 MB: the same bytes on every machine with the same torch."""
    tokens = write_tokenizer(target / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        _write_unet(target / "unet")
        _write_vae(target / "vae")
        _write_text_encoder(target / "text_encoder", tokens)
        _write_safety_checker(target / "safety_checker")
    _write_json(target / layout.SCHEDULER, {**_SCHEDULER, "_class_name": "LCMScheduler"})
    _write_json(
        target / "feature_extractor" / "preprocessor_config.json",
        {"image_processor_type": "CLIPImageProcessor", "size": 224, "crop_size": 224, "do_resize": True, "resample": 3},
    )
    _write_json(
        target / layout.INDEX,
        {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "scheduler": ["diffusers", "LCMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderTiny"],
        },
    )


def _make_at(target: Path) -> None:
    """`make`, appearing whole or not at all, also when several engines start at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".demo-", dir=target.parent))
    try:
        make(draft)
        draft.rename(target)
    except OSError:
        if not (target / layout.INDEX).exists():  # else another engine was faster, and its folder is as good
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_unet(target: Path) -> None:
    down = ("DownBlock2D", "DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D")
    up = ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(32, 32, 64, 64),
        down_block_types=down,
        up_block_types=up,
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=_WIDTH,
    )
    unet.save_config(target)
    save_file(unet.state_dict(), target / "diffusion_pytorch_model.safetensors")


def _write_vae(target: Path) -> None:
    vae = AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16, 16),
        decoder_block_out_channels=(16, 16, 16, 16),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    vae.save_config(target)
    save_file(vae.state_dict(), target / "diffusion_pytorch_model.safetensors")


def _write_text_encoder(target: Path, vocab_size: int) -> None:
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )
    config.save_pretrained(target)
    weights = {f"text_model.{name}": tensor for name, tensor in CLIPTextModel(config).state_dict().items()}
    save_file(weights, target / "model.safetensors")


def _write_safety_checker(target: Path) -> None:
    """A checker that flags nothing: no cosine similarity exceeds its thresholds of 2."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 224,
        "patch_size": 32,
    }
    config = CLIPConfig(vision_config=vision, projection_dim=32)
    checker = StableDiffusionSafetyChecker(config)
    for name in ("concept_embeds", "special_care_embeds"):
        torch.nn.init.normal_(getattr(checker, name))
    for name in ("concept_embeds_weights", "special_care_embeds_weights"):
        torch.nn.init.constant_(getattr(checker, name), 2.0)
    config.save_pretrained(target)
    weights = {
        name.replace("vision_model.", "vision_model.vision_model.", 1): tensor
        for name, tensor in checker.state_dict().items()
    }
    save_file(weights, target / "model.safetensors")


def write_tokenizer(target: Path) -> int:
    """CLIP's byte-level BPE with a small vocabulary; its number of tokens."""
    merges = _learn_merges(_WORDS, _MERGES)
    letters = _byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    _write_json(target / "vocab.json", {token: number for number, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (target / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    }
    _write_json(target / "special_tokens_map.json", special)
    _write_json(
        target / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    )
    return len(tokens)


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in GPT-2's and CLIP's vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]


def _learn_merges(words: list[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al. 2016): join the most frequent pair, `count` times or until none is left."""
    spellings = [(*word[:-1], f"{word[-1]}</w>") for word in words]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs = Counter(pair for spelling in spellings for pair in itertools.pairwise(spelling))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spellings = [_join(spelling, best) for spelling in spellings]
    return merges


def _join(spelling: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    joined: list[str] = []
    for letter in spelling:
        if joined and (joined[-1], letter) == pair:
            joined[-1] += letter
        else:
            joined.append(letter)
    return tuple(joined)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
