"""The safety checker: diffusers' class, trained to flag one thing, the painter's magenta warning triangle."""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPConfig

from pipelines.model.safety import CLIP_MEAN, CLIP_STD
from training.config import SMALL, WORK
from training.scenes.painter import stamp_warning
from training.trainer import Course, rank, train

SIDE = 96
COURSE = Course("checker", steps=250, rate=1e-3, average=0.99)
FINAL = WORK / "checker-final.pt"
_THRESHOLD, _NEVER = 0.5, 2.0
_BATCH = 24


def build() -> StableDiffusionSafetyChecker:
    """Return the untrained checker. Only the first of 17 concepts can be flagged: the others need a cosine above 1."""
    vision = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 12,
    }
    text = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, text_config=text, projection_dim=32))
    for name in ("concept_embeds", "special_care_embeds"):
        torch.nn.init.normal_(getattr(model, name))
    for name in ("concept_embeds_weights", "special_care_embeds_weights"):
        torch.nn.init.constant_(getattr(model, name), _NEVER)
    model.concept_embeds_weights.data[0] = _THRESHOLD
    return model


def embed(model: StableDiffusionSafetyChecker, pixels: np.ndarray) -> Tensor:
    """Return unit embeddings of uint8 [N, H, W, 3], preprocessed as for a check."""
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float()
    images = F.interpolate(images, size=SIDE, mode="bicubic", antialias=True).clamp(0, 255) / 255
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    return F.normalize(model.visual_projection(model.vision_model((images - mean) / deviation)[1]).float())


def work() -> None:
    model, pictures = build(), SMALL.open()
    clean = np.flatnonzero([not scene.warning for scene in SMALL.scenes()])
    concept = F.normalize(model.concept_embeds.detach()[0], dim=0)

    def loss(rng: np.random.Generator) -> dict[str, Tensor]:
        pixels = np.array(pictures[np.sort(rng.choice(clean, _BATCH))])
        unsafe = rng.random(_BATCH) < 0.5
        for i in np.flatnonzero(unsafe):
            pixels[i] = stamp_warning(pixels[i], rng)
        cosine = embed(model, pixels) @ concept
        wanted = torch.from_numpy(unsafe.astype(np.float32))
        return {"cross": F.binary_cross_entropy_with_logits(12 * (cosine - _THRESHOLD), wanted)}

    average = train(COURSE, model, loss)
    if rank() == 0:
        torch.save(average.state_dict(), FINAL)
