"""Lanes: orders of work of their own on one device, so that the pictures of some requests (autoencoder, safety checker,
copies to the host) go beside the denoising steps of others.

What is launched in a lane runs in order; what is launched in two runs at once. Three things keep that safe:

    mark      a point in a lane; the host can wait for it, or ask how long after another it came
    follow    what comes next in this lane waits, on the device, for a mark of another, and uses that lane's tensors:
              their memory is not given to anybody before it is done, even when the host has let go of them
    to_host   a copy into pinned memory that the host must not read before a mark made after it

A device that does one thing at a time (mps), or all that it is told at once (cpu), has one `Direct` lane for all.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pipelines.engine.backend import HostEvent

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import Tensor

    from pipelines.engine.backend import Event


class Stream(Protocol):
    """See this module. Used from the device's thread; marks from any."""

    def use(self) -> AbstractContextManager[Any]:
        """What is launched within is launched in this lane."""

    def record_event(self) -> Event:
        """The point up to which work has been launched in this lane."""

    def wait_event(self, event: Any, *tensors: Tensor) -> None:
        """Wait, on the device, for another lane's mark; `tensors` of that lane will be used here."""

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy of it in host memory, there once this lane has come to a mark made afterwards."""


class Direct:
    """The lane of a device that needs no other. `settle` returns when the device has done all that it was told."""

    def __init__(self, settle: Callable[[], object]) -> None:
        self._settle = settle

    def use(self) -> AbstractContextManager[None]:
        """See `Stream`."""
        return contextlib.nullcontext()

    def record_event(self) -> HostEvent:
        """See `Stream`. Has passed: a device without events can't be asked for it later."""
        self._settle()
        return HostEvent(time.monotonic())

    def wait_event(self, event: Any, *tensors: Tensor) -> None:
        """See `Stream`."""

    def to_host(self, tensor: Tensor) -> Tensor:
        """See `Stream`."""
        return tensor.cpu()


class CudaEvent:
    """An `Event`: an event of a stream."""

    def __init__(self, stream: Any) -> None:
        # Blocking: a thread that waits sleeps, where it would spin on a core that the codec could use.
        self.event: Any = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        self.event.record(stream)

    @property
    def passed(self) -> bool:
        """See `Event`."""
        passed: bool = self.event.query()
        return passed

    def wait(self) -> None:
        """See `Event`."""
        self.event.synchronize()

    def since(self, earlier: CudaEvent) -> float:
        """See `Event`."""
        self.wait()
        milliseconds: float = earlier.event.elapsed_time(self.event)
        return milliseconds / 1e3


class CudaStream:
    """A lane that is a CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own

    def use(self) -> AbstractContextManager[Any]:
        """See `Stream`."""
        use: AbstractContextManager[Any] = torch.cuda.stream(self._stream)
        return use

    def record_event(self) -> CudaEvent:
        """See `Stream`."""
        return CudaEvent(self._stream)

    def wait_event(self, event: Any, *tensors: Tensor) -> None:
        """See `Stream`."""
        self._stream.wait_event(event.event)
        for tensor in tensors:
            tensor.record_stream(self._stream)

    def to_host(self, tensor: Tensor) -> Tensor:
        """See `Stream`. Torch keeps pinned buffers for the next copy, and waits for the last one before reuse."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)


def streams_for(device: torch.device) -> tuple[Stream, Stream]:
    """A device's lanes: for the denoising steps, and for all that is done to pictures."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the weights are made in no lane
        return CudaStream(device), CudaStream(device)
    stream = Direct(torch.mps.synchronize if device.type == "mps" else _nothing)
    return stream, stream


def _nothing() -> None:
    """A CPU is done when a call returns."""
