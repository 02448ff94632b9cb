"""Latent consistency image-to-image: the algorithm from top to bottom.

    prepare   prompts → keys and values of cross attention     text encoder, cached
    draw      seed → all of an image's noise                   on any thread of the host
    encode    pixels → latents at their first timestep         VAE encoder
    step      latents → latents, one timestep further          UNet, one call for the whole batch
    decode    denoised estimate → pixels                       VAE decoder
    check     pixels → unsafe or not                           safety checker

An image being denoised is a `Trajectory`, which holds all of its own state: text, coefficients, noise, latents. So a
batch is any list of trajectories of one size, and may be another list at every step: members may be at different
timesteps, have different numbers of them, and run with or without guidance. No member reads another, so a picture does
not depend on its batch (except for the last bits of float arithmetic).

Latents stay in float32 between steps, whatever the model's dtype: at four steps that costs nothing and the result is
nearer to float32's. `step` copies nothing between host and device and waits for nothing: coefficients and noise, an
image's `Start`, are uploaded in `encode`, and its shapes depend on (rows, height, width) only. So the functions that
do the work (`pipelines.model.functions`) may be captured ones (`pipelines.device.cuda_graphs`).

The reference is diffusers: `StableDiffusionImg2ImgPipeline` with `LCMScheduler`, a CPU generator per image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch

from pipelines.model.functions import make_functions
from pipelines.model.noise_schedule import Schedule
from pipelines.model.prompts import Prompt, PromptEncoder
from pipelines.model.trajectory import Coefficients, Posterior, Start, Trajectory, draw_start, parts
from pipelines.model.vae import samples

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from pipelines.messages import GenerationParams
    from pipelines.model.functions import ModelFunctions
    from pipelines.weights.checkpoint import LoadedCheckpoint

    Pixels: TypeAlias = npt.NDArray[np.uint8]


class UnetInputs(NamedTuple):
    """Inputs of one UNet call: first a row for each image's prompt, then one for each negative prompt.

    In the model's dtype: `sample` [rows, channels, h, w]; `shifts` [rows, …] of each row's timestep and `context`
    [rows, length, …] of its text, as `Unet.shifts` and `Unet.context` make them.
    """

    sample: torch.Tensor
    shifts: torch.Tensor
    context: torch.Tensor


@dataclass(frozen=True)
class Conditioning:
    """The encoded prompts of a request. `negative` is None when it runs without guidance."""

    prompt: Prompt
    negative: Prompt | None

    @property
    def summary(self) -> str:
        """Return token counts for the request's log: "95 tokens, 77 used"."""
        lines = [f"prompt: {self.prompt.tokens} tokens, {self.prompt.used} used"]
        if self.negative is not None:
            lines.append(f"negative prompt: {self.negative.tokens} tokens, {self.negative.used} used")
        return "; ".join(lines)

    @property
    def contexts(self) -> tuple[torch.Tensor, ...]:
        """What the UNet reads, for each row: the prompt's, then the negative prompt's if there is guidance."""
        prompts = [self.prompt] if self.negative is None else [self.prompt, self.negative]
        return tuple(prompt.context for prompt in prompts)


