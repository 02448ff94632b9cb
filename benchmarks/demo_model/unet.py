"""The denoiser: v-prediction at the 50 timesteps that the LCM sampler can ask for, text encoder learning along.

Two things differ from SD1.5's training. The schedule is the cosine one: it ends without any signal, so that at strength
1.0 the input says nothing, and its four steps are of about one size. And at high timesteps the noisy input is often
*another variant of the same layout* – other hour, weather, place, or a crude drawing – than the picture to be made:
image-to-image is learnt as it will be used, composition from the input and what the words name from the words.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from benchmarks.demo_model import text
from benchmarks.demo_model.captions import caption
from benchmarks.demo_model.data import VARIANTS
from benchmarks.demo_model.latents import LARGE_LATENTS, SMALL_LATENTS, TINY_LATENTS, Latents
from benchmarks.demo_model.recipe import WORK
from benchmarks.demo_model.training import Course, rank, train
from pipelines.schedule import Schedule

SCHEDULER = {
    "_class_name": "LCMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": 1000,
    "original_inference_steps": 50,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": True,
    "clip_sample": False,
}
_LEVELS = Schedule.from_config(SCHEDULER)
# What four steps ask for at strengths 1.0, 0.8 and 0.5; two draws of three come from these.
_FAVOURITES = (999, 999, 759, 499, 259, 799, 799, 599, 399, 199, 499, 379, 259, 139)


class Denoiser(nn.Module):
    """Text encoder and UNet, trained together."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text = text.build(vocabulary)
        self.unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(32, 64, 128, 128),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=4,
            cross_attention_dim=text.WIDTH,
        ).to(memory_format=torch.channels_last)

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, self.text(ids)[0]).sample


class Examples:
    """Draws (input latents, wanted latents, caption) from one set."""

    def __init__(self, latents: Latents) -> None:
        self.latents = np.array(latents.open())
        self.scenes = latents.pictures.scenes()

    def draw(self, rng: np.random.Generator, timestep: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Below timestep 400 input and wanted picture are the same; above, more and more often another variant."""
        given = wanted = int(rng.integers(len(self.scenes)))
        if rng.random() < np.clip((timestep - 380) / 400, 0, 0.6):
            given = wanted // VARIANTS * VARIANTS + int(rng.integers(VARIANTS))
        words = "" if rng.random() < 0.1 else caption(self.scenes[wanted], rng)
        return self.latents[given], self.latents[wanted], words


def draw_timesteps(rng: np.random.Generator, count: int) -> np.ndarray:
    every = rng.integers(1, 51, count) * 20 - 1
    return np.where(rng.random(count) < 0.65, rng.choice(_FAVOURITES, count), every)


def batch_loss(model: Denoiser, words: text.Words, examples: Examples, rng: np.random.Generator, count: int) -> Tensor:
    """Mean squared error of v, each picture at its own timestep."""
    timesteps = draw_timesteps(rng, count)
    given, wanted, captions = zip(*(examples.draw(rng, int(t)) for t in timesteps), strict=True)
    given, wanted = (torch.from_numpy(np.stack(each)).float() for each in (given, wanted))
    levels = torch.tensor([_LEVELS.levels(int(t)) for t in timesteps], dtype=torch.float32)
    signal, spread = levels.T[:, :, None, None, None]
    noise = torch.from_numpy(rng.standard_normal(given.shape, np.float32))
    noisy = (signal * given + spread * noise).contiguous(memory_format=torch.channels_last)
    velocity = (signal * noisy - wanted) / spread
    made = model(noisy, torch.from_numpy(timesteps), words.ids(list(captions)))
    return F.mse_loss(made.float(), velocity)


def load(path: Path) -> Denoiser:
    """The denoiser of a checkpoint (`average` of a course, or the final state)."""
    state = torch.load(path, weights_only=True)
    model = Denoiser(len(text.Words().tokenizer))
    model.load_state_dict(state.get("average", state))
    return model.eval().requires_grad_(requires_grad=False)


@dataclass(frozen=True)
class Lesson:
    """One course: on what, how many pictures per step and process, and whose weights it starts from."""

    course: Course
    latents: Latents
    batch: int
    after: Path | None = None

    @property
    def leaves(self) -> Path:
        return WORK / f"{self.course.name}-final.pt"

    def work(self) -> None:
        """Trains, and leaves the averaged weights."""
        words = text.Words()
        model = Denoiser(len(words.tokenizer))
        if self.after is None:
            model.text.load_state_dict(torch.load(text.TAUGHT, weights_only=True))
        else:
            model.load_state_dict(torch.load(self.after, weights_only=True))
        model.unet.set_attn_processor(AttnProcessor())  # faster backwards on a CPU than the fused kernel
        examples = Examples(self.latents)

        def loss(rng: np.random.Generator) -> dict[str, Tensor]:
            return {"v": batch_loss(model, words, examples, rng, self.batch)}

        average = train(self.course, model, loss)
        if rank() == 0:
            torch.save(average.state_dict(), self.leaves)


TINY = Lesson(Course("unet-128", steps=560, rate=1.2e-3, warmup=150, floor=0.4, average=0.995), TINY_LATENTS, 12)
MIDDLE = Lesson(Course("unet-256", steps=30_000, rate=8e-4, floor=0.1, average=0.999), SMALL_LATENTS, 6, TINY.leaves)
LAST = Lesson(Course("unet-512", steps=5000, rate=4e-4, warmup=50), LARGE_LATENTS, 2, MIDDLE.leaves)
