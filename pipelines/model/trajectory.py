"""State of one image being denoised (`pipelines.model.lcm`), and the noise and coefficients of its start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.engine.backend import Event
    from pipelines.model.noise_schedule import Step

# torch takes seeds of 64 bits; others are reduced modulo 2⁶⁴, so -1 is 2⁶⁴ − 1, as in torch.
SEED_MASK = 0xFFFF_FFFF_FFFF_FFFF

# Numbers that torch sets without threads of its own, of which each thread that draws noise would get its own team.
_SERIAL = 16_384


@dataclass(eq=False, slots=True, kw_only=True)
class Trajectory:
    """One image being denoised. Tensors live on the device; latents are float32 [channels, height / 8, width / 8]."""

    contexts: tuple[torch.Tensor, ...]  # of each row; shared with the prompts' cache
    shifts: tuple[torch.Tensor, ...]  # of each step; shared with the timesteps' cache
    plan: torch.Tensor  # a `Start`'s
    latents: torch.Tensor  # at the timestep of the step to come
    denoised: torch.Tensor  # the clean estimate so far: what `decode` shows
    finite: torch.Tensor  # bool []: whether the last decode came out as numbers; true before the first
    step: int = 0
    begun: Event | None = None  # when the device has all of the above; None: it has
    stepped: Event | None = None  # when it has what the last step made; None: it has, or decoding waits for it already

    @property
    def steps(self) -> int:
        """Total UNet calls of this image."""
        return len(self.shifts)

    @property
    def now(self) -> torch.Tensor:
        """What the step to come adds and goes by: the row of `plan`."""
        return self.plan[2 + self.step]

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
        return (*self.contexts, *self.shifts, self.plan, self.latents)


class Coefficients(NamedTuple):
    """A `Step` and the guidance scale: numbers, or for a batch float32 [images, 1, 1, 1] each, on the device."""

    clean_sample: Any
    clean_output: Any
    out: Any
    skip: Any
    signal: Any
    noise: Any
    guidance: Any


class Start(NamedTuple):
    """What an image begins with beside its picture and text; made by any thread, on the host.

    `plan`: float32 [2 + steps, channels · h · w + 7]: rows of noise, then a `Coefficients`. The first row samples the
    posterior, the second is the noise of the first timestep at its `signal` and `noise` levels, then there is a row for
    each step. `timesteps`: of the steps.
    """

    plan: torch.Tensor
    timesteps: tuple[int, ...]


def draw_start(
    seed: int,
    steps: Sequence[Step],
    levels: tuple[float, float],
    guidance: float,
    shape: tuple[int, int, int],
    *,
    sampled: bool,
    pinned: bool = False,
) -> Start:
    """Return the start of an image with latents of this shape; zeros where it draws nothing.

    Drawn by the image's own CPU generator, whatever the device is, so that a seed gives the same picture everywhere.
    `levels`: of signal and noise at the first timestep. `sampled`: the posterior is. `pinned`: in memory that a device
    can copy from by itself.
    """
    size = math.prod(shape)
    nothing = (0.0,) * len(Coefficients._fields)
    begin = Coefficients(*nothing)._replace(signal=levels[0], noise=levels[1])
    numbers = [nothing, begin, *((*step[1:], guidance) for step in steps)]
    plan = torch.empty(len(numbers), size + len(nothing), pin_memory=pinned)
    plan[:, size:] = torch.tensor(numbers, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed & SEED_MASK)
    for row, drawn in enumerate([sampled, *[True] * len(steps), False] if steps else [sampled, False]):
        if drawn:
            plan[row, :size].normal_(generator=generator)
        else:
            for part in torch.split(plan[row, :size], _SERIAL):
                part.zero_()
    return Start(plan, tuple(step.timestep for step in steps))


def parts(plan: torch.Tensor, shape: Sequence[int]) -> tuple[torch.Tensor, Coefficients]:
    """Return the noise [rows, *shape] and the coefficients of plans' rows [rows, …]."""
    noise, coefficients = torch.split(plan, [math.prod(shape), len(Coefficients._fields)], dim=1)
    return noise.view(len(noise), *shape), Coefficients(*coefficients[:, :, None, None, None].unbind(1))
