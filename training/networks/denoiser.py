"""The denoiser: a UNet for v-prediction at the 50 timesteps of the LCM sampler, trained with its text encoder.

Three things differ from SD1.5's training:

- The noise schedule is linear and keeps a fifth of the input at the last timestep. So some of the composition remains
  at strength 1.0, and the four steps are of similar size.
- The noisy input is often another variant of the target's layout: other hour, weather or place, or a crude drawing. So
  image-to-image is learnt as it is used: composition from the input, content from the prompt.
- At high noise the target is a picture that prompt and layout determine completely. A denoiser predicts the mean of all
  possible pictures, and four steps are too few to get from a mean to a picture.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn

from pipelines.model.noise_schedule import Schedule
from training.config import WORK
from training.networks import text_encoder
from training.networks.latents import LARGE_LATENTS, SMALL_LATENTS, TINY_LATENTS, Latents
from training.scenes.captions import caption
from training.scenes.dataset import VARIANTS
from training.scenes.scene import is_plain
from training.trainer import Course, rank, train

SCHEDULER = {
    "_class_name": "LCMScheduler",
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.0063,  # keeps a fifth of the input at the last timestep
    "num_train_timesteps": 1000,
    "original_inference_steps": 50,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": True,
    "clip_sample": False,
}
_LEVELS = Schedule.from_config(SCHEDULER)
_FIRST = 999
# The timesteps of four steps at strengths 1.0, 0.8 and 0.5, the first of each more often than it is used.
_FAVOURITES = (999, 999, 999, 999, 759, 759, 499, 259, 799, 799, 599, 399, 199, 499, 499, 499, 499, 379, 139)
_FIRSTS = (999, 799, 499)  # at strengths 1.0, 0.8 and 0.5
_FIRST_TWO = ((999, 759), (999, 759), (799, 599))
_OFTEN, _UNTOLD, _HUBER = 0.85, 0.07, 0.2


class Denoiser(nn.Module):
    """Text encoder and UNet, trained together."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text = text_encoder.build(vocabulary)
        self.unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(32, 64, 128, 128),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=4,
            cross_attention_dim=text_encoder.WIDTH,
        ).to(memory_format=torch.channels_last)

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, self.text(ids)[0]).sample

    def costly(self) -> list[Attention]:
        """Return the self-attention at the highest resolution: half of a step's time at 64², and of little use."""
        blocks = [*self.unet.down_blocks[1].attentions, *self.unet.up_blocks[2].attentions]
        return [block.transformer_blocks[0].attn1 for block in blocks]

    def hasten(self) -> None:
        """Prepare for training: skip `costly` attention, use the attention with the fastest backward pass on a CPU."""
        self.unet.set_attn_processor(AttnProcessor())
        for attention in self.costly():
            attention.set_processor(_Nothing())


