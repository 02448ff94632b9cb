"""An engine process that does what it is told: `python -P tests/support/faulty_engine.py --fd N`.

The prompt says what happens in the UNet step: "crash" a segmentation fault, "hang" no return, "raise" an exception,
"nan" a picture that is none, "hungry" out of memory unless alone, "huge" out of memory even then, "lost" a device
error, "recapture" a capture that fails, "slow" five milliseconds, "child" a process that keeps the socket open when
this one has ended. The device says what happens at loading: "dying" an exit, "absent" no model, "garbled" nonsense on
the socket, "loading" no end, "missing PATH" no model unless the file is there, "uncapturable" an end unless graphs are
off. Everything else is as with `--model instant`, and each request's log has the device.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines import worker
from pipelines.engine import instant
from pipelines.engine.backend import FaultKind, LoadedBackend
from pipelines.engine.instant import Countdown, InstantBackend, NoConditioning
from pipelines.errors import CaptureFailedError, CheckpointError, NoRoomError, NotOnDiskError
from pipelines.messages import EngineConfig, GenerationParams

# What an exception may quote, and no log.
SECRET = "a prompt that no log may have"


class DeviceLost(Exception):
    """What a driver says after an illegal access."""


@dataclass(slots=True)
class Marked(Countdown):
    """An image that remembers its prompt."""

    prompt: str = ""


class FaultyModel(InstantBackend):
    """A model that fails on request."""

    def __init__(self, seconds: float = 0.0, device: str = "") -> None:
        super().__init__(seconds)
        self._device = device

    def prepare(self, params: GenerationParams) -> NoConditioning:
        del params
        return NoConditioning(self._device)

    def encode(self, items: Sequence[tuple]) -> list[Marked]:
        return [
            Marked(image.pixels, image.rows, image.steps, prompt=params.prompt)
            for image, (params, *_) in zip(super().encode(items), items, strict=True)
        ]

    def step(self, trajectories: Sequence[Marked]) -> None:
        prompts = {image.prompt for image in trajectories}
        if "crash" in prompts:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "hang" in prompts:
            threading.Event().wait()
        if "child" in prompts:
            subprocess.Popen(["sleep", "120"], pass_fds=[int(sys.argv[-1])])
        if "slow" in prompts:
            time.sleep(0.005)
        if "raise" in prompts:
            raise ValueError(SECRET)
        if "lost" in prompts:
            raise DeviceLost
        if "recapture" in prompts:
            raise CaptureFailedError("unet", RuntimeError("operation failed due to a previous error during capture"))
        if "huge" in prompts or ("hungry" in prompts and len(trajectories) > 1):
            raise MemoryError
        super().step(trajectories)

    def finite(self, trajectories: Sequence[Marked]) -> list[bool]:
        return [image.prompt != "nan" for image in trajectories]

    def check(self, pixels) -> list[bool]:
        """Bright pictures are unsafe."""
        return [bool(picture.max() > 250) for picture in pixels]

    def diagnose(self, error: Exception) -> FaultKind:
        if isinstance(error, MemoryError):
            return FaultKind.OUT_OF_MEMORY
        return FaultKind.DEVICE_LOST if isinstance(error, DeviceLost | CaptureFailedError) else FaultKind.OTHER


def load(config: EngineConfig, progress: object) -> LoadedBackend:
    """`--model instant`, but faulty."""
    del progress
    look(config)
    match config.device:
        case "dying":
            os._exit(1)
        case "absent":
            raise CheckpointError("There is no model.", "Bring one.")
        case "full":
            raise NoRoomError(config.device)
        case "uncapturable" if config.graphs == "auto":
            raise CaptureFailedError("unet", RuntimeError("operation not permitted when stream is capturing"))
        case "garbled":
            os.write(int(sys.argv[-1]), b"\0\0\0\4what")
        case "loading":
            threading.Event().wait()
    loaded = instant.load(config)
    seconds = float(config.model.partition(":")[2] or 0) / 1000
    return dataclasses.replace(loaded, model=FaultyModel(seconds, config.device))


def look(config: EngineConfig) -> None:
    """Look for the file that stands for the weights."""
    kind, _, path = config.device.partition(" ")
    if kind == "missing" and not Path(path).exists():
        raise NotOnDiskError("The weights are missing.", "Bring them.")


if __name__ == "__main__":
    worker.main(load, look, look_s=0.05)
