"""Latent consistency image-to-image, the algorithm from top to bottom.

    prepare   prompts → keys and values of cross attention     text encoder, cached
    encode    pixels → latents at their first timestep         VAE encoder; all of an image's noise is drawn here
    step      latents → latents, one timestep further          UNet, one call for the whole batch
    decode    denoised estimate → pixels                       VAE decoder
    check     pixels → unsafe or not                           safety checker

One image on its way is a `Trajectory`, which carries everything that is its own: text, coefficients, noise, latents.
A batch is therefore any list of trajectories of one size, and may be another list at every step: members stand at
different timesteps, have different numbers of them, and go with or without guidance. Nothing that a member computes
reads another member, so a picture does not depend on its batch-mates (but for the last bits of float arithmetic).

The latents stay in float32 between steps whatever the model's dtype is; at four steps that costs nothing and the result
is nearer to float32's. `step` copies nothing between host and device and waits for nothing: coefficients and noise went
up in `encode`, and the only shapes that it knows are (rows, height, width). So the functions that do the work, `unet`,
`vae_encode`, `vae_decode` and the checker's `flags`, can be replaced by compiled or captured ones
(`pipelines.device.cuda_graphs`).

The reference is diffusers: `StableDiffusionImg2ImgPipeline` with `LCMScheduler`, a CPU generator per image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch

from pipelines.model import vae
from pipelines.model.noise_schedule import Schedule
from pipelines.model.prompts import Prompt, PromptEncoder
from pipelines.model.safety import SafetyChecker
from pipelines.model.trajectory import Coefficients, Posterior, Trajectory, coefficient_table, draw_noise
from pipelines.model.unet import Unet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from pipelines.messages import GenerationParams
    from pipelines.weights.checkpoint import LoadedCheckpoint

    Pixels: TypeAlias = npt.NDArray[np.uint8]


class UnetInputs(NamedTuple):
    """What one UNet call reads, first a row for each image's prompt, then one for each negative prompt.

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
        """Token counts for the request's log: "95 tokens, 77 used"."""
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
    """A loaded model and the five stages. Used from one thread, the one that feeds the device."""

    def __init__(self, model: LoadedCheckpoint) -> None:
        self.model = model
        self.schedule = Schedule.from_config(model.scheduler_config)
        self.network = Unet(model.unet)
        self.vae = vae.make_vae(model.vae)
        self.prompts = PromptEncoder(model.tokenizer, model.text_encoder, self.network.context, self._upload)
        self.checker = None if model.safety_checker is None else SafetyChecker(model.safety_checker)
        self.unet: Callable[..., torch.Tensor] = self.network  # of `UnetInputs`
        self.vae_encode: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]] = self.vae.encode
        self.vae_decode: Callable[[torch.Tensor], torch.Tensor] = self.vae.decode
        self._shifts: dict[int, torch.Tensor] = {}  # by timestep: there are 50
        self._scale = float(model.vae.config.scaling_factor)
        self._shift = float(model.vae.config.shift_factor or 0.0)

    def release(self) -> None:
        """Let go of the modules that the network and the autoencoder were made from; `model` has shells of them then.

        What they share with ours stays. The rest is the weights in a layout that is not computed in.
        """
        for part in (self.model.unet, self.model.vae):
            part.to("meta")

    # --- prepare ---------------------------------------------------------------------------------------------------

    def prepare(self, params: GenerationParams) -> Conditioning:
        """The request's embeddings and token counts. A guidance scale up to 1 means none: no negative prompt then."""
        guided = params.guidance_scale > 1.0
        return Conditioning(
            prompt=self.prompts.encode(params.prompt),
            negative=self.prompts.encode(params.negative_prompt) if guided else None,
        )

    # --- encode ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(self, items: Sequence[tuple[GenerationParams, Conditioning, Pixels, int]]) -> list[Trajectory]:
        """Start a trajectory for each (params, conditioning, pixels, seed) of one size.

        `pixels`: uint8 [H, W, 3], sides multiples of 8. The seed is the image's own (the request's plus its number);
        any integer will do, taken modulo 2⁶⁴.
        """
        pictures = {id(pixels): pixels for _, _, pixels, _ in items}  # images of one request share theirs
        posteriors = dict(zip(pictures, self._posteriors(np.stack(list(pictures.values()))), strict=True))
        return [
            self._start(params, conditioning, posteriors[id(pixels)], seed)
            for params, conditioning, pixels, seed in items
        ]

    def _posteriors(self, pixels: Pixels) -> list[Posterior]:
        """The VAE encoder's answer for each of uint8 [N, H, W, 3]."""
        images = self._upload(torch.from_numpy(pixels)).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        means, deviations = self.vae_encode(images.to(self.model.dtype))
        if deviations is None:
            return [Posterior(mean, None) for mean in means.float()]
        return [Posterior(*each) for each in zip(means.float(), deviations.float(), strict=True)]

    def _start(
        self, params: GenerationParams, conditioning: Conditioning, posterior: Posterior, seed: int
    ) -> Trajectory:
        """Sample the posterior, then bring the latents to their first timestep."""
        steps = self.schedule.steps(params.num_inference_steps, params.strength)
        mean, deviation = posterior
        sampled = 0 if deviation is None else 1
        noise = self._upload(draw_noise(seed, sampled + len(steps), mean.shape))
        raw = mean if deviation is None else mean + deviation * noise[0]
        clean = latents = (raw - self._shift) * self._scale
        if steps:
            signal_level, noise_level = self.schedule.levels(steps[0].timestep)
            latents = signal_level * clean + noise_level * noise[sampled]
        return Trajectory(
            contexts=conditioning.contexts,
            shifts=tuple(self._shifts_at(step.timestep) for step in steps),
            table=self._upload(coefficient_table(steps, params.guidance_scale)),
            noise=noise[sampled + 1 :],
            latents=latents,
            denoised=clean,
            finite=torch.ones((), dtype=torch.bool, device=clean.device),
        )

    def _shifts_at(self, timestep: int) -> torch.Tensor:
        if timestep not in self._shifts:
            self._shifts[timestep] = self.network.shifts(timestep)
        return self._shifts[timestep]

    # --- step ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, trajectories: Sequence[Trajectory]) -> None:
        """One UNet call that takes every trajectory one timestep further. All are of one size and unfinished.

        If it raises, no trajectory has changed: the call, or a smaller one, can be made again.
        """
        members = sorted(trajectories, key=lambda member: -member.rows)  # guided first: slices find them
        guided = sum(member.rows > 1 for member in members)
        latents = torch.stack([member.latents for member in members])
        noise = torch.stack([member.noise[member.step] for member in members])
        table = torch.stack([member.table[member.step] for member in members])
        now = Coefficients(*table[:, :, None, None, None].unbind(1))

        rows = [(member, 0) for member in members] + [(member, 1) for member in members[:guided]]
        inputs = UnetInputs(
            sample=torch.cat([latents, latents[:guided]]).to(self.model.dtype),
            shifts=torch.stack([member.shifts[member.step] for member, _ in rows]),
            context=torch.stack([member.contexts[row] for member, row in rows]),
        )
        output = self.unet(*inputs)
        output = apply_guidance(output.float(), now.guidance, guided)
        latents, denoised = lcm_step(latents, output, noise, now, self.schedule.clip)

        for row, member in enumerate(members):
            member.latents, member.denoised = latents[row], denoised[row]
            member.step += 1

    # --- decode ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def decode(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        """The pictures so far: uint8 [N, H, W, 3] on the device; of unfinished trajectories, their estimate."""
        latents = torch.stack([member.denoised for member in trajectories]) / self._scale + self._shift
        images = self.vae_decode(latents.to(self.model.dtype)).float()
        # What is not a number makes the sum none.
        for member, finite in zip(trajectories, images.sum(dim=(1, 2, 3)).isfinite(), strict=True):
            member.finite = finite
        levels = ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        pixels: torch.Tensor = levels.permute(0, 2, 3, 1).contiguous()
        return pixels

    @torch.inference_mode()
    def finite(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        """Whether each one's last `decode` came out as numbers: bool [N] on the device. NaN would show as black."""
        return torch.stack([member.finite for member in trajectories])

    # --- check -----------------------------------------------------------------------------------------------------

    def check(self, pixels: torch.Tensor) -> torch.Tensor:
        """Which pictures of uint8 [N, H, W, 3] are unsafe: bool [N] on the device; none, if there is no checker."""
        if self.checker is None:
            return torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
        return self.checker(pixels)

    def _upload(self, tensor: torch.Tensor) -> torch.Tensor:
        """A host tensor on the device; on CUDA without waiting for the device, which only pinned memory allows."""
        if self.model.device.type == "cuda":
            return tensor.pin_memory().to(self.model.device, non_blocking=True)
        return tensor.to(self.model.device)


def apply_guidance(output: torch.Tensor, guidance: torch.Tensor, guided: int) -> torch.Tensor:
    """Classifier-free guidance: the first `guided` outputs move away from their negative prompts' (the last rows)."""
    images = len(guidance)
    prompt, negative = output[:images], output[images:]
    moved = negative + guidance[:guided] * (prompt[:guided] - negative)
    return torch.cat([moved, prompt[guided:]])


def lcm_step(
    latents: torch.Tensor, output: torch.Tensor, noise: torch.Tensor, now: Coefficients, clip: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`LCMScheduler.step` for a batch, each row by its own coefficients: the next latents and the denoised estimate."""
    clean = now.clean_sample * latents + now.clean_output * output
    if clip is not None:
        clean = clean.clamp(-clip, clip)
    denoised = now.out * clean + now.skip * latents
    return now.signal * denoised + now.noise * noise, denoised
