"""The engine loop's model in earnest: `Lcm` on a device, with what the loop must know of torch."""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import TYPE_CHECKING

import torch

from pipelines.device import streams
from pipelines.device.memory import Footprint
from pipelines.engine.backend import Diagnosis
from pipelines.model.lcm import Lcm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipelines.device.cuda_graphs import Graphs
    from pipelines.device.streams import Lane
    from pipelines.engine.backend import Mark, Pixels
    from pipelines.messages import GenerationParams
    from pipelines.model.lcm import Conditioning
    from pipelines.model.trajectory import Trajectory
    from pipelines.weights.checkpoint import Model

    Pictures = tuple[Pixels, list[bool], list[bool]]

logger = logging.getLogger(__name__)

# Launched steps whose end is not waited for: the last one, which keeps the device busy while the loop decides.
_STEPS_AHEAD = 1

# What a bare RuntimeError says when memory is out: the CPU allocators (c10/core/impl/alloc_cpu.cpp), and libraries that
# allocate beside torch.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "MPS backend out of memory",
)


class DeviceModel(Lcm):
    """A `stages.Model`. Steps go in one lane of the device; everything else, which makes or reads pictures, in another.

    What crosses over: a trajectory's tensors, made beside the steps and then read by them (`begun`), and the latents
    that a step leaves, which decoding reads. Everything else stays in its lane.
    """

    def __init__(self, model: Model, its_lanes: tuple[Lane, Lane] | None = None) -> None:
        super().__init__(model)
        self.graphs: Graphs | None = None
        self.footprint = Footprint(math.inf)
        self._steps, self._pictures = its_lanes or streams.of(model.device)
        self._ahead: deque[Mark] = deque()

    @property
    def overlaps(self) -> bool:
        """Whether pictures are made beside steps."""
        return self._steps is not self._pictures

    def settle(self) -> None:
        """Return when the device has nothing left to do."""
        for lane in (self._steps, self._pictures):
            lane.mark().wait()

    # --- stages, each in its lane ------------------------------------------------------------------------------------

    def prepare(self, params: GenerationParams) -> Conditioning:
        """See `Lcm`."""
        with self._pictures.running():
            return super().prepare(params)

    def encode(self, items: Sequence[tuple[GenerationParams, Conditioning, Pixels, int]]) -> list[Trajectory]:
        """See `Lcm`."""
        with self._pictures.running():
            trajectories = super().encode(items)
        begun = self._pictures.mark()
        for trajectory in trajectories:
            trajectory.begun = begun
        return trajectories

    def step(self, trajectories: Sequence[Trajectory]) -> None:
        """See `Lcm`, and `stages.Model` for what is waited for."""
        for trajectory in trajectories:
            if trajectory.begun is not None:
                self._steps.follow(trajectory.begun, *trajectory.tensors)
        with self._steps.running():
            super().step(trajectories)
        for trajectory in trajectories:
            trajectory.begun = None
        self._ahead.append(self._steps.mark())
        if len(self._ahead) > _STEPS_AHEAD:
            self._ahead.popleft().wait()

    def decode(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        """See `Lcm`."""
        self._pictures.follow(self._steps.mark(), *(trajectory.denoised for trajectory in trajectories))
        with self._pictures.running():
            return super().decode(trajectories)

    def finite(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        """See `Lcm`."""
        with self._pictures.running():
            return super().finite(trajectories)

    def check(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `Lcm`."""
        with self._pictures.running():
            return super().check(pixels)

    # --- what the loop must know -------------------------------------------------------------------------------------

    def fetch(self, pixels: torch.Tensor, finite: torch.Tensor, unsafe: torch.Tensor) -> Callable[[], Pictures]:
        """See `stages.Model`."""
        with self._pictures.running():
            copies = [self._pictures.to_host(tensor) for tensor in (pixels, finite, unsafe)]
        arrived = self._pictures.mark()

        def wait() -> Pictures:
            arrived.wait()
            pictures, numbers, flags = copies
            return pictures.numpy(), numbers.tolist(), flags.tolist()

        return wait

    def mark(self, stage: str) -> Mark:
        """See `stages.Model`."""
        return (self._steps if stage == "steps" else self._pictures).mark()

    def room(self, stage: str, pixels: int, most: int) -> int:
        """See `stages.Model`."""
        return self.footprint.rows("decode" if stage == "preview" else stage, pixels, most)

    def diagnose(self, error: Exception) -> Diagnosis:
        """Out of memory is torch's own error or an allocator's; any other error of the device outlives its call."""
        if is_out_of_memory(error):
            return Diagnosis.OUT_OF_MEMORY
        if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
            return Diagnosis.DEVICE_LOST
        return Diagnosis.OTHER

    def relieve(self) -> bool:
        """See `stages.Model`: what is captured."""
        relieved = self.graphs is not None and self.graphs.evict()
        if relieved:
            logger.warning("gave up all captured shapes for their memory: they run slower until a restart")
        return relieved


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception means that memory ran out: torch's own, or an allocator's in a bare RuntimeError."""
    words = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in words for sign in _OUT_OF_MEMORY)