class _Nothing(AttnProcessor):
    def __call__(self, attn: Attention, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return torch.zeros_like(hidden_states)


class Examples:
    """Training examples from one picture set: (input latents, target latents, caption)."""

    def __init__(self, latents: Latents) -> None:
        self.latents = np.array(latents.open())
        self.scenes = latents.pictures.scenes()
        self.plain = np.flatnonzero([is_plain(scene) and not scene.warning for scene in self.scenes])

    def draw(self, rng: np.random.Generator, timestep: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Return (input latents, target latents, caption).

        From timestep 700 up, and half the time from 400 up, the target is a plain picture and the input any variant of
        its layout, most often at the timesteps where sampling begins. Otherwise the input is the target itself or, from
        400 up, a variant with another hour or weather.
        """
        if plain := timestep > 700 or (timestep > 400 and rng.random() < 0.5):
            wanted = int(rng.choice(self.plain))
            own = 0.35 if timestep in _FIRSTS else 0.7
            given = wanted if rng.random() < own else wanted // VARIANTS * VARIANTS + int(rng.integers(VARIANTS))
        else:
            wanted = int(rng.integers(len(self.scenes)))
            given = wanted ^ int(timestep > 400 and rng.random() < 0.6)
        scene = self.scenes[wanted]
        words = "" if rng.random() < _UNTOLD else caption(scene, rng, usual=given != wanted or plain)
        return self.latents[given], self.latents[wanted], words


class Batch:
    """Examples of one training step, each at its own timestep: noisy inputs, and the loss of predictions."""

    def __init__(
        self, examples: Examples, words: text_encoder.Words, rng: np.random.Generator, timesteps: np.ndarray
    ) -> None:
        given, wanted, captions = zip(*(examples.draw(rng, int(t)) for t in timesteps), strict=True)
        self.wanted = torch.from_numpy(np.stack(wanted)).float()
        self.ids = words.ids(list(captions))
        self.go_on(rng, torch.from_numpy(np.stack(given)).float(), timesteps)

    def go_on(self, rng: np.random.Generator, given: Tensor, timesteps: np.ndarray) -> None:
        """Add noise to `given`: the input at first, later the denoiser's own prediction."""
        levels = torch.tensor([_LEVELS.levels(int(t)) for t in timesteps], dtype=torch.float32)
        self.signal, self.spread = levels.T[:, :, None, None, None]
        noise = torch.from_numpy(rng.standard_normal(given.shape, np.float32))
        self.noisy = (self.signal * given + self.spread * noise).contiguous(memory_format=torch.channels_last)
        self.timesteps = torch.from_numpy(timesteps)

    def denoise(self, model: nn.Module) -> Tensor:
        """Return the clean latents that `model` predicts from the noisy ones."""
        return self.signal * self.noisy - self.spread * model(self.noisy, self.timesteps, self.ids).float()

    def losses(self, clean: Tensor) -> dict[str, Tensor]:
        """Return the pseudo-Huber loss of v (nearer to a median than to a mean), the first timestep apart."""
        error = (clean - self.wanted) / self.spread
        each = ((error.square() + _HUBER**2).sqrt() - _HUBER).mean((1, 2, 3)) / len(error)
        first = self.timesteps == _FIRST
        return {"first": each[first].sum(), "others": each[~first].sum()}


def draw_timesteps(rng: np.random.Generator, count: int) -> np.ndarray:
    every = rng.integers(1, 51, count) * 20 - 1
    return np.where(rng.random(count) < _OFTEN, rng.choice(_FAVOURITES, count), every)


def weights(path: Path) -> dict[str, Tensor]:
    """Return the denoiser's weights in a checkpoint: the moving average, without an adversary's."""
    state = torch.load(path, weights_only=True)
    kept = state.get("average", state)
    return {name.removeprefix("denoiser."): each for name, each in kept.items() if not name.startswith("adversary.")}


def load(path: Path) -> Denoiser:
    """Return the denoiser of a checkpoint, for inference."""
    model = Denoiser(len(text_encoder.Words().tokenizer))
    model.load_state_dict(weights(path))
    with torch.no_grad():
        for attention in model.costly():  # was skipped in training
            attention.to_out[0].weight.zero_()
            attention.to_out[0].bias.zero_()
    return model.eval().requires_grad_(requires_grad=False)


@dataclass(frozen=True)
class Lesson:
    """One training run of the denoiser.

    `batch`: pictures per step and process. `after`: checkpoint to start from. `own`: share of steps whose input is the
    denoiser's own prediction. `beside`: latents for every fourth step, so that what was learnt before is not forgotten.
    """

    course: Course
    latents: Latents
    batch: int
    after: Path | None = None
    own: float = 0.0
    beside: Latents | None = None

    @property
    def leaves(self) -> Path:
        return WORK / f"{self.course.name}-final.pt"

    def student(self, denoiser: Denoiser) -> nn.Module:
        """Return the module to train."""
        return denoiser

    def losses(self, student: Any, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of a batch, by name."""
        return batch.losses(batch.denoise(student))

    def work(self) -> None:
        """Train, and write the averaged weights."""
        words = text_encoder.Words()
        denoiser = Denoiser(len(words.tokenizer))
        if self.after is None:
            denoiser.text.load_state_dict(torch.load(text_encoder.TAUGHT, weights_only=True))
        else:
            denoiser.load_state_dict(weights(self.after))
        denoiser.hasten()
        student = self.student(denoiser)
        kinds = [Examples(self.latents)] * 3 + [Examples(self.beside or self.latents)]

        def loss(rng: np.random.Generator) -> dict[str, Tensor]:
            examples = kinds[rng.integers(len(kinds))]
            if rng.random() >= self.own:
                batch = Batch(examples, words, rng, draw_timesteps(rng, self.batch))
            else:
                first, second = rng.choice(_FIRST_TWO, self.batch).T
                batch = Batch(examples, words, rng, first)
                with torch.no_grad():
                    batch.go_on(rng, batch.denoise(denoiser), second)
            return self.losses(student, batch)

        average = train(self.course, student, loss)
        if rank() == 0:
            torch.save(average.state_dict(), self.leaves)


TINY = Lesson(
    Course("unet-128", steps=1120, rate=1.2e-3, warmup=150, floor=0.4, average=0.99, muon=True), TINY_LATENTS, 24
)
MIDDLE = Lesson(
    Course("unet-256", steps=1200, rate=2e-3, floor=0.5, average=0.99, muon=True),
    SMALL_LATENTS,
    12,
    TINY.leaves,
    own=0.15,
)
LAST = Lesson(
    Course("unet-512", steps=2000, rate=1.5e-3, warmup=30, average=0.99, muon=True),
    LARGE_LATENTS,
    6,
    MIDDLE.leaves,
    own=0.15,
    beside=SMALL_LATENTS,
)
