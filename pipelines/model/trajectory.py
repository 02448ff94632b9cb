"""State of one image being denoised (`pipelines.model.lcm`), and the noise and coefficients of its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.engine.backend import Event
    from pipelines.model.noise_schedule import Step

# torch takes seeds of 64 bits; others are reduced modulo 2⁶⁴, so -1 is 2⁶⁴ − 1, as in torch.
SEED_MASK = 0xFFFF_FFFF_FFFF_FFFF


class Posterior(NamedTuple):
    """The VAE encoder's output for one picture: float32 [channels, h, w] each, unscaled.

    `deviation` is None for an `AutoencoderTiny`, whose latents are not sampled.
    """

    mean: torch.Tensor
    deviation: torch.Tensor | None


@dataclass(eq=False, slots=True, kw_only=True)
class Trajectory:
    """One image being denoised. Tensors live on the device; latents are float32 [channels, height / 8, width / 8]."""

    contexts: tuple[torch.Tensor, ...]  # of each row; shared with the prompts' cache
    shifts: tuple[torch.Tensor, ...]  # of each step; shared with the timesteps' cache
    table: torch.Tensor  # float32 [steps, 7]: a `Coefficients` for each step
    noise: torch.Tensor  # float32 [steps, channels, h, w]: what each step adds; zero for the last
    latents: torch.Tensor  # at the timestep of the step to come
    denoised: torch.Tensor  # the clean estimate so far: what `decode` shows
    finite: torch.Tensor  # bool []: whether the last decode came out as numbers; true before the first
    step: int = 0
    begun: Event | None = None  # when the device has all of the above; None: it has
    stepped: Event | None = None  # when it has what the last step made; None: it has, or decoding waits for it already

    @property
    def steps(self) -> int:
        """Total UNet calls of this image."""
        return len(self.table)

    @property
    def rows(self) -> int:
        """UNet rows per step: 2 with guidance, else 1."""
        return len(self.contexts)

    @property
    def finished(self) -> bool:
        """Whether only decoding is left."""
        return self.step >= self.steps

    @property
    def ready(self) -> bool:
        """Whether the device has made everything that a step reads."""
        return self.begun is None or self.begun.passed

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All tensors that a step reads."""
        return (*self.contexts, *self.shifts, self.table, self.noise, self.latents)


class Coefficients(NamedTuple):
    """A `Step` and the guidance scale for each image of a batch: float32 [images, 1, 1, 1], on the device."""

    clean_sample: torch.Tensor
    clean_output: torch.Tensor
    out: torch.Tensor
    skip: torch.Tensor
    signal: torch.Tensor
    noise: torch.Tensor
    guidance: torch.Tensor


def draw_noise(seed: int, count: int, shape: torch.Size) -> torch.Tensor:
    """Return `count` draws of an image's own CPU generator in order, and a last one of zeros: float32 [count + 1, …].

    On the CPU whatever the device is, so that a seed gives the same picture everywhere.
    """
    generator = torch.Generator().manual_seed(seed & SEED_MASK)
    noise = torch.zeros(count + 1, *shape)
    for draw in noise[:count]:
        draw.normal_(generator=generator)
    return noise


def coefficient_table(steps: Sequence[Step], guidance: float) -> torch.Tensor:
    """Return the coefficients of an image's steps: float32 [steps, 7], a row of `Coefficients` each."""
    return torch.tensor([(*step[1:], guidance) for step in steps], dtype=torch.float32)
