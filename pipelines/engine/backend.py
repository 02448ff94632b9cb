"""What the engine loop calls: a model's stages on the device, and a codec beside it. No torch here.

`pipelines.model.lcm` and `pipelines.images.codec` stand behind them in earnest, `pipelines.engine.instant` where there
is no model.
"""

from __future__ import annotations

import enum
import logging
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pipelines.images import codec as images

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from pipelines.messages import EngineConfig, GenerationParams

    Pixels: TypeAlias = npt.NDArray[np.uint8]

logger = logging.getLogger(__name__)


class FaultKind(enum.Enum):
    """What an exception from the model means: a smaller batch may do, the process is done for, or neither."""

    OUT_OF_MEMORY = enum.auto()
    DEVICE_LOST = enum.auto()
    OTHER = enum.auto()


class Event(Protocol):
    """A point in what a device has been told to do (`pipelines.device.streams`). Any thread may ask."""

    @property
    def passed(self) -> bool:
        """Whether the device has come to it. Waits for nothing."""

    def wait(self) -> None:
        """Return when the device has come to it. Raises what went wrong on the device before."""

    def since(self, earlier: Any) -> float:
        """Seconds on the device between an earlier mark of the same lane and this one. Waits for both."""


@dataclass(frozen=True)
class HostEvent:
    """A `Event` of a device that has done everything by the time a call returns. `moment`: monotonic seconds."""

    moment: float
    passed: bool = True

    def wait(self) -> None:
        """See `Event`."""

    def since(self, earlier: HostEvent) -> float:
        """See `Event`."""
        return self.moment - earlier.moment


class Conditioning(Protocol):
    """Encoded prompts. `summary` has their token counts, for the request's log."""

    @property
    def summary(self) -> str: ...


class Trajectory(Protocol):
    """One image on its way: `step` of `steps` done, `rows` UNet rows for each; `ready`: all is there for the next."""

    @property
    def rows(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def finished(self) -> bool: ...
    @property
    def ready(self) -> bool: ...


class Backend(Protocol):
    """The stages, as `pipelines.model.lcm.Lcm` has them; all images of a call have one size. Called from one thread.

    A stage may return before the device has done it; only what `fetch` returns waits for that. Lest the loop decide
    too early what comes next, `step` returns no earlier than the step before the one that it has launched is done.
    `step` changes its trajectories only when it succeeds, so that a failed call can be made again.
    """

    def prepare(self, params: GenerationParams) -> Any: ...
    def encode(self, items: Sequence[tuple[GenerationParams, Any, Pixels, int]]) -> Sequence[Any]: ...
    def step(self, trajectories: Sequence[Any]) -> None: ...
    def decode(self, trajectories: Sequence[Any]) -> Any: ...
    def finite(self, trajectories: Sequence[Any]) -> Any: ...
    def check(self, pixels: Any) -> Any: ...

    def fetch(
        self, pixels: Any, finite: Any, unsafe: Any
    ) -> Callable[[], tuple[Pixels, Sequence[bool], Sequence[bool]]]:
        """Begin to bring to the host what `decode`, `finite` and `check` gave.

        The function returned waits for it, on any thread, and raises what went wrong on the device: uint8 [N, H, W, 3],
        to be written to, and a flag of each kind per picture.
        """

    def record_event(self, stage: str) -> Event:
        """The point up to which the device has been told what to do at this stage."""

    def room(self, stage: str, pixels: int, most: int) -> int:
        """For how many rows of so many pixels a call of this stage has memory: from one to `most`."""

    def diagnose(self, error: Exception) -> FaultKind:
        """What an exception of the other methods means."""

    def relieve(self) -> bool:
        """Give up memory that can be done without. False if there is none to give."""


class OnHost:
    """What a `Backend` does that computes on the host and is done when a call returns."""

    def fetch(self, pixels: Pixels, finite: Any, unsafe: Any) -> Callable[[], tuple[Pixels, Any, Any]]:
        """See `Backend`."""
        return lambda: (pixels, finite, unsafe)

    def record_event(self, stage: str) -> HostEvent:
        """See `Backend`."""
        del stage
        return HostEvent(time.monotonic())

    def room(self, stage: str, pixels: int, most: int) -> int:
        """See `Backend`: not measured."""
        del stage, pixels
        return most

    def relieve(self) -> bool:
        """See `Backend`."""
        return False


class Codec(Protocol):
    """Encoded pictures ⇄ pixels. Called from several threads."""

    def decode(self, data: bytes) -> Pixels:
        """uint8 [H, W, 3], sides multiples of 8. Raises `pipelines.images.codec.ImageFault`."""

    def encode(self, pixels: Pixels) -> bytes:
        """A JPEG file of uint8 [H, W, 3]."""


@dataclass(frozen=True)
class ImageCodec:
    """`pipelines.images.codec` within an engine's limits."""

    config: EngineConfig

    def decode(self, data: bytes) -> Pixels:
        """See `images.decode`."""
        return images.decode(data, self.config)

    def encode(self, pixels: Pixels) -> bytes:
        """See `images.encode`."""
        return images.encode(pixels, self.config.jpeg_quality, self.config.jpeg_subsampling)


@dataclass(frozen=True, kw_only=True)
class LoadedBackend:
    """A loaded model, its codec, and what the server and its operator are told of them.

    `warm_up_side`: sides of a picture to run before the first request; 0 for none. `overlaps`: whether the model makes
    pictures beside its steps.
    """

    model: Backend
    codec: Codec
    name: str
    device: str
    dtype: str
    notice: str = ""
    warm_up_side: int = 0
    overlaps: bool = False


def log_fault(stage: str, images: int, error: Exception) -> None:
    """Where and what, but for the exception's own words: they may quote a prompt."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.warning("stage %s failed for %d image(s): %s\n%s", stage, images, type(error).__name__, where)
