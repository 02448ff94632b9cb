"""Writes checkpoints in the layouts in which Stable Diffusion 1.5 and its LCM-LoRA are published, of any size.

Weights are random. Names are written by rules of our own, the other way round from the product's and diffusers'
converters, so that a mistake in either shows.
"""

import itertools
import json
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipelines.weights import architectures
from tests.support.published_configs import INDEX, PREPROCESSOR, SCHEDULER, SPECIAL_TOKENS, TINY, TOKENIZER

Tensors = dict[str, torch.Tensor]

_MERGES = 256  # of the tokenizer's vocabulary
_WORDS = """a an the of in on at by with and sun sky sea sand beach hawaii island palm tree forest mountain river lake
snow city street house bridge night day morning evening light shadow cloud rain water fire stone flower grass bird cat
dog horse portrait photo photograph picture painting drawing sketch watercolor oil colorful bright dark warm cold
green blue yellow orange purple black white beautiful masterpiece detailed high quality soft sharp style art landscape
woman man girl boy face hand old new big small""".split()  # noqa: SIM905 (a list of words, as words)

_FILE = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # transformers' parts: model
_MAKERS: dict[str, Callable[[Mapping[str, Any]], torch.nn.Module]] = {
    "unet": architectures.make_unet,
    "vae": architectures.make_vae,
    "text_encoder": architectures.make_text_encoder,
    "safety_checker": architectures.make_safety_checker,
}

# What the LCM-LoRA of Stable Diffusion 1.5 changes: `lora_target_modules` of diffusers' LCM distillation script.
LCM_TARGETS = re.compile(
    r"(.*\.)?(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2|conv_shortcut|"
    r"downsamplers\.0\.conv|upsamplers\.0\.conv|time_emb_proj)"
)