class Lcm:
    """The five stages of a model. Used from one thread, the device's.

    `functions`: what the device computes; the checkpoint's own (`make_functions`) unless given.
    """

    def __init__(self, model: LoadedCheckpoint, functions: ModelFunctions | None = None) -> None:
        self.model = model
        self.schedule = Schedule.from_config(model.scheduler_config)
        self.functions = functions or make_functions(model)
        self.prompts = PromptEncoder(
            model.tokenizer, model.text_encoder.config, self.functions.embed, self.functions.context, self._upload
        )
        self._shifts: dict[int, torch.Tensor] = {}  # by timestep: there are 50
        self._scale = float(model.vae.config.scaling_factor)
        self._shift = float(model.vae.config.shift_factor or 0.0)
        self._sampled = samples(model.vae)

    # --- prepare ---------------------------------------------------------------------------------------------------

    def prepare(self, params: GenerationParams) -> Conditioning:
        """Return a request's encoded prompts. A guidance scale up to 1 means no guidance, so no negative prompt."""
        guided = params.guidance_scale > 1.0
        return Conditioning(
            prompt=self.prompts.encode(params.prompt),
            negative=self.prompts.encode(params.negative_prompt) if guided else None,
        )

    # --- encode ----------------------------------------------------------------------------------------------------

    def draw(self, params: GenerationParams, pixels: Pixels, seed: int) -> Start:
        """Return what `encode` takes for an image of this seed. From any thread: it touches no device.

        The seed is the image's own (the request's plus its number); any integer, taken modulo 2⁶⁴.
        """
        steps = self.schedule.steps(params.num_inference_steps, params.strength)
        levels = self.schedule.levels(steps[0].timestep) if steps else (1.0, 0.0)
        height, width, _ = pixels.shape
        shape = (int(self.model.vae.config.latent_channels), height // 8, width // 8)
        pinned = self.model.device.type == "cuda"
        return draw_start(seed, steps, levels, params.guidance_scale, shape, sampled=self._sampled, pinned=pinned)

    @torch.inference_mode()
    def encode(self, items: Sequence[tuple[GenerationParams, Conditioning, Pixels, Start | int]]) -> list[Trajectory]:
        """Return a new trajectory for each (params, conditioning, pixels, start) of one size.

        `pixels`: uint8 [H, W, 3], sides multiples of 8. The start is what `draw` returns, or the seed to draw it now.
        """
        pictures = {id(pixels): pixels for _, _, pixels, _ in items}  # images of one request share theirs
        posteriors = dict(zip(pictures, self._posteriors(np.stack(list(pictures.values()))), strict=True))
        return [
            self._start(
                conditioning,
                posteriors[id(pixels)],
                start if isinstance(start, Start) else self.draw(params, pixels, start),
            )
            for params, conditioning, pixels, start in items
        ]

    def _posteriors(self, pixels: Pixels) -> list[Posterior]:
        """Return the VAE encoder's output for each of uint8 [N, H, W, 3]."""
        images = self._upload(torch.from_numpy(pixels)).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        means, deviations = self.functions.vae_encode(images.to(self.model.dtype))
        if deviations is None:
            return [Posterior(mean, None) for mean in means.float()]
        return [Posterior(*each) for each in zip(means.float(), deviations.float(), strict=True)]

    def _start(self, conditioning: Conditioning, posterior: Posterior, start: Start) -> Trajectory:
        """Return a trajectory: sample the posterior, then add the noise of the first timestep."""
        mean, deviation = posterior
        plan = self._upload(start.plan)
        noise, levels = parts(plan[:2], mean.shape)
        raw = mean if deviation is None else mean + deviation * noise[0]
        clean = (raw - self._shift) * self._scale
        return Trajectory(
            contexts=conditioning.contexts,
            shifts=tuple(map(self._shifts_at, start.timesteps)),
            plan=plan,
            latents=levels.signal[1] * clean + levels.noise[1] * noise[1],
            denoised=clean,
            finite=torch.ones((), dtype=torch.bool, device=clean.device),
        )

    def _shifts_at(self, timestep: int) -> torch.Tensor:
        if timestep not in self._shifts:
            self._shifts[timestep] = self.functions.shifts(timestep)
        return self._shifts[timestep]

    # --- step ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, trajectories: Sequence[Trajectory]) -> None:
        """Take every trajectory one timestep further, in one UNet call. All are of one size and unfinished.

        If it raises, no trajectory has changed: the call, or a smaller one, can be repeated.
        """
        members = sorted(trajectories, key=lambda member: -member.rows)  # guided first: slices find them
        guided = sum(member.rows > 1 for member in members)
        latents = torch.stack([member.latents for member in members])
        noise, now = parts(torch.stack([member.now for member in members]), latents.shape[1:])

        rows = [(member, 0) for member in members] + [(member, 1) for member in members[:guided]]
        inputs = UnetInputs(
            sample=torch.cat([latents, latents[:guided]]).to(self.model.dtype),
            shifts=torch.stack([member.shifts[member.step] for member, _ in rows]),
            context=torch.stack([member.contexts[row] for member, row in rows]),
        )
        output = self.functions.unet(*inputs)
        output = apply_guidance(output.float(), now.guidance, guided)
        latents, denoised = lcm_step(latents, output, noise, now, self.schedule.clip)

        for row, member in enumerate(members):
            member.latents, member.denoised = latents[row], denoised[row]
            member.step += 1

    # --- decode ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def decode(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        """Return the current pictures: uint8 [N, H, W, 3] on the device; unfinished trajectories as estimated."""
        return self._levels(trajectories, self.functions.vae_decode(self._clean(trajectories).to(self.model.dtype)))

    @torch.inference_mode()
    def decode_exactly(self, trajectories: Sequence[Trajectory]) -> torch.Tensor | None:
        """As `decode`, in float32, slower; None where the model's dtype holds numbers as large."""
        decode = self.functions.vae_decode_exactly
        return None if decode is None else self._levels(trajectories, decode(self._clean(trajectories)))

    def _clean(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        """Return the current estimates as the autoencoder takes them, in float32."""
        return torch.stack([member.denoised for member in trajectories]) / self._scale + self._shift

    def _levels(self, trajectories: Sequence[Trajectory], images: torch.Tensor) -> torch.Tensor:
        """Return decoded images as uint8 [N, H, W, 3], and note which are finite."""
        images = images.float()
        # A NaN or infinity anywhere makes the sum one.
        for member, finite in zip(trajectories, images.sum(dim=(1, 2, 3)).isfinite(), strict=True):
            member.finite = finite
        levels = ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        pixels: torch.Tensor = levels.permute(0, 2, 3, 1).contiguous()
        return pixels

    @torch.inference_mode()
    def finite(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        """Return whether each one's last `decode` was finite: bool [N] on the device. NaN would show as black."""
        return torch.stack([member.finite for member in trajectories])

    # --- check -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def check(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return which pictures of uint8 [N, H, W, 3] are unsafe: bool [N] on the device; none without a checker."""
        if self.functions.flags is None:
            return torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
        return self.functions.flags(pixels)

    def _upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a host tensor to the device; on CUDA from pinned memory, which needs no wait for the device."""
        if self.model.device.type == "cuda":
            return tensor.pin_memory().to(self.model.device, non_blocking=True)
        return tensor.to(self.model.device)


def apply_guidance(output: torch.Tensor, guidance: torch.Tensor, guided: int) -> torch.Tensor:
    """Apply classifier-free guidance: move the first `guided` outputs away from their negative prompts' (last rows)."""
    images = len(guidance)
    prompt, negative = output[:images], output[images:]
    moved = negative + guidance[:guided] * (prompt[:guided] - negative)
    return torch.cat([moved, prompt[guided:]])


def lcm_step(
    latents: torch.Tensor, output: torch.Tensor, noise: torch.Tensor, now: Coefficients, clip: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the next latents and the denoised estimate: `LCMScheduler.step` with each row's own coefficients."""
    clean = now.clean_sample * latents + now.clean_output * output
    if clip is not None:
        clean = clean.clamp(-clip, clip)
    denoised = now.out * clean + now.skip * latents
    return now.signal * denoised + now.noise * noise, denoised
