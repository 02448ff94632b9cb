"""The timestep table and the coefficients, held against diffusers' LCMScheduler."""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import CheckpointError
from pipelines.model.noise_schedule import Schedule, lcm_timesteps
from tests.support.tiny_models import SD15_SCHEDULER

# Steps of a thousandth, and what floats do to them: 0.58 * 50 is just below 29.
STRENGTHS = [*np.linspace(0.0, 1.0, 1001).tolist(), 0.58, 0.29, 0.14, np.nextafter(1.0, 0.0), np.nextafter(0.0, 1.0)]

CONFIGS = {
    "lcm defaults": {},
    "sd15": SD15_SCHEDULER,
    "linear": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained betas": {"trained_betas": np.linspace(0.001, 0.01, 1000).tolist()},
    "v prediction": {"prediction_type": "v_prediction"},
    "v prediction, zero terminal SNR": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "sample prediction": {"prediction_type": "sample"},
    "another timestep scaling": {"timestep_scaling": 3.0},
    "fewer distilled steps": {"original_inference_steps": 20},
    "clipped": {"clip_sample": True, "clip_sample_range": 1.5},
    "clipped at the default": {"clip_sample": True},
    "defaults of another scheduler": {
        "prediction_type": "sample",
        "clip_sample": True,
        "_use_default_values": ["prediction_type", "clip_sample"],
    },
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


SCHEDULER = LCMScheduler()


@cache
def diffusers_timesteps(steps: int, strength: float) -> tuple[int, ...] | None:
    """The scheduler's timesteps, or None where it raises."""
    try:
        SCHEDULER.set_timesteps(steps, strength=strength)
    except ValueError:
        return None
    return tuple(SCHEDULER.timesteps.tolist())


@pytest.mark.parametrize("steps", range(1, 13))
def test_timesteps_are_those_of_diffusers_wherever_it_accepts_the_pair(steps):
    expected = {strength: diffusers_timesteps(steps, strength) for strength in STRENGTHS}
    accepted = {strength: timesteps for strength, timesteps in expected.items() if timesteps is not None}

    actual = {strength: lcm_timesteps(steps, strength) for strength in accepted}

    assert len(accepted) > 700
    assert actual == accepted


@pytest.mark.parametrize("steps", range(1, 13))
def test_where_diffusers_raises_all_timesteps_that_there_are_run(steps):
    refused = [strength for strength in STRENGTHS if diffusers_timesteps(steps, strength) is None]

    actual = {strength: lcm_timesteps(steps, strength) for strength in refused}

    assert refused
    assert actual == {
        strength: tuple(20 * number - 1 for number in range(int(50 * strength), 0, -1)) for strength in refused
    }


@given(steps=st.integers(1, 12), strength=st.floats(0, 1))
def test_every_legal_pair_has_distinct_descending_timesteps(steps, strength):
    timesteps = lcm_timesteps(steps, strength)

    assert len(timesteps) == min(steps, int(50 * strength))
    assert list(timesteps) == sorted(set(timesteps), reverse=True)
    assert all(0 <= timestep < 1000 for timestep in timesteps)


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_strength_zero_runs_no_step(steps):
    assert lcm_timesteps(steps, 0.0) == ()


def test_the_defaults_run_four_steps():
    assert lcm_timesteps(4, 0.8) == (799, 599, 399, 199)


@pytest.mark.parametrize(("steps", "strength"), [(0, 0.5), (-1, 0.5), (4, -0.1), (4, 1.01), (4, float("nan"))])
def test_what_is_not_legal_is_refused(steps, strength):
    with pytest.raises(ValueError, match="must be"):
        lcm_timesteps(steps, strength)


@configs
@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (4, 0.8), (5, 0.33), (12, 1.0)])
def test_coefficients_do_what_the_scheduler_does(config, steps, strength):
    sample = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    output = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    scheduler = LCMScheduler.from_config(config)
    scheduler.set_timesteps(steps, strength=strength)
    expected = [
        scheduler.step(output, timestep, sample, torch.Generator().manual_seed(2), return_dict=False)
        for timestep in scheduler.timesteps
    ]

    schedule = Schedule.from_config(config)
    actual = [wait_event(step, sample, output, schedule.clip) for step in schedule.steps(steps, strength)]

    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def wait_event(step, sample, output, clip):
    """The formulas in the docstring of `pipelines.model.noise_schedule`, with the scheduler's own noise."""
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(2))
    clean = step.clean_sample * sample + step.clean_output * output
    if clip is not None:
        clean = clean.clamp(-clip, clip)
    denoised = step.out * clean + step.skip * sample
    return step.signal * denoised + step.noise * noise, denoised


@configs
@pytest.mark.parametrize("timestep", [0, 19, 499, 999])
def test_levels_are_those_of_add_noise(config, timestep):
    one, zero = torch.ones(1), torch.zeros(1)
    scheduler = LCMScheduler.from_config(config)
    expected = [
        scheduler.add_noise(one, zero, torch.tensor([timestep])).item(),
        scheduler.add_noise(zero, one, torch.tensor([timestep])).item(),
    ]

    actual = Schedule.from_config(config).levels(timestep)

    assert actual == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        ({"thresholding": True}, "thresholding"),
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
    ],
)
def test_a_config_that_no_picture_can_come_from_is_refused(config, message):
    with pytest.raises(CheckpointError, match=message):
        Schedule.from_config(config)
