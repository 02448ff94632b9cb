"""`Backend` for torch devices: `Lcm` in the streams of a device, and the memory, events and errors of torch."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

import torch
from typing_extensions import override

from pipelines.device import devices, streams
from pipelines.device.memory import Counter, MemoryBudget
from pipelines.engine.backend import Backend, FaultKind, Stage
from pipelines.errors import CaptureFailedError
from pipelines.model.lcm import Lcm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipelines.device.captures import Captures
    from pipelines.device.cuda_graphs import Graphs, Size
    from pipelines.device.streams import Stream
    from pipelines.engine.backend import Event, Pixels
    from pipelines.messages import GenerationParams
    from pipelines.model.calls import Calls
    from pipelines.model.functions import ModelFunctions
    from pipelines.model.lcm import Conditioning
    from pipelines.model.trajectory import Start, Trajectory
    from pipelines.weights.checkpoint import LoadedCheckpoint

    Pictures: TypeAlias = tuple[Pixels, list[bool], list[bool]]

logger = logging.getLogger(__name__)

# Submitted steps whose end is not waited for: the last one, which keeps the device busy while the loop decides.
_STEPS_AHEAD = 1

# A UNet of more parameters needs gigabytes for a request and seconds to make a picture. A smaller one keeps its memory:
# to get it from the system again would take a third of its time.
_LARGE = 100_000_000

# What a bare RuntimeError says when memory is out: the CPU allocators (c10/core/impl/alloc_cpu.cpp), and libraries that
# allocate beside torch.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "MPS backend out of memory",
)


class TorchBackend(Lcm, Backend):
    """Denoising steps run in one stream of the device, all work on pictures in another.

    Two kinds of tensors cross between streams: a trajectory's, made beside the steps and then read by them (`begun`),
    and the latents that a step leaves, which decoding reads. All others stay in their stream.
    """

    def __init__(
        self,
        model: LoadedCheckpoint,
        functions: ModelFunctions | None = None,
        its_streams: tuple[Stream, Stream] | None = None,
        graphs: Graphs | None = None,
        calls: Calls | None = None,
    ) -> None:
        super().__init__(model, functions, calls)
        self.graphs = graphs
        self.captures: Captures | None = None
        self.memory_budget = MemoryBudget(math.inf)
        self._steps, self._pictures = its_streams or streams.streams_for(model.device)
        self._ahead: deque[Event] = deque()
        self._large = sum(weight.numel() for weight in model.unet.parameters()) > _LARGE

    def captured(self, functions: ModelFunctions, calls: Calls, graphs: Graphs) -> TorchBackend:
        """Return this backend with functions and calls captured in `graphs`. Both share streams and memory budget."""
        backend = TorchBackend(self.model, functions, (self._steps, self._pictures), graphs, calls)
        backend.memory_budget = self.memory_budget
        return backend

    @property
    def overlaps(self) -> bool:
        """Whether pictures are made beside steps."""
        return self._steps is not self._pictures

    def share_memory(self, nbytes: float) -> None:
        """Divide bytes among the stages that may run at once, one for each stream."""
        self.memory_budget.budget = nbytes / (1 + self.overlaps)
        logger.info("memory: %s", self.memory_budget)

    def settle(self) -> None:
        """Return when the device has nothing left to do."""
        for stream in (self._steps, self._pictures):
            stream.record_event().wait()

    # --- stages, each in its stream ----------------------------------------------------------------------------------

    @override
    def prepare(self, params: GenerationParams) -> Conditioning:
        with self._pictures.use():
            return super().prepare(params)

    @override
    def encode(self, items: Sequence[tuple[GenerationParams, Conditioning, Pixels, Start | int]]) -> list[Trajectory]:
        with self._pictures.use():
            trajectories = super().encode(items)
        begun = self._pictures.record_event()
        for trajectory in trajectories:
            trajectory.begun = begun
        return trajectories

    @override
    def step(self, trajectories: Sequence[Trajectory]) -> None:
        self._follow_pictures(trajectories)
        with self._steps.use():
            super().step(trajectories)
        stepped = self._steps.record_event()
        for trajectory in trajectories:
            trajectory.stepped = stepped
        self._ahead.append(stepped)
        if len(self._ahead) > _STEPS_AHEAD:
            self._ahead.popleft().wait()

    @override
    def decode(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        self._follow_steps(trajectories)
        with self._pictures.use():
            return super().decode(trajectories)

    @override
    def decode_exactly(self, trajectories: Sequence[Trajectory]) -> torch.Tensor | None:
        with self._pictures.use():  # which has waited for these trajectories in `decode`
            return super().decode_exactly(trajectories)

    @override
    def finite(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        with self._pictures.use():
            return super().finite(trajectories)

    @override
    def check(self, pixels: torch.Tensor) -> torch.Tensor:
        with self._pictures.use():
            return super().check(pixels)

    def _follow_pictures(self, trajectories: Sequence[Trajectory]) -> None:
        """Let steps wait for what begins these trajectories."""
        for trajectory in trajectories:
            if trajectory.begun is not None:
                self._steps.wait_event(trajectory.begun, *trajectory.tensors)
                trajectory.begun = None

    def _follow_steps(self, trajectories: Sequence[Trajectory]) -> None:
        """Let pictures wait for the last step of these trajectories."""
        for trajectory in trajectories:
            if trajectory.stepped is not None:
                self._pictures.wait_event(trajectory.stepped, trajectory.denoised)
                trajectory.stepped = None

    # --- what the loop must know -------------------------------------------------------------------------------------

    @override
    def fetch(self, pixels: torch.Tensor, finite: torch.Tensor, unsafe: torch.Tensor) -> Callable[[], Pictures]:
        with self._pictures.use():
            copies = [self._pictures.to_host(tensor) for tensor in (pixels, finite, unsafe)]
        arrived = self._pictures.record_event()

        def wait() -> Pictures:
            arrived.wait()
            pictures, numbers, flags = copies
            return pictures.numpy(), numbers.tolist(), flags.tolist()

        return wait

    @override
    def record_event(self, stage: Stage) -> Event:
        return (self._steps if stage == Stage.STEP else self._pictures).record_event()

    @override
    def follow(self, stage: Stage, trajectories: Sequence[Trajectory]) -> Event | None:
        if not self.overlaps:
            return None
        if stage == Stage.STEP:
            self._follow_pictures(trajectories)
        else:
            self._follow_steps(trajectories)
        return self.record_event(stage)

    @override
    @contextlib.contextmanager
    def learning(self, stage: Stage, pixels: int) -> Iterator[None]:
        if self.model.device.type != "cpu":  # measured before its graphs were captured (`loader.profile_memory`)
            yield
            return
        with Counter() as counter:
            yield
        self.memory_budget.note(stage, pixels, 1, counter.most)
        logger.info("memory: %s", self.memory_budget)

    @override
    def room(self, stage: Stage, size: Size, most: int) -> int:
        height, width = size
        stage = Stage.DECODE if stage is Stage.PREVIEW else stage
        captured = min(most, self._captured(stage, size))  # what is captured has its memory
        if stage is Stage.DECODE and captured:
            return captured  # no more: the first pictures are on their way while the next are made
        return max(captured, self.memory_budget.rows(stage, height * width, most))

    def _captured(self, stage: Stage, size: Size) -> int:
        """Return the most rows for which all that a stage calls is captured."""
        if self.graphs is None:
            return 0
        checks = stage is Stage.DECODE and self.functions.flags is not None
        return min(self.graphs.captured(name, size) for name in ([stage, Stage.SAFETY] if checks else [stage]))

    @override
    def diagnose(self, error: Exception) -> FaultKind:
        # Out of memory is torch's own error or an allocator's; any other error of the device outlives its call.
        if is_out_of_memory(error):
            return FaultKind.OUT_OF_MEMORY
        if isinstance(error, torch.AcceleratorError | CaptureFailedError) or "CUDA error" in str(error):
            return FaultKind.DEVICE_LOST
        return FaultKind.OTHER

    @override
    def relieve(self) -> bool:
        return self.captures is not None and self.captures.give_up()

    @override
    def rest(self) -> None:
        if self.model.device.type == "cpu" and self._large:
            devices.give_back_freed_memory()

    @override
    def idle(self, seconds: float) -> None:
        if self.captures is not None:
            self.captures.idle(seconds)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out: torch's own error, or an allocator's in a bare RuntimeError.

    A capture that failed for it does not count: without graphs there may be enough.
    """
    words = "" if isinstance(error, CaptureFailedError) else str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in words for sign in _OUT_OF_MEMORY)
