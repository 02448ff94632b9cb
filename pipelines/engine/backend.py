"""What the engine loop calls: a `Backend`, which runs a model's stages on a device, and a `Codec` beside it. No torch.

Implementations: `pipelines.device.torch_backend` for torch devices, `pipelines.engine.instant` without a model.
"""

from __future__ import annotations

import enum
import logging
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from typing_extensions import override

from pipelines.images import codec as images

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    import numpy.typing as npt

    from pipelines.images.decoder_process import Decoders
    from pipelines.messages import EngineConfig, GenerationParams

    Pixels: TypeAlias = npt.NDArray[np.uint8]

logger = logging.getLogger(__name__)


class Stage(enum.StrEnum):
    """A part of the work on a request. The values are the public names of timings."""

    TEXT = "text"  # prompts → conditioning
    ENCODE = "encode"  # pixels → latents
    STEP = "steps"  # one denoising step
    DECODE = "decode"  # latents → pixels
    SAFETY = "safety"  # pixels → whether they are unsafe
    PREVIEW = "preview"  # as DECODE, between steps
    WAIT = "wait"  # what one stream of the device waits for another's work, before STEP, DECODE and PREVIEW


class FaultKind(enum.Enum):
    """What an exception from a backend means: a smaller batch may do, the process must end, or neither."""

    OUT_OF_MEMORY = enum.auto()
    DEVICE_LOST = enum.auto()
    OTHER = enum.auto()


class Event(Protocol):
    """A point in the work that has been submitted to a stream of a device. Any thread may ask."""

    @property
    def passed(self) -> bool:
        """Whether the device has reached it. Does not wait."""

    def wait(self) -> None:
        """Return when the device has reached it. Raises what went wrong on the device before."""

    def since(self, earlier: Any) -> float:
        """Return the seconds on the device since an earlier event of the same stream. Waits for both."""


@dataclass(frozen=True)
class HostEvent(Event):
    """An event of a device which has done everything by the time a call returns. `moment`: monotonic seconds."""

    moment: float
    passed: bool = True

    @override
    def wait(self) -> None:
        return

    @override
    def since(self, earlier: HostEvent) -> float:
        return self.moment - earlier.moment


class Conditioning(Protocol):
    """Encoded prompts. `summary`: their token counts, for the request's log."""

    @property
    def summary(self) -> str: ...


class Trajectory(Protocol):
    """One image being denoised: `step` of `steps` are done, each takes `rows` rows of a UNet call.

    `ready`: the device has made everything that the next step reads.
    """

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
    """A model's stages, as `pipelines.model.lcm.Lcm` has them. Images of a call have one size. Called from one
    thread, but for `draw`.

    A stage may return before the device has done it; only the function that `fetch` returns waits for that. `step`
    returns once the step before the one that it submits is done, so that the loop does not choose batches too early.
    `step` changes its trajectories only if it succeeds, so that a failed call can be made again.
    """

    def prepare(self, params: GenerationParams) -> Any: ...

    def draw(self, params: GenerationParams, pixels: Pixels, seed: int) -> Any:
        """Return what `encode` takes in the place of an image's seed: its noise. From any thread."""

    def encode(self, items: Sequence[tuple[GenerationParams, Any, Pixels, Any]]) -> Sequence[Any]: ...
    def step(self, trajectories: Sequence[Any]) -> None: ...
    def decode(self, trajectories: Sequence[Any]) -> Any: ...

    def decode_exactly(self, trajectories: Sequence[Any]) -> Any | None:
        """As `decode`, in a format of larger numbers; None where there is none."""

    def finite(self, trajectories: Sequence[Any]) -> Any: ...
    def check(self, pixels: Any) -> Any: ...

    def fetch(
        self, pixels: Any, finite: Any, unsafe: Any
    ) -> Callable[[], tuple[Pixels, Sequence[bool], Sequence[bool]]]:
        """Begin to copy to the host what `decode`, `finite` and `check` returned.

        The function returned waits for the copies, on any thread, and raises what went wrong on the device. It returns
        writable uint8 [N, H, W, 3], and a flag of each kind per picture.
        """

    def record_event(self, stage: Stage) -> Event:
        """Return the point up to which work of this stage has been submitted to the device."""

    def follow(self, stage: Stage, trajectories: Sequence[Any]) -> Event | None:
        """Have the device do work of this stage only once the trajectories are as other streams will leave them.

        Return the point after that, as `record_event` does; None where there is no other stream. Does not wait.
        """

    def learning(self, stage: Stage, pixels: int) -> AbstractContextManager[object]:
        """Return a context for the first call of a stage, with one row of `pixels` pixels: what it takes is noted."""

    def room(self, stage: Stage, size: tuple[int, int], most: int) -> int:
        """Return how many rows of this height and width a call of this stage should have, from 1 to `most`.

        There is memory for them.
        """

    def diagnose(self, error: Exception) -> FaultKind:
        """Return what an exception of the other methods means."""

    def relieve(self) -> bool:
        """Give up memory that can be done without. Return False if there is none."""

    def rest(self) -> None:
        """Give back memory that only a request needs. Called once there has been nothing to do for a while."""

    def idle(self, seconds: float) -> None:
        """Do what a request would have to wait for. Called now and then while there is nothing to do for `seconds`."""


