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
image's `Start`, are uploaded in `encode`, and its shapes depend on (rows, height, width) only. So what a stage does on
the device is a call (`pipelines.model.calls`) that may be captured (`pipelines.device.cuda_graphs`).

The reference is diffusers: `StableDiffusionImg2ImgPipeline` with `LCMScheduler`, a CPU generator per image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from pipelines.model.calls import Scaling, levels, make_calls
from pipelines.model.functions import make_functions
from pipelines.model.noise_schedule import Schedule
from pipelines.model.prompts import Prompt, PromptEncoder
from pipelines.model.trajectory import Start, Trajectory, draw_start, parts
from pipelines.model.vae import samples

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from pipelines.messages import GenerationParams
    from pipelines.model.calls import Calls
    from pipelines.model.functions import ModelFunctions
    from pipelines.weights.checkpoint import LoadedCheckpoint

    Pixels: TypeAlias = npt.NDArray[np.uint8]


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

    `functions`: what the device computes; the checkpoint's own (`make_functions`) unless given. `calls`: the same with
    the arithmetic around it, made of them unless given.
    """

    def __init__(
        self, model: LoadedCheckpoint, functions: ModelFunctions | None = None, calls: Calls | None = None
    ) -> None:
        self.model = model
        self.schedule = Schedule.from_config(model.scheduler_config)
        self.functions = functions or make_functions(model)
        self.prompts = PromptEncoder(
            model.tokenizer, model.text_encoder.config, self.functions.embed, self.functions.context, self._upload
        )
        self._shifts: dict[int, torch.Tensor] = {}  # by timestep: there are 50
        config = model.vae.config
        self._scaling = Scaling(scale=float(config.scaling_factor), shift=float(config.shift_factor or 0.0))
        self.calls = calls or make_calls(self.functions, model.dtype, self._scaling, self.schedule.clip)
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
        encoded = self.calls.encode(self._upload(torch.from_numpy(np.stack(list(pictures.values())))))
        posteriors = dict(zip(pictures, encoded, strict=True))
        starts = [
            given if isinstance(given, Start) else self.draw(params, pixels, given)
            for params, _, pixels, given in items
        ]
        plans = [self._upload(start.plan) for start in starts]
        clean, latents = self._begin(
            torch.stack([posteriors[id(pixels)] for _, _, pixels, _ in items]),
            torch.stack([plan[:2] for plan in plans]),
        )
        finite = torch.ones(len(items), dtype=torch.bool, device=clean.device)
        return [
            Trajectory(
                contexts=conditioning.contexts,
                shifts=tuple(map(self._shifts_at, starts[row].timesteps)),
                plan=plans[row],
                latents=latents[row],
                denoised=clean[row],
                finite=finite[row],
            )
            for row, (_, conditioning, _, _) in enumerate(items)
        ]

    def _begin(self, posteriors: torch.Tensor, plans: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return clean latents and those at the first timestep: sample the posterior, then add noise."""
        mean, *deviation = posteriors.unbind(1)
        (sampling, _), (noise, levels) = (parts(rows, mean.shape[1:]) for rows in plans.unbind(1))
        clean = self._scaling.into(mean + deviation[0] * sampling if deviation else mean)
        return clean, levels.signal * clean + levels.noise * noise

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
        rows = [(member, text) for member in trajectories for text in range(member.rows)]
        stepped = self.calls.step(
            [member.latents for member, _ in rows],
            [member.now for member, _ in rows],
            [member.shifts[member.step] for member, _ in rows],
            [member.contexts[text] for member, text in rows],
        )
        for row, (member, text) in enumerate(rows):
            if text == 0:  # of the prompt; the negative prompt's is of no use
                member.latents, member.denoised = stepped[row].unbind()
                member.step += 1

    # --- decode ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def decode(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        """Return the current pictures: uint8 [N, H, W, 3] on the device; unfinished trajectories as estimated."""
        return self._shown(trajectories, self.calls.decode([member.denoised for member in trajectories]))

    @torch.inference_mode()
    def decode_exactly(self, trajectories: Sequence[Trajectory]) -> torch.Tensor | None:
        """As `decode`, in float32, slower; None where the model's dtype holds numbers as large."""
        decode = self.functions.vae_decode_exactly
        if decode is None:
            return None
        denoised = torch.stack([member.denoised for member in trajectories])
        return self._shown(trajectories, levels(decode(self._scaling.back(denoised))))

    def _shown(self, trajectories: Sequence[Trajectory], decoded: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the decoded pictures, and note which are finite."""
        pixels, finite = decoded
        for member, is_finite in zip(trajectories, finite, strict=True):
            member.finite = is_finite
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
