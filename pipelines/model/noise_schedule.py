"""LCM timesteps and coefficients: the timestep of each UNet call, and how its output gives the next latents. No torch.

The timesteps are those of diffusers' `LCMScheduler.set_timesteps(steps, strength=strength)`; the coefficients are its
`step` and `add_noise`, worked out beforehand so that a step on the device is a handful of multiplications:

    x₀        = clean_sample · sample + clean_output · output       the clean latents that the UNet's output stands for
    denoised  = out · x₀ + skip · sample                            the consistency model's boundary condition
    next      = signal · denoised + noise · z                       noise again, down to the next timestep's level

Source: Luo et al., "Latent Consistency Models", and `diffusers/schedulers/scheduling_lcm.py`. Worked in float64; the
scheduler's own float32 tables lie within 1e-6 of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from pipelines.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.floating[Any]]

_HINT = "Choose a checkpoint of the Stable Diffusion 1.5 family."

# σ_data of the boundary condition, a constant in diffusers and in the distillation scripts.
SIGMA_DATA = 0.5


def lcm_timesteps(
    num_inference_steps: int, strength: float, *, original_steps: int = 50, train_steps: int = 1000
) -> tuple[int, ...]:
    """Return the timesteps of a request, descending; one UNet call each.

    Of the `original_steps` timesteps that the LCM was distilled on, `strength` keeps the lower part, and
    `num_inference_steps` of those are taken evenly spaced. Where fewer are kept than asked for, all of them are taken:
    a low strength gives a shorter tuple, and strength 0 an empty one (diffusers raises there).

    Raises `ValueError` for a strength outside 0…1 and for fewer than one step.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength must be in 0…1, not {strength}")
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}")
    spacing = train_steps // original_steps
    kept = int(original_steps * strength)
    distilled = [number * spacing - 1 for number in range(kept, 0, -1)]
    # linspace, not integer division: where its product falls just below a whole number, diffusers takes the lower one.
    chosen = np.linspace(0, kept, num=min(num_inference_steps, kept), endpoint=False)
    return tuple(distilled[int(index)] for index in chosen)


class Step(NamedTuple):
    """The timestep of a UNet call, and the coefficients of the formulas in this module's docstring."""

    timestep: int
    clean_sample: float
    clean_output: float
    out: float
    skip: float
    signal: float
    noise: float


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise schedule that a checkpoint was trained with, read as `LCMScheduler.from_config` reads it.

    `alphas_cumprod`: ᾱ of each training timestep. `clip`: the clean latents are clamped to ±clip (None: not at all).
    """

    alphas_cumprod: Floats
    prediction_type: str = "epsilon"
    original_steps: int = 50
    timestep_scaling: float = 10.0
    clip: float | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Schedule:
        """Return the schedule of any scheduler's `scheduler_config.json`; missing settings take LCM's defaults.

        Settings that no LCM step reads (`steps_offset`, `timestep_spacing`, and `set_alpha_to_one`, since no step goes
        below timestep 0) are ignored, as diffusers ignores them. Raises `CheckpointError` for what can't be run.
        """
        defaulted = config.get("_use_default_values", ())
        given = {key: value for key, value in config.items() if key not in defaulted}
        prediction_type = given.get("prediction_type", "epsilon")
        if prediction_type not in {"epsilon", "v_prediction", "sample"}:
            reason = f"The scheduler's prediction_type is {prediction_type!r}, not epsilon, v_prediction or sample."
            raise CheckpointError(reason, _HINT)
        if given.get("thresholding"):
            raise CheckpointError("The scheduler asks for thresholding, which is for models on pixels.", _HINT)
        alphas_cumprod = _alphas_cumprod(given)
        if prediction_type == "epsilon" and alphas_cumprod[-1] == 0.0:
            raise CheckpointError("With zero terminal SNR a UNet can't predict noise at the last timestep.", _HINT)
        return cls(
            alphas_cumprod=alphas_cumprod,
            prediction_type=prediction_type,
            original_steps=given.get("original_inference_steps", 50),
            timestep_scaling=given.get("timestep_scaling", 10.0),
            clip=given.get("clip_sample_range", 1.0) if given.get("clip_sample", False) else None,
        )

    def steps(self, num_inference_steps: int, strength: float) -> tuple[Step, ...]:
        """Return one `Step` per UNet call of a request, in order; `lcm_timesteps` gives their number."""
        timesteps = lcm_timesteps(
            num_inference_steps,
            strength,
            original_steps=self.original_steps,
            train_steps=len(self.alphas_cumprod),
        )
        following = (*timesteps[1:], None)
        return tuple(self._step(now, then) for now, then in zip(timesteps, following, strict=False))

    def levels(self, timestep: int) -> tuple[float, float]:
        """Return the levels of signal and noise in the latents of a timestep: √ᾱ and √(1 − ᾱ)."""
        alpha = float(self.alphas_cumprod[timestep])
        return math.sqrt(alpha), math.sqrt(1.0 - alpha)

    def _step(self, timestep: int, following: int | None) -> Step:
        clean_sample, clean_output = self._clean(timestep)
        scaled = timestep * self.timestep_scaling
        spread = scaled**2 + SIGMA_DATA**2
        # The last step's result is its denoised estimate: nothing follows for which it would need noise.
        signal, noise = (1.0, 0.0) if following is None else self.levels(following)
        return Step(
            timestep=timestep,
            clean_sample=clean_sample,
            clean_output=clean_output,
            out=scaled / math.sqrt(spread),
            skip=SIGMA_DATA**2 / spread,
            signal=signal,
            noise=noise,
        )

    def _clean(self, timestep: int) -> tuple[float, float]:
        """Return the coefficients of sample and output in the clean latents, by the UNet's prediction type."""
        signal, noise = self.levels(timestep)
        if self.prediction_type == "epsilon":
            return 1.0 / signal, -noise / signal
        if self.prediction_type == "v_prediction":
            return signal, -noise
        return 0.0, 1.0


def _alphas_cumprod(config: Mapping[str, Any]) -> Floats:
    betas = _betas(config)
    alphas_cumprod = np.cumprod(1.0 - betas)
    if config.get("rescale_betas_zero_snr", False):
        return _without_terminal_signal(alphas_cumprod)
    return alphas_cumprod


def _betas(config: Mapping[str, Any]) -> Floats:
    trained = config.get("trained_betas")
    if trained is not None:
        return np.asarray(trained, dtype=np.float64)
    count = config.get("num_train_timesteps", 1000)
    start: float = config.get("beta_start", 0.00085)
    end: float = config.get("beta_end", 0.012)
    kind = config.get("beta_schedule", "scaled_linear")
    if kind == "linear":
        return np.linspace(start, end, count)
    if kind == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, count) ** 2
    if kind == "squaredcos_cap_v2":
        return _cosine_betas(count)
    reason = f"The scheduler's beta_schedule is {kind!r}, not linear, scaled_linear or squaredcos_cap_v2."
    raise CheckpointError(reason, _HINT)


def _cosine_betas(count: int) -> Floats:
    """Return Nichol & Dhariwal's cosine schedule, each β capped at 0.999."""
    signal: Floats = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - signal[1:] / signal[:-1], 0.999)


def _without_terminal_signal(alphas_cumprod: Floats) -> Floats:
    """Rescale √ᾱ so that it ends at exactly 0 and begins where it did (Lin et al., 2305.08891, algorithm 1)."""
    root: Floats = np.sqrt(alphas_cumprod)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root * root
