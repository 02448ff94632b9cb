"""What the engine loop calls: a model's stages on the device, and a codec beside it. No torch here.

`pipelines.lcm` and `pipelines.images` stand behind them in earnest, `pipelines.instant` where there is no model.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pipelines import images

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from pipelines.types import EngineConfig, GenerationParams

    Pixels: TypeAlias = npt.NDArray[np.uint8]


class Diagnosis(enum.Enum):
    """What an exception from the model means: a smaller batch may do, the process is done for, or neither."""

    OUT_OF_MEMORY = enum.auto()
    DEVICE_LOST = enum.auto()
    OTHER = enum.auto()


class Conditioning(Protocol):
    """Encoded prompts. `summary` has their token counts, for the request's log."""

    @property
    def summary(self) -> str: ...


class Trajectory(Protocol):
    """One image on its way: `step` of `steps` done, `rows` UNet rows for each."""

    @property
    def rows(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def finished(self) -> bool: ...


class Model(Protocol):
    """The stages, as `pipelines.lcm.Lcm` has them; all images of a call have one size. Called from one thread.

    `step` changes its trajectories only when it succeeds, so that a failed call can be made again.
    """

    def prepare(self, params: GenerationParams) -> Any: ...
    def encode(self, items: Sequence[tuple[GenerationParams, Any, Pixels, int]]) -> Sequence[Any]: ...
    def step(self, trajectories: Sequence[Any]) -> None: ...
    def decode(self, trajectories: Sequence[Any]) -> Any: ...
    def finite(self, trajectories: Sequence[Any]) -> list[bool]: ...
    def check(self, pixels: Any) -> list[bool]: ...

    def fetch(self, pixels: Any) -> Pixels:
        """What `decode` gave, on the host: uint8 [N, H, W, 3]. Waits for the device."""

    def diagnose(self, error: Exception) -> Diagnosis:
        """What an exception of the other methods means."""


class Codec(Protocol):
    """Encoded pictures ⇄ pixels. Called from several threads."""

    def decode(self, data: bytes) -> Pixels:
        """uint8 [H, W, 3], sides multiples of 8. Raises `pipelines.images.ImageFault`."""

    def encode(self, pixels: Pixels) -> bytes:
        """A JPEG file of uint8 [H, W, 3]."""


@dataclass(frozen=True)
class ImageCodec:
    """`pipelines.images` within an engine's limits."""

    config: EngineConfig

    def decode(self, data: bytes) -> Pixels:
        """See `images.decode`."""
        return images.decode(data, self.config)

    def encode(self, pixels: Pixels) -> bytes:
        """See `images.encode`."""
        return images.encode(pixels, self.config.jpeg_quality, self.config.jpeg_subsampling)


@dataclass(frozen=True, kw_only=True)
class Outfit:
    """A loaded model, its codec, and what the server and its operator are told of them.

    `warm_up_side`: sides of a picture to run before the first request; 0 for none.
    """

    model: Model
    codec: Codec
    name: str
    device: str
    dtype: str
    notice: str = ""
    warm_up_side: int = 0