class OnHost(Backend):
    """The part of a `Backend` that is the same for all that compute on the host and are done when a call returns."""

    @override
    def decode_exactly(self, trajectories: Sequence[Any]) -> None:
        return None

    @override
    def fetch(self, pixels: Pixels, finite: Any, unsafe: Any) -> Callable[[], tuple[Pixels, Any, Any]]:
        return lambda: (pixels, finite, unsafe)

    @override
    def record_event(self, stage: Stage) -> HostEvent:
        return HostEvent(time.monotonic())

    @override
    def follow(self, stage: Stage, trajectories: Sequence[Any]) -> None:
        return None

    @override
    def learning(self, stage: Stage, pixels: int) -> AbstractContextManager[object]:
        return nullcontext()

    @override
    def room(self, stage: Stage, size: tuple[int, int], most: int) -> int:
        return most  # memory is not measured

    @override
    def relieve(self) -> bool:
        return False

    @override
    def rest(self) -> None:
        """Nothing is kept for requests."""

    @override
    def idle(self, seconds: float) -> None:
        """Nothing is put off."""


class Codec(Protocol):
    """Encoded pictures ⇄ pixels. Called from several threads."""

    def decode(self, data: bytes) -> Pixels:
        """Return uint8 [H, W, 3], sides multiples of 8.

        Raises `ImageFault` and `LargePicture` of `pipelines.images.codec`: a large picture takes too long for threads
        on which others wait.
        """

    def encode(self, pixels: Pixels) -> bytes:
        """Return uint8 [H, W, 3] as a JPEG file."""


@dataclass(frozen=True)
class ImageCodec(Codec):
    """`pipelines.images.codec`, within an engine's limits."""

    config: EngineConfig

    @override
    def decode(self, data: bytes) -> Pixels:
        return images.decode_quick(data, self.config)

    @override
    def encode(self, pixels: Pixels) -> bytes:
        return images.encode(pixels, self.config.jpeg_quality, self.config.jpeg_subsampling)


@dataclass(frozen=True, kw_only=True)
class LoadedBackend:
    """A loaded model, its codec, and what the server and its operator are told of them.

    `decoders`: those of large pictures, None for the engine's own. `warm_up_side`: side of the square picture to run
    before the first request; 0 for none. `overlaps`: whether pictures are made beside steps. `torch`: its version, ""
    without. `notice`: what the operator must know of the model, "" for nothing.
    """

    model: Backend
    codec: Codec
    name: str
    device: str
    dtype: str
    torch: str = ""
    notice: str = ""
    warm_up_side: int = 0
    overlaps: bool = False
    decoders: Decoders | None = None
    instructions: str = ""
    heavy_vae: bool = False


def log_fault(stage: str, images: int, error: Exception) -> None:
    """Log an exception's type and traceback, without its message, which may quote a prompt."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.warning("stage %s failed for %d image(s): %s\n%s", stage, images, type(error).__name__, where)
