"""Backend without a model, for `--model instant[:ms]`: to kill engines by the hundred and to measure the server alone.

The process, its loop and its messages are the real ones; a request spends `ms` milliseconds in its steps. Nothing is
decoded, and every answer is the same small JPEG. `instant+jpeg[:ms]` decodes, and sends back the picture it got. For
tests and measurements, not for users; no torch.
"""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from pipelines.engine.backend import Codec, FaultKind, ImageCodec, LoadedBackend, OnHost
from pipelines.errors import CheckpointError
from pipelines.images.decoder_process import Decoders

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipelines.engine.backend import Pixels
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
    """Return the backend that `config.model` names. Raises `CheckpointError` if the time is no number."""
    name, _, written = config.model.partition(":")
    try:
        seconds = float(written or 0) / 1000
    except ValueError as error:
        raise CheckpointError(f"{written!r} is no number of milliseconds.", "Write instant:5, for instance.") from error
    decodes = name == "instant+jpeg"
    return LoadedBackend(
        model=InstantBackend(seconds),
        codec=ImageCodec(config) if decodes else FixedCodec(),
        decoders=None if decodes else FixedDecoders(config),
        name=config.model,
        device=config.device,
        dtype="none",
        notice="No model is loaded: every answer is a test picture.",
        warm_up_side=SIDE,
    )


class FixedCodec(Codec):
    """A codec that reads neither files nor pixels: black 64×64 in, always the same 64×64 JPEG out."""

    @override
    def decode(self, data: bytes) -> Pixels:
        return np.zeros((SIDE, SIDE, 3), np.uint8)

    @override
    def encode(self, pixels: Pixels) -> bytes:
        return JPEG


class FixedDecoders(Decoders):
    """Decoders that start no process and read no file."""

    @override
    def decode(self, name: str, data: bytes, wanted: Callable[[], bool], *, alone: bool = True) -> Pixels:
        return FixedCodec().decode(data)


@dataclass(frozen=True)
class NoConditioning:
    """The conditioning of prompts that are not read."""

    summary: str = ""


@dataclass(slots=True)
class Countdown:
    """A trajectory that only counts its steps."""

    pixels: Pixels
    rows: int
    steps: int
    step: int = 0
    ready: bool = True

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps


class InstantBackend(OnHost):
    """A backend whose steps take `seconds` for a whole request, and whose output is the input picture."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    @override
    def prepare(self, params: GenerationParams) -> NoConditioning:
        return NoConditioning()

    @override
    def draw(self, params: GenerationParams, pixels: Pixels, seed: int) -> int:
        return seed

    @override
    def encode(self, items: Sequence[tuple[GenerationParams, NoConditioning, Pixels, int]]) -> list[Countdown]:
        return [
            Countdown(pixels, 2 if params.guidance_scale > 1 else 1, params.num_inference_steps)
            for params, _, pixels, _ in items
        ]

    @override
    def step(self, trajectories: Sequence[Countdown]) -> None:
        pause = max(self._seconds / trajectory.steps for trajectory in trajectories)
        if pause:
            time.sleep(pause)
        for trajectory in trajectories:
            trajectory.step += 1

    @override
    def decode(self, trajectories: Sequence[Countdown]) -> Pixels:
        return np.stack([trajectory.pixels for trajectory in trajectories])

    @override
    def finite(self, trajectories: Sequence[Countdown]) -> list[bool]:
        return [True] * len(trajectories)

    @override
    def check(self, pixels: Pixels) -> list[bool]:
        return [False] * len(pixels)

    @override
    def diagnose(self, error: Exception) -> FaultKind:
        return FaultKind.OTHER
