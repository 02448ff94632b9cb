"""Export of the trained parts: one folder in diffusers layout, float16 safetensors."""

import json
import shutil
from pathlib import Path

import torch

from training.networks import adversarial, autoencoder, safety_checker, text_encoder
from training.networks import denoiser as unet

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "LCMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": safety_checker.SIDE,
    "crop_size": safety_checker.SIDE,
    "do_resize": True,
    "resample": 3,
}


def export(target: Path, denoiser_path: Path = adversarial.FINISH.leaves) -> None:
    """Replace the folder `target`. `denoiser_path` may be the checkpoint of an unfinished training run."""
    shutil.rmtree(target, ignore_errors=True)
    denoiser = unet.load(denoiser_path)
    guard = safety_checker.build()
    guard.load_state_dict(torch.load(safety_checker.FINAL, weights_only=True))
    parts = {
        "unet": denoiser.unet,
        "text_encoder": denoiser.text,
        "vae": autoencoder.load(),
        "safety_checker": guard,
    }
    for name, part in parts.items():
        part.to(torch.float16).save_pretrained(target / name)
    shutil.copytree(text_encoder.TOKENIZER, target / "tokenizer")
    for path in target.rglob("*.safetensors"):
        path.chmod(0o644)
    for name, content in (
        ("model_index.json", INDEX),
        ("scheduler/scheduler_config.json", unet.SCHEDULER),
        ("feature_extractor/preprocessor_config.json", PREPROCESSOR),
    ):
        path = target / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")


def weight_of(folder: Path) -> int:
    """Return the total size of the safetensors files, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
