"""Captured shapes: what a device can replay as a whole, without being told kernel by kernel.

A UNet call of SD1.5 is some 900 kernels, which Python and the driver take longer to launch than an H100 to run. A CUDA
graph launches them at once, but holds for one shape only. So the stages' functions, which take and give tensors
[rows, …], are captured for a few numbers of rows and the sizes that most requests have; a call is padded to the next
number of rows, replayed, and cut back. Everything else runs as it is, slower.

    learning    calls made meanwhile are captured: that is how a device is warmed up
    can_use     whether a call has a graph
    replay      inputs in, graph run, outputs out
    evict       give up the size that was not used for longest: when the budget is spent, or memory has run out

Padding rows hold whatever was there before. No row reads another, so they change nothing but the time.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Tensors: TypeAlias = tuple[Tensor, ...]
    Run: TypeAlias = Callable[..., Any]

Size: TypeAlias = tuple[int, int]

logger = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8)

# Runs before a capture: the first one loads kernels and lets cuDNN choose, which a capture must not contain.
REHEARSALS = 2


class Graph(Protocol):
    """A function captured for one shape. `nbytes`: by how much it made the device's memory in use grow."""

    nbytes: int

    def replay(self, inputs: Tensors) -> Any:
        """The function's outputs for inputs of at most the captured number of rows; the caller's to keep."""

    def destroy(self) -> None:
        """Give everything back. No replay comes after it."""


class Capture(Protocol):
    """How a device captures."""

    def pool(self) -> Any:
        """Memory for graphs of which never two run at once, and whose outputs nobody reads after the next replay."""

    def capture(self, run: Run, inputs: Tensors, pool: Any) -> Graph:
        """`run` for inputs of this shape. Raises `torch.OutOfMemoryError` where there is no room."""


class Captured:
    """What is captured for one size of picture: graphs by function and number of rows, in one pool."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.graphs: dict[tuple[str, int], Graph] = {}

    def destroy(self) -> None:
        """Destroy all of them, and with the last one the pool."""
        for graph in self.graphs.values():
            graph.destroy()
        self.graphs.clear()


class Graphs:
    """All that is captured on a device, within `budget` bytes. Used from the device's thread."""

    def __init__(self, device: Capture, budget: int, rows: tuple[int, ...] = ROWS) -> None:
        self._device = device
        self._budget = budget
        self._rows = tuple(sorted(rows))
        self._learning = False
        self._held: OrderedDict[Size, Captured] = OrderedDict()  # the one used last comes last

    def wrap(self, name: str, run: Run, size: Callable[[Tensor], Size]) -> Run:
        """`run` with its shapes captured: a function of tensors [rows, …] that returns one such, or a tuple of them.

        `size` tells from the first of them how large the pictures are.
        """

        def call(*inputs: Tensor) -> Any:
            rows, wanted = len(inputs[0]), size(inputs[0])
            if self._learning and not self.can_use(name, rows, wanted):
                self._learn(name, wanted, run, inputs)
            if not self.can_use(name, rows, wanted):
                return run(*inputs)
            self._held.move_to_end(wanted)
            graph = self._held[wanted].graphs[name, self.bucket(rows)]
            return cut(graph.replay(inputs), rows)

        return call

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """Meanwhile every call of a new shape is captured."""
        self._learning = True
        try:
            yield
        finally:
            self._learning = False

    def bucket(self, rows: int) -> int:
        """The smallest number of rows that is captured and holds so many; 0 if there is none."""
        return next((bucket for bucket in self._rows if bucket >= rows), 0)

    def can_use(self, name: str, rows: int, size: Size) -> bool:
        """Whether the function wrapped as `name` has a graph for so many rows at this size."""
        return size in self._held and (name, self.bucket(rows)) in self._held[size].graphs

    @property
    def nbytes(self) -> int:
        """What all graphs hold on the device."""
        return sum(graph.nbytes for captured in self._held.values() for graph in captured.graphs.values())

    def evict(self) -> bool:
        """Destroy the graphs of the size that was not used for longest. False if there is none."""
        if not self._held:
            return False
        _, captured = self._held.popitem(last=False)
        captured.destroy()
        return True

    def destroy(self) -> None:
        """Destroy all."""
        while self.evict():
            pass

    def _learn(self, name: str, size: Size, run: Run, inputs: Tensors) -> None:
        """Capture a shape, evicting other sizes where it does not fit in. Where nothing helps it stays uncaptured."""
        rows = self.bucket(len(inputs[0]))
        if not rows:
            return
        if size not in self._held:
            self._held[size] = Captured(self._device.pool())
        self._held.move_to_end(size)
        captured = self._held[size]
        while (graph := self._try(captured, run, tuple(pad(tensor, rows) for tensor in inputs))) is None:
            if not self._evict_other(size):
                logger.warning("no room to capture %s for %d rows of %d×%d", name, rows, *size)
                return
        captured.graphs[name, rows] = graph
        while self.nbytes > self._budget and self._evict_other(size):
            pass
        if self.nbytes > self._budget:
            captured.graphs.pop((name, rows)).destroy()
            logger.warning("no room in the budget for %s, %d rows of %d×%d", name, rows, *size)

    def _try(self, captured: Captured, run: Run, inputs: Tensors) -> Graph | None:
        try:
            return self._device.capture(run, inputs, captured.pool)
        except torch.OutOfMemoryError:
            return None

    def _evict_other(self, size: Size) -> bool:
        return next(iter(self._held)) != size and self.evict()


