"""Streams of a device: work on pictures (autoencoder, safety checker, copies to the host) runs beside denoising steps.

Work submitted to one stream runs in order; work of two streams may run at once. Three methods keep that safe:

    record_event    a point in a stream; the host can wait for it, or measure the time since another
    wait_event      later work of this stream waits, on the device, for an event of another stream; the tensors named
                    there are not freed before this stream is done with them, even if the host has dropped them
    to_host         a copy into pinned memory; the host must wait for an event recorded after it before reading

A device which does one thing at a time (mps), or is done when a call returns (cpu), has one `HostStream` for all.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Protocol

import torch
from typing_extensions import override

from pipelines.engine.backend import Event, HostEvent

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import Tensor


class Stream(Protocol):
    """An order of work on a device. Used from the device's thread; its events from any."""

    def use(self) -> AbstractContextManager[Any]:
        """Submit all work within the context to this stream."""

    def record_event(self) -> Event:
        """Return the point up to which work has been submitted to this stream."""

    def wait_event(self, event: Any, *tensors: Tensor) -> None:
        """Wait, on the device, for another stream's event; `tensors` of that stream will be used here."""

    def to_host(self, tensor: Tensor) -> Tensor:
        """Return a copy in host memory, complete once an event recorded afterwards has passed."""


class HostStream(Stream):
    """The only stream of a device. `settle` returns when the device has done all that was submitted."""

    def __init__(self, settle: Callable[[], object]) -> None:
        self._settle = settle

    @override
    def use(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    @override
    def record_event(self) -> HostEvent:
        self._settle()  # a device without events can't be asked later
        return HostEvent(time.monotonic())

    @override
    def wait_event(self, event: Any, *tensors: Tensor) -> None:
        return

    @override
    def to_host(self, tensor: Tensor) -> Tensor:
        return tensor.cpu()


class CudaEvent(Event):
    """An event of a CUDA stream."""

    def __init__(self, stream: Any) -> None:
        # Blocking: a thread that waits sleeps; it would otherwise spin on a core that the codec could use.
        self.event: Any = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        self.event.record(stream)

    @property
    @override
    def passed(self) -> bool:
        passed: bool = self.event.query()
        return passed

    @override
    def wait(self) -> None:
        self.event.synchronize()

    @override
    def since(self, earlier: CudaEvent) -> float:
        self.wait()
        milliseconds: float = earlier.event.elapsed_time(self.event)
        return milliseconds / 1e3


class CudaStream(Stream):
    """A CUDA stream. Of what waits on the device, blocks of the stream with the lower `priority` run first.

    A graph's kernels keep the priority of the stream in which they were captured.
    """

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self._stream: Any = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]  # torch's own

    @override
    def use(self) -> AbstractContextManager[Any]:
        use: AbstractContextManager[Any] = torch.cuda.stream(self._stream)
        return use

    @override
    def record_event(self) -> CudaEvent:
        return CudaEvent(self._stream)

    @override
    def wait_event(self, event: Any, *tensors: Tensor) -> None:
        self._stream.wait_event(event.event)
        for tensor in tensors:
            tensor.record_stream(self._stream)

    @override
    def to_host(self, tensor: Tensor) -> Tensor:
        # Torch keeps pinned buffers for the next copy, and waits for the last one before reuse.
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)


def streams_for(device: torch.device) -> tuple[Stream, Stream]:
    """Return a device's streams: one for denoising steps, one for all work on pictures. They may be the same."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the weights are made in no stream of ours
        # Steps first: every request on the device waits for them, a picture's end for its own alone.
        return CudaStream(device, priority=-1), CudaStream(device)
    stream = HostStream(torch.mps.synchronize if device.type == "mps" else _nothing)
    return stream, stream


def _nothing() -> None:
    """Settle a CPU, which is done when a call returns."""
