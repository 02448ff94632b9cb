"""`--model instant[:ms]`: an engine with no model, for killing by the hundred and for measuring the server alone.

The process, its loop and its messages are the real ones; a request spends `ms` milliseconds in its steps. Nothing is
decoded and every answer is the same small JPEG. `instant+jpeg[:ms]` does decode, and sends back the picture it got.
Not for users; no torch.
"""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.engine.backend import FaultKind, ImageCodec, LoadedBackend, OnHost
from pipelines.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.engine.backend import Codec, Pixels
    from pipelines.messages import EngineConfig, GenerationParams

SIDE = 64
# A green-blue gradient of 64×64 pixels, 358 bytes.
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpR"
    "Uk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCABAAEADASIAAhEB"
    "AxEB/8QAFwABAQEBAAAAAAAAAAAAAAAAAAECBf/EABQQAQAAAAAAAAAAAAAAAAAAAAD/xAAZAQACAwEAAAAAAAAAAAAAAAAAAgEDBAX/xAAWEQEBAQAA"
    "AAAAAAAAAAAAAAAAARP/2gAMAwEAAhEDEQA/AO0A5cjuaCgaQaAKaQaABpEaMqCuRj0AU0g0ADSI0AU8g0ZAVSMegoGkRoAHkGgoGkGjKgqkYtAA8g0F"
    "A0iNAFNINH//2Q=="
)


def load(config: EngineConfig) -> LoadedBackend:
    """The engine that `config.model` names. Raises `CheckpointError` if the time is no number."""
    name, _, written = config.model.partition(":")
    try:
        seconds = float(written or 0) / 1000
    except ValueError as error:
        raise CheckpointError(f"{written!r} is no number of milliseconds.", "Write instant:5, for instance.") from error
    codec: Codec = ImageCodec(config) if name == "instant+jpeg" else FixedCodec()
    return LoadedBackend(
        model=InstantModel(seconds),
        codec=codec,
        name=config.model,
        device=config.device,
        dtype="none",
        notice="No model is loaded: every answer is a test picture.",
        warm_up_side=SIDE,
    )


class FixedCodec:
    """A codec that looks at nothing."""

    def decode(self, data: bytes) -> Pixels:
        """Black, 64×64."""
        del data
        return np.zeros((SIDE, SIDE, 3), np.uint8)

    def encode(self, pixels: Pixels) -> bytes:
        """Always the same 64×64 picture."""
        del pixels
        return JPEG


@dataclass(frozen=True)
class NoConditioning:
    """What is made of prompts that nobody reads."""

    summary: str = ""


@dataclass(slots=True)
class Countdown:
    """An image that only takes its time."""

    pixels: Pixels
    rows: int
    steps: int
    step: int = 0
    ready: bool = True

    @property
    def finished(self) -> bool:
        """Whether only decoding is left."""
        return self.step >= self.steps


class InstantModel(OnHost):
    """A `stages.Model` whose steps take `seconds` together, and whose picture is the input."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def prepare(self, params: GenerationParams) -> NoConditioning:
        """Nothing."""
        del params
        return NoConditioning()

    def encode(self, items: Sequence[tuple[GenerationParams, NoConditioning, Pixels, int]]) -> list[Countdown]:
        """Start counting."""
        return [
            Countdown(pixels, 2 if params.guidance_scale > 1 else 1, params.num_inference_steps)
            for params, _, pixels, _ in items
        ]

    def step(self, trajectories: Sequence[Countdown]) -> None:
        """One step of each."""
        pause = max(self._seconds / trajectory.steps for trajectory in trajectories)
        if pause:
            time.sleep(pause)
        for trajectory in trajectories:
            trajectory.step += 1

    def decode(self, trajectories: Sequence[Countdown]) -> Pixels:
        """The input pictures."""
        return np.stack([trajectory.pixels for trajectory in trajectories])

    def finite(self, trajectories: Sequence[Countdown]) -> list[bool]:
        """Always."""
        return [True] * len(trajectories)

    def check(self, pixels: Pixels) -> list[bool]:
        """Never unsafe."""
        return [False] * len(pixels)

    def diagnose(self, error: Exception) -> FaultKind:
        """Nothing here runs out of anything."""
        del error
        return FaultKind.OTHER
