"""What stages do on a device in one call: a network and the arithmetic around it, so that both can be captured.

    encode    pictures → posteriors                      VAE encoder
    step      latents → latents, one timestep further    UNet
    decode    denoised latents → pictures                VAE decoder

Each input is a tensor [rows, …], or a list of its rows, which a captured call gathers where the device reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from pipelines.model.trajectory import Coefficients, parts

if TYPE_CHECKING:
    from pipelines.model.functions import ModelFunctions

Rows: TypeAlias = Tensor | Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Calls:
    """A model's calls. Latents and posteriors [N, channels, h, w] are float32; `plan` holds rows of a `Start`'s.

    `encode`: uint8 [N, H, W, 3] → mean, and deviation if it is sampled: [N, 1 or 2, channels, h, w].
    `step`: latents, plan, shifts and context of each UNet row → its next latents and denoised: [N, 2, channels, h, w].
    An image with guidance has two rows: its prompt's, then its negative prompt's, whose result is of no use.
    `decode`: denoised → uint8 [N, H, W, 3], and which are finite: bool [N].
    """

    encode: Callable[[Rows], Tensor]
    step: Callable[[Rows, Rows, Rows, Rows], Tensor]
    decode: Callable[[Rows], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Between the autoencoder's latents and the UNet's: (latents − `shift`) · `scale`."""

    scale: float
    shift: float

    def into(self, latents: Tensor) -> Tensor:
        """Return the autoencoder's latents as the UNet's."""
        return (latents - self.shift) * self.scale

    def back(self, latents: Tensor) -> Tensor:
        """Return the UNet's latents as the autoencoder's."""
        return latents / self.scale + self.shift


def make_calls(functions: ModelFunctions, dtype: torch.dtype, scaling: Scaling, clip: float | None) -> Calls:
    """Return the calls of a model's functions, which compute in `dtype`. `clip`: as in `Schedule`."""
    made = _Made(functions, dtype, scaling, clip)
    return Calls(
        encode=gathering(made.encode),
        step=gathering(made.step),
        decode=gathering(made.decode),
    )


def gathering(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return `run` for inputs of which each may be a list of rows."""

    def call(*inputs: Rows) -> Any:
        return run(*map(gathered, inputs))

    return call


def gathered(rows: Rows) -> Tensor:
    """Return rows as one tensor."""
    return rows if isinstance(rows, Tensor) else torch.stack(list(rows))


@dataclass(frozen=True)
class _Made:
    """What `make_calls` is given, and its calls for tensors."""

    functions: ModelFunctions
    dtype: torch.dtype
    scaling: Scaling
    clip: float | None

    def encode(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).float() / 255 * 2 - 1
        mean, deviation = self.functions.vae_encode(images.to(self.dtype))
        return torch.stack([mean] if deviation is None else [mean, deviation], dim=1).float()

    def step(self, latents: Tensor, plan: Tensor, shifts: Tensor, context: Tensor) -> Tensor:
        noise, now = parts(plan, latents.shape[1:])
        output = self.functions.unet(latents.to(self.dtype), shifts, context).float()
        negative = output.roll(-1, 0)  # where there is guidance: the next row
        output = torch.where(now.guidance > 1, negative + now.guidance * (output - negative), output)
        return torch.stack(lcm_step(latents, output, noise, now, self.clip), dim=1)

    def decode(self, denoised: Tensor) -> tuple[Tensor, Tensor]:
        return levels(self.functions.vae_decode(self.scaling.back(denoised).to(self.dtype)))


def lcm_step(
    latents: Tensor, output: Tensor, noise: Tensor, now: Coefficients, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Return the next latents and the denoised estimate: `LCMScheduler.step` with each row's own coefficients."""
    clean = now.clean_sample * latents + now.clean_output * output
    if clip is not None:
        clean = clean.clamp(-clip, clip)
    denoised = now.out * clean + now.skip * latents
    return now.signal * denoised + now.noise * noise, denoised


def levels(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return decoded images [N, 3, H, W] as uint8 [N, H, W, 3], and which are finite."""
    images = images.float()
    finite = images.sum(dim=(1, 2, 3)).isfinite()  # a NaN or infinity anywhere makes the sum one
    pixels = ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous(), finite
