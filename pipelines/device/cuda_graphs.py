"""Captured shapes: what a device can replay as a whole, without being told kernel by kernel.

A UNet call of SD1.5 is some 900 kernels, which Python and the driver take longer to launch than an H100 to run. A CUDA
graph launches them at once, but holds for one shape only. So the stages' functions, which take and give tensors
[rows, …], are captured for a few numbers of rows and the sizes that most requests have; a call with fewer rows than
were captured fills only its own, and its outputs are cut back. Everything else runs as it is, slower.

    learning    calls made meanwhile are captured: that is how a device is warmed up
    replay      inputs in, graph run, outputs out
    evict       give all of them up, where one picture alone has no room beside them

Rows that a call does not fill hold whatever was there before. No row reads another, so they change nothing but the
time.

Graphs of one lane (`pipelines.device.streams`) never run at once, so they share one pool of memory: it is as large as
the largest of them needs, not as all of them together. Graphs of different lanes do run at once and share nothing.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Tensors: TypeAlias = tuple[Tensor, ...]
    Run: TypeAlias = Callable[..., Any]

Size: TypeAlias = tuple[int, int]

logger = logging.getLogger(__name__)

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
        """Memory for graphs of which never two run at once."""

    def capture(self, run: Run, inputs: Tensors, pool: Any) -> Graph:
        """`run` for inputs of this shape. Raises `torch.OutOfMemoryError` where there is no room."""


class Graphs:
    """All that is captured on a device, within `budget` bytes. Used from the device's thread."""

    def __init__(self, device: Capture, budget: int) -> None:
        self._device = device
        self._budget = budget
        self._learning = False
        self._pools: dict[str, Any] = {}
        self._held: dict[tuple[str, Size], dict[int, Graph]] = {}  # by rows

    def wrap(
        self, name: str, run: Run, size: Callable[[Tensor], Size], *, stream: str = "", form: Run | None = None
    ) -> Run:
        """`run` with its shapes captured: a function of tensors [rows, …] that returns one such, or a tuple of them.

        `size` tells from the first of them how large the pictures are, `stream` whose calls it never runs beside.
        `form` is captured in its place: the same function, compiled.
        """

        def call(*inputs: Tensor) -> Any:
            rows, wanted = len(inputs[0]), size(inputs[0])
            if self._learning and rows not in self._held.get((name, wanted), {}):
                self._learn(name, wanted, form or run, inputs, stream)
            graph = self._graph(name, rows, wanted)
            return run(*inputs) if graph is None else cut(graph.replay(inputs), rows)

        return call

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """Meanwhile every call of a new shape is captured, the most wanted ones first: nothing makes room for them."""
        self._learning = True
        try:
            yield
        finally:
            self._learning = False

    @property
    def nbytes(self) -> int:
        """What all graphs hold on the device."""
        return sum(graph.nbytes for graphs in self._held.values() for graph in graphs.values())

    def evict(self) -> bool:
        """Destroy all: they share their memory, so that less gives nothing back. False if there were none."""
        graphs = [graph for held in self._held.values() for graph in held.values()]
        for graph in graphs:
            graph.destroy()
        self._held.clear()
        self._pools.clear()
        return bool(graphs)

    def _graph(self, name: str, rows: int, size: Size) -> Graph | None:
        """Return the smallest one with at least that number of rows."""
        held = self._held.get((name, size), {})
        enough = [captured for captured in held if captured >= rows]
        return held[min(enough)] if enough else None

    def _learn(self, name: str, size: Size, run: Run, inputs: Tensors, stream: str) -> None:
        """Capture a shape. What has no room or can't be captured runs as it is."""
        what = f"{name} for {len(inputs[0])} rows of {size[0]}×{size[1]}"
        if stream not in self._pools:
            self._pools[stream] = self._device.pool()
        try:
            graph = self._device.capture(run, inputs, self._pools[stream])
        except torch.OutOfMemoryError:
            logger.warning("no room to capture %s", what)
            return
        except RuntimeError as error:
            logger.warning("can't capture %s, it runs slower: %s", what, error)
            return
        if self.nbytes + graph.nbytes > self._budget:
            graph.destroy()
            logger.warning("no room in the budget for %s", what)
            return
        self._held.setdefault((name, size), {})[len(inputs[0])] = graph


def cut(outputs: Any, rows: int) -> Any:
    """The first rows of a tensor, or of each of a tuple; None stays."""
    if isinstance(outputs, tuple):
        return tuple(cut(output, rows) for output in outputs)
    return None if outputs is None else outputs[:rows]


class Cuda:
    """A `Capture`: CUDA's graphs. `exact`: kernels that always sum in the same order, in whichever process."""

    def __init__(self, *, exact: bool = False) -> None:
        self._exact = exact

    def pool(self) -> Any:
        """See `Capture`."""
        return torch.cuda.graph_pool_handle()

    def capture(self, run: Run, inputs: Tensors, pool: Any) -> Graph:
        """See `Capture`. The current stream must be the lane's own: graphs share memory and scratch by stream."""
        cudnn: Any = torch.backends.cudnn
        chooses, cudnn.benchmark = cudnn.benchmark, not self._exact
        try:
            return CudaGraph(run, inputs, pool)
        finally:
            cudnn.benchmark = chooses


class CudaGraph:
    """A `Graph`: `torch.cuda.CUDAGraph` with the tensors that it reads and writes."""

    def __init__(self, run: Run, inputs: Tensors, pool: Any) -> None:
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        for _ in range(REHEARSALS):
            run(*self._inputs)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # else what the rehearsals leave behind would hide what the graph takes
        before = torch.cuda.memory_reserved()
        self._graph = torch.cuda.CUDAGraph()
        # On this very stream: memory is shared within a pool only by captures of one stream, and cuBLAS keeps its
        # scratch by stream. Codec threads may allocate pinned memory meanwhile: only this thread's calls can spoil it.
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._outputs = run(*self._inputs)
        self.nbytes = torch.cuda.memory_reserved() - before

    def replay(self, inputs: Tensors) -> Any:
        """See `Graph`."""
        for held, given in zip(self._inputs, inputs, strict=True):
            held[: len(given)].copy_(given, non_blocking=True)
        self._graph.replay()
        # The next replay writes over the outputs.
        return clone(self._outputs)

    def destroy(self) -> None:
        """See `Graph`."""
        torch.cuda.synchronize()  # its last replay may still run
        self._graph.reset()
        self._inputs, self._outputs = (), None
        torch.cuda.empty_cache()


def clone(outputs: Any) -> Any:
    """A copy of a tensor, or of each of a tuple; None stays."""
    if isinstance(outputs, tuple):
        return tuple(clone(output) for output in outputs)
    return None if outputs is None else outputs.clone()
