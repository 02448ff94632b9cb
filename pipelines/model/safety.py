"""Safety checker on device tensors: the decisions of diffusers' `StableDiffusionSafetyChecker`, for a whole batch.

diffusers takes each picture through Pillow, and scores through a Python loop on the CPU (15 ms and more a request).
Here everything up to the list of flags stays on the device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

# Of openai/clip-vit-large-patch14, which every published checker builds on (its preprocessor_config.json).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Once a picture is near a "special care" concept, every other concept counts by this much more.
SPECIAL_CARE_ADJUSTMENT = 0.01


class SafetyChecker:
    """Which pictures of a batch are unsafe. `checker`: a `StableDiffusionSafetyChecker` on its device, in eval mode."""

    def __init__(self, checker: Any) -> None:
        self._checker = checker
        self._size = int(checker.config.vision_config.image_size)
        device = checker.concept_embeds.device
        self._mean = torch.tensor(CLIP_MEAN, device=device).view(3, 1, 1)
        self._std = torch.tensor(CLIP_STD, device=device).view(3, 1, 1)

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return one flag per picture of uint8 [N, H, W, 3] on the checker's device: bool [N] there."""
        checker = self._checker
        inputs = self.preprocess(pixels).to(checker.concept_embeds.dtype)
        embeddings = checker.visual_projection(checker.vision_model(inputs)[1]).float()
        special = _score(embeddings, checker.special_care_embeds, checker.special_care_embeds_weights)
        adjustment = SPECIAL_CARE_ADJUSTMENT * _above_any(special)[:, None]
        concepts = _score(embeddings, checker.concept_embeds, checker.concept_embeds_weights)
        return _above_any(concepts + adjustment)

    def preprocess(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return `CLIPImageProcessor`'s result for uint8 [N, H, W, 3]: float32 [N, 3, size, size], normalised.

        Shortest side to `size` by Pillow's bicubic filter, centre crop.
        """
        size = self._size
        height, width = pixels.shape[1:3]
        short = min(height, width)
        resized = int(size * height / short), int(size * width / short)
        # Pillow resizes one axis after the other, to whole levels each time: across first, but for tall pictures.
        first = (resized[0], width) if height > 2 * width and resized[0] < height else (height, resized[1])
        images = pixels.permute(0, 3, 1, 2).float()
        for target in (first, resized):
            images = F.interpolate(images, size=target, mode="bicubic", antialias=True).round().clamp(0, 255)
        top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
        images = images[:, :, top : top + size, left : left + size]
        return (images / 255 - self._mean) / self._std


def _score(embeddings: torch.Tensor, concepts: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Return each picture's cosine with each concept, minus that concept's threshold: float32 [N, concepts]."""
    cosine = F.normalize(embeddings) @ F.normalize(concepts.float()).T
    return cosine - thresholds.float()


def _above_any(scores: torch.Tensor) -> torch.Tensor:
    """Return which rows of [N, concepts] have a score above zero, rounded to thousandths as in diffusers: bool [N].

    NaN counts as above, unlike in diffusers: a checker that failed must not pass a picture.
    """
    return ~((scores * 1000).round() <= 0).all(dim=1)