def random_weights(part: str, config: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> Tensors:
    """Weights for one part by today's names, of a size that keeps activations finite; seeded per part."""
    generator = torch.Generator().manual_seed(sum(part.encode()))
    made: Tensors = {}
    for name, shape in ((name, tensor.shape) for name, tensor in _MAKERS[part](config).state_dict().items()):
        if len(shape) > 1:
            fan_in = max(shape[1:].numel(), 1)
            made[name] = torch.empty(shape).normal_(0, fan_in**-0.5, generator=generator).to(dtype)
        elif name.endswith("bias"):
            made[name] = torch.zeros(shape, dtype=dtype)
        else:
            made[name] = torch.empty(shape).uniform_(0.9, 1.1, generator=generator).to(dtype)
    if part == "safety_checker":  # thresholds that nothing reaches: random weights must not blacken pictures
        made["concept_embeds_weights"] += 1
        made["special_care_embeds_weights"] += 1
    return made


def published(part: str, weights: Tensors) -> Tensors:
    """`weights` by the names of the SD 1.5 repository, which was written by the libraries of 2022."""
    if part == "vae":
        return {_old_attention(name): tensor for name, tensor in weights.items()}
    if part == "text_encoder":
        ids = {"text_model.embeddings.position_ids": torch.arange(77).reshape(1, -1)}
        return ids | {f"text_model.{name}": tensor for name, tensor in weights.items()}
    if part == "safety_checker":
        count = len(weights["vision_model.embeddings.position_embedding.weight"])
        ids = {"vision_model.vision_model.embeddings.position_ids": torch.arange(count).reshape(1, -1)}
        prefix = ("vision_model.", "vision_model.vision_model.")
        return ids | {name.replace(*prefix, 1): tensor for name, tensor in weights.items()}
    return weights


def write_folder(
    target: Path,
    configs: Mapping[str, Mapping[str, Any]] = TINY,
    *,
    variants: Iterable[str] = ("",),
    shards: int = 1,
    parts: Iterable[str] = ("unet", "vae", "text_encoder", "safety_checker"),
) -> dict[str, Tensors]:
    """A checkpoint in diffusers layout; its weights by part and today's names.

    `variants`: "" is float32, "fp16" is float16 in
    `….fp16.safetensors`. `shards`: into how many files each part goes.
    """
    weights = {}
    tokens = write_tokenizer(target / "tokenizer")
    _write_json(target / "tokenizer" / "tokenizer_config.json", TOKENIZER)
    _write_json(target / "tokenizer" / "special_tokens_map.json", SPECIAL_TOKENS)
    for part in parts:
        config = dict(configs[part])
        if part == "text_encoder" and configs is TINY:
            config["vocab_size"] = tokens
        weights[part] = write_part(target, part, config, variants=variants, shards=shards)
    _write_json(target / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(target / "feature_extractor" / "preprocessor_config.json", PREPROCESSOR)
    absent = {part: [None, None] for part in configs if part not in weights}
    _write_json(target / "model_index.json", INDEX | absent)
    return weights


def write_tokenizer(target: Path) -> int:
    """Write CLIP's byte-level BPE with a small vocabulary; return its number of tokens."""
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


def write_part(
    target: Path, part: str, config: Mapping[str, Any], *, variants: Iterable[str] = ("",), shards: int = 1
) -> Tensors:
    """One module's folder; its weights by today's names."""
    weights = random_weights(part, config)
    for variant in variants:
        dtype = torch.float16 if variant else torch.float32
        cast = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in published(part, weights).items()
        }
        _write_weights(target / part, _FILE.get(part, "model"), variant, cast, shards)
    _write_json(target / part / "config.json", config)
    return weights


def write_single_file(target: Path, weights: Mapping[str, Tensors], *, extra: Tensors | None = None) -> None:
    """The UNet, VAE and text encoder of `weights` in the original layout, with tables and an EMA copy as it has."""
    tensors = ldm_names(weights) | {"betas": torch.zeros(1000), "alphas_cumprod": torch.zeros(1000)}
    save_file(tensors | (extra or {}), target)


def ldm_names(weights: Mapping[str, Tensors]) -> Tensors:
    """All tensors under the names of the original code base."""
    named: Tensors = {}
    for name, tensor in weights["unet"].items():
        named[f"model.diffusion_model.{ldm_unet_name(name)}"] = tensor
    for name, tensor in weights.get("vae", {}).items():
        convolved = tensor[:, :, None, None] if ".attentions." in name and tensor.ndim == 2 else tensor
        named[f"first_stage_model.{ldm_vae_name(name)}"] = convolved.clone()
    for name, tensor in published("text_encoder", weights["text_encoder"]).items():
        named[f"cond_stage_model.transformer.{name}"] = tensor
    return named


def ldm_unet_name(name: str) -> str:
    """A UNet weight's name in the original layout, for SD 1.x's four levels of two (up: three) layers."""
    for old, new in (
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("conv_in.", "input_blocks.0.0."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
        ("mid_block.resnets.0", "middle_block.0"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("mid_block.resnets.1", "middle_block.2"),
    ):
        if name.startswith(old):
            return _ldm_resnet(name.replace(old, new, 1))
    match = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", name)
    assert match, name
    way, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{3 * block + 3}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * block + 2}.{1 if block == 0 else 2}.{rest}"
    place = f"input_blocks.{1 + 3 * block + layer}" if way == "down" else f"output_blocks.{3 * block + layer}"
    return f"{place}.0.{_ldm_resnet(rest)}" if kind == "resnets" else f"{place}.1.{rest}"


def ldm_vae_name(name: str) -> str:
    """A VAE weight's name in the original layout, for four levels."""
    name = re.sub(r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block", name)
    name = re.sub(r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample", name)
    name = re.sub(r"decoder\.up_blocks\.(\d)\.resnets", lambda m: f"decoder.up.{3 - int(m[1])}.block", name)
    name = re.sub(r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{3 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for new, old in (
        ("mid_block.attentions.0", "mid.attn_1"),
        (".group_norm.", ".norm."),
        (".to_q.", ".q."),
        (".to_k.", ".k."),
        (".to_v.", ".v."),
        (".to_out.0.", ".proj_out."),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
    ):
        name = name.replace(new, old)
    return name


def lora_factors(
    unet: Mapping[str, torch.Tensor], *, rank: int, dtype: torch.dtype = torch.float16, scale: float = 0.05
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(down, up) for each layer of `unet` that the LCM-LoRA changes, shaped as kohya's tools and PEFT shape them."""
    generator = torch.Generator().manual_seed(7)
    factors = {}
    for name, weight in unet.items():
        path = name.removesuffix(".weight")
        if name.endswith(".weight") and LCM_TARGETS.fullmatch(path):
            down = torch.empty(rank, *weight.shape[1:]).normal_(0, scale, generator=generator)
            up = torch.empty(weight.shape[0], rank, *[1] * (weight.ndim - 2)).normal_(0, scale, generator=generator)
            factors[path] = (down.to(dtype), up.to(dtype))
    return factors


def kohya(factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], *, alpha: float) -> Tensors:
    """`factors` under the keys of latent-consistency/lcm-lora-sdv1-5."""
    tensors: Tensors = {}
    for path, (down, up) in factors.items():
        stem = f"lora_unet_{path.replace('.', '_')}"
        tensors |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(alpha),
        }
    return tensors


def write_sparse(target: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32") -> None:
    """A safetensors file of zeros that takes no disk: a header, then a hole."""
    size = {"F32": 4, "F16": 2}[dtype]
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + size * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def _ldm_resnet(name: str) -> str:
    for new, old in (
        ("norm1.", "in_layers.0."),
        ("conv1.", "in_layers.2."),
        ("time_emb_proj.", "emb_layers.1."),
        ("norm2.", "out_layers.0."),
        ("conv2.", "out_layers.3."),
        ("conv_shortcut.", "skip_connection."),
    ):
        if ".transformer_blocks." not in name:
            name = name.replace(new, old)
    return name


def _old_attention(name: str) -> str:
    for new, old in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")):
        name = name.replace(new, old)
    return name


def _write_weights(target: Path, stem: str, variant: str, tensors: Tensors, shards: int) -> None:
    target.mkdir(parents=True, exist_ok=True)
    stem += f".{variant}" if variant else ""
    names = sorted(tensors)
    for number in range(shards):
        shard = {name: tensors[name].contiguous() for name in names[number::shards]}
        suffix = f"-{number + 1:05}-of-{shards:05}" if shards > 1 else ""
        save_file(shard, target / f"{stem}{suffix}.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