def pad(tensor: Tensor, rows: int) -> Tensor:
    """[n, …] → [rows, …], the last row repeated."""
    return torch.cat([tensor, tensor[-1:].expand(rows - len(tensor), *tensor.shape[1:])])


def cut(outputs: Any, rows: int) -> Any:
    """The first rows of a tensor, or of each of a tuple; None stays."""
    if isinstance(outputs, tuple):
        return tuple(cut(output, rows) for output in outputs)
    return None if outputs is None else outputs[:rows]


class Cuda:
    """A `Capture`: CUDA's graphs."""

    def pool(self) -> Any:
        """See `Capture`."""
        return torch.cuda.graph_pool_handle()

    def capture(self, run: Run, inputs: Tensors, pool: Any) -> Graph:
        """See `Capture`."""
        return CudaGraph(run, inputs, pool)


class CudaGraph:
    """A `Graph`: `torch.cuda.CUDAGraph` with the tensors that it reads and writes."""

    def __init__(self, run: Run, inputs: Tensors, pool: Any) -> None:
        before = torch.cuda.memory_reserved()
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        self._graph = torch.cuda.CUDAGraph()
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own
        stream.wait_stream(torch.cuda.current_stream())
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            with torch.cuda.stream(stream):
                for _ in range(REHEARSALS):
                    run(*self._inputs)
            torch.cuda.current_stream().wait_stream(stream)
            # Codec threads may allocate pinned memory meanwhile: only this thread's calls can spoil the capture.
            with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._outputs = run(*self._inputs)
        self.nbytes = torch.cuda.memory_reserved() - before

    def replay(self, inputs: Tensors) -> Any:
        """See `Graph`."""
        for held, given in zip(self._inputs, inputs, strict=True):
            held[: len(given)].copy_(given, non_blocking=True)
        self._graph.replay()
        # The next replay of any graph of this pool may write over the outputs.
        return clone(self._outputs)

    def destroy(self) -> None:
        """See `Graph`."""
        self._graph.reset()
        self._inputs, self._outputs = (), None
        torch.cuda.empty_cache()


def clone(outputs: Any) -> Any:
    """A copy of a tensor, or of each of a tuple; None stays."""
    if isinstance(outputs, tuple):
        return tuple(clone(output) for output in outputs)
    return None if outputs is None else outputs.clone()
